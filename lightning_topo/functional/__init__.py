"""The mathematics: tensors in, frozen dataclasses out; no Lightning."""

from lightning_topo.functional.betti import betti_at_scale, betti_numbers
from lightning_topo.functional.betti_curves import betti_curves, longest_bar_scale
from lightning_topo.functional.bi_lipschitz import BiLipschitz, bi_lipschitz
from lightning_topo.functional.bottleneck import bottleneck_distance
from lightning_topo.functional.certificate import certified_betti
from lightning_topo.functional.critical_multiple import CriticalMultiple, critical_multiple
from lightning_topo.functional.distinct import distinct_neurons
from lightning_topo.functional.dormant import dormant_share
from lightning_topo.functional.effective_rank import effective_rank
from lightning_topo.functional.persistence import Persistence, persistence
from lightning_topo.functional.sampling import farthest_point_sample
from lightning_topo.functional.sharpness import sharpness
from lightning_topo.functional.summaries import persistence_entropy, total_persistence

__all__ = [
    "BiLipschitz",
    "CriticalMultiple",
    "Persistence",
    "betti_at_scale",
    "betti_curves",
    "betti_numbers",
    "bi_lipschitz",
    "bottleneck_distance",
    "certified_betti",
    "critical_multiple",
    "distinct_neurons",
    "dormant_share",
    "effective_rank",
    "farthest_point_sample",
    "longest_bar_scale",
    "persistence",
    "persistence_entropy",
    "sharpness",
    "total_persistence",
]
