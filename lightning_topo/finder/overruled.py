"""Training code that sets learning rates of its own, and so undoes what a search has set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from lightning_topo._user_warning import warn_user
from lightning_topo.updates import rates_are_controlled

# Rates that are set are computed by another expression, in single precision where they are tensors.
_TOLERANCE = 1e-3


class RateWatch:
    """Looks at the rates of each optimizer's first update after a search, and says where they are not those to be.

    A warm-up that is written by hand, in ``optimizer_step`` say, is no fault as long as it takes its rate from the
    model's attribute: then its rates have changed with the attribute, in proportion.

    Args:
        optimizers: The run's optimizers.
        expected: By ``id`` of an optimizer, the rate of each parameter group at the first update.
        attribute: Name of the attribute from which the code is to take the rate.
    """

    def __init__(self, optimizers: Sequence[Optimizer], expected: Mapping[int, list[float]], attribute: str) -> None:
        self._expected, self._attribute = dict(expected), attribute
        watched = [optimizer for optimizer in optimizers if id(optimizer) in expected]
        self._handles = {id(o): o.register_step_pre_hook(self._look) for o in watched}

    def release(self, all_of_them: bool = False) -> None:
        """Take the hooks off the optimizers that have made their first update, or off all."""
        for key in [key for key in self._handles if all_of_them or key not in self._expected]:
            self._handles.pop(key).remove()

    def _look(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if rates_are_controlled(optimizer):  # which has said so itself
            self._expected.pop(id(optimizer), None)
            return
        for group, expected in zip(optimizer.param_groups, self._expected.pop(id(optimizer), ()), strict=False):
            rate = float(group["lr"])
            if abs(rate - expected) > _TOLERANCE * abs(expected):
                warn_user(
                    f"The training code sets the learning rate itself: {type(optimizer).__name__} makes its first "
                    f"update at {rate:.3g}, where the learning-rate search had it set to {expected:.3g}. So the "
                    f"suggestion is not what is trained at; take the rate from `{self._attribute}` in that code, or "
                    "leave it to a learning-rate scheduler."
                )
                return
