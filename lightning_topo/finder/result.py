"""What a search for the critical learning rate found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from lightning_topo.finder.share_search import ShareTrial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Status = Literal["found", "not_reached", "below_min"]

# Where no trials choose it: of the shares tried on the benchmark, the largest at which no task ended at chance or
# diverged (benchmarks/finder.py).
DEFAULT_SAFETY = 0.25


_ALTERNATING = "rates that hold and rates that break alternate there: a lower one broke sooner than a higher one"


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

    @property
    def where(self) -> str:
        """Where and how a rate broke, in words; empty for one that held."""
        if self.held:
            return ""
        if self.group is None:
            return f"(not finite after update {self.broke_at_step})"
        return f"(criticality {self.max_criticality:.3g} in {self.group} at update {self.broke_at_step})"


@dataclass(frozen=True, repr=False)
class TopologicalLRResult:
    """The critical learning rate η* of a training run, and the trials that bracket it.

    Attributes:
        status: ``"found"``; ``"not_reached"`` when even the largest rate allowed held; ``"below_min"`` when even the
            smallest broke.
        bracket: The largest rate that held (0 if none) and the smallest above it that broke (``inf`` if none).
        trials: Every trial, in the order in which they were made.
        safety: Share of η* that is suggested, in (0, 1].
        share_trials: The short trials by whose losses that share was chosen; empty where it was given.
        chosen: How it was chosen, in words.
        schedule: The schedule that the trials followed, in words.
        alternating: Whether rates that hold and rates that break alternate near η*: the smallest rate that broke did so
            sooner than a higher one. The batches decide there which rates hold, and the bracket may be left wider than
            the tolerance, by its square at most. Every rate that was seen to break is above it all the same.
        seconds: How long the search took; it is neither compared nor saved.
    """

    status: Status
    bracket: tuple[float, float]
    trials: tuple[Trial, ...]
    safety: float = DEFAULT_SAFETY
    share_trials: tuple[ShareTrial, ...] = ()
    chosen: str = ""
    schedule: str = "constant"
    alternating: bool = False
    seconds: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return "\n  ".join(["TopologicalLRResult", *self.lines()])

    def lines(self) -> list[str]:
        """What was found, in a few plain lines."""
        low, high = self.bracket
        broke = next((f" {trial.where}" for trial in self.trials if trial.lr == high and not trial.held), "")
        if self.status == "not_reached":
            found = [f"critical learning rate not reached: held at {low:.3g}, the largest that was allowed"]
        elif self.status == "below_min":
            found = [f"critical learning rate below {high:.3g}, the smallest that was allowed, which broke{broke}"]
        else:
            how = f", {self.chosen}" if self.chosen else ""
            found = [
                f"critical learning rate {self.critical_lr:.3g}: held at {low:.3g}, broke at {high:.3g}{broke}",
                f"suggestion {self.suggestion():.3g}, a share of {self.safety:.3g} of it{how}",
            ]
        count = len(self.trials) + len(self.share_trials)
        if self.alternating:
            found.insert(1, _ALTERNATING)
        return [
            *found,
            f"schedule of the trials: {self.schedule}",
            f"{count} trials, {self.total_steps} optimizer steps",
        ]

    @property
    def critical_lr(self) -> float | None:
        """η*, the geometric centre of the bracket, in units of the model's base learning rate; None if not found.

        The centre is off by at most half the bracket's width either way; ``bracket[0]`` is the rate known to hold.
        """
        return math.sqrt(self.bracket[0] * self.bracket[1]) if self.status == "found" else None

    @property
    def total_steps(self) -> int:
        """Optimizer steps spent on all trials."""
        return sum(trial.steps for trial in self.trials) + sum(trial.steps for trial in self.share_trials)

    def suggestion(self, safety: float | None = None) -> float | None:
        """Suggest a learning rate, ``safety · η*``.

        Args:
            safety: Share of η*, in (0, 1]; default the result's own, the one that was chosen.

        Returns:
            The rate, or None where η* was not found.

        Raises:
            ValueError: When ``safety`` is out of range.

        Example:
            >>> TopologicalLRResult("found", (0.1, 0.1), ()).suggestion()
            0.025
        """
        safety = self.safety if safety is None else safety
        if not 0 < safety <= 1:
            raise ValueError(f"expected 0 < safety <= 1, got {safety}")
        return None if self.critical_lr is None else safety * self.critical_lr

    def plot(
        self, ax: Axes | None = None, suggest: bool = True, show: bool = False, *, safety: float | None = None
    ) -> Axes:
        """Plot the trials near η*: their largest κ, and below it the course of their losses; see ``plot_lr_search``.

        Args:
            ax: Axes to draw on, default those of a new figure.
            suggest: Whether to mark the suggestion.
            show: Whether to open the figure in a window.
            safety: Share of η* that is suggested; default the result's own.

        Returns:
            The axes of κ.
        """
        from lightning_topo.plots.finder import plot_lr_search

        return plot_lr_search(self, ax, suggest=suggest, show=show, safety=safety)

    def to_dict(self) -> dict[str, Any]:
        """The result as dictionaries, lists, strings and finite numbers; ``inf`` and ``nan`` become strings."""
        return {
            "status": self.status,
            "critical_lr": self.critical_lr,
            "bracket": [_encode(rate) for rate in self.bracket],
            "safety": self.safety,
            "total_steps": self.total_steps,
            "trials": [_plain(trial) for trial in self.trials],
            "share_trials": [_plain(trial) for trial in self.share_trials],
            "chosen": self.chosen,
            "schedule": self.schedule,
            "alternating": self.alternating,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TopologicalLRResult:
        """Rebuild the result that ``to_dict`` wrote; entries that are not known are left out.

        Raises:
            ValueError: When the values are not those of a result.
        """
        try:
            low, high = (float(rate) for rate in values["bracket"])
            safety = float(values.get("safety", DEFAULT_SAFETY))
            result = cls(
                values["status"],
                (low, high),
                tuple(map(_trial, values["trials"])),
                safety,
                tuple(map(_share_trial, values.get("share_trials", ()))),
                str(values.get("chosen", "")),
                str(values.get("schedule", "constant")),
                bool(values.get("alternating", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"expected what TopologicalLRResult.to_dict wrote, got {values!r:.80}") from error
        ends = {"found": 0 < low <= high < math.inf, "not_reached": low > 0, "below_min": low == 0 < high}
        if not isinstance(result.status, str) or not ends.get(result.status, False):
            raise ValueError(f"expected a bracket of a search that ended, got {result.status!r}, {low:g} to {high:g}")
        return result if 0 < safety <= 1 else replace(result, safety=DEFAULT_SAFETY)


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


def _share_trial(values: dict[str, Any]) -> ShareTrial:
    losses = tuple(float(loss) for loss in values["losses"])
    return ShareTrial(float(values["lr"]), losses, int(values["steps"]), float(values["loss"]))


def _plain(trial: Trial | ShareTrial) -> dict[str, Any]:
    return {key: _encode(value) for key, value in asdict(trial).items()}


def _encode(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
