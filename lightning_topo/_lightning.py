"""The one place that knows that Lightning goes by two import names."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Callback", "hides_optimizer_steps", "require_whole_updates", "shards_parameters"]


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


def shards_parameters(strategy: Any) -> bool:
    """Whether a strategy spreads each parameter over the processes (FSDP, tensor parallelism, DeepSpeed stage 3)."""
    return _is_a(strategy, "FSDPStrategy", "ModelParallelStrategy") or getattr(strategy, "zero_stage_3", False)


def hides_optimizer_steps(strategy: Any) -> bool:
    """Whether a strategy's optimizers are no torch optimizers, and call no hooks around a step (DeepSpeed)."""
    return _is_a(strategy, "DeepSpeedStrategy")


def require_whole_updates(strategy: Any, advice: str) -> None:
    """Raise a TypeError, with advice, where no process sees what an update does to all neurons."""
    if shards_parameters(strategy):
        wanted, got = "keeps the whole model on each process", "shards the parameters"
    elif hides_optimizer_steps(strategy):
        wanted, got = "has optimizers that call hooks before and after a step", "has none"
    else:
        return
    raise TypeError(
        f"expected a strategy that {wanted} (one device, DDP), got {type(strategy).__name__}, which {got}; {advice}"
    )


def _is_a(strategy: Any, *names: str) -> bool:
    return not {cls.__name__ for cls in type(strategy).__mro__}.isdisjoint(names)
