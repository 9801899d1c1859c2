"""Running batches of a Trainer while nobody listens."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def lightning_of(trainer: Any) -> str:
    """The package that a Trainer is from: ``pytorch_lightning`` or ``lightning.pytorch``."""
    cls = next(cls for cls in type(trainer).__mro__ if cls.__module__.endswith(".trainer.trainer"))
    return cls.__module__.removesuffix(".trainer.trainer")


def isolate(trainer: Any, only: Any) -> None:
    """Make ``only`` the one callback; set loggers, profiler and requests to stop aside. The caller puts them back."""
    package = lightning_of(trainer)
    dummy = import_module(f"{package}.loggers.logger").DummyLogger
    trainer.callbacks = [only]
    trainer.loggers = [dummy() for _ in trainer.loggers[:1]]
    trainer.profiler = import_module(f"{package}.profilers").PassThroughProfiler()
    trainer.should_stop = False
