"""The picture of the rooms: who imports whom, read from the code, as an SVG."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_topo"
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 118, 40, 26, 52
_STYLE = (
    "rect.room{fill:#e8eaf6;stroke:#3f51b5;stroke-width:1.2} text{font:14px sans-serif;fill:#1a237e} "
    "path{fill:none;stroke:#5c6bc0;stroke-width:1.2}"
)

Imports = dict[str, set[str]]


def imports() -> Imports:
    """The rooms that each room imports, by name."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    found: Imports = {room: set() for room in rooms}
    for room in rooms:
        for path in (PACKAGE / room).rglob("*.py"):
            found[room] |= {other for other, _ in imported(path)} & rooms - {room}
    return found


def imported(path: Path) -> Iterator[tuple[str, list[str]]]:
    """For each import from the package in a file: the room, and the parts of the module's name below it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            below = node.module.split(".")[1:]
            for room in below[:1] or [alias.name for alias in node.names]:
                yield room, below[1:]


def layers(arrows: Imports) -> list[list[str]]:
    """Rooms by the length of the longest way down, the top first."""

    def depth(room: str) -> int:
        return 1 + max((depth(other) for other in arrows[room]), default=-1)

    by_depth: dict[int, list[str]] = {}
    for room in sorted(arrows):
        by_depth.setdefault(depth(room), []).append(room)
    return [by_depth[level] for level in sorted(by_depth, reverse=True)]


def direct(arrows: Imports) -> Imports:
    """The arrows that do not follow from others."""

    def below(room: str) -> set[str]:
        return arrows[room] | {deep for other in arrows[room] for deep in below(other)}

    return {room: others - {deep for other in others for deep in below(other)} for room, others in arrows.items()}


def svg() -> str:
    """The picture: a box a room, an arrow an import."""
    arrows = imports()
    rows = layers(arrows)
    widest = max(map(len, rows))
    width = widest * (_WIDTH + _GAP_X) + _GAP_X
    place = {}
    for level, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for k, room in enumerate(row):
            place[room] = (left + k * (_WIDTH + _GAP_X), 16 + level * (_HEIGHT + _GAP_Y))
    height = 16 + len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 16
    boxes = list(place.values())
    parts = [_arrow(place[room], place[other], boxes) for room, others in direct(arrows).items() for other in others]
    parts += [_box(room, *place[room]) for room in sorted(place)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
            f"<style>{_STYLE}</style>",
            '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
            '<polygon points="0,0 10,5 0,10" fill="#5c6bc0"/></marker>',
            f'<rect width="{width:g}" height="{height:g}" rx="8" fill="white"/>',
            *sorted(parts),
            "</svg>",
        ]
    )


def _box(room: str, x: float, y: float) -> str:
    return (
        f'<rect class="room" x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x + _WIDTH / 2:g}" y="{y + 25:g}" text-anchor="middle">{room}</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], boxes: list[tuple[float, float]]) -> str:
    """From the foot of one box to the head of another, through a gap where a third lies in the way."""
    (x, y), (to_x, to_y) = start, end
    x, y, to_x = x + _WIDTH / 2, y + _HEIGHT, to_x + _WIDTH / 2
    points = [(x, y)]
    for left, top in sorted(boxes, key=lambda box: box[1]):
        here = x + (to_x - x) * (top - y) / (to_y - y)
        if y < top < to_y - _HEIGHT and left - 4 < here < left + _WIDTH + 4:
            gap = left - _GAP_X / 2 if to_x <= here else left + _WIDTH + _GAP_X / 2
            points += [(gap, top), (gap, top + _HEIGHT)]
    points.append((to_x, to_y))
    path = f"M{x:g},{y:g}"
    for (a, b), (c, d) in pairwise(points):
        path += f" C{a:g},{(b + d) / 2:g} {c:g},{(b + d) / 2:g} {c:g},{d:g}"
    return f'<path d="{path}" marker-end="url(#tip)"/>'
