"""Tables as the pages of docs/evidence have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(columns), "|" + "---|" * len(columns)]
