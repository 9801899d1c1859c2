"""A copy of a model with other numbers in it, and how far its outputs may differ by rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from lightning_topo.neurons.exchange.constants import equal_slices, same_everywhere, twin_axes
from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.neurons.exchange.placeholder import Placeholder
from lightning_topo.neurons.exchange.sandbox import Sandbox

# Share of a parameter in its perturbed copy, which so still resembles the model.
_KEPT = 0.8
Noise = Callable[[Tensor, torch.Generator], Tensor]


class PerturbedCopy:
    """A sandbox whose parameters, buffers and inputs are perturbed at random.

    What is true of it is true of the network whatever its weights are, up to chance.

    Args:
        sandbox: Will be perturbed.
        generator: Of the perturbation.
        resembling: Whether most of each parameter stays as it is.

    Attributes:
        before: Its outputs.
        blind: It returns no finite number, so there is nothing to compare.
    """

    def __init__(self, sandbox: Sandbox, generator: torch.Generator, resembling: bool = True) -> None:
        self._sandbox = sandbox
        kept = _KEPT if resembling else 0.0
        perturb(sandbox.model, generator, kept)
        rounded = self._finite_outputs(generator, kept)
        self.blind = not rounded
        _change(sandbox.model.parameters(), partial(_jittered, noise=_randn_like), generator)
        _change(sandbox.model.buffers(), partial(_jittered, noise=_invariant_noise), generator)
        self.before = [] if self.blind else self.outputs()
        self._allowed = [_rounding(a, b) for a, b in zip(rounded, self.before, strict=False)]

    def outputs(self) -> list[Tensor]:
        """What the copy returns now."""
        return [output.clone() for output in floating_tensors(self._sandbox.run())]

    def same(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
        """Whether outputs differ by no more than rounding explains."""
        return len(after) == len(before) and all(map(_close, before, after, self._allowed))

    def _finite_outputs(self, generator: torch.Generator, kept: float) -> list[Tensor]:
        """Outputs for a perturbed input where it runs and they are finite, otherwise for the input itself."""
        original = self._sandbox.call
        for change in (partial(_noisy, generator=generator, kept=kept), None):
            with suppress(Exception):  # whatever a forward pass may object to in numbers that it never saw
                self._sandbox.call = original if change is None else original.map(change)
                outputs = self.outputs()
                if any(torch.isfinite(output).any() for output in outputs):
                    return outputs
        return []


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
    size = (torch.linalg.vector_norm(tensor) / tensor.numel() ** 0.5).clamp_min(usual)
    return noise.mul_((1 - kept**2) ** 0.5 * size).add_(tensor, alpha=kept)


def _jittered(tensor: Tensor, generator: torch.Generator, noise: Noise) -> Tensor:
    """Every number moved by about its rounding error."""
    return tensor * noise(tensor, generator).mul(2 * torch.finfo(tensor.dtype).eps).add(1)


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
    noise = _invariant_noise(buffer, generator)
    return buffer * (0.3 * noise).exp() if buffer.any() else 0.1 * noise


def _invariant_noise(buffer: Tensor, generator: torch.Generator) -> Tensor:
    """Noise that is left as it is by the exchanges of positions that leave the buffer as it is.

    Knots of a spline that are the same for all units stay so, and an identity stays a multiple of one. But a buffer of
    one number everywhere may belong to the units, as running statistics do, and is told apart.
    """
    noise = _randn_like(buffer, generator)
    if same_everywhere(buffer):
        return noise
    for axis in range(buffer.ndim):
        if equal_slices(buffer, axis):
            noise = noise.narrow(axis, 0, min(1, buffer.shape[axis])).expand_as(buffer)
    return noise.flatten()[0] if twin_axes(buffer) else noise


def _randn_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    # Mostly on the CPU, so that a model is tested alike on every device.
    return torch.randn(tensor.shape, generator=generator, device=generator.device, dtype=torch.float32).to(tensor)
