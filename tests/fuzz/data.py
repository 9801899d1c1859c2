"""Random data sets in the forms that people give to a Trainer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .models import Input

FORMS = ("tuple", "list", "dict")
SOURCES = ("map", "map", "shuffled", "shuffled", "own generator", "stream", "counting stream", "noisy")


def _as(form: str, x: Tensor, y: Tensor) -> Any:
    return {"x": x, "y": y} if form == "dict" else [x, y] if form == "list" else (x, y)


def parts(batch: Any) -> tuple[Tensor, Tensor]:
    """The examples and the classes of a batch of any form."""
    return (batch["x"], batch["y"]) if isinstance(batch, dict) else (batch[0], batch[1])


class _Examples(Dataset):
    """Examples by number; ``noisy`` ones draw from a generator of the data set's own."""

    def __init__(self, x: Tensor, y: Tensor, form: str, noisy: bool) -> None:
        self.x, self.y, self.form = x, y, form
        self.generator = torch.Generator().manual_seed(5) if noisy else None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x = self.x[i]
        if self.generator is not None and x.is_floating_point():
            x = x + 0.1 * torch.randn(x.shape, generator=self.generator)
        return _as(self.form, x, self.y[i])


class _Stream(IterableDataset):
    """Examples in a row; a ``counting`` one starts elsewhere in each epoch."""

    def __init__(self, x: Tensor, y: Tensor, form: str, counting: bool) -> None:
        self.x, self.y, self.form, self.counting, self.epochs = x, y, form, counting, 0

    def __iter__(self) -> Iterator[Any]:
        start = 3 * self.epochs if self.counting else 0
        self.epochs += 1
        for i in range(len(self.x)):
            j = (start + i) % len(self.x)
            yield _as(self.form, self.x[j], self.y[j])


def draw_loader(seed: int, takes: Input, form: str, source: str, scale: float, train: bool) -> DataLoader:
    """A loader of the draw; each call makes the same one anew.

    Args:
        seed: Number of the draw.
        takes: What the network takes.
        form: Form of a batch, one of ``FORMS``.
        source: Where the examples come from, one of ``SOURCES``.
        scale: Size of floating-point examples.
        train: Whether for training; else for validation.
    """
    r = random.Random(f"{seed} data")
    batch_size = r.randint(2, 9)
    n = batch_size * r.randint(2, 5) + r.choice((0, 0, 1, batch_size - 1))
    generator = torch.Generator().manual_seed(seed)
    if takes.tokens:
        x = torch.randint(takes.tokens, (n, *takes.shape), generator=generator)
        y = x.flatten(1).sum(1) % takes.classes
    else:
        x = torch.randn(n, *takes.shape, generator=generator)
        y = (x.flatten(1).sum(1).abs() * 2).long() % takes.classes
        x = x * scale
    drop_last = (takes.needs_two and n % batch_size == 1) or r.random() < 0.2
    if not train:
        return DataLoader(_Examples(x, y, form, False), batch_size)
    if "stream" in source:
        return DataLoader(_Stream(x, y, form, "counting" in source), batch_size, drop_last=drop_last)
    own = torch.Generator().manual_seed(seed + 1) if source == "own generator" else None
    return DataLoader(
        _Examples(x, y, form, source == "noisy"),
        batch_size,
        shuffle=source in ("shuffled", "own generator"),
        drop_last=drop_last,
        generator=own,
    )
