"""What people do in a run beside training: one thing a draw."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

OF_MODULE = ("noise", "counters", "loss in a dict", "skipped batches", "hooks that draw", "NaN batch")
OF_TRAINER = ("weight averaging", "SWA", "scheduled accumulation", "optimizers made anew", "unfreezing")
OF_ONE_OPTIMIZER = ("SWA", "scheduled accumulation")
EXTRAS = ("none",) * 8 + OF_MODULE + OF_TRAINER


class Habits:
    """What a module does beside computing its loss; what it draws with is its own."""

    def __init__(self, module: pl.LightningModule, extra: str) -> None:
        self.extra, self.module = extra, module
        if extra == "noise":
            module.generator = torch.Generator().manual_seed(3)
        if extra == "counters":
            module.register_buffer("calls", torch.zeros((), dtype=torch.long))
            module.history = {"batches": 0, "sums": []}
        if extra == "hooks that draw":
            module.drawn = []
            module.net.register_full_backward_hook(lambda m, *_: module.drawn.append(torch.rand(1).item()))

    def on_input(self, x: Tensor) -> Tensor:
        """The examples as the network is to see them."""
        if self.extra == "noise" and self.module.training and x.is_floating_point():
            return x + 0.05 * torch.randn(x.shape, generator=self.module.generator)
        return x

    def on_loss(self, loss: Tensor, number: int) -> Any:
        """What the training step gives back at the batch of a number."""
        if self.extra == "counters":
            self.module.calls += 1
            self.module.history["batches"] += 1
            self.module.history["sums"].append(float(loss))
        if self.extra == "skipped batches" and number % 3 == 1:
            return None
        if self.extra == "NaN batch" and number == 2:
            loss = loss * torch.nan
        return {"loss": loss, "more": number} if self.extra == "loss in a dict" else loss

    def state(self) -> Any:
        """What they have come to, to be compared."""
        kept = [getattr(self.module, name, None) for name in ("history", "drawn")]
        generator = getattr(self.module, "generator", None)
        return [*kept, None if generator is None else generator.get_state()]


class _Anew(pl.Callback):
    """Sets the optimizers up again at each epoch but the first."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch:
            trainer.strategy.setup_optimizers(trainer)


class _Unfreezing(pl.Callback):
    """Trains all parameters from the second epoch on."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            (optimizer, *_) = trainer.optimizers
            held = {id(p) for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
            new = [p for p in pl_module.parameters() if id(p) not in held]
            if new:
                optimizer.add_param_group({"params": [p.requires_grad_() for p in new]})


def callbacks(extra: str) -> list[pl.Callback]:
    """The callbacks of a Trainer with this extra, new ones."""
    if extra == "weight averaging":
        averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)  # since Lightning 2.6
        return [averaging(decay=0.5)] if averaging else []
    if extra == "SWA":
        return [pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)]
    if extra == "scheduled accumulation":
        return [pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})]
    if extra == "optimizers made anew":
        return [_Anew()]
    return [_Unfreezing()] if extra == "unfreezing" else []
