"""Parameters without memory: their values are made up whenever they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Placeholder(Tensor):
    """Takes the place of a parameter of which no process holds the whole.

    A network's symmetries do not depend on the values of its parameters. So the values are drawn from a seed each time
    that an operation reads them, and are gone after it: a forward pass needs the memory of one parameter at a time.

    Args:
        shape: Shape of the parameter.
        dtype: Precision of its values.
        device: On which they are made up.
        seed: Of the values; the global random state is not used.
        size: Their root mean square.
        positive: Whether they are positive, as scales are.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *args: Any) -> Placeholder:
        """A tensor of this shape that owns no memory."""
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int, size: float, positive: bool
    ) -> None:
        self._made_from = (seed, size, positive)
        self._changes: list[Callable[[Tensor], Tensor]] = []

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Placeholder(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device})"

    def then(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the values from now on; ``change`` may write to the tensor that it is given."""
        self._changes.append(change)

    def values(self) -> Tensor:
        """The values, as a plain tensor."""
        seed, size, positive = self._made_from
        generator = torch.Generator(self.device).manual_seed(seed)
        noise = torch.randn(self.shape, generator=generator, device=self.device, dtype=torch.float32).to(self.dtype)
        values = noise.mul_(0.3).exp_().mul_(size) if positive else noise.mul_(size)
        for change in self._changes:
            values = change(values)
        return values

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]._twin()
        return func(*tree_map(_made_up, args), **tree_map(_made_up, kwargs or {}))

    def _twin(self) -> Placeholder:
        twin = Placeholder(tuple(self.shape), self.dtype, self.device, *self._made_from)
        twin._changes = self._changes
        return twin


def _made_up(value: Any) -> Any:
    return value.values() if isinstance(value, Placeholder) else value


def change_(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Change the numbers of a tensor by ``change``, which writes to the tensor that it is given and returns it."""
    if isinstance(tensor, Placeholder):
        tensor.then(change)
    else:
        change(tensor.detach())
