"""The search for the critical learning rate: pure search, its result, its Lightning adapter."""

from lightning_topo.finder.callback import TopologicalLearningRateFinder
from lightning_topo.finder.lr_find import topological_lr_find
from lightning_topo.finder.result import TopologicalLRResult, Trial
from lightning_topo.finder.search import CriticalRateSearch, SearchState

__all__ = [
    "CriticalRateSearch",
    "SearchState",
    "TopologicalLRResult",
    "TopologicalLearningRateFinder",
    "Trial",
    "topological_lr_find",
]
