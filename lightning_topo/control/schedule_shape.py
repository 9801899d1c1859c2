"""The shape of a learning-rate schedule: which part of the full rate an update is made at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

# Of η*, by docs/evidence/rates.md: with one setting the best of a sweep in the mean where the rate decays to the end of
# the run. Noise that a decay would take out asks for an eighth of it where the rate stays.
SHARE, SHARE_AT_CONSTANT = 0.2, 0.025

ScheduleName = Literal["auto", "cosine", "linear", "constant"]
Shape = Callable[[int], float]

# Part of the run in which the rate rises to its full height.
WARM_UP = 0.1


@dataclass(frozen=True)
class PlannedSchedule:
    """How the rate of a run goes.

    Attributes:
        name: ``"cosine"``, ``"linear"``, ``"constant"``, or ``"own"`` for what the optimizer's own rates do.
        share: Share of η* that suits it.
        shape: The part of the full rate by the number of the update; None for ``"own"``.
    """

    name: str
    share: float
    shape: Shape | None

    @classmethod
    def of_run(cls, name: str, total_updates: float, scheduled: bool) -> PlannedSchedule:
        """The schedule that is asked for.

        Args:
            name: As in ``schedule_shape``, or ``"auto"``: the optimizer's own where it is ``scheduled``, else the
                cosine, or a constant rate where the number of updates is not known.
            total_updates: Number of updates of the run; infinite where it is not known.
            scheduled: Whether a scheduler changes the optimizer's rates.

        Raises:
            ValueError: As in ``schedule_shape``.
        """
        if name == "auto" and scheduled:
            return cls("own", SHARE, None)
        if name == "auto":
            name = "cosine" if math.isfinite(total_updates) else "constant"
        share = SHARE_AT_CONSTANT if name == "constant" else SHARE
        return cls(name, share, schedule_shape(name, total_updates))


def schedule_shape(name: str, total_updates: float) -> Shape:
    r"""The shape of a schedule over a run of N updates.

    $$
    s(t) = \min\left(1, \frac{t + 1}{0.1 N}\right) \cdot d(t), \qquad
    d(t) = \tfrac12 (1 + \cos \tfrac{\pi t}{N}) \;\text{or}\; 1 - \tfrac{t}{N}
    $$

    Args:
        name: ``"cosine"`` or ``"linear"``, both after a warm-up over a tenth of the run; ``"constant"`` is 1 always.
        total_updates: Number of updates N of the run; infinite where it is not known.

    Raises:
        ValueError: When there is no such schedule, or it needs a length that is not known.

    Example:
        >>> shape = schedule_shape("linear", 100)
        >>> [round(shape(t), 3) for t in (0, 9, 50, 99)]
        [0.1, 0.91, 0.5, 0.01]
    """
    if name == "constant":
        return lambda update: 1.0
    if name not in ("cosine", "linear"):
        raise ValueError(f"expected schedule to be one of {', '.join(get_args(ScheduleName))}, got {name!r}")
    if not (math.isfinite(total_updates) and total_updates >= 1):
        raise ValueError(
            f"schedule={name!r} needs the number of updates of the run, which is not known; set max_steps of "
            "the Trainer, or max_epochs where the data have a length (total_steps outside of Lightning), or pass "
            'schedule="constant"'
        )
    decay = _cosine if name == "cosine" else _linear

    def shape(update: int) -> float:
        warm = min(1.0, (update + 1) / max(1.0, WARM_UP * total_updates))
        return warm * decay(min(1.0, update / total_updates))

    return shape


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1 - progress
