"""Copies that may be changed in place while the original stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

Value = TypeVar("Value")


def copy_or_same(value: Value) -> Value:
    """A deep copy, or the value itself where it cannot be copied.

    Nested tensors keep the very offsets that they have: PyTorch joins only those whose offsets are one object, and a
    deep copy has others than the tensors that the model makes of it.
    """
    try:
        return copy.deepcopy(value, {id(nested): nested.detach().clone() for nested in _nested_tensors(value)})
    except Exception:  # whatever copying an object of the user's may raise
        return value


def _nested_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_nested:
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _nested_tensors(item)
    elif isinstance(value, Mapping):
        yield from _nested_tensors(list(value.values()))
