"""Everything that a training step may change, taken before a search and put back bit for bit after it."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from lightning_topo.finder._random_state import RandomState

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict)
# The launcher of sub-processes must keep track of those that it has started.
_LEFT_ALONE = ("_SubprocessScriptLauncher",)


class RunState:
    """The state of a training run, to which :meth:`restore` returns.

    Tensors of the module are copied and written back in place. Optimizer state and plain attributes of the module are
    never touched at all: :meth:`branch` lets a trial work on copies of them, and :meth:`restore` puts the originals
    back, with their identity. Lightning's own objects (trainer, loops, progress, connectors, strategy, plugins) get
    their attributes and the contents of their containers back. The random state is part of it.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        datamodule: The data module, where the Trainer does not know it yet.
    """

    def __init__(self, trainer: Any, module: nn.Module, datamodule: Any = None) -> None:
        optimizers = [inner for optimizer in trainer.optimizers for inner in nested(optimizer)]
        schedulers = [inner for config in trainer.lr_scheduler_configs for inner in nested(config.scheduler)]
        self._random = RandomState.capture()
        self._lightning = [_Attributes(item) for item in _lightning_objects(trainer)]
        data = {id(item): item for item in (datamodule, trainer.datamodule) if item is not None}
        self._data = [_Attributes(item) for item in data.values()]
        self._schedulers = [_Attributes(scheduler) for scheduler in schedulers]
        self._optimizers = [_OptimizerState(optimizer) for optimizer in optimizers]
        self._tensors = [_TensorState(t) for t in _tensors(module)]
        self._modules = [_Attributes(part) for part in module.modules()]
        self._plugins = _scalers(trainer)
        self._fixed = [trainer, *optimizers, *schedulers, *module.modules(), *(t.tensor for t in self._tensors)]
        self._fixed += [item.owner for item in self._lightning]

    def branch(self) -> None:
        """Give the run copies of its optimizer state, scaler and module attributes to work on."""
        self.restore()
        memo = {id(item): item for item in self._fixed}
        for state in self._optimizers:
            state.branch()
        for owner, scaler in self._plugins:
            owner.scaler = copy.deepcopy(scaler)
        for attributes in self._modules:
            attributes.branch(memo)

    def restore(self) -> None:
        """Put everything back."""
        for attributes in (*self._modules, *self._data, *self._schedulers, *self._lightning):
            attributes.restore()
        for optimizer in self._optimizers:
            optimizer.restore()
        for tensor in self._tensors:
            tensor.restore()
        self._random.restore()


class _Attributes:
    """The attributes of an object, and the contents of those that are plain containers."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self._values = dict(vars(owner))
        containers = [value for value in self._values.values() if type(value) in _CONTAINERS]
        self._contents = [(container, copy.copy(container)) for container in containers]

    def branch(self, memo: dict[int, Any]) -> None:
        """Replace the attributes by deep copies where that is possible."""
        for name, value in self._values.items():
            if name.startswith("_") and name.endswith(("_hooks", "_parameters", "_buffers", "_modules", "_trainer")):
                continue  # the module's own tables, whose contents restore() puts back
            if isinstance(value, (Dataset, DataLoader)):
                continue  # too large to copy
            with suppress(Exception):  # what cannot be copied stays shared
                vars(self.owner)[name] = copy.deepcopy(value, memo)

    def restore(self) -> None:
        vars(self.owner).clear()
        vars(self.owner).update(self._values)
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)


class _OptimizerState:
    """State and parameter groups of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._attributes = _Attributes(optimizer)
        self._state = optimizer.state
        self._content = dict(optimizer.state)
        self._groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        # A rate may be a tensor, which is written in place.
        rates = [group.get("lr") for group in optimizer.param_groups]
        self._rates = [(rate, rate.clone()) for rate in rates if isinstance(rate, Tensor)]

    def branch(self) -> None:
        for key, value in self._content.items():
            self._state[key] = _cloned(value)

    def restore(self) -> None:
        self._attributes.restore()
        self._state.clear()
        self._state.update(self._content)
        for group, values, params in self._groups:
            values["params"][:] = params
            group.clear()
            group.update(values)
        for rate, value in self._rates:
            rate.copy_(value)


class _TensorState:
    """A parameter or buffer with its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._value = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad
        self._grad_value = None if tensor.grad is None else tensor.grad.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        if self.tensor.device != self._value.device:  # the strategy moves the module away at its end
            self.tensor.data = self.tensor.data.to(self._value.device)
        self.tensor.copy_(self._value)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self._requires_grad)
            self.tensor.grad = self._grad
        if self._grad is not None and self._grad_value is not None:
            self._grad.copy_(self._grad_value)


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_cloned(item) for item in value)
    return value


def _tensors(module: nn.Module) -> list[Tensor]:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return [tensor for tensor in tensors.values() if not is_lazy(tensor)]


def nested(item: Any) -> Iterator[Any]:
    """An optimizer or scheduler, and those of its kind that it wraps (SAM, Lookahead; SequentialLR)."""
    yield item
    kind = Optimizer if isinstance(item, Optimizer) else LRScheduler
    for value in vars(item).values():
        for inner in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(inner, kind) and inner is not item:
                yield from nested(inner)


def _scalers(trainer: Any) -> list[tuple[Any, Any]]:
    plugin = trainer.precision_plugin
    return [(plugin, plugin.scaler)] if getattr(plugin, "scaler", None) is not None else []


def _lightning_objects(trainer: Any) -> Sequence[Any]:
    """The trainer, and every object of Lightning's own that can be reached from it."""
    found: dict[int, Any] = {}
    waiting = [trainer]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (list, tuple)):
            waiting.extend(item)
        elif id(item) not in found and _is_lightning(item):
            found[id(item)] = item
            waiting.extend(vars(item).values())
    return list(found.values())


def _is_lightning(item: Any) -> bool:
    root = type(item).__module__.partition(".")[0]
    return (
        root in ("pytorch_lightning", "lightning", "lightning_fabric")
        and hasattr(item, "__dict__")
        and not isinstance(item, (nn.Module, type))
        and type(item).__name__ not in _LEFT_ALONE
    )
