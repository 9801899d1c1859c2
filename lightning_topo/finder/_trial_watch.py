"""What is heard and set during a trial of a learning rate: rates before each update, κ after it, losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo._lightning import Callback
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._trial_meter import TrialMeter
from lightning_topo.finder.result import Trial
from lightning_topo.finder.schedule import Factors


class TrialWatch(Callback):
    """Sets the rate before each update, and measures its criticality after it; a callback that hears the losses.

    Args:
        trainer: The Trainer, within a trial.
        rates: Base rates of its optimizers.
        lr: The base rate of the trial.
        followed: By ``id`` of an optimizer, the factors of its schedule at each update; beyond them the last.
        meters: By ``id`` of an optimizer, what measures its updates; empty to measure nothing.

    Attributes:
        losses: The loss of each batch so far.
        several: Whether a step has returned more than one loss.
    """

    def __init__(
        self,
        trainer: Any,
        rates: BaseRates,
        lr: float,
        followed: Mapping[int, Sequence[Factors]],
        meters: Mapping[int, TrialMeter],
    ) -> None:
        self._trainer, self._rates, self._lr, self._followed, self._meters = trainer, rates, lr, followed, meters
        self._counts = {id(optimizer): 0 for optimizer in trainer.optimizers}
        self._steps_before_batch = 0
        self.losses, self.several = list[float](), False
        self._kappa, self._group, self._broke_at = 0.0, None, None  # type: float, str | None, int | None

    @property
    def steps(self) -> int:
        """Optimizer steps so far; where several optimizers take turns, those of the busiest."""
        return max(self._counts.values())

    @property
    def broken(self) -> bool:
        """Whether an update was not one-to-one, or something is no longer finite."""
        return self._broke_at is not None

    def trial(self) -> Trial:
        """What was seen."""
        return Trial(
            self._lr, not self.broken, self._broke_at, self._kappa, tuple(self.losses), self._group, self.steps
        )

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Listen to the updates of all optimizers."""
        handles = [o.register_step_pre_hook(self._before_step) for o in self._trainer.optimizers]
        handles += [o.register_step_post_hook(self._after_step) for o in self._trainer.optimizers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the loss, the mean over all processes; end the trial where it is not finite."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel():
            # A step of manual optimization may return several losses: their mean is what is told of them.
            self.several |= loss.numel() > 1
            value = float(trainer.strategy.reduce(loss.detach().float().mean(), reduce_op="mean"))
            self.losses.append(value)
            if not math.isfinite(value):
                self._diverged(value)
        self._steps_before_batch = self.steps
        self._require_same_optimizers()

    def _require_same_optimizers(self) -> None:
        if {id(optimizer) for optimizer in self._trainer.optimizers} != self._counts.keys():
            raise RuntimeError(
                "expected the Trainer to keep its optimizers during a trial of a learning rate, but the training step "
                "or a hook of the module replaced them, and the search cannot hold the rates of the new ones; replace "
                "them in a callback, which trials do not call, or train without the finder"
            )

    def _diverged(self, loss: float) -> None:
        if self._steps_before_batch == 0:
            raise ValueError(
                f"expected a finite training loss before the first update, got {loss}; no learning rate can help, "
                "check the model's initialisation and its data"
            )
        self._break(math.inf, None)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        followed = self._followed[id(optimizer)]
        self._rates.hold(optimizer, self._lr, followed[min(self._counts[id(optimizer)], len(followed) - 1)])
        if self._meters:
            self._meters[id(optimizer)].before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._meters and not self.broken:
            worst, name = self._meters[id(optimizer)].after()
            worst = largest_anywhere(self._trainer.strategy, worst)
            if worst >= 1:
                self._break(worst, name)
            elif worst > self._kappa:
                self._kappa, self._group = worst, name
        self._counts[id(optimizer)] += 1

    def _break(self, kappa: float, group: str | None) -> None:
        if not self.broken:
            self._broke_at, self._kappa, self._group = self.steps, kappa, group


def largest_anywhere(strategy: Any, value: float) -> float:
    """The largest value over all processes, so that all take the same decisions."""
    tensor = torch.tensor(value, device=strategy.root_device)
    return float(strategy.reduce(tensor, reduce_op="max"))
