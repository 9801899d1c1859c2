"""The long description of the package: the README, for readers who do not have the repository beside it."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"^!\[[^\]]*\]\([^)]*\)\n\n?", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)[^)]*\)")


class CustomMetadataHook(MetadataHookInterface):
    """Leaves out pictures, and the addresses of links into the repository, whose own address is not known."""

    def update(self, metadata: dict) -> None:
        """Called by hatchling."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": long_description(text)}


def long_description(readme: str) -> str:
    """The README without pictures, links into the repository as plain text."""
    return _LINK.sub(r"\1", _PICTURE.sub("", readme))
