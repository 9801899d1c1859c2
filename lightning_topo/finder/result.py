"""What a search for the critical learning rate found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Status = Literal["found", "not_reached", "below_min"]

# Of the shares tried on the benchmark, the largest at which no task ended at chance or diverged (benchmarks/finder.py).
DEFAULT_SAFETY = 0.25


@dataclass(frozen=True)
class Trial:
    """One base learning rate, held from the same start over the same batches until it breaks or has held.

    Attributes:
        lr: The base learning rate.
        held: Whether every update was one-to-one on the neurons of every group.
        broke_at_step: The update (0 is the first) at which it broke, or None.
        max_criticality: The largest κ that was evaluated, ``inf`` where the loss or a weight stopped being finite. For
            groups of more than a few hundred neurons a lower bound: pairs that are known to stay below 1 are left out.
        losses: The training loss of each batch that was run, in order.
        group: The neuron group that attained ``max_criticality``, or None.
        steps: Optimizer steps spent.
    """

    lr: float
    held: bool
    broke_at_step: int | None
    max_criticality: float
    losses: tuple[float, ...] = ()
    group: str | None = None
    steps: int = 0


@dataclass(frozen=True)
class TopologicalLRResult:
    """The critical learning rate η* of a training run, and the trials that bracket it.

    Attributes:
        status: ``"found"``; ``"not_reached"`` when even the largest rate allowed held; ``"below_min"`` when even the
            smallest broke.
        bracket: The largest rate that held (0 if none) and the smallest above it that broke (``inf`` if none).
        trials: Every trial, in the order in which they were made.
    """

    status: Status
    bracket: tuple[float, float]
    trials: tuple[Trial, ...]

    @property
    def critical_lr(self) -> float | None:
        """η*, the geometric centre of the bracket, in units of the model's base learning rate; None if not found.

        The centre is off by at most half the bracket's width either way; ``bracket[0]`` is the rate known to hold.
        """
        return math.sqrt(self.bracket[0] * self.bracket[1]) if self.status == "found" else None

    @property
    def total_steps(self) -> int:
        """Optimizer steps spent on all trials."""
        return sum(trial.steps for trial in self.trials)

    def suggestion(self, safety: float = DEFAULT_SAFETY) -> float | None:
        """Suggest a learning rate, ``safety · η*``.

        Args:
            safety: Share of η*, in (0, 1].

        Returns:
            The rate, or None where η* was not found.

        Raises:
            ValueError: When ``safety`` is out of range.

        Example:
            >>> TopologicalLRResult("found", (0.1, 0.1), ()).suggestion()
            0.025
        """
        if not 0 < safety <= 1:
            raise ValueError(f"expected 0 < safety <= 1, got {safety}")
        return None if self.critical_lr is None else safety * self.critical_lr

    def plot(self, ax: Axes | None = None, safety: float = DEFAULT_SAFETY) -> Axes:
        """Plot largest κ and last loss of each trial, the bracket, η* and the suggestion; see ``plot_lr_search``."""
        from lightning_topo.plots.finder import plot_lr_search

        return plot_lr_search(self, ax, safety=safety)

    def to_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists, strings and finite numbers; ``inf`` and ``nan`` become strings."""
        return {
            "status": self.status,
            "critical_lr": self.critical_lr,
            "bracket": [_encode(rate) for rate in self.bracket],
            "total_steps": self.total_steps,
            "trials": [{key: _encode(value) for key, value in asdict(trial).items()} for trial in self.trials],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TopologicalLRResult:
        """Rebuild the result that :meth:`to_dict` wrote; entries that are not known are left out.

        Raises:
            ValueError: When the values are not those of a result.
        """
        try:
            low, high = (float(rate) for rate in values["bracket"])
            result = cls(values["status"], (low, high), tuple(_trial(trial) for trial in values["trials"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"expected what TopologicalLRResult.to_dict wrote, got {values!r:.80}") from error
        ends = {"found": 0 < low <= high < math.inf, "not_reached": low > 0, "below_min": low == 0 < high}
        if not ends.get(result.status, False):
            raise ValueError(
                f"expected a bracket of a search that ended, got {result.status!r} and {low:g} to {high:g}"
            )
        return result


def _trial(values: dict[str, Any]) -> Trial:
    broke, group = values.get("broke_at_step"), values.get("group")
    return Trial(
        lr=float(values["lr"]),
        held=bool(values["held"]),
        broke_at_step=None if broke is None else int(broke),
        max_criticality=float(values["max_criticality"]),
        losses=tuple(float(loss) for loss in values.get("losses", ())),
        group=None if group is None else str(group),
        steps=int(values.get("steps", 0)),
    )


def _encode(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
