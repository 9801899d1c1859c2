"""The loss of recorded training steps along an update, evaluated so that nobody notices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.updates.module_state import ModuleState
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.recorded_steps import NotRepeatableError, RecordedStep, RecordedSteps

# A step that is made again gives its loss again within rounding; kernels that add up in another order each time, and
# half precision, move it by less than this share.
_SAME = 1e-3
# Parameters that the update does not move (a teacher, a frozen part) are put back too where a copy of them is at most
# so many times as large as one of those that it moves; a large frozen part, as under LoRA, is not copied.
_AFFORDABLE = 2


class _LossKnown(BaseException):
    """Ends a training step of manual optimization at its loss; past the user's own ``except Exception``."""


@contextmanager
def loss_along(
    trainer: Any, module: Any, recorded: RecordedSteps, before: ParametersBefore
) -> Iterator[Callable[[float], float]]:
    """Give the loss of the recorded steps at multiples of the update that has just been made.

    Each evaluation starts from the random numbers, buffers and attributes from which its step started, in the run's
    precision. Where the run has several processes, all enter, and the loss is the mean of theirs. Afterwards
    parameters, gradients, and all else are as they were, bit for bit; what a step writes outside its module (files,
    globals, objects deep in its attributes) is not.

    Args:
        trainer: The Trainer.
        module: Its LightningModule.
        recorded: The training steps that led to the update.
        before: The parameters as they were before it.

    Yields:
        The function: multiple of the update (0: before it, 1: after it) to loss; ``nan`` where a step failed.

    Raises:
        NotRepeatableError: When a step has no loss, changes parameters itself, or gives another loss each time.
    """
    after = ParametersBefore(before.parameters)
    after.take()
    others = _others(module, before)
    others.take()
    line = _LossAlong(trainer, module, recorded, (before, after, others))
    grads = [(parameter, parameter.grad) for parameter in module.parameters()]
    present = ModuleState(module, recorded.generators)
    try:
        for parameter, _ in grads:
            parameter.grad = None
        line.require_repeatable()
        yield line
    finally:
        present.restore()
        for kept in (after, others):
            _copy(kept)
        for parameter, grad in grads:
            parameter.grad = grad


def is_made_again(trainer: Any) -> bool:
    """Whether the training step that runs now is made again here, and is none of the run's."""
    return vars(trainer.strategy).get("backward") is _end_at_loss


class _LossAlong:
    def __init__(
        self, trainer: Any, module: Any, recorded: RecordedSteps, parameters: tuple[ParametersBefore, ...]
    ) -> None:
        self._trainer, self._module, self._steps = trainer, module, recorded.steps
        self._before, self._after, self._others = parameters
        self._known: dict[float, float] = {}
        self.failure: Exception | None = None

    def require_repeatable(self) -> None:
        """Compare the loss before the update, made again, with what it was; every process takes part in both."""
        losses = [step.loss for step in self._steps]
        known = [float(loss) for loss in losses if loss is not None]
        complete = bool(losses) and len(known) == len(losses)
        told, again = self._over_processes(sum(known) / len(known) if complete else math.nan), self(0.0)
        if not complete:
            raise NotRepeatableError(_missing(self._module.automatic_optimization))
        if self.failure is not None:
            raise self.failure
        if not math.isfinite(told):
            self._known[0.0] = told  # in some process there is none: the search ends with the first evaluation
        elif not abs(again - told) <= _SAME * abs(told):
            raise NotRepeatableError(
                f"expected the training step to give its loss {told:g} again from the same parameters and random "
                f"numbers, got {again:g}; keep what it depends on in buffers or attributes of the module"
            )

    def __call__(self, multiple: float) -> float:
        if multiple not in self._known:
            self._known[multiple] = self._over_processes(self._local(multiple))
        return self._known[multiple]

    def _local(self, multiple: float) -> float:
        for kept in (self._before, self._others):
            _copy(kept)
        with torch.no_grad():
            torch._foreach_lerp_(self._before.parameters, self._after.copies, multiple)
        try:
            return sum(self._made(step) for step in self._steps) / len(self._steps) if self._steps else math.nan
        except Exception as failure:  # whatever a training step may raise; the other processes must not wait
            self.failure = failure
            return math.nan

    def _made(self, step: RecordedStep) -> float:
        if step.loss is None:
            return math.nan
        step.state.restore()
        args, kwargs = step.arguments()
        output: Any = None
        with _unheard(self._trainer, self._module), torch.enable_grad():
            try:
                with self._trainer.precision_plugin.train_step_context():
                    output = self._module.training_step(*args, **kwargs)
            except _LossKnown as known:
                output = known.args[0]
        output = output.get("loss") if isinstance(output, dict) else output
        return float(output.detach()) if isinstance(output, Tensor) and output.numel() == 1 else math.nan

    def _over_processes(self, value: float) -> float:
        if self._trainer.world_size == 1:
            return value
        strategy = self._trainer.strategy
        tensor = torch.tensor(value, dtype=torch.float64, device=strategy.root_device)
        return float(strategy.reduce(tensor, reduce_op="mean"))


def _missing(automatic: bool) -> str:
    if automatic:
        return (
            "expected a training step that returns a scalar loss and changes no parameters itself, got another, which "
            "cannot be made again; make its own updates in hooks such as on_train_batch_end, or by manual optimization"
        )
    return (
        "expected a training step that calls self.manual_backward(loss) with a scalar before an optimizer's step(), "
        "got none, so that its loss is not known; call it in the place of loss.backward()"
    )


@contextmanager
def _unheard(trainer: Any, module: nn.Module) -> Iterator[None]:
    """Nothing that training steps log is heard, and they end where they go backward."""
    package = next(cls for cls in type(trainer).__mro__ if cls.__module__.endswith(".trainer.trainer")).__module__
    dummy = import_module(f"{package.removesuffix('.trainer.trainer')}.loggers.logger").DummyLogger
    loggers = trainer.loggers
    modules = [vars(one) for one in module.modules() if hasattr(one, "log_dict")]
    silent = {"log": _nothing, "log_dict": _nothing}
    with ExitStack() as undo:
        for attributes in modules:
            undo.enter_context(_set(attributes, silent))
        undo.enter_context(_set(vars(trainer.strategy), {"backward": _end_at_loss}))
        trainer.loggers = [dummy() for _ in loggers]
        undo.callback(setattr, trainer, "loggers", loggers)
        yield


@contextmanager
def _set(attributes: dict[str, Any], values: dict[str, Any]) -> Iterator[None]:
    had = {name: attributes[name] for name in values if name in attributes}
    attributes.update(values)
    try:
        yield
    finally:
        for name in values:
            attributes.pop(name, None)
        attributes.update(had)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of ``log``."""


def _end_at_loss(closure_loss: Tensor, *args: Any, **kwargs: Any) -> None:
    raise _LossKnown(closure_loss.detach())


def _others(module: nn.Module, moved: ParametersBefore) -> ParametersBefore:
    ids = {id(parameter) for parameter in moved.parameters}
    others = [p for p in module.parameters() if id(p) not in ids and p.layout is torch.strided]
    affordable = sum(p.numel() for p in others) <= _AFFORDABLE * sum(p.numel() for p in moved.parameters)
    return ParametersBefore(others if affordable else [])


@torch.no_grad()
def _copy(kept: ParametersBefore) -> None:
    """Put parameters back."""
    if kept.parameters:
        torch._foreach_copy_(kept.parameters, kept.copies)
