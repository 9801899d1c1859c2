"""The options of a search for the critical learning rate, validated once."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_topo.finder.result import DEFAULT_SAFETY
from lightning_topo.finder.search import CriticalRateSearch
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
        safety: Share of η* to train at, in (0, 1].
        groups: Neuron groups to watch.
        orders: Batch orders over which a rate has to hold.
        update_attr: Whether to train at the suggestion.
        attr_name: Attribute that holds the learning rate.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> SearchOptions(max_lr=1.0).search()
        CriticalRateSearch(min_lr=1e-08, max_lr=1.0, tolerance=0.1)
    """

    min_lr: float = 1e-8
    max_lr: float = 100.0
    hold_steps: int = 50
    tolerance: float = 0.1
    safety: float = DEFAULT_SAFETY
    groups: str | list[str] | list[NeuronGroup] | None = None
    orders: int = 1
    update_attr: bool = True
    attr_name: str = ""

    def __post_init__(self) -> None:
        self.search()  # which checks the rates and the tolerance
        for name, value in (("hold_steps", self.hold_steps), ("orders", self.orders)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        if not 0 < self.safety <= 1:
            raise ValueError(f"expected 0 < safety <= 1, got {self.safety}; it is the share of η* to train at")

    def search(self) -> CriticalRateSearch:
        """The pure search of these options."""
        return CriticalRateSearch(self.min_lr, self.max_lr, self.tolerance)
