"""The search for the critical learning rate: pure search, its result, its trials, and the state of a run put back."""

from lightning_topo.finder.lr_find import topological_lr_find
from lightning_topo.finder.options import SearchOptions
from lightning_topo.finder.overruled import RateWatch
from lightning_topo.finder.rate_finder import RateFinder
from lightning_topo.finder.result import TopologicalLRResult, Trial
from lightning_topo.finder.run_identity import RunIdentity
from lightning_topo.finder.schedule import Schedule
from lightning_topo.finder.search import CriticalRateSearch, SearchState
from lightning_topo.finder.share_search import ShareSearch, ShareTrial

__all__ = [
    "CriticalRateSearch",
    "RateFinder",
    "RateWatch",
    "RunIdentity",
    "Schedule",
    "SearchOptions",
    "SearchState",
    "ShareSearch",
    "ShareTrial",
    "TopologicalLRResult",
    "Trial",
    "topological_lr_find",
]
