"""The batches of a search: the run's own training data, read through private copies of its loaders."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from lightning_topo.copy_or_same import copy_or_same
from lightning_topo.finder._sources import Sources
from lightning_topo.neurons import is_empty_batch

# Where the parts of a data loader that draw an order hang.
_SAMPLER_LINKS = ("sampler", "batch_sampler")


# Batches that are looked at for one that is not empty.
_FIRST_BATCHES = 10


class BatchStream:
    """The training batches in one order, kept once they are drawn, so that every trial sees the same.

    The run's loaders, samplers and their generators are copied. The global random state, the user's own generators and
    what data sets count are put back after each draw: the batches of the run to come stay what they were. A loader
    that ends goes on with its next epoch.

    Args:
        trainer: A Trainer within ``fit``, its training data set up.
        sources: What the batches are drawn from, by default what the loaders hold.
        order: 0 leaves samplers and generators as they stand (a sampler with ``set_epoch`` gives the present epoch's
            very batches); any other number shuffles anew.
    """

    def __init__(self, trainer: Any, order: int = 0, sources: Sources | None = None) -> None:
        self._batches: list[tuple[Any, int, int, bool]] = []
        combined = trainer.fit_loop._combined_loader
        self._sources = Sources({"train_dataloaders": combined.flattened}) if sources is None else sources
        with self._sources.kept():
            loader = _private_loader(combined, order)
            if order:
                _reseed(order)
            self._drawing = _epochs(loader, trainer.current_epoch + order * _EPOCH_OFFSET)
            self._continue = self._sources.present(everything=False)

    def __getitem__(self, index: int) -> tuple[Any, int, int, bool]:
        """A fresh copy of a batch, its number in its epoch, its loader's number, and whether it ends its epoch."""
        while len(self._batches) <= index:
            with self._sources.kept():
                self._continue()
                self._batches.append(next(self._drawing))
                self._continue = self._sources.present(everything=False)
        batch, *rest = self._batches[index]
        # A training step may change it in place, and the next trial must not see that.
        return (copy_or_same(batch), *rest)


def first_with_items(trainer: Any, sources: Sources) -> Any:
    """The first batch of the run that is not empty, on the module's device."""
    stream = BatchStream(trainer, sources=sources)
    batch = next((batch for batch, *_ in (stream[i] for i in range(_FIRST_BATCHES)) if not is_empty_batch(batch)), None)
    if batch is None:
        raise ValueError(
            f"expected a batch with items among the first {_FIRST_BATCHES}, to find the neurons with, but all are "
            "empty; check the data, or set the model's example_input_array"
        )
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


# Distributed samplers shuffle by epoch: another order is an epoch that the run is unlikely to reach.
_EPOCH_OFFSET = 1_000_003


def _reseed(order: int) -> None:
    seed = (torch.initial_seed() + order) % 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _epochs(loader: Any, epoch: int) -> Iterator[tuple[Any, int, int, bool]]:
    while True:
        for iterable in loader.flattened:
            for part in _sampling_parts(iterable):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)
        empty = True
        for item, is_last in _with_last(iter(loader)):
            empty = False
            yield (*item, is_last)
        if empty:
            raise ValueError(
                "the training data loader gave no batch, so there is nothing to search with; check its data set, "
                "drop_last and limit_train_batches"
            )
        epoch += 1


def _with_last(items: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    try:
        length = len(items)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, OverflowError):  # a stream has no length, or an infinite one
        length = None
    if length is not None:
        # The combined loader leaves it to its reader to stop at limit_train_batches.
        for index, item in enumerate(islice(_rest(items), length)):
            yield item, index + 1 == length
        return
    waiting = list[Any]()
    for item in _rest(items):
        if waiting:
            yield waiting.pop(), False
        waiting.append(item)
    for item in waiting:
        yield item, True


def _rest(items: Iterator[Any]) -> Iterator[Any]:
    # A combined loader is its own iterator, and starts anew when it is asked for one.
    end = object()
    while (item := next(items, end)) is not end:
        yield item


def _private_loader(combined: Any, order: int) -> Any:
    private = copy.copy(combined)
    private._iterator = None
    private.flattened = [_private_iterable(iterable, order) for iterable in combined.flattened]
    return private


def _private_iterable(iterable: Any, order: int) -> Any:
    if not isinstance(iterable, DataLoader):
        _require_rereadable(iterable)
        return iterable
    _require_rereadable(iterable.dataset)
    loader = copy.copy(iterable)
    memo: dict[int, Any] = {id(iterable.dataset): iterable.dataset}
    for part in _sampling_parts(iterable):
        if hasattr(part, "data_source"):
            memo[id(part.data_source)] = part.data_source
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            memo[id(generator)] = _generator_copy(generator, order)
    # The loader forbids to set these by name once it is built; its persistent workers belong to the run.
    parts = {link: copy.deepcopy(getattr(iterable, link), memo) for link in (*_SAMPLER_LINKS, "generator")}
    loader.__dict__.update(parts, _iterator=None)
    return loader


def _generator_copy(generator: torch.Generator, order: int) -> torch.Generator:
    private = torch.Generator(generator.device)
    private.set_state(generator.get_state())
    return private.manual_seed(generator.initial_seed() + order) if order else private


def _sampling_parts(part: Any) -> Iterator[Any]:
    """A loader, its samplers, and what these wrap."""
    yield part
    for link in _SAMPLER_LINKS:
        inner = getattr(part, link, None)
        if inner is not None and inner is not part:
            yield from _sampling_parts(inner)


def _require_rereadable(data: Any) -> None:
    if isinstance(data, Iterator):
        raise ValueError(
            f"the training data is a {type(data).__name__} that can be read only once, so a search would use up the "
            "run's batches; wrap it in a data set whose __iter__ starts anew"
        )
