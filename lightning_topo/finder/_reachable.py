"""What data sets and loaders count in: every plain object that can be reached from some."""

from __future__ import annotations

import functools
import io
import random
import threading
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from ctypes import _SimpleCData
from dataclasses import dataclass, field
from logging import Logger
from multiprocessing.process import BaseProcess
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
CONTAINERS = (list, dict, set, deque)

# Longer containers are data: their contents are put back, but not looked through.
LONG = 1000
# Objects that are looked at in all. A data set with more of them keeps its samples as objects.
_MANY = 20_000
# Nothing that a draw changes: what a run reads, and what connects it to the rest of the world.
_LEAVES = (
    type, types.FunctionType, types.ModuleType, types.CodeType, types.FrameType, str, bytes, int, float, complex,
    type(None), torch.dtype, torch.device, Logger, threading.Thread, type(threading.Lock()), type(threading.RLock()),
    BaseProcess, PurePath, random.SystemRandom, _BaseDataLoaderIter,
)  # fmt: skip
# Methods: those in C too, such as the ``normal`` of a generator.
_BOUND = (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")


@dataclass
class Reachable:
    """What was found.

    Attributes:
        generators: Random generators.
        objects: Objects with attributes.
        containers: Lists, dictionaries, sets and the like.
        arrays: Tensors and NumPy arrays.
        cells: Single values in C's memory, which processes share.
        once: Names of what can be read only once: iterators, and files that do not tell where they stand.
        files: Files that tell where they stand.
        complete: Whether everything was looked at.
    """

    generators: list[Any] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)
    once: list[str] = field(default_factory=list)
    files: list[Any] = field(default_factory=list)
    complete: bool = True


def reachable(roots: Mapping[str, Any], borders: Iterable[Any]) -> Reachable:
    """Look through attributes and containers; what functions name outside of them is anybody's.

    Args:
        roots: Where to begin, by name.
        borders: Objects that are not entered: the model, the Trainer.

    Returns:
        What was found. Containers of more than 1,000 entries are returned, but not looked through.
    """
    walk = _Walk(borders)
    walk.go(list(roots.items()))
    return walk.found


class _Walk:
    def __init__(self, borders: Iterable[Any]) -> None:
        self.found = Reachable()
        self._seen = {id(item): item for item in borders}
        self._left = _MANY

    def go(self, waiting: list[tuple[str, Any]]) -> None:
        while waiting:
            if not self._left:
                self.found.complete = False
                return
            name, item = waiting.pop()
            if isinstance(item, _LEAVES) or id(item) in self._seen:
                continue
            self._seen[id(item)], self._left = item, self._left - 1
            waiting += [(f"{name}{step}", inner) for step, inner in self._enter(name, item)]

    def _enter(self, name: str, item: Any) -> list[tuple[str, Any]]:
        """Note an item, and return what it holds."""
        found = self.found
        if isinstance(item, GENERATORS):
            found.generators.append(item)
            return []
        if isinstance(item, (Tensor, np.ndarray)):
            found.arrays.append(item)
            return []
        if isinstance(item, _BOUND):
            return [("", item.__self__)]
        if isinstance(item, functools.partial):
            return [("", item.func), ("", item.args), ("", item.keywords)]
        if isinstance(item, (tuple, frozenset)):
            return [(f"[{i}]", value) for i, value in enumerate(item)] if len(item) <= LONG else []
        if isinstance(item, _SimpleCData):  # in a multiprocessing.Value
            found.cells.append(item)
            return []
        return self._enter_object(name, item)

    def _enter_object(self, name: str, item: Any) -> list[tuple[str, Any]]:
        if isinstance(item, io.IOBase):
            if not item.closed:
                self.found.files += [item] if _tells(item) else []
                self.found.once += [] if _tells(item) else [name]
            return []
        attributes, entries = attributes_of(item), self._entries(item)
        if isinstance(item, Iterator) and not attributes:  # it keeps its place where nobody can reach it
            self.found.once.append(name)
        foreign = type(item).__module__.startswith(_LIGHTNING) and type(item).__name__ != "CombinedLoader"
        if foreign and not isinstance(item, CONTAINERS):
            return []
        self.found.objects += [item] if attributes else []
        return [(f".{key}", value) for key, value in attributes.items()] + entries

    def _entries(self, item: Any) -> list[tuple[str, Any]]:
        """What a container holds, also one of a class that is derived from one of Python's."""
        if not isinstance(item, CONTAINERS):
            return []
        self.found.containers.append(item)
        if len(item) > LONG:
            return []
        pairs = dict.items(item) if isinstance(item, dict) else enumerate(item)
        return [(f"[{key!r}]", value) for key, value in pairs]


def is_opaque(item: Any) -> bool:
    """Whether an object is of a kind in whose inside nobody can look, such as a connection."""
    known = (*_LEAVES, *GENERATORS, *CONTAINERS, *_BOUND, Tensor, np.ndarray, tuple, frozenset, io.IOBase, _SimpleCData)
    return not isinstance(item, (*known, functools.partial)) and not attributes_of(item)


def attributes_of(item: Any) -> dict[str, Any]:
    """The attributes that an object itself holds, in its dictionary or in slots."""
    return {**table_of(item), **{member.__name__: value for member, value in slots_of(item)}}


def table_of(item: Any) -> dict[str, Any]:
    """The dictionary of an object's attributes; an empty one where it has none."""
    try:
        table = vars(item)
    except TypeError:
        return {}
    return table if isinstance(table, dict) else {}


def slots_of(item: Any) -> Iterator[tuple[Any, Any]]:
    """The slots of an object that are set, as descriptors, and their values."""
    for cls in type(item).__mro__:
        for member in vars(cls).values() if "__slots__" in vars(cls) else ():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield member, member.__get__(item)
                except AttributeError:  # not set
                    continue


def _tells(file: io.IOBase) -> bool:
    try:
        return file.seekable() and file.tell() >= 0
    except (OSError, ValueError):
        return False
