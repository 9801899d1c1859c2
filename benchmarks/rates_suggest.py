"""Rules that find one rate before the run: the topological finder, Lightning's search, fastai's valley, sharpness."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from finder import trainer
from pytorch_lightning.tuner import Tuner
from rates_tasks import Task, shape
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from valley import valley

from lightning_topo.finder import topological_lr_find
from lightning_topo.functional import sharpness

SEARCH_SEED = 50  # the searches see other batches than the run


@dataclass(frozen=True)
class Suggestion:
    """A rate, None where none was found, and the optimizer steps that it took."""

    lr: float | None
    steps: int


class Batches(Dataset):
    """Batches of a task, by number."""

    def __init__(self, task: Task, seed: int, n: int = 200) -> None:
        self.batches = list(task.batches(n, seed + SEARCH_SEED))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index]


class Module(pl.LightningModule):
    """A task as a user would write it."""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__()
        self.task, self.net, self.lr = task, task.model(seed), task.default_lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.task.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.optimizer(self.net, self.lr)


class Scheduled(Module):
    """The same with the schedule of its run."""

    def __init__(self, task: Task, seed: int, steps: int) -> None:
        super().__init__(task, seed)
        self.steps = steps

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = super().configure_optimizers()
        scheduler = LambdaLR(optimizer, lambda step: shape(step, self.steps, "cosine"))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def suggestion(task: Task, seed: int, steps: int, schedule: str) -> Suggestion:
    """What the topological finder suggests for the run that is made."""
    module = Module(task, seed) if schedule == "constant" else Scheduled(task, seed, steps)
    with TemporaryDirectory() as folder:
        loader = DataLoader(Batches(task, seed), batch_size=None)
        run = trainer(folder, max_steps=steps)
        found = topological_lr_find(run, module, loader, update_attr=False)
    return Suggestion(found.suggestion(), found.total_steps)


def finder(task: Task, seed: int) -> Suggestion:
    """η* of the topological finder."""
    with TemporaryDirectory() as folder:
        loader = DataLoader(Batches(task, seed), batch_size=None)
        found = topological_lr_find(trainer(folder), Module(task, seed), loader, safety=1.0, update_attr=False)
    return Suggestion(found.critical_lr, found.total_steps)


def lr_find(task: Task, seed: int) -> tuple[Suggestion, Suggestion]:
    """Lightning's search, by its rule and by the rule before 2.5.3: the derivative by the number of the step.

    The steps are even in the logarithm of the rate. Since 2.5.3 the derivative is by the rate itself, which is steepest
    where the rates are smallest (Lightning issue 21141).
    """
    with TemporaryDirectory() as folder:
        loader = DataLoader(Batches(task, seed), batch_size=None)
        found = Tuner(trainer(folder)).lr_find(Module(task, seed), loader, update_attr=False)
    steps = len(found.results["loss"])
    losses = torch.tensor(found.results["loss"][10:-1])
    rates = [lr for lr, loss in zip(found.results["lr"][10:-1], losses, strict=True) if math.isfinite(loss)]
    losses = losses[losses.isfinite()]
    before = rates[int(torch.gradient(losses)[0].argmin())] if len(losses) > 1 else None
    return Suggestion(found.suggestion(), steps), Suggestion(before, steps)


def fastai(task: Task, seed: int) -> Suggestion:
    """The ramp and rule of fastai."""
    model = task.model(seed)
    batches = list(task.batches(100, seed + SEARCH_SEED))
    return Suggestion(*valley(model, task.optimizer(model, 1e-7), batches, task.loss))


def inverse_sharpness(task: Task, seed: int) -> Suggestion:
    """1/λmax of the loss on four batches. No update is made, about twenty products with the Hessian are."""
    model = task.model(seed)
    batches = list(task.batches(4, seed + SEARCH_SEED))
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    with _twice_differentiable():
        value = sharpness(lambda: task.loss(model(x), y), model.parameters())
    return Suggestion(1 / value if value > 0 else None, 0)


@contextlib.contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Fused attention and fused recurrent nets have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False):
        yield


SEARCHES: dict[str, Callable[[Task, int, int, str], Suggestion]] = {
    "finder": suggestion,
    "eta/4": lambda task, seed, *_: _times(0.25, finder(task, seed)),
    "lr_find": lambda task, seed, *_: lr_find(task, seed)[0],
    "lr_find, old rule": lambda task, seed, *_: lr_find(task, seed)[1],
    "valley": lambda task, seed, *_: fastai(task, seed),
    "1/lambda": lambda task, seed, *_: inverse_sharpness(task, seed),
}


def _times(share: float, found: Suggestion) -> Suggestion:
    return Suggestion(None if found.lr is None else share * found.lr, found.steps)
