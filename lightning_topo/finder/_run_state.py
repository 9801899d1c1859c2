"""Everything that a training step may change, taken before a search and put back bit for bit after it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo.finder._kept_attributes import KeptAttributes
from lightning_topo.finder._optimizer_state import OptimizerState, nested
from lightning_topo.finder._reachable import is_opaque
from lightning_topo.finder._sources import Sources
from lightning_topo.finder._tensor_state import TensorState
from lightning_topo.random_state import RandomState

# The launcher of sub-processes must keep track of those that it has started.
_LEFT_ALONE = ("_SubprocessScriptLauncher",)


class RunState:
    """The state of a training run, to which ``restore`` returns.

    Tensors of the module are copied and written back in place. Optimizer state and plain attributes of the module are
    never touched at all: ``branch`` lets a trial work on copies of them, and ``restore`` puts the originals
    back, with their identity. Lightning's own objects (trainer, loops, progress, connectors, strategy, plugins) get
    their attributes and the contents of their containers back. So do the data: loaders, samplers, data sets and what
    they hold. The global random state and the random generators that can be reached from the module, its data and the
    globals that their code names are part of it.

    What lies outside is not put back: other globals, class attributes, the state of libraries, files that were written.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        data: Data loaders and data modules, by name, that the Trainer does not know yet.
    """

    def __init__(self, trainer: Any, module: nn.Module, data: Mapping[str, Any] | None = None) -> None:
        optimizers = [inner for optimizer in trainer.optimizers for inner in nested(optimizer)]
        schedulers = [inner for config in trainer.lr_scheduler_configs for inner in nested(config.scheduler)]
        random = RandomState.capture()
        self._intact = False
        self._lightning = [KeptAttributes(item) for item in _lightning_objects(trainer)]
        self._schedulers = [KeptAttributes(scheduler) for scheduler in schedulers]
        self._optimizers = [OptimizerState(optimizer) for optimizer in optimizers]
        self._tensors = [TensorState(t) for t in _tensors(module)]
        self._modules = [KeptAttributes(part) for part in module.modules()]
        self._plugins = _scalers(trainer)
        self._fixed = [trainer, *optimizers, *schedulers, *module.modules(), *(t.tensor for t in self._tensors)]
        self._fixed += [item.owner for item in self._lightning]
        data = {**(data or {}), "datamodule": trainer.datamodule or (data or {}).get("datamodule")}
        self._data_modules = [KeptAttributes(item) for item in data.values() if _is_data_module(item)]
        shared = self._shared()
        opaque = [name for name, value in shared.items() if is_opaque(value)]
        self.sources = Sources({**self._roots(trainer, data), **shared}, self._fixed, opaque)
        random.restore()  # which copying an object of the user's may have moved
        self._restore_sources = self.sources.present()

    def branch(self) -> None:
        """Give the run copies of its optimizer state, scaler and module attributes to work on."""
        self.restore()
        self._intact = False
        memo = self._memo()
        for state in self._optimizers:
            state.branch()
        for owner, scaler in self._plugins:
            owner.scaler = copy.deepcopy(scaler)
        for attributes in self._modules:
            attributes.branch(memo)

    def restore(self) -> None:
        """Put everything back. Where this was interrupted, calling it again completes it; then it does nothing."""
        if self._intact:
            return
        for attributes in (*self._modules, *self._data_modules, *self._schedulers, *self._lightning):
            attributes.restore()
        for optimizer in self._optimizers:
            optimizer.restore()
        for tensor in self._tensors:
            tensor.restore()
        self._restore_sources()
        self._intact = True

    def moved(self) -> bool:
        """Whether a trainable parameter is not what it was."""
        return any(state.moved() for state in self._tensors if state.tensor.requires_grad)

    def _memo(self) -> dict[int, Any]:
        """What copies of attributes share with the originals."""
        return {id(item): item for item in self._fixed}

    def _roots(self, trainer: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        """Where to look for generators and counters, besides the attributes that trials get copies of."""
        loaders = getattr(trainer.fit_loop._combined_loader, "flattened", [])
        roots = {f"train_dataloaders[{i}]": loader for i, loader in enumerate(loaders)}
        roots |= {name: value for name, value in data.items() if not _is_data_module(value)}
        for owner in self._data_modules:
            roots |= {f"datamodule.{name}": value for name, value in vars(owner.owner).items()}
        classes = {type(owner.owner) for owner in (*self._modules, *self._data_modules)}
        return roots | {f"{cls.__module__}.{cls.__qualname__}": cls for cls in classes}

    def _shared(self) -> dict[str, Any]:
        """The module's attributes that trials do not get copies of."""
        memo, shared = self._memo(), dict[str, Any]()
        for owner in self._modules:
            shared |= {f"{type(owner.owner).__name__}.{name}": value for name, value in owner.shared(memo)}
        return shared


def _tensors(module: nn.Module) -> list[Tensor]:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return [tensor for tensor in tensors.values() if not is_lazy(tensor)]


def _is_data_module(item: Any) -> bool:
    return any(cls.__name__ == "LightningDataModule" for cls in type(item).__mro__)


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
