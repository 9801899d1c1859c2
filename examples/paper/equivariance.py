"""Permutation equivariance of the update: exchange two neurons with their optimizer state, step, compare.

    python examples/paper/equivariance.py

U(Pθ, Ps) = P U(θ, s), for parameters θ, optimizer state s and a permutation P of the neurons. The gap is the largest
difference of the two sides, as a share of how far the update moved the parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import lightning_topo as lt

Make = Callable[..., torch.optim.Optimizer]
# Sums over neurons are taken in another order, in float64.
ROUNDING = 1e-9


class NoisyGD(torch.optim.SGD):
    """Gradient descent with noise that belongs to the index of a neuron: the counter-example."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        generator = torch.Generator().manual_seed(0)
        for parameter in self.param_groups[0]["params"]:
            parameter.grad += 0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        super().step(closure)


OPTIMIZERS: dict[str, Make] = {
    "GD": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "GD with noise of its own for each index": partial(NoisyGD, lr=0.1),
}
COUNTER_EXAMPLES = {"GD with noise of its own for each index"}


@dataclass(frozen=True)
class Equivariance:
    """Gap of one optimizer."""

    optimizer: str
    gap: float
    expected: bool

    @property
    def holds(self) -> bool:
        return self.gap < ROUNDING


def check(name: str, n: int = 64, steps: int = 5) -> Equivariance:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (n, 6), "2.weight": (3, n)}
    model = nn.Sequential(nn.Linear(6, n, bias=False), nn.Sigmoid(), nn.Linear(n, 3, bias=False)).double()
    model.load_state_dict({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()})
    x, y = (torch.randn(32, k, generator=generator, dtype=torch.float64) for k in (6, 3))
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(steps):
        _step(model, optimizer, x, y)  # moments are to be filled

    group = lt.NeuronGroup("hidden", (lt.Member("0.weight", 0), lt.Member("2.weight", 1)))
    exchange = torch.arange(n)
    exchange[[3, 40]] = torch.tensor([40, 3])
    other = copy.deepcopy(model)
    other_optimizer = OPTIMIZERS[name](other.parameters())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _exchange(group, other, other_optimizer, exchange)

    before = group.points(model)
    _step(model, optimizer, x, y)
    _step(other, other_optimizer, x, y)
    moved = (group.points(model) - before).abs().max()
    gap = (group.points(other) - group.points(model)[exchange]).abs().max()
    return Equivariance(name, float(gap / moved), name not in COUNTER_EXAMPLES)


def _exchange(group: lt.NeuronGroup, model: nn.Module, optimizer: torch.optim.Optimizer, order: Tensor) -> None:
    group.permute_(model, order)
    parameters = dict(model.named_parameters())
    for member in group.members:
        parameter = parameters[member.parameter]
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = value.index_select(member.axis, order)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def check_all() -> list[Equivariance]:
    return [check(name) for name in OPTIMIZERS]


if __name__ == "__main__":
    for result in check_all():
        print(f"{result.optimizer:42} gap {result.gap:.1e}  {'equivariant' if result.holds else 'not equivariant'}")
        assert result.holds == result.expected
