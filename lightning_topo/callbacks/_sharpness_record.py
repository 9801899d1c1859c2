"""What is remembered and logged of the sharpness of the loss at one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks.log_keys import SHARPNESS


@dataclass(frozen=True)
class SharpnessRecord:
    """Sharpness of the loss of one step; what was not measured there is ``nan``.

    Attributes:
        step: Step under which it was logged.
        lambda_max: λmax, the largest eigenvalue of the Hessian of the loss.
        inverse: 1/λmax; for gradient descent a bound on η* on the safe side, for other rules a figure beside it.
        learning_rate: η of the update, the largest of its optimizer's parameter groups.
        critical_lr: η_c, the smallest rate at which the update would no longer have lowered the loss of its own batch:
            0 where the loss does not fall along the update at all, ``inf`` where it falls as far as was looked.
    """

    step: int
    lambda_max: float = math.nan
    inverse: float = math.nan
    learning_rate: float = math.nan
    critical_lr: float = math.nan


def remember_sharpness(history: list[SharpnessRecord], step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Put what was measured into the record of its step, and tell it by the keys under which it is logged."""
    known = history[-1] if history and history[-1].step == step else None
    if known is not None and all(math.isnan(getattr(known, name)) for name in values):
        history[-1] = replace(known, **values)  # type: ignore[arg-type]
    else:
        remember(history, [SharpnessRecord(step, **values)])
    return {SHARPNESS.of_run(name): value for name, value in values.items()}


def why_no_sharpness(seen_a_fit: bool, budget: OverheadBudget) -> str:
    """Why a monitor has measured nothing, as a whole sentence."""
    if not seen_a_fit:
        reason = "SharpnessMonitor has seen no fit. Put it into Trainer(callbacks=[...]) and call fit."
    elif budget.left_all_out:
        reason = (
            f"each measurement would have taken more than max_overhead={budget.max_overhead:g} leaves in a fit of this "
            "length. Pass a larger max_overhead, or None to measure every due step."
        )
    elif not budget.due:
        reason = "the fit ended before a step was due."
    else:
        reason = "a warning said why during the fit."
    return f"No sharpness was measured: {reason}"
