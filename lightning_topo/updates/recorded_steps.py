"""Training steps of a batch as they are made, kept so that their loss can be evaluated again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.copy_or_same import copy_or_same
from lightning_topo.random_generators import reachable_generators
from lightning_topo.updates.module_state import ModuleState


class NotRepeatableError(ValueError):
    """A training step whose loss cannot be evaluated again."""


@dataclass
class RecordedStep:
    """One call of ``training_step``.

    Attributes:
        args: Its arguments, copied before it could write to them.
        kwargs: The same.
        state: The module as it was before.
        loss: What it returned, or first went backward from in manual optimization; None where there was none.
        seconds: How long it took to that loss.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: ModuleState
    loss: Tensor | None = None
    seconds: float = 0.0

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies of the arguments, to be written to."""
        return tuple(map(copy_or_same, self.args)), {name: copy_or_same(value) for name, value in self.kwargs.items()}


@dataclass
class _Call:
    """A training step that is being made: when it began, and what the parameters were."""

    step: RecordedStep
    began: float
    parameters: _Fingerprint


class RecordedSteps:
    """Keeps the training steps that lead to one update, one a batch; with accumulation they are several.

    Attributes:
        steps: Those kept since ``start``.
    """

    def __init__(self) -> None:
        self.steps: list[RecordedStep] = []
        self._trainer: Any = None
        self._callbacks: Any = None
        self._module: Any = None
        self._generators: tuple[nn.Module, list[Any]] | None = None
        self._call: _Call | None = None
        self._batch_is_kept = False

    @property
    def recording(self) -> bool:
        """Whether training steps are being kept."""
        return self._trainer is not None

    @property
    def heeds_run(self) -> bool:
        """Whether steps are the run's own: a search within it sets its callbacks aside."""
        return self.recording and self._trainer.callbacks is self._callbacks

    @property
    def seconds(self) -> float:
        """How long the steps took to their losses."""
        return sum(step.seconds for step in self.steps)

    @property
    def generators(self) -> Sequence[Any]:
        """Random generators of the user's own that the training step may draw from."""
        return () if self._generators is None else self._generators[1]

    def start(self, trainer: Any, module: nn.Module) -> None:
        """Keep the training steps from here on, and forget those of before; called before a batch.

        Raises:
            NotRepeatableError: When the training step draws its batches itself.
        """
        self.stop()
        if "dataloader_iter" in signature(module.training_step).parameters:  # type: ignore[arg-type]
            raise NotRepeatableError(
                "expected a training step that is given its batch, got one that takes dataloader_iter and draws it "
                "itself, so that it cannot be made again; take batch and batch_idx"
            )
        if self._generators is None or self._generators[0] is not module:
            self._generators = module, reachable_generators(module)
        self._trainer, self._callbacks, self._module = trainer, trainer.callbacks, module
        _Tap.of(trainer.strategy).listeners.append(self)

    def next_batch(self) -> None:
        """Another batch begins that belongs to the same update."""
        self._batch_is_kept = False

    def stop(self) -> None:
        """Keep no more, and forget what was kept."""
        if self.recording:
            _Tap.of(self._trainer.strategy).drop(self)
        self.steps, self._trainer, self._callbacks, self._module, self._call = [], None, None, None, None
        self._batch_is_kept = False

    def forget(self) -> None:
        """Nothing of a fit is left."""
        self.stop()
        self._generators = None

    @contextmanager
    def keeping(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Where the training step is made, with its arguments."""
        if self._batch_is_kept or not self.heeds_run:  # LBFGS evaluates a batch several times
            yield
            return
        self._batch_is_kept = True
        state = ModuleState(self._module, self.generators)
        step = RecordedStep(*RecordedStep(args, kwargs, state).arguments(), state)
        self.steps.append(step)
        self._call = _Call(step, time.perf_counter(), _Fingerprint(self._module))
        yield

    def loss_seen(self, loss: Any) -> None:
        """The training step returned a loss, or goes backward from it."""
        if self._call is not None:
            call, self._call = self._call, None
            call.step.seconds = time.perf_counter() - call.began
            loss = loss.get("loss") if isinstance(loss, dict) else loss
            if isinstance(loss, Tensor) and loss.numel() == 1 and call.parameters.hold:
                call.step.loss = loss.detach()


class _Tap:
    """In the place of a strategy's ``training_step`` and ``backward`` while somebody listens."""

    def __init__(self, strategy: Any) -> None:
        self.listeners: list[RecordedSteps] = []
        self._strategy = strategy
        self._training_step, self._backward = strategy.training_step, strategy.backward
        self._own = {name: vars(strategy)[name] for name in ("training_step", "backward") if name in vars(strategy)}

    @classmethod
    def of(cls, strategy: Any) -> _Tap:
        """The tap of a strategy, put there if it has none."""
        owner = getattr(vars(strategy).get("training_step"), "__self__", None)
        if isinstance(owner, cls):
            return owner
        tap = cls(strategy)
        vars(strategy).update(training_step=tap.training_step, backward=tap.backward)
        return tap

    def drop(self, listener: RecordedSteps) -> None:
        """One listens no more; the last one takes the tap away."""
        self.listeners = [one for one in self.listeners if one is not listener]
        if not self.listeners:
            del self._strategy.training_step, self._strategy.backward
            vars(self._strategy).update(self._own)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The strategy's own, kept by all that listen."""
        return self._made(list(self.listeners), args, kwargs)

    def _made(self, listeners: list[RecordedSteps], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if listeners:
            with listeners[0].keeping(args, kwargs):
                output = self._made(listeners[1:], args, kwargs)
            if self._strategy.lightning_module.automatic_optimization:
                listeners[0].loss_seen(output)
            return output
        return self._training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The strategy's own, seen by all that listen."""
        for listener in self.listeners:
            listener.loss_seen(closure_loss)
        return self._backward(closure_loss, *args, **kwargs)


class _Fingerprint:
    """Whether a module's parameters are what they were, frozen ones too, for the price of reading them."""

    def __init__(self, module: nn.Module) -> None:
        floating = [p for p in module.parameters() if p.is_floating_point() and p.layout is torch.strided]
        self._parameters: list[Tensor] = list(floating)
        self._was = self._now()

    def _now(self) -> tuple[list[int], list[float]]:
        # Versions tell of writing as autograd sees it, norms of writing past it (to .data).
        with torch.no_grad():
            norms = torch._foreach_norm(self._parameters) if self._parameters else []
        values = torch.stack([norm.float().to(norms[0].device) for norm in norms]).nan_to_num() if norms else None
        return [p._version for p in self._parameters], [] if values is None else values.tolist()

    @property
    def hold(self) -> bool:
        return self._was == self._now()
