"""What optimizers remember, also those that are wrapped by others, and which of it goes on pushing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_topo._user_warning import warn_user
from lightning_topo.functional.double_precision import in_double
from lightning_topo.updates.moved_groups import held_parameters


class Meaning(Enum):
    """What a tensor of an optimizer's state is."""

    PUSHES = "a running mean of gradients or updates"
    SCALES = "a running mean of squares, or another that no update points along"
    WEIGHTS = "a copy of the weights"


# What optimizers of torch and of widely used packages keep under these names. Others are told by shape and values.
_KNOWN = (
    dict.fromkeys(("momentum_buffer", "exp_avg"), Meaning.PUSHES)
    | dict.fromkeys(
        ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "grad_avg", "prev", "step_size"),
        Meaning.SCALES,
    )
    | dict.fromkeys(("ax", "slow", "slow_buffer", "slow_param", "old_p", "p0", "z"), Meaning.WEIGHTS)
)
# A copy of the weights is at most this far from them, relative to their length.
_NEAR = 0.5
# Of fewer numbers all may be positive by chance.
_FEW = 16


def optimizers_within(optimizer: Any) -> list[Any]:
    """An optimizer and those that it wraps, at any depth, each once, the outermost first.

    Whatever an optimizer holds among its attributes, alone or in a list, tuple or dictionary, and has both parameter
    groups and a state is an optimizer: ``base_optimizer`` of SAM and Lookahead, ``optimizer`` of Accelerate's wrapper,
    ``_base``, whatever its name.
    """
    found: list[Any] = []
    waiting = [optimizer]
    while waiting:
        one = waiting.pop(0)
        if any(one is known for known in found):
            continue
        found.append(one)
        attributes = getattr(one, "__dict__", {}).values()
        waiting += [held for value in attributes for held in _held(value) if _is_optimizer(held)]
    return found


def _held(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Optimizer) or (
        isinstance(getattr(value, "param_groups", None), list) and isinstance(getattr(value, "state", None), Mapping)
    )


def states(optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any], Any]]:
    """What an optimizer and those within it keep: the parameter, its state, and the optimizer that keeps it.

    An inner optimizer may step copies of the parameters, as in another precision: they stand for the parameters in the
    same place, where number and shapes are the same.
    """
    outer = held_parameters(optimizer)
    seen: set[int] = set()
    for one in optimizers_within(optimizer):
        inner = held_parameters(one)
        alike = len(inner) == len(outer) and all(a.shape == b.shape for a, b in zip(inner, outer, strict=True))
        own = {id(a): b for a, b in zip(inner, outer, strict=True)} if alike else {}
        for parameter, state in one.state.items():
            if isinstance(parameter, Tensor) and isinstance(state, dict) and id(state) not in seen:
                seen.add(id(state))
                yield own.get(id(parameter), parameter), state, one


class OptimizerMemory:
    """Mends what an optimizer, and those that it wraps, remember of updates that were not made as they wanted.

    What a tensor of an unknown name is, is guessed from its shape and values, and said once.

    Args:
        optimizer: The optimizer; it may be a wrapper.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._meanings: dict[tuple[type, str], Meaning] = {}

    @torch.no_grad()
    def scale_pushes(self, factors: Mapping[int, float]) -> None:
        """Scale the running means of parameters like their update, as if no more had been asked for than was made.

        Left as they are, they would ask for the rest again at each of the next updates. LBFGS, whose memory is of
        differences between whole steps, starts anew.

        Args:
            factors: Of the updates that were made, by the ``id`` of parameters.
        """
        self._restart_lbfgs()
        kept = list(states(self.optimizer))
        self._learn(kept)
        by_factor: dict[float, list[Tensor]] = {}
        for parameter, state, owner in kept:
            factor = factors.get(id(parameter), 1.0)
            if factor < 1:
                pushes = (name for name in state if self._meaning(owner, name) is Meaning.PUSHES)
                for value in filter(partial(_is_a_field, parameter=parameter), (state[name] for name in pushes)):
                    by_factor.setdefault(factor, []).append(value)
        for factor, tensors in by_factor.items():
            torch._foreach_mul_(tensors, factor) if factor > 0 else torch._foreach_zero_(tensors)

    @torch.no_grad()
    def forget_non_finite(self) -> None:
        """Set to zero what is NaN or infinite, which one bad gradient would spoil for good.

        In a copy of the weights, to what the weights are.
        """
        self._restart_lbfgs()
        for parameter, state, owner in states(self.optimizer):
            for name, value in state.items():
                for tensor in filter(torch.is_tensor, _held(value)):
                    if not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all()):
                        continue
                    if self._meaning(owner, name) is Meaning.WEIGHTS and tensor.shape == parameter.shape:
                        tensor.copy_(torch.where(tensor.isfinite(), tensor, parameter.to(tensor)))
                    else:
                        tensor.copy_(torch.where(tensor.isfinite(), tensor, torch.zeros_like(tensor)))

    def _restart_lbfgs(self) -> None:
        for one in optimizers_within(self.optimizer):
            if isinstance(one, LBFGS):
                one.state.clear()

    def _meaning(self, owner: Any, name: str) -> Meaning | None:
        return _KNOWN.get(name) or self._meanings.get((type(owner), name))

    def _learn(self, kept: list[tuple[Tensor, dict[str, Any], Any]]) -> None:
        """Tell what tensors of unknown names are, from all of a name together, and say so."""
        unknown: dict[tuple[type, str], list[tuple[Tensor, Tensor]]] = {}
        for parameter, state, owner in kept:
            for name, value in state.items():
                if _is_a_field(value, parameter) and self._meaning(owner, name) is None:
                    unknown.setdefault((type(owner), name), []).append((value, parameter))
        for (kind, name), pairs in unknown.items():
            meaning = _guessed(pairs)
            if meaning is not None:
                self._meanings[kind, name] = meaning
                warn_user(
                    f"{kind.__name__} keeps {name!r}, which is taken for {meaning.value}: where step clipping scales "
                    f"an update back, it is {'scaled likewise' if meaning is Meaning.PUSHES else 'left as it is'}."
                )


def _is_a_field(value: Any, parameter: Tensor) -> bool:
    """Whether a value says something of each number of a parameter."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape


def _guessed(pairs: list[tuple[Tensor, Tensor]]) -> Meaning | None:
    """From the values of one name, and the parameters; None where there are too few to tell, or all are zero."""
    if sum(value.numel() for value, _ in pairs) < _FEW or not any(bool(value.any()) for value, _ in pairs):
        return None
    if not any(bool((value < 0).any()) for value, _ in pairs):
        return Meaning.SCALES
    length = sum(float(in_double(parameter).square().sum()) for _, parameter in pairs)
    away = sum(float((in_double(value) - in_double(parameter)).square().sum()) for value, parameter in pairs)
    return Meaning.WEIGHTS if away <= _NEAR**2 * length else Meaning.PUSHES
