"""Saying things once: a diagnostic that fails warns and lets training go on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Frames of these packages are not where a user reads a warning.
_NOT_THE_USERS = ("lightning_topo", "pytorch_lightning", "lightning", "contextlib", "torch")


class Announcer:
    """Warns once of each thing.

    Args:
        speaker: Name of the callback that speaks.
    """

    def __init__(self, speaker: str) -> None:
        self.speaker = speaker
        self._said: set[str] = set()

    def forget(self) -> None:
        """A run begins anew, and everything may be said again."""
        self._said = set()

    def warn_once(self, message: str, kind: str | None = None) -> None:
        """Warn, at the user's line, unless this message, or one of this kind, has been given already."""
        if (kind or message) not in self._said:
            self._said.add(kind or message)
            warnings.warn(message, UserWarning, stacklevel=_users_frame())

    @contextmanager
    def never_fatal(self, doing: str = "measure") -> Iterator[None]:
        """Something that fails in the block is said once; training goes on."""
        try:
            yield
        except Exception as error:
            self.warn_once(
                f"{self.speaker} could not {doing} ({type(error).__name__}: {error}). "
                "Training goes on; later failures of this kind are not reported.",
                kind=f"{doing}: {type(error).__name__}",
            )


def _users_frame() -> int:
    """How many calls up the first line is that belongs neither to us nor to Lightning, counted from the caller."""
    frame, level = sys._getframe(1), 1
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _NOT_THE_USERS:
            return level
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return 2
