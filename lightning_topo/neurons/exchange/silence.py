"""Warnings of one thread left out, while those of all others are heard."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _OfSilentThreads(threading.local):
    """Stands where a warning filter has the pattern of a message: it fits whatever a silent thread says."""

    depth = 0

    def match(self, text: str) -> bool:
        """Whether the thread that warns is silent."""
        return self.depth > 0


_SILENT = _OfSilentThreads()
_FILTER: Any = ("ignore", _SILENT, Warning, None, 0)


@contextmanager
def silence() -> Iterator[None]:
    """Leave out the warnings of this thread.

    ``warnings.catch_warnings`` would replace the filters of the whole process, and where two threads do that at the
    same time, the one that ends last puts back what the other had set. This adds a filter to them that fits nothing
    that other threads say, and takes the same one away. Entered by one thread at a time.
    """
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    filters.insert(0, _FILTER)
    _SILENT.depth += 1
    try:
        yield
    finally:
        _SILENT.depth -= 1
        now: list[Any] = warnings.filters  # type: ignore[assignment]
        for kept in (filters, now):  # another thread may have put a copy in its place
            index = next((i for i, entry in enumerate(kept) if entry is _FILTER), None)
            if index is not None and _SILENT.depth == 0:
                del kept[index]
