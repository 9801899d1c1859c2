"""The exchange test: units are neurons only if exchanging them leaves the network's function unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons.exchange.perturbed import PerturbedCopy
from lightning_topo.neurons.exchange.placeholder import change_
from lightning_topo.neurons.exchange.sandbox import Sandbox, open_sandbox
from lightning_topo.neurons.group import NeuronGroup, locate
from lightning_topo.neurons.member import exchange_units_

# One trial may miss a wrong group whose units happen to be silent (a ReLU) on the whole example.
_TRIALS = 3


def is_permutation_symmetric(model: nn.Module, group: NeuronGroup, example_input: Any = None) -> bool:
    r"""Whether exchanging the units of ``group`` leaves the function of ``model`` unchanged.

    $$f(x; \Pi\theta) = f(x; \theta)$$

    for a random cyclic permutation $\Pi$ of all units, up to rounding. Tested on a copy in double precision whose
    parameters, buffers and inputs are perturbed at random, because units that are alike by initialisation (zero
    biases, unit scales, zero-initialised layers) would hide a member that the group forgot. The model, its buffers,
    mode, hooks and the random state stay as they are.

    Args:
        model: Module to test.
        group: Units to exchange.
        example_input: Tensor (only argument), tuple (positional arguments) or dict (keyword arguments); default
            ``model.example_input_array``, or an input made up for the first layer.

    Returns:
        True if every floating-point output stays, in each of three trials.

    Raises:
        ValueError: The group does not fit the model, or the example input does not run.

    Example:
        >>> from lightning_topo.neurons import Member
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> whole = NeuronGroup("0", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))
        >>> is_permutation_symmetric(model, whole, torch.ones(1, 3))
        True
        >>> is_permutation_symmetric(model, NeuronGroup("0", whole.members[:2]), torch.ones(1, 3))
        False
    """
    group.n_units(model)
    sandbox = open_sandbox(model, example_input)
    return not asymmetric(sandbox, [group])


def asymmetric(sandbox: Sandbox, groups: Sequence[NeuronGroup], trials: int = _TRIALS) -> list[NeuronGroup]:
    """The groups whose exchange changes the output in any of some independent trials."""
    failing: list[NeuronGroup] = []
    for seed in range(trials if groups else 0):
        test = ExchangeTest(sandbox, seed)
        if seed == 0 and test.blind:
            name = type(sandbox.model).__name__
            raise ValueError(
                f"{name} returned no finite number, so there is no output to compare; pass an example_input "
                "(not empty, no NaN), and weights, for which it does"
            )
        failing += test.failing([group for group in groups if group not in failing])
    return [group for group in groups if group in failing]


class ExchangeTest:
    """Exchanges units on a perturbed sandbox, many groups in one forward pass.

    Args:
        sandbox: Will be perturbed.
        seed: Of the perturbation and the permutations. With 0 the perturbed copy still resembles the model; with
            others it has the sizes of its parameters in common with it, so that trials are independent.

    Attributes:
        blind: The perturbed copy returns nothing that could be compared, so no group fails.
    """

    def __init__(self, sandbox: Sandbox, seed: int = 0) -> None:
        self._model = sandbox.model
        self._generator = torch.Generator().manual_seed(seed)
        self._copy = PerturbedCopy(sandbox, self._generator, resembling=seed == 0)
        self.blind = self._copy.blind

    def failing(self, groups: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """The groups whose exchange changes the output: all at once, and by halves where that fails."""
        if not groups or self.blind or self._unchanged_by(groups):
            return []
        if len(groups) == 1:
            return list(groups)
        half = len(groups) // 2
        return self.failing(groups[:half]) + self.failing(groups[half:])

    def _unchanged_by(self, groups: Iterable[NeuronGroup]) -> bool:
        model = self._model
        cycles = [(group, _cycle(group.n_units(model), self._generator)) for group in groups]
        for group, cycle in cycles:
            _exchange_(model, group, cycle)
        if self._copy.same(self._copy.before, self._copy.outputs()):
            return True  # and so the copy may stay as it is
        for group, cycle in reversed(cycles):
            _exchange_(model, group, cycle.argsort())
        return False


@torch.no_grad()
def _exchange_(model: nn.Module, group: NeuronGroup, order: Tensor) -> None:
    """As ``group.permute_``, also where placeholders stand for parameters."""
    for member, tensor, _ in locate(group, model)[1]:
        change_(tensor, partial(exchange_units_, member, order))


def _cycle(n: int, generator: torch.Generator) -> Tensor:
    """A random cyclic permutation, which moves every unit."""
    order = torch.randperm(n, generator=generator)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle
