"""The one place that knows that Lightning goes by two import names."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Callback", "log_encodings", "rank_zero_info"]


def _callback_classes() -> tuple[type, ...]:
    """The ``Callback`` classes of ``pytorch_lightning`` and ``lightning.pytorch``, those that can be imported."""
    classes: dict[type, None] = {}
    for name in ("pytorch_lightning", "lightning.pytorch"):
        with suppress(ImportError):
            classes[import_module(name).Callback] = None
    return tuple(classes)


if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:

    class Callback(*_callback_classes()):
        """Base of our callbacks: an instance of every ``Callback`` class there is, so that either Trainer takes it."""


def rank_zero_info(trainer: Any, message: str) -> None:
    """Say something on the first process, through the logger of the Trainer's own package, by which it is silenced."""
    cls = next(cls for cls in type(trainer).__mro__ if cls.__module__.endswith(".trainer.trainer"))
    package = cls.__module__.removesuffix(".trainer.trainer")
    import_module(f"{package}.utilities.rank_zero").rank_zero_info(message)


def log_encodings() -> list[str]:
    """The encodings of the streams to which ``rank_zero_info`` writes."""
    # Both of Lightning's packages put their own logger there.
    logger: logging.Logger | None = import_module("lightning_utilities.core.rank_zero").log
    encodings = []
    while logger is not None:
        encodings += [getattr(getattr(handler, "stream", None), "encoding", None) for handler in logger.handlers]
        logger = logger.parent if logger.propagate else None
    return [encoding for encoding in encodings if isinstance(encoding, str)]
