"""Ways to guard an update, each as published: a block in which the optimizer's steps are guarded.

Norm clipping (Pascanu et al.), adaptive gradient clipping (arXiv 2102.06171), ZClip (2504.02507), AdaGC (2502.11034),
update clipping (StableAdamW, 2304.13013), and step clipping in several forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.clipping import StepClipper, topological_step_clipping
from lightning_topo.clipping import clipper as clipper_module
from lightning_topo.clipping.followed_bound import FollowedBound
from lightning_topo.updates.optimizer_state import OptimizerMemory

Guard = Callable[[nn.Module, Optimizer, Tensor], Any]
"""Takes the model, its optimizer and a batch's input, and guards the steps while the block runs."""


@contextmanager
def hooked(
    optimizer: Optimizer, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None
) -> Iterator[None]:
    def hook(act: Callable[[], object] | None) -> Callable[..., None]:
        def call(*_: Any) -> None:
            if act is not None:
                act()

        return call

    handles = [optimizer.register_step_pre_hook(hook(before)), optimizer.register_step_post_hook(hook(after))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def norm_clipping(bound: float) -> Guard:
    return lambda model, optimizer, _: hooked(optimizer, lambda: nn.utils.clip_grad_norm_(model.parameters(), bound))


def adaptive(model: nn.Module, optimizer: Optimizer, _: Tensor) -> Any:
    """Equation 3: each unit's gradient at most 0.01 of its weights' norm (at least 0.001); not in the last layer."""
    *guarded, _last = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    parameters = [p for module in guarded for p in module.parameters(recurse=False)]

    @torch.no_grad()
    def clip() -> None:
        for p in parameters:
            if p.grad is None:
                continue
            axes = tuple(range(1, p.ndim)) if p.ndim > 1 else None
            weight = torch.linalg.vector_norm(p, dim=axes, keepdim=True).clamp_min(1e-3)
            gradient = torch.linalg.vector_norm(p.grad, dim=axes, keepdim=True)
            p.grad.mul_((0.01 * weight / gradient.clamp_min(1e-12)).clamp_max(1.0))

    return hooked(optimizer, clip)


def zclip(model: nn.Module, optimizer: Optimizer, _: Tensor) -> Any:
    """A norm more than 2.5 standard deviations z above its running mean becomes mean + 2.5²/z deviations."""
    decay, threshold, warm_up = 0.97, 2.5, 25
    first: list[float] = []
    mean = variance = 0.0

    def clip() -> None:
        nonlocal mean, variance
        norm = float(torch.stack(torch._foreach_norm(gradients(model))).norm())
        if len(first) < warm_up:
            first.append(norm)
            mean = sum(first) / len(first)
            variance = sum((value - mean) ** 2 for value in first) / len(first)
            return
        deviation = math.sqrt(variance)
        z = (norm - mean) / (deviation + 1e-6)
        if z > threshold:
            allowed = mean + threshold**2 / z * deviation
            torch._foreach_mul_(gradients(model), allowed / norm)
            norm = allowed
        mean = decay * mean + (1 - decay) * norm
        variance = decay * variance + (1 - decay) * (norm - mean) ** 2

    return hooked(optimizer, clip)


def adagc(model: nn.Module, optimizer: Optimizer, _: Tensor) -> Any:
    """Each tensor's norm at most 1.05 of its running mean; for 100 updates the whole norm at most 1."""
    relative, decay, warm_up, absolute = 1.05, 0.98, 100, 1.0
    known: dict[int, float] = {}
    steps = 0

    def clip() -> None:
        nonlocal steps
        steps += 1
        if steps <= warm_up:
            nn.utils.clip_grad_norm_(model.parameters(), absolute)
        for p in model.parameters():
            if p.grad is None:
                continue
            norm = float(p.grad.norm())
            if steps <= warm_up:
                known[id(p)] = min(known.get(id(p), math.inf), norm)
                continue
            factor = min(1.0, relative * known[id(p)] / norm) if norm > 0 else 1.0
            p.grad.mul_(factor)
            known[id(p)] = decay * known[id(p)] + (1 - decay) * factor * norm

    return hooked(optimizer, clip)


def update_clipping(model: nn.Module, optimizer: Optimizer, _: Tensor) -> Any:
    """Algorithm 2: each tensor's rate over max(1, RMS of g/√v), v the second moment with this gradient in it."""
    before: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def keep() -> None:
        before.update({p: p.clone() for p in model.parameters() if p.grad is not None})

    @torch.no_grad()
    def scale() -> None:
        for settings in optimizer.param_groups:
            for p in settings["params"]:
                state = optimizer.state[p]
                if p.grad is None or "exp_avg_sq" not in state:
                    continue
                squares = state["exp_avg_sq"] / (1 - settings["betas"][1] ** float(state["step"]))
                rms = float((p.grad.square() / squares.clamp_min(settings["eps"] ** 2)).mean().sqrt())
                if rms > 1:
                    p.copy_(torch.lerp(before[p], p, 1 / rms))

    return hooked(optimizer, keep, scale)


def step_clipping(model: nn.Module, optimizer: Optimizer, x: Tensor) -> Any:
    return topological_step_clipping(optimizer, model, example_input=x[:4])


RIVALS: dict[str, Guard] = {
    "plain": lambda *_: nullcontext(),
    "norm 0.1": norm_clipping(0.1),
    "norm 1": norm_clipping(1.0),
    "norm 5": norm_clipping(5.0),
    "adaptive": adaptive,
    "ZClip": zclip,
    "AdaGC": adagc,
    "update clipping": update_clipping,
    "step clipping": step_clipping,
}


# Other forms of step clipping: its bound, what becomes of the optimizer's memory, and whether the bound follows.

PUSHES = ("momentum_buffer", "exp_avg")
Remember = Callable[[OptimizerMemory, dict[int, float]], None]


def keep(memory: OptimizerMemory, factors: dict[int, float]) -> None:
    """The optimizer's memory stays as it is."""


def reset(memory: OptimizerMemory, factors: dict[int, float]) -> None:
    """First moments of tensors whose update was scaled back start anew."""
    memory.scale_pushes({key: 0.0 for key, factor in factors.items() if factor < 1})


class CoolDown:
    """The same, but a tensor's moments are left alone for ten updates after they were reset."""

    def __init__(self) -> None:
        self.updates, self.last = 0, dict[int, int]()

    def __call__(self, memory: OptimizerMemory, factors: dict[int, float]) -> None:
        self.updates += 1  # clipped ones
        due = {k for k, factor in factors.items() if factor < 1 and self.updates - self.last.get(k, -10) >= 10}
        self.last |= dict.fromkeys(due, self.updates)
        memory.scale_pushes(dict.fromkeys(due, 0.0))


def alone(kappas: Sequence[float], bound: float) -> float:
    """Each group comes down to the bound, whatever the others do."""
    return bound if max(kappas) > bound else math.inf


def form(
    bound: float, remember: Callable[[], Remember] | None = None, follows: bool = True, together: bool = True
) -> Guard:
    @contextmanager
    def guard(model: nn.Module, optimizer: Optimizer, x: Tensor) -> Iterator[StepClipper]:
        level = nullcontext() if together else mock.patch.object(clipper_module, "common_level", alone)
        with level, topological_step_clipping(optimizer, model, None, bound, example_input=x[:4]) as clipper:
            if remember is not None:
                act, memory = remember(), clipper._memory
                clipper._memory = mock.Mock(
                    scale_pushes=lambda factors: act(memory, factors), forget_non_finite=memory.forget_non_finite
                )
            if not follows:
                clipper.rates = mock.Mock(spec=FollowedBound, share=lambda: 1.0)
            yield clipper

    return guard


FORMS: dict[str, Guard] = {
    "0.2, moments scaled": form(0.2),
    "0.2, moments kept": form(0.2, lambda: keep),
    "0.2, moments reset": form(0.2, lambda: reset),
    "0.2, reset with a cool-down": form(0.2, CoolDown),
    "0.2, a bound that stands still": form(0.2, follows=False),
    "0.2, each group by itself": form(0.2, together=False),
    "0.1, moments scaled": form(0.1),
    "0.4, moments scaled": form(0.4),
}
