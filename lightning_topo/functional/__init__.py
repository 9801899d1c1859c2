"""The mathematics: tensors in, frozen dataclasses out; no Lightning."""

from lightning_topo.functional.betti import betti_at_scale, betti_numbers
from lightning_topo.functional.bi_lipschitz import BiLipschitz, bi_lipschitz
from lightning_topo.functional.persistence import Persistence, persistence
from lightning_topo.functional.sampling import farthest_point_sample
from lightning_topo.functional.sharpness import sharpness

__all__ = [
    "BiLipschitz",
    "Persistence",
    "betti_at_scale",
    "betti_numbers",
    "bi_lipschitz",
    "farthest_point_sample",
    "persistence",
    "sharpness",
]
