"""Step clipping in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_topo.clipping.clipper import MAX_CRITICALITY, StepClipper
from lightning_topo.neurons import NeuronGroup, select_groups


@contextmanager
def topological_step_clipping(
    optimizer: Optimizer,
    model: nn.Module,
    groups: str | list[str] | list[NeuronGroup] | None = None,
    max_criticality: float = MAX_CRITICALITY,
    example_input: Any = None,
) -> Iterator[StepClipper]:
    r"""While the block runs, scale back every ``optimizer.step()`` whose criticality exceeds a bound.

    Where the root of the sum of squares of the groups' κ is above the bound, the parameters of those that move most
    become θ + s·(θ' - θ), so that it is not. The bound is ``max_criticality`` at the optimizer's full learning rate,
    and goes down with it.
    ``TopologicalStepClipping`` is the same for a Lightning Trainer; ``StepClipper`` says what happens in detail.

    Reference: arXiv 2510.02670, section 3: an update of κ < 1 is a bi-Lipschitz map of the neurons.

    Args:
        optimizer: Any torch optimizer.
        model: The model that it trains.
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_criticality: Largest root of the sum of squares of κ at the full learning rate, in (0, 1]; default the share
            of the critical learning rate that the rate control trains at.
        example_input: What the model's forward takes, to find groups and to check them.

    Yields:
        The ``StepClipper``, whose ``updates``, ``clipped_updates`` and ``last`` tell what happened.

    Raises:
        ValueError: When the bound is out of range, or no group is found.

    Example:
        >>> import torch
        >>> import lightning_topo as lt
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(64, 3), torch.randn(64, 1)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
        >>> with lt.topological_step_clipping(optimizer, model, example_input=x) as clipper:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.mse_loss(model(x), y).backward()
        ...         optimizer.step()
        >>> clipper.clipped_updates, round(clipper.last[0].criticality_after, 3)
        (3, 0.2)
    """
    clipper = StepClipper(optimizer, model, select_groups(model, groups, example_input), max_criticality)

    def before(*_: Any) -> None:
        clipper.before()

    def after(*_: Any) -> None:
        clipper.after()

    handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield clipper
    finally:
        for handle in handles:
            handle.remove()
