"""What a training step or a data set can draw from and count in: every plain object that can be reached from some."""

from __future__ import annotations

import functools
import io
import random
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from logging import Logger
from multiprocessing.process import BaseProcess
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
CONTAINERS = (list, dict, set, OrderedDict, defaultdict, deque)

# Longer containers are data: their contents are put back, but not looked through.
LONG = 1000
# Objects that are looked at in all. A data set with more of them keeps its samples as objects.
_MANY = 20_000
# Nothing that a draw changes: what a run reads, and what connects it to the rest of the world.
_LEAVES = (
    types.ModuleType, types.CodeType, types.FrameType, str, bytes, int, float, complex,
    type(None), torch.dtype, torch.device, Logger, threading.Thread, type(threading.Lock()), type(threading.RLock()),
    BaseProcess, PurePath, random.SystemRandom, _BaseDataLoaderIter,
)  # fmt: skip
# Code of these is not looked through for the globals that it uses.
_LIBRARIES = {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "lightning_topo"}
# Methods in C, such as the ``normal`` of a generator.
_BOUND = (types.BuiltinFunctionType, types.MethodWrapperType)
_STANDARD = sys.stdlib_module_names - {"__main__"}
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")


@dataclass
class Reachable:
    """What was found.

    Attributes:
        generators: Random generators.
        objects: Objects with attributes.
        containers: Lists, dictionaries, sets and the like.
        arrays: Tensors and NumPy arrays.
        once: Names of what can be read only once: iterators, and files that do not tell where they stand.
        files: Files that tell where they stand.
        complete: Whether everything was looked at.
    """

    generators: list[Any] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    containers: list[Any] = field(default_factory=list)
    arrays: list[Any] = field(default_factory=list)
    once: list[str] = field(default_factory=list)
    files: list[Any] = field(default_factory=list)
    complete: bool = True


def reachable(roots: Mapping[str, Any], borders: Iterator[Any] | list[Any]) -> Reachable:
    """Look through attributes and containers, and the variables outside of them that functions and methods name.

    Of what is reached through such globals and variables of enclosing functions only the random generators are
    returned: the rest is anybody's.

    Args:
        roots: Where to begin, by name.
        borders: Objects that are not entered: the model, the Trainer.

    Returns:
        What was found. Containers of more than 1,000 entries are returned, but not looked through.
    """
    walk = _Walk(borders)
    walk.go(list(roots.items()), own=True)
    while walk.used_globals:  # what they hold may name others
        waiting, walk.used_globals = walk.used_globals, []
        walk.go(waiting, own=False)
    return walk.found


class _Walk:
    def __init__(self, borders: Iterator[Any] | list[Any]) -> None:
        self.found = Reachable()
        self.used_globals: list[tuple[str, Any]] = []
        self._seen = {id(item): item for item in borders}
        self._left = _MANY
        self._read_already: set[int] = set()

    def go(self, waiting: list[tuple[str, Any]], own: bool) -> None:
        while waiting:
            if not self._left:
                self.found.complete = not own and self.found.complete
                return
            name, item = waiting.pop()
            if isinstance(item, _LEAVES) or id(item) in self._seen:
                continue
            self._seen[id(item)], self._left = item, self._left - 1
            waiting += [(f"{name}{step}", inner) for step, inner in self._enter(name, item, own)]

    def _enter(self, name: str, item: Any, own: bool) -> list[tuple[str, Any]]:
        """Note an item, and return what it holds."""
        found = self.found
        if isinstance(item, GENERATORS):
            found.generators.append(item)
            return []
        if isinstance(item, (Tensor, np.ndarray)):
            found.arrays += [item] if own else []
            return []
        if isinstance(item, types.FunctionType):
            self._read(item)
            return []
        if isinstance(item, type):
            self._read_class(item)
            return []
        if isinstance(item, types.MethodType):
            return [("", item.__self__), ("", item.__func__)]
        if isinstance(item, _BOUND):
            return [("", item.__self__)]
        if isinstance(item, functools.partial):
            return [("", item.func), ("", item.args), ("", item.keywords)]
        if isinstance(item, (tuple, frozenset)):
            return [(f"[{i}]", value) for i, value in enumerate(item)] if len(item) <= LONG else []
        if type(item) in CONTAINERS:
            found.containers += [item] if own else []
            if len(item) > LONG:
                return []
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            return [(f"[{key!r}]", value) for key, value in pairs]
        return self._enter_object(name, item, own)

    def _enter_object(self, name: str, item: Any, own: bool) -> list[tuple[str, Any]]:
        if isinstance(item, io.IOBase):
            if own and not item.closed:
                self.found.files += [item] if _tells(item) else []
                self.found.once += [] if _tells(item) else [name]
            return []
        attributes = attributes_of(item)
        if isinstance(item, Iterator) and not attributes:  # it keeps its place where nobody can reach it
            self.found.once += [name] if own else []
        foreign = type(item).__module__.startswith(_LIGHTNING) and type(item).__name__ != "CombinedLoader"
        if foreign or not attributes:
            return []
        self.found.objects += [item] if own else []
        self._read_class(type(item))
        entries = item.items() if isinstance(item, dict) and len(item) <= LONG else ()
        held = [(f".{key}", value) for key, value in attributes.items()]
        return held + [(f"[{key!r}]", value) for key, value in entries]

    def _read_class(self, cls: type) -> None:
        """Note what a class of the user's, and its bases, hold and use."""
        for base in cls.__mro__:
            if id(base) in self._read_already or base.__module__.partition(".")[0] in _LIBRARIES | _STANDARD:
                continue
            self._read_already.add(id(base))
            for name, part in vars(base).items():
                function = getattr(part, "__func__", None) or getattr(part, "fget", None) or part
                if isinstance(function, types.FunctionType):
                    self._read(function)
                else:
                    self.used_globals.append((f"{base.__qualname__}.{name}", part))

    def _read(self, function: types.FunctionType) -> None:
        """Note the variables of enclosing functions, the defaults and the globals that a function uses."""
        scope = function.__globals__
        root = str(scope.get("__name__", "")).partition(".")[0]
        if id(function) in self._read_already or root in _LIBRARIES | _STANDARD:
            return
        self._read_already.add(id(function))
        self.used_globals += [(function.__name__, content) for content in _enclosed(function)]
        self._read_code(function.__code__, scope)

    def _read_code(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        for name in code.co_names:
            value = scope.get(name)
            if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _LIBRARIES:
                inside = vars(value)
                self.used_globals += [(f"{name}.{key}", inside[key]) for key in code.co_names if key in inside]
            elif value is not None:
                self.used_globals.append((name, value))
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self._read_code(inner, scope)


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


def _enclosed(function: types.FunctionType) -> list[Any]:
    """What a function holds besides its globals: variables of enclosing functions, and defaults."""
    contents = list(function.__defaults__ or ())
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not bound yet
            contents.append(cell.cell_contents)
    return contents


def _tells(file: io.IOBase) -> bool:
    try:
        return file.seekable() and file.tell() >= 0
    except (OSError, ValueError):
        return False
