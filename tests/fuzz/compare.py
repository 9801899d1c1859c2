"""What of a run has to be the same bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def outcome(module: Any, trainer: Any) -> dict[str, Any]:
    """Weights, states of optimizers, schedules, generators, batches, metrics, modes, hooks, process-wide switches."""
    hooks = [len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in trainer.optimizers]
    cuts = torch.backends.cuda
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedules": [_plain(config.scheduler) for config in trainer.lr_scheduler_configs],
        "random": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),  # noqa: NPY002
        "batches": module.seen,
        "habits": module.habits.state(),
        "metrics": {name: value for name, value in trainer.callback_metrics.items() if "/" not in name},
        "modes": [m.training for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "dtypes": [p.dtype for p in module.parameters()],
        "attributes": sorted(vars(module)),
        "hooks": hooks,
        "steps": (trainer.global_step, trainer.current_epoch),
        "switches": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            cuts.flash_sdp_enabled(),
            cuts.mem_efficient_sdp_enabled(),
            cuts.math_sdp_enabled(),
        ),
    }


def _plain(scheduler: Any) -> dict[str, Any]:
    return {name: value for name, value in scheduler.state_dict().items() if not callable(value)}


def same(a: Any, b: Any) -> bool:
    """Whether two outcomes are equal bit for bit; NaN is NaN."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool(((a == b) | ((a != a) & (b != b))).all())
        )
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def require_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Raise an AssertionError that names the parts in which two outcomes differ."""
    differ = [part for part in first if not same(first[part], second[part])]
    assert not differ, f"differ: {', '.join(differ)}"
