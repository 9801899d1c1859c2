"""What a pass through a module changes beside its parameters, put back as often as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.random_generators import restoring
from lightning_topo.random_state import RandomState

# Those of every module; what is in them is not the user's.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_CONTAINERS = (list, dict, set)


class ModuleState:
    """A module at one time: random numbers, buffers, attributes, modes, and which parameters need a gradient.

    Attributes are those of the module and of all in it; of lists, sets and dictionaries among them the contents are
    kept, and of tensors, there and in these, the values (the states of torchmetrics are such). What lies deeper or
    outside the module is not.

    Args:
        module: The module.
        generators: Random generators of the user's own that a pass may draw from.
    """

    def __init__(self, module: nn.Module, generators: Sequence[Any] = ()) -> None:
        owners = list(module.modules())
        self._random = RandomState.capture()
        self._generators: list[Callable[[], Any]] = [restoring(generator) for generator in generators]
        self._attributes = [(vars(owner), dict(vars(owner))) for owner in owners]
        self._contents = [(value, value.copy()) for value in _containers(before for _, before in self._attributes)]
        self._buffers = [(owner._buffers, dict(owner._buffers)) for owner in owners]
        self._needs_grad = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        held: list[Any] = [value for _, before in (*self._attributes, *self._buffers) for value in before.values()]
        held += [v for _, kept in self._contents for v in (kept.values() if isinstance(kept, dict) else kept)]
        tensors: dict[int, Tensor] = {id(value): value for value in held if _is_kept(value)}
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]

    def restore(self) -> None:
        """Put everything back as it was when this was made."""
        for now, before in (*self._attributes, *self._buffers):
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for tensor, value in self._values:
            if not torch.equal(tensor, value):  # others may be views that cannot be written to
                # Past autograd: a raised version would forbid a backward pass that is still to come.
                tensor.data.copy_(value)
        for parameter, needs in self._needs_grad:
            if parameter.requires_grad != needs:
                parameter.requires_grad_(needs)
        for restore in self._generators:
            restore()
        self._random.restore()


@contextmanager
def module_kept(module: nn.Module, generators: Sequence[Any] = ()) -> Iterator[None]:
    """Leave a module as it is, whatever passes through it change inside."""
    state = ModuleState(module, generators)
    try:
        yield
    finally:
        state.restore()


def _containers(tables: Iterable[dict[str, Any]]) -> Iterator[Any]:
    for table in tables:
        for name, value in table.items():
            if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE:
                yield value


def _is_kept(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not isinstance(value, nn.Parameter)
