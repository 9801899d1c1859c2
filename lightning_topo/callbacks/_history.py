"""What was measured, kept as a list that does not fill the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Record = TypeVar("Record")

# Older records are thinned out beyond this number.
_MAX_RECORDS = 100_000


def remember(history: list[Record], records: Sequence[Record]) -> None:
    """Append to a history; beyond 100,000 records every second one of the older half is dropped."""
    history.extend(records)
    if len(history) > _MAX_RECORDS:
        del history[: _MAX_RECORDS // 2 : 2]
