"""The benchmark's tasks: small networks, their data and their optimizers, in plain torch.

Thirty-three tasks: two teacher regressions whose neurons are whole points of a plane curve, digits with three
activations and two initialisations, and digits with a convolutional net (with and without BatchNorm) and a two-block
transformer. Everything is seeded; a task called twice is the same task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.data import DataLoader, Sampler, TensorDataset

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": lambda params, lr: SGD(params, lr=lr, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
}


@dataclass(frozen=True)
class Task:
    """One network, its data and its optimizer."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[..., Optimizer]
    batch_size: int = 128

    def model(self) -> nn.Module:
        """The network at its initialisation, always the same one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()

    def loader(self, order: int) -> DataLoader:
        """Shuffled batches; ``order`` seeds the shuffling."""
        dataset = TensorDataset(*self.data())
        return DataLoader(dataset, sampler=SeededBatches(len(dataset), self.batch_size, order), batch_size=None)

    def batches(self, order: int, steps: int) -> list[list[Tensor]]:
        """The first ``steps`` batches of an order, over as many epochs as that takes."""
        return list(islice(chain.from_iterable(repeat(self.loader(order))), steps))


class SeededBatches(Sampler[list[int]]):
    """Batches of a permutation that depends on seed and epoch alone; each pass is the next epoch."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(100_003 * self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(self.n, generator=generator)
        return iter(order[: len(self) * self.batch_size].view(-1, self.batch_size).tolist())

    def set_epoch(self, epoch: int) -> None:
        """The next pass is that epoch."""
        self.epoch = epoch


# Teacher regression: one input, one output, so that a neuron (W1[i, 0], W2[0, i]) is a point of the plane.


@cache
def _teacher_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(8192, 1, generator=generator)
    w1, w2 = torch.randn(128, 1, generator=generator), 0.6 * torch.randn(1, 128, generator=generator)
    return x, torch.sigmoid(x @ w1.T) @ w2.T


def _figure_eight(n: int) -> Tensor:
    t = 2 * math.pi * (torch.arange(n) + 0.5) / n  # the crossing is no sample: two neurons there would be one
    return torch.stack([0.1 * torch.sin(t) - 2, torch.sin(2 * t)], dim=1)


def _two_circles(n: int) -> Tensor:
    t = 2 * math.pi * torch.arange(n // 2) / (n // 2)
    circle = torch.stack([torch.cos(t), torch.sin(t)], dim=1)
    return torch.cat([circle - torch.tensor([2.0, 0.0]), circle + torch.tensor([2.0, 0.0])])


def _student(curve: Callable[[int], Tensor], n: int = 256) -> nn.Module:
    model = nn.Sequential(nn.Linear(1, n, bias=False), nn.Sigmoid(), nn.Linear(n, 1, bias=False))
    points = curve(n)
    with torch.no_grad():
        model[0].weight.copy_(points[:, :1])
        model[2].weight.copy_(points[:, 1:].T)
    return model


# Digits.


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def _perceptron(activation: type[nn.Module], sphere: bool, n: int = 128) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, n), activation(), nn.Linear(n, 10))
    if sphere:
        frame = torch.linalg.qr(torch.randn(64 + 1 + 10, 3)).Q  # three orthonormal directions in R^75
        points = nn.functional.normalize(torch.randn(n, 3), dim=1) @ frame.T
        with torch.no_grad():
            model[0].weight.copy_(points[:, :64])
            model[0].bias.copy_(points[:, 64])
            model[2].weight.copy_(points[:, 65:].T)
    return model


def _convolutional(batch_norm: bool) -> nn.Module:
    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(channels_out)] if batch_norm else []
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), *norm, nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(32 * 4, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *block(1, 16), *block(16, 32), *head)


class Transformer(nn.Module):
    """Two pre-norm encoder blocks over the eight rows of a digit."""

    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.02 * torch.randn(8, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (batch, 10) of flat digits (batch, 64)."""
        x = self.embed(x.view(-1, 8, 8)) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=1))


@cache
def all_tasks() -> dict[str, Task]:
    """Every task by name, in the order of the table."""
    cross_entropy, mse = nn.functional.cross_entropy, nn.functional.mse_loss
    networks: list[tuple[str, Callable[[], nn.Module], Callable, Callable, str]] = [
        ("figure-eight", lambda: _student(_figure_eight), _teacher_data, mse, "adam"),
        ("two-circles", lambda: _student(_two_circles), _teacher_data, mse, "adam"),
    ]
    for activation in (nn.Sigmoid, nn.ReLU, nn.GELU):
        for sphere in (False, True):
            name = f"digits-{activation.__name__.lower()}-{'sphere' if sphere else 'default'}"
            networks.append((name, lambda a=activation, s=sphere: _perceptron(a, s), _digits, cross_entropy, "adam"))
    networks += [
        ("conv", lambda: _convolutional(False), _digits, cross_entropy, "adamw"),
        ("conv-batchnorm", lambda: _convolutional(True), _digits, cross_entropy, "adamw"),
        ("transformer", Transformer, _digits, cross_entropy, "adamw"),
    ]
    return {
        f"{name}/{optimizer}": Task(f"{name}/{optimizer}", build, data, loss, OPTIMIZERS[optimizer])
        for name, build, data, loss, adaptive in networks
        for optimizer in ("sgd", "momentum", adaptive)
    }
