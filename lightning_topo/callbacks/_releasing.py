"""Letting go of a fit, however it ends."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning_topo.callbacks._options import OptionedCallback


class ReleasingCallback(OptionedCallback):
    """A callback that holds something of a fit, and lets go of it at an exception and at the latest in ``teardown``."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what belongs to the fit; it may have been let go of before."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the fit, which ends here."""
        self.release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the fit."""
        self.release()
