"""Random generators of the user's own: found where a module can reach them, and put back."""

from __future__ import annotations

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Libraries that keep their random state elsewhere, or nowhere that a forward pass would draw from.
_LIBRARIES = frozenset(
    {*sys.stdlib_module_names, "torch", "numpy", "pytorch_lightning", "lightning", "lightning_fabric"}
)
_NOTHING_INSIDE = (str, bytes, int, float, complex, bool, type(None), Tensor, np.ndarray, BuiltinFunctionType)
# A search that has met so many objects is lost in somebody's data.
_MOST_OBJECTS = 20_000
# What people write, also where they use a class of the library as it is.
_OWNERS = (nn.Module, DataLoader, Dataset, Sampler)


@contextmanager
def generators_kept(generators: Iterable[Any]) -> Iterator[None]:
    """Leave some generators as they are, whatever is drawn from them inside."""
    undo = [restoring(generator) for generator in generators]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def reachable_generators(*owners: Any) -> list[Any]:
    """Generators of PyTorch, NumPy and Python that some objects can draw from, without those that the libraries own.

    Looked through are the attributes of the objects, containers in them, the global variables and closures that their
    methods use, and those that the functions use which these call. What a function is given as an argument, or makes
    up anew, is out of sight.

    Args:
        owners: A module, a data set, a loader, a function.

    Returns:
        Each generator once.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.noise = torch.Generator()
        >>> reachable_generators(layer) == [layer.noise]
        True
    """
    found: list[Any] = []
    seen: dict[int, Any] = {}
    waiting = deque(owners)  # so that what is near comes first
    while waiting and len(seen) < _MOST_OBJECTS:
        item = waiting.popleft()
        if id(item) in seen or issubclass(type(item), _NOTHING_INSIDE):
            continue
        seen[id(item)] = item  # kept alive, so that no other object can have its number
        if issubclass(type(item), _GENERATORS):
            found.append(item)
        else:
            with suppress(Exception):  # whatever an object of the user's may raise when it is looked at
                waiting.extend(_inside(item))
    return found


def _inside(item: Any) -> Iterable[Any]:
    """Objects that an object refers to, read where they lie: what an object would make up when asked is not asked for.

    A dictionary of a class of its own may import a library to give a value.
    """
    kind = type(item)
    if issubclass(kind, dict):
        return list(dict.values(item))
    for container in (list, tuple, set, frozenset):
        if issubclass(kind, container):
            return container.__iter__(item)
    if kind is MethodType:
        return (item.__func__, item.__self__)
    if kind is FunctionType:
        return _of_function(item)
    if kind is partial:
        return (item.func, item.args, item.keywords)
    if issubclass(kind, type):
        return () if _from_library(item) else (*vars(item).values(), *item.__bases__)
    if kind in (staticmethod, classmethod):
        return (item.__func__,)
    if kind is property:
        return (item.fget,)
    if issubclass(kind, ModuleType) or (_from_library(kind) and not issubclass(kind, _OWNERS)):
        return ()
    return (kind, *vars(item).values())


def _of_function(function: FunctionType) -> list[Any]:
    if _from_library(function):
        return list(filter(None, [getattr(function, "__wrapped__", None)]))
    names = set(_names(function.__code__))
    reached: list[Any] = []
    for value in (function.__globals__.get(name) for name in names):
        if issubclass(type(value), ModuleType) and not _from_library(value):
            reached += [found for name, found in vars(value).items() if name in names]
        else:
            reached.append(value)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    return [*reached, *cells, function.__defaults__, function.__kwdefaults__, getattr(function, "__wrapped__", None)]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _from_library(item: Any) -> bool:
    name = item.__name__ if isinstance(item, ModuleType) else getattr(item, "__module__", None)
    return str(name).partition(".")[0] in _LIBRARIES


def restoring(generator: Any) -> Callable[[], Any]:
    """What puts the generator back into the state in which it is now, as often as it is called."""
    if isinstance(generator, random.SystemRandom):  # has no state: the operating system draws
        return lambda: None
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    return partial(generator.set_state, generator.get_state())
