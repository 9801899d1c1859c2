"""Options of callbacks: their checks, and the key under which Lightning saves a callback's state."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

from lightning_topo._lightning import Callback
from lightning_topo.callbacks._found_groups import FoundGroups
from lightning_topo.neurons import NeuronGroup

# Hooks of every training step that most callbacks leave empty.
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


class OptionedCallback(Callback):
    """A callback that is known by its class and its options, and of which Lightning calls no empty hook.

    Attributes:
        from_environment: Whether the environment variable added it: it steps back for one of its kind that the user
            added.
        later_options: Options that came with a later version, with their defaults: at these they are left out of the
            key, so that older checkpoints are read.
    """

    from_environment: bool = False
    later_options: Mapping[str, Any] = MappingProxyType({})
    _state_key: str | None = None
    _neurons: FoundGroups | None = None

    @property
    def neuron_groups(self) -> tuple[NeuronGroup, ...]:
        """The neuron groups of the present or last fit, once they have been found."""
        return () if self._neurons is None else self._neurons.found

    _found = neuron_groups  # the name by which scripts read it before it was public

    def skip_empty_hooks(self) -> None:
        """Leave out the step's hooks that no class defines: Lightning skips None, and takes 1 µs for an empty one."""
        for hook in _STEP_HOOKS:
            if getattr(type(self), hook) is getattr(Callback, hook):
                setattr(self, hook, None)

    def hear(self, hook: str, wanted: bool) -> None:
        """Have Lightning call one of our hooks of a step, or leave it out until it is wanted again."""
        if wanted:
            self.__dict__.pop(hook, None)
        elif getattr(type(self), hook).__module__.startswith("lightning_topo."):  # a subclass's own is always called
            self.__dict__[hook] = None

    @property
    def state_key(self) -> str:
        """Differs between callbacks of different options, so that a Trainer can hold several."""
        if self._state_key is None:  # Lightning asks for it at every hook
            options = {name: _describe(getattr(self, name)) for name in _options(type(self)) if hasattr(self, name)}
            later = self.later_options
            options = {name: v for name, v in options.items() if name not in later or later[name] != v}
            self._state_key = f"{type(self).__qualname__}{'@environment' if self.from_environment else ''}{options}"
        return self._state_key

    def yields_to_a_rival(self, trainer: Any) -> bool:
        """Whether the user has added one of this kind, and the environment this one."""
        rivals = [other for other in trainer.callbacks if type(other) is type(self) and other is not self]
        return self.from_environment and any(not other.from_environment for other in rivals)


def require_positive_int(name: str, value: int, at_least: int = 1) -> int:
    """The value, or a ValueError when it is no integer of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, but got {value!r}.")
    return value


def require_share(name: str, value: float | None) -> float | None:
    """The value, or a ValueError when it is neither a share of the training time nor None."""
    if value is not None and not 0 < value <= 1:
        raise ValueError(
            f"{name} is a share of the training time: a number in (0, 1], or None to measure every due update; "
            f"but got {value!r}."
        )
    return value


def _options(cls: type) -> dict[str, None]:
    """Names of the options of a class, and of its bases as far as options are handed on to them unnamed."""
    names: dict[str, None] = {}
    unnamed = {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    for base in cls.__mro__:
        parameters = signature(base).parameters
        names |= dict.fromkeys(parameters)
        if not unnamed & {parameter.kind for parameter in parameters.values()}:
            break
    return names


def _describe(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_describe(item) for item in value]
    return value.name if isinstance(value, NeuronGroup) else value
