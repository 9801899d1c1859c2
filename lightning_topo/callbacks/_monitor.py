"""What the monitors share: options, the time budget, history, and writing to every logger."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar

import torch

from lightning_topo._lightning import Callback
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._processes import Processes
from lightning_topo.neurons import NeuronGroup
from lightning_topo.sharding import hides_parameters

Record = TypeVar("Record")

# Older records are thinned out beyond this number, so that a long run does not fill the memory.
_MAX_HISTORY = 100_000
# Hooks of every training step that most monitors leave empty.
_STEP_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


class Monitor(Callback, Generic[Record]):
    """A callback that measures now and then, within a time budget, and leaves no trace in training.

    Attributes:
        history: What was measured, a list of frozen records, oldest first, of all fits. Beyond 100,000 records every
            second one of the older half is dropped.
    """

    #: First part of the log keys.
    name: str = ""
    #: True on a monitor that the environment added: it steps back for one of its kind that the user added.
    from_environment: bool = False

    def __init__(self, every_n_train_steps: int, max_overhead: float | None) -> None:
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = _require_share("max_overhead", max_overhead)
        self.history: list[Record] = []
        self._budget = OverheadBudget(self.max_overhead)
        self.ready = False
        self.active = False
        self._warned: set[str] = set()
        self._state_key: str | None = None
        self._processes = Processes()
        self._due_times: dict[str, DueTimes] = {}
        # Lightning takes 2 to 3 µs to call an empty hook, which adds up to 1% of a step of 1 ms. It skips None.
        for hook in _STEP_HOOKS:
            if getattr(type(self), hook) is getattr(Callback, hook):
                setattr(self, hook, None)

    @property
    def state_key(self) -> str:
        """Differs between monitors of different options, so that a Trainer can hold several."""
        if self._state_key is None:  # Lightning asks for it at every hook
            options = {name: _describe(getattr(self, name)) for name in _options(type(self)) if hasattr(self, name)}
            self._state_key = f"{type(self).__qualname__}{'@environment' if self.from_environment else ''}{options}"
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """Counts of due and made measurements."""
        return {"due": self._budget.due, "made": self._budget.made}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        self._budget.due, self._budget.made = state_dict["due"], state_dict["made"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure."""
        rivals = [c for c in trainer.callbacks if type(c) is type(self) and c is not self]
        yields = self.from_environment and any(not c.from_environment for c in rivals)
        self._processes, self._due_times = Processes.of(trainer), {}
        self.active = stage == "fit" and not yields
        if stage == "fit" and trainer.global_step == 0:
            self.forget()  # Lightning restores from a checkpoint after this
        obstacle = self._obstacle(trainer.strategy) if self.active else None
        if obstacle is not None:
            self.active = False
            if self._processes.lead:
                self._warn_once(f"{type(self).__name__} does not measure {obstacle}. Training goes on unmonitored.")

    def forget(self) -> None:
        """A run begins anew: drop what is known of an earlier one, of another model maybe. The history stays."""
        self._budget.forget()
        self._warned = set()

    def _obstacle(self, strategy: Any) -> str | None:
        """Why nothing can be measured under this strategy, or None."""
        if hides_parameters(strategy):
            return "under DeepSpeed stage 3, which spreads the parameters over the processes in a way of its own"
        return None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        self._due_times = {}

    def admits(self, kind: str = "", guess: float = 0.0, run_time: float = 0.0) -> bool:
        """Whether to make a due measurement, as the first process's budget decides for all; as ``_budget.admits``.

        After a refusal the processes do not ask again before there is a prospect of another answer.
        """
        if not self._processes.several or self.max_overhead is None:
            return self._budget.admits(kind, guess, run_time)
        times = self._due_times.setdefault(kind, DueTimes())
        times.seen += 1
        if times.seen < times.ask_again:
            self._budget.due += self._processes.lead
            return False
        left_out = 0
        if self._processes.lead and not self._budget.admits(kind, guess, run_time):
            left_out = self._budget.due_until_affordable(kind, times.seen, guess)
        left_out = self._processes.agreed(left_out)
        times.ask_again = times.seen + left_out
        return left_out == 0

    def charts(self) -> dict[str, list[str]]:
        """Charts of TensorBoard's custom-scalars page: title, and the tags drawn together."""
        return {}

    def write(self, trainer: Any, metrics: Mapping[str, float | None]) -> None:
        """Send the finite values to every logger and to ``trainer.callback_metrics``.

        Of several processes all enter, with what the first has measured or nothing: it logs, and all know the metrics.
        """
        metrics = self._processes.agreed({**metrics, **self._coverage()} if metrics else metrics)
        finite = {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}
        if not finite:
            return
        for logger in trainer.loggers if self._processes.lead else ():
            separator = logger.group_separator
            logger.log_metrics({k.replace("/", separator): v for k, v in finite.items()}, step=logger_step(trainer))
        device = trainer.strategy.root_device
        trainer.callback_metrics.update({k: torch.tensor(v, device=device) for k, v in finite.items()})

    def _coverage(self) -> dict[str, float]:
        return {f"{self.name}/coverage": self._budget.coverage}

    def remember(self, records: Sequence[Record]) -> None:
        """Append to the history, thinning out its older half when it grows too long."""
        self.history.extend(records)
        if len(self.history) > _MAX_HISTORY:
            del self.history[: _MAX_HISTORY // 2 : 2]

    @contextmanager
    def never_fatal(self) -> Iterator[None]:
        """A measurement that fails warns once; training goes on."""
        try:
            yield
        except Exception as error:
            self._warn_once(
                f"{type(self).__name__} could not measure ({type(error).__name__}: {error}). "
                "Training goes on; later failures of this kind are not reported.",
                kind=type(error).__name__,
            )

    def warn_diverged(self, group: NeuronGroup, step: int) -> None:
        """Say, once a group, that there is nothing to measure there any more."""
        self._warn_once(
            f"Neurons of {group.name} are NaN or infinite at step {step}: the run has diverged there. "
            f"{type(self).__name__} goes on with the other groups.",
            kind=f"diverged {group.name}",
        )

    def _warn_once(self, message: str, kind: str | None = None) -> None:
        if (kind or message) not in self._warned:
            self._warned.add(kind or message)
            warnings.warn(message, UserWarning, stacklevel=3)


@dataclass
class DueTimes:
    """How often a kind of measurement has been due in a fit, and from which time on to ask the budget again."""

    seen: int = 0
    ask_again: int = 0


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


def multiple_reached(n: int, step: int, last: int | None) -> bool:
    """Whether a multiple of n optimizer steps has been reached since ``last``: a batch may make several steps.

    Where that is not known, or was of another run, only a multiple itself tells.
    """
    return step % n == 0 if last is None or last > step else step // n > last // n


def logger_step(trainer: Any) -> int:
    """The step under which Lightning itself logs what happens in the current batch."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def require_positive_int(name: str, value: int, at_least: int = 1) -> int:
    """The value, or a ValueError when it is no integer of at least ``at_least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, but got {value!r}.")
    return value


def _require_share(name: str, value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise ValueError(
            f"{name} is a share of the training time: a number in (0, 1], or None to measure every due update; "
            f"but got {value!r}."
        )
    return value
