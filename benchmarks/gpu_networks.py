"""Networks of the size that people train on a GPU, and real data that lies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytorch_lightning as pl
import torch
from rates_tasks import GPT, Residual, fashion, text
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, IterableDataset

VALIDATION_BATCHES = 32


def mlp(width: int = 1024) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def resnet18(width: int = 64) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            layers.append(Residual(before, width << stage, 2 if stage and not block else 1))
            before = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


@dataclass(frozen=True)
class Setting:
    """A network, its optimizer at a usual rate, and its batches."""

    title: str
    make: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    optimizer: Callable[..., Optimizer]
    lr: float
    batch_size: int
    sweep: tuple[float, ...]
    context: int | None = None


SETTINGS = {
    "mlp": Setting(
        "MLP 784-1024-1024-10, Adam", mlp, lambda: mlp(64), Adam, 1e-3, 128,
        (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    ),
    "resnet": Setting(
        "ResNet-18, momentum", resnet18, lambda: resnet18(8),
        lambda params, lr: SGD(params, lr=lr, momentum=0.9, weight_decay=5e-4), 0.05, 256,
        (0.0125, 0.05, 0.1, 0.2, 0.4),
    ),
    "gpt": Setting(
        "GPT-2 size (85 M), AdamW", lambda: GPT(768, 12, 12, 512), lambda: GPT(32, 2, 2, 32),
        lambda params, lr: AdamW(params, lr=lr, betas=(0.9, 0.95), weight_decay=0.1), 3e-4, 16,
        (1e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3), 512,
    ),
}  # fmt: skip


class Module(pl.LightningModule):
    def __init__(self, setting: Setting, small: bool, lr: float | None = None, steps: int | None = None) -> None:
        super().__init__()
        self.setting, self.lr, self.steps = setting, lr or setting.lr, steps
        self.network = setting.small() if small else setting.make()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]).flatten(0, -2), batch[1].flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = self.setting.optimizer(self.parameters(), lr=self.lr)
        if self.steps is None:
            return optimizer
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, self.steps // 10)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps - self.steps // 10)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, decay], [self.steps // 10])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@cache
def _on(device: str, is_text: bool, validation: bool) -> tuple[Tensor, Tensor]:
    data = text() if is_text else fashion()
    x, y = data.valid if validation else data.train
    return x.to(device), y.to(device)


class Batches(IterableDataset):
    """Seeded batches that are drawn on the device, so that loading is never what is timed."""

    def __init__(self, setting: Setting, small: bool, device: str, count: int, seed: int, validation: bool) -> None:
        self.size = 8 if small else setting.batch_size
        self.context = 32 if small and setting.context else setting.context
        self.data = _on(device, setting.context is not None, validation)
        self.device, self.count, self.seed = device, count, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator(self.device).manual_seed(self.seed)
        x, y = self.data
        for _ in range(self.count):
            if self.context is None:
                index = torch.randint(0, len(x), (self.size,), generator=generator, device=self.device)
                yield x[index], y[index]
            else:
                last = len(x) - self.context - 1
                start = torch.randint(0, last, (self.size, 1), generator=generator, device=self.device)
                lines = x[start + torch.arange(self.context + 1, device=self.device)]
                yield lines[:, :-1], lines[:, 1:]


def batches(
    setting: Setting, small: bool, device: str, count: int = 10**9, seed: int = 0, validation: bool = False
) -> DataLoader:
    return DataLoader(Batches(setting, small, device, count, seed, validation), batch_size=None)


@torch.no_grad()
def validation_loss(module: Module, small: bool, device: str) -> float:
    module.eval().to(device)
    total = 0.0
    with torch.autocast(device, torch.bfloat16):
        for batch in batches(module.setting, small, device, VALIDATION_BATCHES, 99, True):
            total += module.loss(batch).item()
    return total / VALIDATION_BATCHES
