"""Rate control in a training loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_topo.control.controller import RateController
from lightning_topo.control.rule import RateRule
from lightning_topo.control.schedule_shape import PlannedSchedule, ScheduleName
from lightning_topo.neurons import NeuronGroup, select_groups
from lightning_topo.updates import StepHooks


@contextmanager
def topological_rate_control(
    optimizer: Optimizer,
    model: nn.Module,
    example_input: Any = None,
    total_steps: int | None = None,
    share: float | None = None,
    half_life: float | None = None,
    schedule: ScheduleName = "auto",
    groups: str | list[str] | list[NeuronGroup] | None = None,
    every: int = 10,
) -> Iterator[RateController]:
    r"""While the block runs, make every ``optimizer.step()`` at a share of the critical learning rate of the moment.

    $$\eta_g(t) = \frac{\text{share}}{T} \, \frac{b_g}{\max b} \, s_g(t)$$

    with the memory T of the smoothness K = κ/η of the updates so far (``RateRule``), the parameter groups' own rates b,
    whose ratio is kept, and the schedule's shape s. The rates are put back after each step. ``TopologicalRateControl``
    is the same for a Lightning Trainer.

    Reference: arXiv 2510.02670, section 3: η* = 1/K.

    Args:
        optimizer: Any torch optimizer whose updates are proportional to its rate; the rate itself does not matter.
        model: The model that it trains.
        example_input: What the model's forward takes, to find groups and to check them.
        total_steps: Number of updates of the run; None where it is not known.
        share: Share of η* to train at, in (0, 1]; default 0.2, and 0.025 of a constant rate.
        half_life: Updates after which half of a fall of η* is forgotten; default half of ``total_steps``, less in its
            first tenth, and never where that is not known.
        schedule: ``"cosine"`` or ``"linear"``, after a warm-up over a tenth of the run, or ``"constant"``; ``"auto"``:
            what a scheduler of the optimizer does, and where there is none the cosine if ``total_steps`` is given.
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        every: Updates in a measured window.

    Yields:
        The ``RateController``, whose ``learning_rate``, ``critical_lr`` and ``range`` tell what happened.

    Raises:
        ValueError: An option is out of range, or no group is found.
        TypeError: The optimizer has no rate that could be controlled.

    Example:
        >>> import torch
        >>> import lightning_topo as lt
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(64, 3), torch.randn(64, 1)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> with lt.topological_rate_control(optimizer, model, example_input=x, total_steps=3) as control:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.mse_loss(model(x), y).backward()
        ...         optimizer.step()
        >>> control.updates, 0 < control.learning_rate < control.critical_lr
        (3, True)
    """
    total = math.inf if total_steps is None else float(total_steps)
    scheduled = any("initial_lr" in group for group in optimizer.param_groups)  # a scheduler has been there
    planned = PlannedSchedule.of_run(schedule, total, scheduled)
    rule = RateRule.of_run(planned.share if share is None else share, half_life, total)
    found = select_groups(model, groups, example_input)
    controller = RateController(optimizer, model, found, rule, planned.shape, every)
    hooks = StepHooks(lambda *_: controller.before(), lambda *_: controller.after(), sets_rates=True)
    hooks.attach([optimizer])
    try:
        yield controller
    finally:
        hooks.release()
        controller.put_back()
