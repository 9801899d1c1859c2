"""What batches and training steps are drawn from: random generators, and the counters of data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from lightning_topo.finder._random_state import RandomState
from lightning_topo.finder._reachable import LONG, reachable, slots_of, table_of
from lightning_topo.random_generators import reachable_generators, restoring

# Larger arrays are the data themselves, which a draw only reads.
_SMALL_BYTES = 2**16
_UNSET = object()

Undo = Callable[[], object]


class Sources:
    """The random generators and data objects that can be reached from some roots, and the global random state.

    Args:
        roots: The run's data loaders and data module, and what else a training step may draw from, by name.
        borders: Objects that are not entered, as their state is kept elsewhere.
    """

    def __init__(self, roots: Mapping[str, Any], borders: Iterator[Any] | list[Any] = ()) -> None:  # type: ignore[assignment]
        self._found = reachable(roots, borders)
        everything = [*self._found.generators, *reachable_generators(*roots.values(), *self._found.objects)]
        self._generators = list({id(generator): generator for generator in everything}.values())

    @property
    def irreplaceable(self) -> str:
        """What cannot be put back, in words; empty where all can."""
        names = list(dict.fromkeys(self._found.once))
        more = [] if self._found.complete else ["whatever lies beyond the first 20,000 objects"]
        return ", ".join([*names[:5], *(["others"] if len(names) > 5 else []), *more])

    def present(self, everything: bool = True) -> Callable[[], None]:
        """What puts the present state back, as often as it is called.

        Args:
            everything: Whether to include the contents of long containers.
        """
        found = self._found
        undo: list[Undo] = [RandomState.capture().restore]
        undo += [restoring(item) for item in self._generators]
        undo += [_attributes(item) for item in found.objects]
        undo += [_contents(item) for item in found.containers if everything or len(item) <= LONG]
        undo += [_array(item) for item in found.arrays if item.nbytes <= _SMALL_BYTES]
        undo += [_file(item) for item in found.files]

        def restore() -> None:
            for step in undo:
                step()

        return restore

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave them as they were, whatever is drawn inside."""
        restore = self.present(everything=False)
        try:
            yield
        finally:
            restore()


def _attributes(item: Any) -> Undo:
    table, slots = dict(table_of(item)), list(slots_of(item))

    def restore() -> None:
        put_back(table_of(item), table)
        for member, value in slots:
            member.__set__(item, value)

    return restore


def put_back(table: dict[str, Any], values: dict[str, Any]) -> None:
    """Give a dictionary its former entries; those that are still there are not touched."""
    for name in table.keys() - values.keys():
        del table[name]
    for name, value in values.items():
        if table.get(name, _UNSET) is not value:
            table[name] = value


def _contents(item: Any) -> Undo:
    content = item.copy()

    def restore() -> None:
        if isinstance(item, list):
            item[:] = content
        else:
            item.clear()
            (item.extend if hasattr(item, "extend") else item.update)(content)

    return restore


def _array(item: Any) -> Undo:
    if isinstance(item, Tensor):
        tensor, value = item.detach(), item.detach().clone()
        return lambda: tensor.copy_(value)
    copy = item.copy()
    return lambda: np.copyto(item, copy) if item.flags.writeable else None


def _file(item: Any) -> Undo:
    place = item.tell()
    return lambda: None if item.closed else item.seek(place)
