"""One run of a task at a rate and a schedule, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rates_tasks import Task, shape
from torch import Tensor, nn
from torch.optim import Optimizer

LOST = 1e4  # a training loss above this has diverged


@dataclass
class Fit:
    """What goes into a run: a network, its optimizer, and what is done around each step.

    Args:
        model: The network.
        optimizer: Its optimizer; the rates of its groups are those that the schedule multiplies.
        step: Makes the update, given the loss; default ``optimizer.step()``.
        before: Called before each update with its number and the schedule's value.
        finish: Called before the validation.
    """

    model: nn.Module
    optimizer: Optimizer
    step: Callable[[Tensor], object] | None = None
    before: Callable[[int, float], None] | None = None
    finish: Callable[[], None] | None = None


def train(task: Task, fit: Fit, steps: int, seed: int, schedule: str) -> float:
    """Validation loss at the end, ``inf`` where training diverged."""
    base = [group["lr"] for group in fit.optimizer.param_groups]
    for step, (x, y) in enumerate(task.batches(steps, seed)):
        share = shape(step, steps, schedule)
        for group, rate in zip(fit.optimizer.param_groups, base, strict=True):
            group["lr"] = rate * share
        fit.optimizer.zero_grad()
        loss = task.loss(fit.model(x), y)
        value = loss.item()
        if not math.isfinite(value) or value > LOST:
            return math.inf
        loss.backward()
        if fit.before is not None:
            fit.before(step, share)
        if fit.step is None:
            fit.optimizer.step()
        else:
            fit.step(loss.detach())
    if fit.finish is not None:
        fit.finish()
    return task.validate(fit.model)


def plain(task: Task, lr: float, steps: int, seed: int, schedule: str) -> float:
    model = task.model(seed)
    return train(task, Fit(model, task.optimizer(model, lr)), steps, seed, schedule)
