"""Running batches of a Trainer while nobody listens."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_topo.updates import is_step_hook


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


def isolate_trial(trainer: Any, watch: Any) -> None:
    """Let only ``watch`` see the batches that are run. What is set here, the run state puts back."""
    isolate(trainer, watch)
    loop = trainer.fit_loop.epoch_loop
    loop._restarting = False
    loop._results = type(loop._results)(training=True)
    loop.update_lr_schedulers = _keep_rates
    trainer._logger_connector.reset_metrics()
    trainer._logger_connector._first_loop_iter = None
    for optimizer in trainer.optimizers:
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            for key in [key for key, hook in hooks.items() if _belongs_to_callback(hook)]:
                del hooks[key]


def _keep_rates(*args: Any, **kwargs: Any) -> None:
    """In the place of the loop's stepping of schedulers."""


def _belongs_to_callback(hook: Any) -> bool:
    if is_step_hook(hook):
        return True
    owner = getattr(getattr(hook, "func", hook), "__self__", None)
    return any(cls.__name__ == "Callback" and "lightning" in cls.__module__ for cls in type(owner).__mro__)
