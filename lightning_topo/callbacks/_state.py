"""Saved state of a callback, read so that a state of another version, or a spoilt one, never ends a resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning_topo.callbacks._announcer import Announcer

Value = TypeVar("Value")


class SavedState:
    """What a checkpoint holds of a callback.

    Args:
        values: What was saved.
        announcer: Says what is missing or spoilt, once.
    """

    def __init__(self, values: Any, announcer: Announcer) -> None:
        self._values = values if isinstance(values, Mapping) else {}
        self._announcer = announcer
        if not isinstance(values, Mapping):
            self._say(f"is a {type(values).__name__} where a dict was expected")

    def get(self, key: str, read: Callable[[Any], Value], default: Value, since: str = "") -> Value:
        """The value of a key, as ``read`` makes it; the default where it is missing or cannot be read.

        Args:
            key: Name of the value.
            read: Makes the value of what was saved, or raises.
            default: What it is otherwise.
            since: The version that saved it first; earlier checkpoints may lack it, without a word.
        """
        if key not in self._values:
            if not since:
                self._say(f"has no {key!r}")
            return default
        try:
            return read(self._values[key])
        except Exception as error:
            self._say(f"has an unreadable {key!r} ({type(error).__name__}: {error})")
            return default

    def _say(self, what: str) -> None:
        self._announcer.warn_once(
            f"The checkpoint's state of {self._announcer.speaker} {what}; it is counted anew from here on. "
            "Training goes on; the checkpoint is of another version, or was edited."
        )


def count(value: Any) -> int:
    """A saved count, or a TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"expected a count of at least 0, got {value}")
    return value


def count_or_none(value: Any) -> int | None:
    """A saved count, or None; or a TypeError or ValueError."""
    return None if value is None else count(value)


def figures(value: Any) -> dict[str, float]:
    """Saved figures by key, or a TypeError or ValueError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a dict of figures, got {value!r}")
    return {str(key): float(number) for key, number in value.items()}
