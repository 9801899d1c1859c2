"""Copies that may be changed in place while the original stays as it is."""

from __future__ import annotations

import copy
from typing import TypeVar

Value = TypeVar("Value")


def copy_or_same(value: Value) -> Value:
    """A deep copy, or the value itself where it cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever copying an object of the user's may raise
        return value
