"""What batches and training steps are drawn from: random generators, and the counters of data sets and loaders."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_topo.finder._reachable import LONG, reachable, slots_of, table_of
from lightning_topo.finder._tensor_state import writable
from lightning_topo.random_generators import reachable_generators, restoring
from lightning_topo.random_state import RandomState

# Arrays beyond this, all together and the smallest first, are the data themselves, which a draw only reads.
_MOST_BYTES = 2**26
# The same of what is put back at each draw, where it would cost time; and objects, where there are more of them.
_FEW_BYTES, _FEW_OBJECTS = 2**20, 2000
_UNSET = object()

Undo = Callable[[], object]


class Sources:
    """The random generators and data objects that can be reached from some roots, and the global random state.

    Args:
        roots: The run's data loaders and data module, and what else a training step may draw from, by name.
        borders: Objects that are not entered, as their state is kept elsewhere.
        opaque: Names of objects whose state nobody can put back.
    """

    def __init__(self, roots: Mapping[str, Any], borders: Iterable[Any] = (), opaque: Iterable[str] = ()) -> None:
        self._found = reachable(roots, borders)
        self._found.once += [name for name in opaque if name not in self._found.once]
        everything = [*self._found.generators, *reachable_generators(*roots.values(), *self._found.objects)]
        arrays = sorted(self._found.arrays, key=_bytes)
        sizes = list(accumulate(map(_bytes, arrays)))
        self._arrays = arrays[: bisect_right(sizes, _MOST_BYTES)]
        self._few = bisect_right(sizes, _FEW_BYTES)
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
            everything: Whether to include what takes long: the contents of long containers, larger arrays, all objects
                where there are many.
        """
        found = self._found
        undo: list[Undo] = [RandomState.capture().restore]
        undo += [restoring(item) for item in self._generators]
        if everything or len(found.objects) + len(found.containers) <= _FEW_OBJECTS:
            undo += [_attributes(item) for item in found.objects]
            undo += [contents(item) for item in found.containers if everything or len(item) <= LONG]
        undo += [_array(item) for item in self._arrays[: None if everything else self._few]]
        undo += [partial(setattr, item, "value", item.value) for item in found.cells]
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


def contents(item: Any) -> Undo:
    """What puts the contents of a container back; by the methods of Python's own, whatever a derived class does."""
    if isinstance(item, dict):
        kind = OrderedDict if isinstance(item, OrderedDict) else dict
        entries = list(kind.items(item))
        return lambda: (kind.clear(item), [kind.__setitem__(item, *entry) for entry in entries])
    if isinstance(item, set):
        members = set(item)
        return lambda: (set.clear(item), set.update(item, members))
    values = list(item)
    if isinstance(item, list):
        return lambda: list.__setitem__(item, slice(None), values)
    return lambda: (deque.clear(item), deque.extend(item, values))


def _bytes(item: Any) -> float:
    """The size of an array that can be written; infinite where it cannot."""
    if isinstance(item, Tensor):
        plain = item.layout is torch.strided and not item.is_meta and not item.is_inference() and not item.is_nested
        return item.numel() * item.element_size() if plain else math.inf
    return item.nbytes if item.flags.writeable and not isinstance(item, np.memmap) else math.inf


def _array(item: Any) -> Undo:
    if isinstance(item, Tensor):
        tensor = writable(item.detach())
        value = tensor.clone()
        return lambda: tensor.copy_(value)
    copy = item.copy()
    return lambda: np.copyto(item, copy)


def _file(item: Any) -> Undo:
    place = item.tell()
    return lambda: None if item.closed else item.seek(place)
