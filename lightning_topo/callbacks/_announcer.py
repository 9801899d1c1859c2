"""Saying things once: a diagnostic that fails warns and lets training go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_topo._user_warning import warn_user


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
            warn_user(message)

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
