"""Tables as the pages of docs/evidence have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(columns), "|" + "---|" * len(columns)]


def shown(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table, whose rows are printed as they are made."""
    lines = head(columns)
    print(*lines, sep="\n", flush=True)
    for row in rows:
        lines.append(line(row))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"
