"""Parameters that several processes hold in pieces: the only place that knows FSDP, DTensor and DeepSpeed."""

from lightning_topo.sharding.collective import Sketch, collected_rows, sketches
from lightning_topo.sharding.pieces import Piece, flattened, held_here, piece_of
from lightning_topo.sharding.row_layout import RowLayout
from lightning_topo.sharding.strategies import (
    hides_optimizer_steps,
    hides_parameters,
    require_whole_updates,
    shards_parameters,
)
from lightning_topo.sharding.wrappers import (
    WRAPPED,
    canonical_name,
    deep_copy,
    is_engine,
    is_sharded,
    measured_model,
    unwrapped,
)

__all__ = [
    "WRAPPED",
    "Piece",
    "RowLayout",
    "Sketch",
    "canonical_name",
    "collected_rows",
    "deep_copy",
    "flattened",
    "held_here",
    "hides_optimizer_steps",
    "hides_parameters",
    "is_engine",
    "is_sharded",
    "measured_model",
    "piece_of",
    "require_whole_updates",
    "shards_parameters",
    "sketches",
    "unwrapped",
]
