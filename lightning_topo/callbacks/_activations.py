"""The activations of neuron groups in one training batch, taken while the training step runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from lightning_topo.callbacks._unit_readers import UnitReader, unit_readers
from lightning_topo.neurons import NeuronGroup

# Inputs and positions of a batch of which activations are kept: as many as it takes for ranks that tell something,
# while the singular values of 256 rows of 1,024 units take 30 ms.
MOST_ROWS = 256
# Activations of all groups together: 64 MiB in single precision.
_MOST_NUMBERS = 2**24


def _never() -> bool:
    return False


class BatchActivations:
    """Takes the activations that layers read in a training step, and leaves the step as it is.

    A forward pre-hook stands on each layer that reads a group's units, from ``attach`` to ``detach``. It copies some
    rows of the layer's input. What is computed without gradients (a teacher, a validation) is not looked at, nor are
    functions that are being compiled or transformed. Of a layer that is called several times, the rows of all calls
    are kept, and thinned out evenly.

    Args:
        guard: Makes a context in which what fails does no harm.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[None]]) -> None:
        self._guard = guard
        self._handles: list[Any] = []
        self.forget()

    def forget(self) -> None:
        """Another fit, or other groups."""
        self.detach()
        self._known = False
        self._readers: dict[str, UnitReader] = {}
        self._watched: dict[str, UnitReader] = {}
        self._deaf: Callable[[], bool] = _never
        self._rows: dict[str, _Rows] = {}
        self._unread: list[str] = []

    def attach(self, model: nn.Module, groups: Sequence[NeuronGroup], deaf: Callable[[], bool] = _never) -> None:
        """Listen in the batch to come, to as many of the groups as there is room for, except while ``deaf``."""
        self.detach()
        if not self._known:
            self._known, self._readers = True, unit_readers(model, groups)
            self._unread = [group.name for group in groups if group.name not in self._readers]
        self._rows, self._watched, self._deaf, numbers = {}, {}, deaf, 0
        for group in groups:
            reader = self._readers.get(group.name)
            if reader is not None:
                numbers += MOST_ROWS * reader.layout.size
                if numbers <= _MOST_NUMBERS:
                    self._watched[group.name] = reader
        for name, reader in self._watched.items():
            hook = _Hook(self, name)
            self._handles.append(reader.module.register_forward_pre_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def end(self) -> list[str]:
        """The batch is over. A layer that was not called is not listened to again.

        Returns:
            Names of groups of which nothing can be told from now on, each once: no layer that reads their units was
            found, or it was not called.
        """
        self.detach()
        silent = [name for name in self._watched if name not in self._rows]
        for name in silent:
            self._readers.pop(name)
        unread, self._unread, self._watched = self._unread + silent, [], {}
        return unread

    def drop(self) -> None:
        """Let go of the rows."""
        self._rows = {}

    def rows(self, name: str) -> Tensor | None:
        """Activations of a group's units in the batch, shape (m, n), at most 256 rows; None where there are none."""
        kept = self._rows.get(name)
        return None if kept is None else kept.all()

    def take(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep some rows of what a layer reads."""
        x = args[0] if args else kwargs.get("input")
        if self._deaf() or name not in self._watched or not _can_be_kept(x):
            return
        with self._guard(), torch.no_grad():
            kept = self._rows.get(name, _Rows())
            rows = self._watched[name].rows(x, MOST_ROWS)
            if rows is not None:
                kept.add(rows)
                self._rows[name] = kept


class _Rows:
    """Rows of all calls of a layer, of each call a like share: every second one where they become too many."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._stride = 1

    def add(self, rows: Tensor) -> None:
        """Keep rows of one more call."""
        self._kept.append(rows[:: self._stride])
        while sum(map(len, self._kept)) > 2 * MOST_ROWS:
            self._kept = [rows[::2].clone() for rows in self._kept]
            if all(len(rows) == 1 for rows in self._kept):
                self._kept = self._kept[::2]
            self._stride *= 2

    def all(self) -> Tensor:
        """At most 256 of them, shape (m, n)."""
        rows = torch.cat(self._kept)
        return rows[:: -(-len(rows) // MOST_ROWS)]


class _Hook:
    """Hands on what a layer is called with. A copy of the layer takes one along that does nothing."""

    def __init__(self, activations: BatchActivations, name: str) -> None:
        self._activations, self._name = activations, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # What is compiled now would keep the hook for good.
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            self._activations.take(self._name, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Nothing, ()


class _Nothing:
    def __call__(self, *args: Any) -> None:
        """Do nothing."""


def _can_be_kept(x: Any) -> TypeGuard[Tensor]:
    """Whether this is a tensor of this process that stands for itself, as within ``torch.func.vmap`` it does not."""
    plain = isinstance(x, Tensor) and not hasattr(x, "placements")
    return plain and not bool(torch._C._functorch.is_functorch_wrapped_tensor(x))
