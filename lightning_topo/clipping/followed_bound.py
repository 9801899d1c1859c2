"""A bound on κ that goes down with the optimizer's learning rates."""

from __future__ import annotations

from torch.optim import Optimizer

from lightning_topo.updates import rates_are_controlled

# A rate of 0 makes no update, and asks for no bound of 0.
_LEAST = 1e-4


class FollowedBound:
    r"""The share of its full learning rate at which an optimizer makes its next update.

    $$s_t = \max_g \frac{\eta_g(t)}{\max_{t' \le t} \eta_g(t')}$$

    over its parameter groups g. An update far above its bound is scaled to the bound whatever its rate was: with a
    bound that stands still, a schedule that lowers the rate would not be felt, and the run would end at its full pace.
    At 16 times the critical rate (300 updates, warm-up and cosine) a bound of 0.2 that stands still ended at 1.00 to
    1.18 times the loss of 0.2·s_t on four networks, and at 4.4 times on a fifth, with BatchNorm.

    Rates that ``TopologicalRateControl`` sets are no schedule: they fall because κ/η has risen.

    Args:
        optimizer: The optimizer.

    Attributes:
        full_rates: The largest rate so far of each parameter group.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.full_rates: list[float] = []

    def share(self) -> float:
        """The share of the update that is to be made next; 1 for an optimizer without rates."""
        if rates_are_controlled(self._optimizer):
            return 1.0
        now = [abs(float(settings.get("lr", 1.0))) for settings in self._optimizer.param_groups]
        known = [*self.full_rates, *now[len(self.full_rates) :]]
        self.full_rates = [max(rates) for rates in zip(known, now, strict=False)]
        shares = [rate / full for rate, full in zip(now, self.full_rates, strict=True) if full > 0]
        return max(_LEAST, max(shares, default=1.0))
