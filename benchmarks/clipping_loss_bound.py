"""Step clipping with a bound by the loss as well, in a Lightning Trainer, whose training steps it makes again."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from finder import trainer
from rates_tasks import shape
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

import lightning_topo as lt

# For gradient descent on a quadratic loss the update that gains most.
LOSS_STEP = 0.5


class Scheduled(pl.LightningModule):
    """A task as a user would write it."""

    def __init__(self, task: Any, model: nn.Module, lr: float, steps: int, schedule: str) -> None:
        super().__init__()
        self.task, self.net, self.lr, self.steps, self.schedule = task, model, lr, steps, schedule

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.task.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.task.optimizer(self.net, self.lr)
        scheduler = LambdaLR(optimizer, lambda step: shape(step, self.steps, self.schedule))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def bounded_by_loss(
    task: Any, lr: float, steps: int, seed: int, schedule: str
) -> tuple[nn.Module, lt.TopologicalStepClipping]:
    """The network after its run, and what clipped its updates."""
    model = task.model(seed)
    clipping = lt.TopologicalStepClipping(max_loss_step=LOSS_STEP)
    with TemporaryDirectory() as folder:
        run = trainer(folder, steps)
        run.callbacks.append(clipping)
        run.fit(
            Scheduled(task, model, lr, steps, schedule),
            DataLoader(list(task.batches(steps, seed)), batch_size=None),  # type: ignore[arg-type]
        )
    return model, clipping
