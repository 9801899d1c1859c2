"""The shape of a learning-rate schedule: which part of the full rate an update is made at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

ScheduleName = Literal["auto", "cosine", "linear", "constant"]
Shape = Callable[[int], float]

# Part of the run in which the rate rises to its full height.
WARM_UP = 0.1


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
