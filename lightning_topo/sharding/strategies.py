"""What a strategy of Lightning's does with parameters and optimizers."""

from __future__ import annotations

from typing import Any


def shards_parameters(strategy: Any) -> bool:
    """Whether a strategy spreads each parameter over the processes (FSDP, tensor parallelism, DeepSpeed stage 3)."""
    return _is_a(strategy, "FSDPStrategy", "ModelParallelStrategy") or hides_parameters(strategy)


def hides_parameters(strategy: Any) -> bool:
    """Whether a strategy spreads the parameters in a way that is not known here (DeepSpeed stage 3)."""
    return getattr(strategy, "zero_stage_3", False)


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
