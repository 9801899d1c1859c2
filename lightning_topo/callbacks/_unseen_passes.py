"""Backward passes beside those of the training, of which the user's own code notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_topo.random_generators import reachable_generators
from lightning_topo.updates import module_kept


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
            with module_kept(module, self._generators[1]), _parameter_hooks_off(module):
                yield
        finally:
            self._making = False


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
