"""Reads the docstrings' section "Example:" as code that runs."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Google's style calls the section "Examples:", and griffe takes the singular for a remark."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object, when its members are known."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
