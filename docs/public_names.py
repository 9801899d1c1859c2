"""The public names of a room, as mkdocstrings is asked for them, read from the lists ``__all__``."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lightning_topo"
WHOLE = ("callbacks", "functional", "metrics", "plots")  # rooms of which every name is public


def of_room(room: str) -> list[str]:
    """Identifiers of a room: those that the package itself offers first, in its order."""
    offered, places = _listed(PACKAGE / "__init__.py"), _places(PACKAGE / "__init__.py")
    names = [name for name in offered if name in places and places[name].split(".")[1] == room]
    found = [_identifier(f"{PACKAGE.name}.{name}", f"{_origin(room, name)}.{name}") for name in names]
    if room in WHOLE:
        rest = [name for name in _listed(PACKAGE / room / "__init__.py") if name not in names]
        found += [_identifier(f"{PACKAGE.name}.{room}.{name}", f"{_origin(room, name)}.{name}") for name in rest]
    return found


def rooms_of_names() -> set[str]:
    """Rooms with public names."""
    places = _places(PACKAGE / "__init__.py")
    return {places[name].split(".")[1] for name in _listed(PACKAGE / "__init__.py") if name in places} | set(WHOLE)


def _identifier(public: str, origin: str) -> str:
    """The name by which it is known; its origin where a module of that name stands in the way."""
    module, _, name = origin.rpartition(".")
    return origin if module.rpartition(".")[2] == name and public.split(".")[1:-1] else public


def _origin(room: str, name: str) -> str:
    return _places(PACKAGE / room / "__init__.py")[name]


def _places(path: Path) -> dict[str, str]:
    """Module of each name that a file imports from the package."""
    imports = (
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    )
    return {alias.name: node.module for node in imports if node.module and "." in node.module for alias in node.names}


def _listed(path: Path) -> list[str]:
    """The list ``__all__`` of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise ValueError(f"expected a list __all__ in {path}, got none; add it")
