"""What was measured, kept as a list that does not fill the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Record = TypeVar("Record")

# Older records are thinned out beyond this number.
_MAX_RECORDS = 100_000


def remember(history: list[Record], records: Sequence[Record]) -> None:
    """Append to a history; beyond 100,000 records every second one of the older half is dropped."""
    history.extend(records)
    if len(history) > _MAX_RECORDS:
        del history[: _MAX_RECORDS // 2 : 2]


class PresentRun:
    """Which records of a history are of the present run: a history goes on over several runs with one callback."""

    def __init__(self) -> None:
        self._before: Any = None

    def begin_anew(self, history: Sequence[Any]) -> None:
        """The run starts at its first step: what is in the history is of an earlier one."""
        self._before = history[-1] if history else None

    def records(self, history: Sequence[Record]) -> Sequence[Record]:
        """Those of the present run."""
        if self._before is not None:
            for number in range(len(history) - 1, -1, -1):
                if history[number] is self._before:
                    return history[number + 1 :]
        return history
