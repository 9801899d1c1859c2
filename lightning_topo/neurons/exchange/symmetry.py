"""The exchange test: units are neurons only if exchanging them leaves the network's function unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.neurons.exchange.placeholder import Placeholder, change_
from lightning_topo.neurons.exchange.sandbox import Sandbox, open_sandbox
from lightning_topo.neurons.group import NeuronGroup, locate
from lightning_topo.neurons.member import exchange_units_

# One trial may miss a wrong group whose units happen to be silent (a ReLU) on the whole example.
_TRIALS = 3
# Share of a parameter in its perturbed copy, which so still resembles the model.
_KEPT = 0.8


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
        self._sandbox = sandbox
        self._generator = torch.Generator().manual_seed(seed)
        self._kept = _KEPT if seed == 0 else 0.0
        perturb(sandbox.model, self._generator, self._kept)
        rounded = self._finite_outputs()
        self.blind = not rounded
        _change((*sandbox.model.parameters(), *sandbox.model.buffers()), _jittered, self._generator)
        self._before = [] if self.blind else self._outputs()
        self._allowed = [_rounding(a, b) for a, b in zip(rounded, self._before, strict=False)]

    def failing(self, groups: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """The groups whose exchange changes the output: all at once, and by halves where that fails."""
        if not groups or self.blind or self._unchanged_by(groups):
            return []
        if len(groups) == 1:
            return list(groups)
        half = len(groups) // 2
        return self.failing(groups[:half]) + self.failing(groups[half:])

    def _unchanged_by(self, groups: Iterable[NeuronGroup]) -> bool:
        model = self._sandbox.model
        cycles = [(group, _cycle(group.n_units(model), self._generator)) for group in groups]
        for group, cycle in cycles:
            _exchange_(model, group, cycle)
        after = self._outputs()
        for group, cycle in reversed(cycles):
            _exchange_(model, group, cycle.argsort())
        return len(after) == len(self._before) and all(map(_close, self._before, after, self._allowed))

    def _finite_outputs(self) -> list[Tensor]:
        """Outputs for a perturbed input where it runs and they are finite, otherwise for the input itself."""
        original = self._sandbox.call
        for change in (partial(_noisy, generator=self._generator, kept=self._kept), None):
            with suppress(Exception):  # whatever a forward pass may object to in numbers that it never saw
                self._sandbox.call = original if change is None else original.map(change)
                outputs = self._outputs()
                if any(torch.isfinite(output).any() for output in outputs):
                    return outputs
        return []

    def _outputs(self) -> list[Tensor]:
        return [output.clone() for output in floating_tensors(self._sandbox.run())]


def perturb(model: nn.Module, generator: torch.Generator, kept: float = _KEPT) -> None:
    """Mix every parameter of a copy with noise, of which the share ``kept`` stays, and rescale its buffers."""
    _change(model.parameters(), partial(_noisy, kept=kept), generator)
    _change(model.buffers(), _rescaled, generator)


def _noisy(tensor: Tensor, generator: torch.Generator, kept: float) -> Tensor:
    """Mixed with noise of its own size (at least that of a usual initialisation), so that deep nets stay alive."""
    if not tensor.is_floating_point() or not tensor.numel():
        return tensor
    usual = 0.1 if tensor.ndim < 2 else 0.3 / (tensor[0].numel() ** 0.5)
    noise = _randn_like(tensor, generator)
    if bool((tensor > 0).all()):  # scales, variances and other numbers that may have to be positive
        return tensor.clamp_min(usual) * (0.6 * noise).exp()
    size = tensor.square().mean().sqrt().clamp_min(usual)
    return kept * tensor + (1 - kept**2) ** 0.5 * size * noise


@torch.no_grad()
def _exchange_(model: nn.Module, group: NeuronGroup, order: Tensor) -> None:
    """As ``group.permute_``, also where placeholders stand for parameters."""
    for member, tensor, _ in locate(group, model)[1]:
        change_(tensor, partial(exchange_units_, member, order))


def _jittered(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every number moved by about its rounding error."""
    return tensor * (1 + 2 * torch.finfo(tensor.dtype).eps * _randn_like(tensor, generator))


@torch.no_grad()
def _change(
    tensors: Iterable[Tensor], change: Callable[[Tensor, torch.Generator], Tensor], generator: torch.Generator
) -> None:
    for tensor in tensors:
        if isinstance(tensor, Placeholder):
            tensor.then(partial(_seeded, change, int(torch.randint(2**31, (), generator=generator))))
        elif tensor.is_floating_point():
            tensor.copy_(change(tensor, generator))


def _seeded(change: Callable[[Tensor, torch.Generator], Tensor], seed: int, values: Tensor) -> Tensor:
    return change(values, torch.Generator(values.device).manual_seed(seed))


def _close(before: Tensor, after: Tensor, allowed: float) -> bool:
    both = torch.isfinite(before)
    if before.shape != after.shape or not torch.equal(both, torch.isfinite(after)):
        return False
    return not both.any() or float((after - before)[both].abs().max()) <= allowed


def _rounding(before: Tensor, after: Tensor) -> float:
    """Difference that rounding explains: some times that of rounding all parameters, whose share in it varies.

    A threshold relative to the output alone would not do: deep nets without normalisation damp what their first layers
    do to less than a billionth of the output, and recurrent nets may amplify rounding a million times.
    """
    both = torch.isfinite(before) & torch.isfinite(after)
    if before.shape != after.shape or not both.any():
        return 0.0
    eps, size = torch.finfo(after.dtype).eps, float(after[both].abs().max())
    measured = float((after - before)[both].abs().max())
    return min(max(16 * measured, 8 * eps * size), eps**0.5 * size)


def _rescaled(buffer: Tensor, generator: torch.Generator) -> Tensor:
    """Signs and zeros stay (variances are positive, masks are masks), but an all-zero buffer becomes random."""
    noise = _randn_like(buffer, generator)
    return buffer * (0.3 * noise).exp() if buffer.any() else 0.1 * noise


def _randn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    # Mostly on the CPU, so that a model is tested alike on every device.
    return torch.randn(tensor.shape, generator=generator, device=generator.device, dtype=torch.float32).to(tensor)


def _cycle(n: int, generator: torch.Generator) -> Tensor:
    """A random cyclic permutation, which moves every unit."""
    order = torch.randperm(n, generator=generator)
    cycle = torch.empty_like(order)
    cycle[order] = order.roll(1)
    return cycle
