"""Backward passes beside those of the training, of which the user's own code notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_topo.random_generators import generators_kept, reachable_generators
from lightning_topo.random_state import RandomState

# Those of every module; what is in them is not the user's.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class UnseenPasses:
    """Makes more backward passes through the graph of a training step, and leaves what its module is and draws.

    Hooks that modules have for the backward pass belong to the graph, once that is made: they are covered before the
    forward pass (``cover``) by functions that call them in the training's own passes alone. Hooks on parameters are
    taken off meanwhile. What runs all the same, as a ``torch.autograd.Function`` and hooks on activations, may draw
    random numbers and count: generators, buffers and the modules' attributes are put back.
    """

    def __init__(self) -> None:
        self._making = False
        self._covered: list[tuple[dict[int, Any], int, Any, Any]] = []
        self._generators: tuple[nn.Module, list[Any]] | None = None

    def cover(self, module: nn.Module) -> None:
        """Cover the hooks of a module and of those in it, until ``uncover``; to be called before the forward pass."""
        self.uncover()
        for owner in module.modules():
            for hooks in (owner._backward_hooks, owner._backward_pre_hooks):
                for key, hook in list(hooks.items()):
                    hooks[key] = cover = self._cover(hook)
                    self._covered.append((hooks, key, hook, cover))

    def _cover(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        # A plain function: torch copies the attributes of others to its own, and would find the hook itself.
        return lambda *args: None if self._making else hook(*args)

    def uncover(self) -> None:
        """Put the hooks themselves back, where nobody has taken them off meanwhile."""
        for hooks, key, hook, cover in self._covered:
            if hooks.get(key) is cover:
                hooks[key] = hook
        self._covered = []

    def forget(self) -> None:
        """Nothing of a fit's module is left."""
        self.uncover()
        self._generators = None

    @contextmanager
    def made(self, module: nn.Module) -> Iterator[None]:
        """Where the passes are to be made."""
        if self._generators is None or self._generators[0] is not module:
            self._generators = module, reachable_generators(module)
        self._making = True
        try:
            with (
                _random_state_kept(),
                generators_kept(self._generators[1]),
                _attributes_kept(module),
                _buffers_kept(module),
                _parameter_hooks_off(module),
            ):
                yield
        finally:
            self._making = False


@contextmanager
def _random_state_kept() -> Iterator[None]:
    state = RandomState.capture()
    try:
        yield
    finally:
        state.restore()


@contextmanager
def _parameter_hooks_off(module: nn.Module) -> Iterator[None]:
    off = [(p._backward_hooks, dict(p._backward_hooks)) for p in module.parameters() if p._backward_hooks]
    for hooks, _ in off:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in off:
            hooks.update(kept)


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Leave the modules' attributes as they were, and what is in lists, sets and dictionaries of the user's."""
    kept = [(vars(owner), dict(vars(owner))) for owner in module.modules()]
    contents = [
        (value, value.copy())
        for _, before in kept
        for name, value in before.items()
        if type(value) in (list, dict, set) and name not in _OF_EVERY_MODULE
    ]
    try:
        yield
    finally:
        for now, before in kept:
            for name in now.keys() - before.keys():
                del now[name]
            now.update(before)
        for value, before in contents:
            if isinstance(value, list):
                value[:] = before
            else:
                value.clear()
                value.update(before)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Leave the buffers as they were: checkpointed activations are computed again, with their running statistics."""
    kept = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.layout is torch.strided
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in kept:
            owner._buffers[name] = buffer
            if not torch.equal(buffer, value):  # others may be views that cannot be written to
                # Past autograd: a raised version would forbid the backward pass that is to come.
                buffer.data.copy_(value)
