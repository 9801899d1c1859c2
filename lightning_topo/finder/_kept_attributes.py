"""Attributes of an object, put back or given as copies to work on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lightning_topo.finder._reachable import CONTAINERS
from lightning_topo.finder._sources import contents, put_back


class KeptAttributes:
    """The attributes of an object, and the contents of those that are plain containers."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self._values = dict(vars(owner))
        self._contents = [contents(value) for value in self._values.values() if isinstance(value, CONTAINERS)]

    def branch(self, memo: dict[int, Any]) -> None:
        """Replace the attributes by deep copies where that is possible."""
        for name, value in self._copied():
            with suppress(Exception):  # what cannot be copied stays shared
                vars(self.owner)[name] = copy.deepcopy(value, memo)

    def shared(self, memo: dict[int, Any]) -> Iterator[tuple[str, Any]]:
        """The attributes that a branch does not copy, as they are too large or cannot be copied."""
        copied = dict(self._copied())
        for name, value in self._values.items():
            if name not in copied and isinstance(value, (Dataset, DataLoader)):
                yield name, value
            elif name in copied:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:  # whatever copying an object of the user's may raise
                    yield name, value

    def _copied(self) -> Iterator[tuple[str, Any]]:
        for name, value in self._values.items():
            if name.startswith("_") and name.endswith(("_hooks", "_parameters", "_buffers", "_modules", "_trainer")):
                continue  # the module's own tables, whose contents restore() puts back
            if not isinstance(value, (Dataset, DataLoader)):  # too large to copy
                yield name, value

    def restore(self) -> None:
        """Put attributes and contents back."""
        put_back(vars(self.owner), self._values)
        for restore in self._contents:
            restore()
