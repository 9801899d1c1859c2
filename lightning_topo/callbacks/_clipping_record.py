"""What step clipping did to one group, and its figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_topo.callbacks.log_keys import CLIPPING
from lightning_topo.clipping import GroupUpdate


@dataclass(frozen=True)
class ClippingRecord:
    """One update of one neuron group, one that was scaled back or one that was logged.

    Attributes:
        step: Step under which it is logged.
        group: Name of the neuron group.
        criticality_before: κ of the optimizer's own update; ``nan`` where it was certainly below the bound and not
            evaluated, ``inf`` where a parameter became NaN or infinite and the update was undone. Where it is logged,
            large groups far below the bound have κ of the neurons that moved most.
        criticality_after: κ of the update that was made, at most the bound; a bound on it, where it was not logged and
            a parameter was scaled further for another group's sake.
        scale: Smallest factor of the group's parameters, 1 where all were left as they were.
    """

    step: int
    group: str
    criticality_before: float
    criticality_after: float
    scale: float


def clipping_metrics(updates: Sequence[Sequence[GroupUpdate]]) -> dict[str, float]:
    """Of several updates in one batch, what was scaled back most and moved the neurons farthest."""
    by_scale = sorted((one for update in updates for one in update), key=lambda one: -one.scale)
    worst = {one.group: one for one in by_scale}
    metrics = {CLIPPING.of_group(n, field): getattr(u, field) for n, u in worst.items() for field in CLIPPING.group}
    metrics[CLIPPING.of_run("scale")] = min(one.scale for one in worst.values())
    for field in ("criticality_before", "criticality_after"):
        together = [_together(getattr(one, field) for one in update) for update in updates]
        metrics[CLIPPING.of_run(field)] = max((one for one in together if not math.isnan(one)), default=math.nan)
    return metrics


def _together(kappas: Iterable[float]) -> float:
    """Root of the sum of squares of κ, ``nan`` where no group was evaluated."""
    known = [kappa for kappa in kappas if not math.isnan(kappa)]
    return math.hypot(*known) if known else math.nan
