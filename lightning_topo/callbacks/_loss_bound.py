"""A bound on updates by the critical learning rate of the loss, for what κ cannot see."""

from __future__ import annotations

import math
from typing import Any

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._critical_probe import CriticalProbe

# From one measurement to the next the bound may rise to so many times what it was; it falls at once.
_RISE = 2.0


class LossBound:
    r"""Measures the critical learning rate of the loss every k-th update, and bounds the updates up to the next by it.

    An update that was scaled back to the share s of the optimizer's own, at the rate η, was made at the rate s·η. With
    t_c the multiple of the update made at which the batch's loss is no longer below what it was before it,

    $$\eta_c = t_c \, s \, \eta, \qquad s' \eta' \le \text{share} \cdot \eta_c$$

    bounds the next ones. It falls to a smaller η_c at once, and doubles at most from one measurement to the next.

    Reference: arXiv 2601.16979, critical sharpness.

    Args:
        share: Largest rate of an update over η_c.
        every: Measure every so many updates.
        announcer: Says what cannot be measured, once.

    Attributes:
        critical_lr: η_c as it bounds the next updates, ``inf`` until it is known.
        latest: What was measured last: 0 where the loss did not fall along the update, ``nan`` until it is known.
    """

    def __init__(self, share: float, every: int, announcer: Announcer) -> None:
        self.share, self.every = share, every
        self._announcer = announcer
        self._probe = CriticalProbe(self._measure)
        self.forget()

    def forget(self) -> None:
        """Nothing of a fit is left."""
        self._probe.forget()
        self.critical_lr, self.latest = math.inf, math.nan
        self._updates, self._step = 0, -1
        self._rate = self._made = math.nan

    def begin_batch(self, trainer: Any, module: Any) -> None:
        """Keep the batch where it leads to an update that is to be measured; to be called before each batch."""
        more, self._step = trainer.global_step == self._step, trainer.global_step
        if self._probe.waiting and more:  # it accumulates gradients
            self._probe.next_batch()
            return
        self._probe.end()
        if self._updates % self.every == 0:
            with self._announcer.never_fatal("measure the critical rate of the loss"):
                self._probe.begin(trainer, module)

    def largest_share(self, rate: float) -> float:
        """How much of an update at a learning rate may be made."""
        return min(1.0, self.share * self.critical_lr / rate) if rate > 0 else 1.0

    def made(self, rate: float, share: float) -> None:
        """An update has been made: at which rate, and how much of it; called before it is measured."""
        self._rate, self._made = rate, share
        self._updates += 1

    def _measure(self) -> None:
        with self._announcer.never_fatal("measure the critical rate of the loss"):
            found = self._probe.measure()
            if found is None or not (found.learning_rate > 0 and self._made > 0):
                return
            multiple = found.critical_lr / found.learning_rate
            self.latest = multiple * self._made * self._rate
            if multiple > 0:  # where the loss does not fall along the update, no share of it is right
                self.critical_lr = min(self.latest, _RISE * self.critical_lr)
            else:
                self._announcer.warn_once(
                    f"{self._announcer.speaker}: the loss of a batch did not fall along its update, however short "
                    "(a critical rate of 0), as happens with momentum and noise; the bound stays what it was.",
                    kind="uphill",
                )
