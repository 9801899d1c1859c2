"""The exchange test: units are neurons only if exchanging them leaves the network's function unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons._sandbox import Sandbox, floating_tensors, open_sandbox
from lightning_topo.neurons.group import NeuronGroup

_TRIALS = 2


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
        True if every floating-point output stays, in each of two trials.

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
    return all(not ExchangeTest(sandbox, seed).failing([group]) for seed in range(_TRIALS))


class ExchangeTest:
    """Exchanges units on a perturbed sandbox, many groups in one forward pass.

    Args:
        sandbox: Will be perturbed.
        seed: Of the perturbation and the permutations.

    Raises:
        ValueError: The model returns no finite floating-point tensor.
    """

    def __init__(self, sandbox: Sandbox, seed: int = 0) -> None:
        self._sandbox = sandbox
        self._generator = torch.Generator().manual_seed(seed)
        self._before = self._baseline()

    def failing(self, groups: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """The groups whose exchange changes the output: all at once, and by halves where that fails."""
        if not groups or self._unchanged_by(groups):
            return []
        if len(groups) == 1:
            return list(groups)
        half = len(groups) // 2
        return self.failing(groups[:half]) + self.failing(groups[half:])

    def _unchanged_by(self, groups: Iterable[NeuronGroup]) -> bool:
        model = self._sandbox.model
        cycles = [(group, _cycle(group.n_units(model), self._generator)) for group in groups]
        for group, cycle in cycles:
            group.permute_(model, cycle)
        after = self._outputs()
        for group, cycle in reversed(cycles):
            group.permute_(model, cycle.argsort())
        return _same(self._before, after)

    def _baseline(self) -> list[Tensor]:
        """Outputs of the perturbed copy; the input is perturbed too where the outputs stay finite."""
        _perturb(self._sandbox.model, self._generator)
        original = self._sandbox.call
        for call in (original.map(lambda tensor: _noisy(tensor, self._generator)), original):
            self._sandbox.call = call
            outputs = self._outputs()
            if any(torch.isfinite(output).any() for output in outputs):
                return outputs
        name = type(self._sandbox.model).__name__
        raise ValueError(f"{name} returned no finite floating-point tensor, so there is no output to compare")

    def _outputs(self) -> list[Tensor]:
        return [output.clone() for output in floating_tensors(self._sandbox.run())]


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(_close(a, b) for a, b in zip(before, after, strict=True))


def _close(before: Tensor, after: Tensor) -> bool:
    """Equal up to rounding: a right group leaves a few eps, a wrong one changes the perturbed output by percents."""
    if before.shape != after.shape:
        return False
    finite = torch.isfinite(before)
    if not torch.equal(finite, torch.isfinite(after)):
        return False
    before, after = before[finite], after[finite]
    if not before.numel():
        return True
    tolerance = 4 * torch.finfo(before.dtype).eps ** 0.5
    return bool((after - before).abs().max() <= tolerance * before.abs().max())


@torch.no_grad()
def _perturb(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(_noisy(parameter, generator))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(_rescaled(buffer, generator))


def _noisy(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of a third of the tensor's own size, and no less than what a usual initialisation would give it."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    usual = 0.1 if tensor.ndim < 2 else 0.3 / (tensor[0].numel() ** 0.5)
    size = tensor.square().mean().sqrt().clamp_min(usual)
    return tensor + 0.3 * size * _randn_like(tensor, generator)


def _rescaled(buffer: Tensor, generator: torch.Generator) -> Tensor:
    """Signs and zeros stay (variances are positive, masks are masks), but an all-zero buffer becomes random."""
    noise = _randn_like(buffer, generator)
    return buffer * (0.3 * noise).exp() if buffer.any() else 0.1 * noise


def _randn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    # On the CPU, so that a model is tested alike on every device.
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)


def _cycle(n: int, generator: torch.Generator) -> Tensor:
    """A random cyclic permutation, which moves every unit."""
    order = torch.randperm(n, generator=generator)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle
