"""Smaller parameters, buffers and sizes in the place of those of a model, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from lightning_topo.neurons.merging.slots import PlacedUnits, merge_slots
from lightning_topo.sharding import canonical_name


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute of a module that tells a size, and its new value.

    Attributes:
        module: Dotted name of the module; empty for the model itself.
        name: Of the attribute.
        value: A number, or a tuple or list of numbers.
    """

    module: str
    name: str
    value: Any


@dataclass(frozen=True)
class Change:
    """An axis of a parameter or buffer that gets shorter.

    Attributes:
        tensor: Name of the parameter or buffer in the slots of units.
        module: Dotted name of a module that holds it.
        leaf: Its name there.
        axis: The axis.
        before: Its length before.
        after: Its length after.
    """

    tensor: str
    module: str
    leaf: str
    axis: int
    before: int
    after: int


class Surgery:
    """Changes to a model that can be taken back, so that it is as it was, bit for bit.

    Parameters are exchanged for new objects: the old ones, which optimizers may hold, stay as they are.

    Args:
        model: Is changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as they are now; tied ones under each of their names."""
        model = self._model
        named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
        return {canonical_name(name): tensor for name, tensor in named}

    def merge(self, units: PlacedUnits, merged: Tensor) -> list[Change]:
        """Let unit ``merged[u]`` stand for unit u in all parameters and buffers; tells which axes got shorter."""
        known = self.tensors()
        changes = []
        for name, slots in units.by_tensor().items():
            old = known[name]
            smaller = merge_slots(old.detach(), slots, merged)
            places = list(holders(self._model, old))
            for path, leaf in places:
                for slot in slots:
                    lengths = old.shape[slot.axis], smaller.shape[slot.axis]
                    changes.append(Change(name, path, leaf, slot.axis, *lengths))
            self._replace(old, _like(old, smaller), places)
        return changes

    def resize(self, sizes: Sequence[SizeAttribute]) -> None:
        """Set attributes that tell sizes."""
        for size in sizes:
            module = self._model.get_submodule(size.module)
            old = getattr(module, size.name)
            setattr(module, size.name, size.value)
            self._undo.append(partial(setattr, module, size.name, old))

    def mark(self) -> int:
        """A point to which ``undo`` can return."""
        return len(self._undo)

    def undo(self, mark: int = 0) -> None:
        """Take back what was done since the mark, last things first."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def _replace(self, old: Tensor, new: Tensor, places: Sequence[tuple[str, str]]) -> None:
        for path, leaf in places:
            module = self._model.get_submodule(path)
            self._put(module, leaf, new)
            self._undo.append(partial(self._put, module, leaf, old))

    @staticmethod
    def _put(module: nn.Module, leaf: str, tensor: Tensor) -> None:
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            setattr(module, leaf, tensor)  # recurrent layers keep a list of their own, which this puts right


def holders(model: nn.Module, tensor: Tensor) -> Iterator[tuple[str, str]]:
    """The modules that have the tensor as a parameter or buffer, by their names, each with its name there."""
    for path, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for leaf, value in own.items():
                if value is tensor:
                    yield path, leaf


def _like(old: Tensor, values: Tensor) -> Tensor:
    """The values as what the old tensor is: a parameter that is trained or not, with its marks, or a buffer."""
    values = values.detach()
    if not isinstance(old, nn.Parameter):
        return values
    new = nn.Parameter(values, requires_grad=old.requires_grad)
    vars(new).update(vars(old))  # marks such as "no weight decay"
    return new
