"""The options of a search for the critical learning rate, validated once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_topo.finder.result import DEFAULT_SAFETY
from lightning_topo.finder.search import CriticalRateSearch
from lightning_topo.finder.share_search import ShareSearch
from lightning_topo.neurons import NeuronGroup


@dataclass(frozen=True)
class SearchOptions:
    """What to search for, and what to do with what was found.

    The options of ``TopologicalLearningRateFinder``, where they are described one by one.

    Args:
        min_lr: Smallest base learning rate to try.
        max_lr: Largest base learning rate to try; the search starts there.
        hold_steps: Optimizer steps for which a rate has to hold.
        tolerance: The bracket around η* is closed when its ends are within a factor of 1 + tolerance.
        safety: Share of η* to train at, in (0, 1], or ``"auto"``: chosen by short trials.
        groups: Neuron groups to watch.
        orders: Batch orders over which a rate has to hold.
        update_attr: Whether to train at the suggestion.
        attr_name: Attribute that holds the learning rate.
        trial_steps: Optimizer steps of each short trial, at least 5.
        schedule: Whether trials follow the run's own schedule.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> SearchOptions(max_lr=1.0).search()
        CriticalRateSearch(min_lr=1e-08, max_lr=1.0, tolerance=0.1, warm_up=())
    """

    min_lr: float = 1e-8
    max_lr: float = 100.0
    hold_steps: int = 50
    tolerance: float = 0.1
    safety: float | Literal["auto"] = "auto"
    groups: str | list[str] | list[NeuronGroup] | None = None
    orders: int = 1
    update_attr: bool = True
    attr_name: str = ""
    trial_steps: int = 25
    schedule: bool = True

    def __post_init__(self) -> None:
        self.search()  # which checks the rates and the tolerance
        for name, value in (("hold_steps", self.hold_steps), ("orders", self.orders)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        ShareSearch(self.trial_steps)  # which checks them
        if self.safety == "auto":
            return
        if isinstance(self.safety, (str, bool)) or not 0 < self.safety <= 1:
            raise ValueError(
                f'expected safety to be "auto" or a number in (0, 1], got {self.safety!r}; it is the share of η* to '
                'train at, which "auto" chooses by short trials'
            )

    @property
    def share(self) -> float:
        """The share of η* to train at where no trials choose it."""
        return DEFAULT_SAFETY if self.safety == "auto" else self.safety

    def search(self, warm_up: tuple[float, ...] = ()) -> CriticalRateSearch:
        """The pure search of these options, in trials of such a warm-up."""
        return CriticalRateSearch(self.min_lr, self.max_lr, self.tolerance, warm_up)
