"""Trials of learning rates, by Lightning's own training loop on the run's own model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_topo.finder._batches import BatchStream
from lightning_topo.finder._interrupts import DeferredSignals, surely
from lightning_topo.finder._isolation import isolate_trial
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._run_state import RunState
from lightning_topo.finder._trial_meter import TrialMeter
from lightning_topo.finder._trial_watch import TrialWatch, largest_anywhere
from lightning_topo.finder.result import Trial
from lightning_topo.finder.schedule import Factors, Schedule
from lightning_topo.neurons import NeuronGroup

Value = TypeVar("Value")

# A gradient scaler may skip the first updates; a model that never steps is an error.
_MAX_BATCHES_WITHOUT_STEP = 100


@dataclass(frozen=True)
class Course:
    """What was heard in a short trial.

    Attributes:
        losses: The loss of each batch.
        steps: Optimizer steps made.
        several: Whether a step has returned more than one loss.
    """

    losses: tuple[float, ...]
    steps: int
    several: bool


class TrialRunner:
    """Holds a learning rate from the present state of a fit, and puts that state back.

    Each batch goes through ``advance`` of the Trainer's own training loop, so that precision, clipping, accumulation,
    strategy and manual optimization are the run's. Callbacks, loggers, profiler and schedulers are set aside meanwhile.

    Args:
        trainer: A Trainer that is about to run a training batch.
        module: Its LightningModule.
        groups: The neuron groups to watch.
        rates: Base rates of the run's optimizers.
        schedules: By ``id`` of an optimizer, the schedule that its rates follow.
        hold_steps: Optimizer steps for which a rate has to hold.
        orders: Batch orders in which it has to hold.
        run_state: The state to put back after each trial.
        signals: Those that wait while a trial runs.
    """

    def __init__(
        self,
        trainer: Any,
        module: Any,
        groups: Sequence[NeuronGroup],
        rates: BaseRates,
        schedules: Mapping[int, Schedule],
        hold_steps: int,
        orders: int,
        run_state: RunState,
        signals: DeferredSignals,
    ) -> None:
        self._trainer, self._rates, self._hold_steps = trainer, rates, hold_steps
        self._meters = {id(optimizer): TrialMeter(optimizer, module, groups) for optimizer in trainer.optimizers}
        self._schedules = schedules
        self._followed = {key: schedule.followed(hold_steps) for key, schedule in schedules.items()}
        self._run_state, self._signals = run_state, signals
        self._streams = [BatchStream(trainer, order, run_state.sources) for order in range(orders)]

    def __call__(self, lr: float) -> Trial | None:
        """Try one base learning rate; the run's state is afterwards as it was, whatever happens.

        Returns:
            What was seen, or None where a signal cut it short.
        """
        trials = list[Trial]()
        for stream in list(self._streams):
            trial = self._hold(lr, stream)
            if trial is None:
                return None
            trials.append(trial)
            if not trials[-1].held:
                # The order in which this rate broke is the likeliest to break the next.
                self._streams.remove(stream)
                self._streams.insert(0, stream)
                break
        worst = max(trials, key=lambda trial: (not trial.held, trial.max_criticality))
        losses = tuple(loss for trial in trials for loss in trial.losses)
        steps = sum(trial.steps for trial in trials)
        return Trial(lr, worst.held, worst.broke_at_step, worst.max_criticality, losses, worst.group, steps)

    def course(
        self, lr: float, steps: int, most_warm_up: float, enough: Callable[[Sequence[float]], bool]
    ) -> Course | None:
        """The losses of a short trial, which measures nothing, at the peak of the schedule as soon as that is reached.

        Args:
            lr: The base learning rate.
            steps: Optimizer steps.
            most_warm_up: Share of them that a warm-up may take.
            enough: Whether the losses so far tell enough; asked after each batch.

        Returns:
            What was heard, or None where a signal cut it short.
        """
        followed = {key: one.followed(steps, most_warm_up, plateau=True) for key, one in self._schedules.items()}

        def work() -> Course | None:
            watch = self._watch(lr, followed, {})
            with watch.hooks():
                ended = self._run(watch, self._streams[0], steps, lambda: enough(watch.losses))
            return Course(tuple(watch.losses), watch.steps, watch.several) if ended else None

        return self._leaving_no_trace(work)

    def _hold(self, lr: float, stream: BatchStream) -> Trial | None:
        def work() -> Trial | None:
            watch = self._watch(lr, self._followed, self._meters)
            with watch.hooks():
                return watch.trial() if self._run(watch, stream, self._hold_steps) else None

        return self._leaving_no_trace(work)

    def _leaving_no_trace(self, work: Callable[[], Value]) -> Value:
        def branched() -> Value:
            self._run_state.branch()
            return work()

        return surely(branched, self._run_state.restore)

    def _watch(
        self, lr: float, followed: Mapping[int, Sequence[Factors]], meters: Mapping[int, TrialMeter]
    ) -> TrialWatch:
        watch = TrialWatch(self._trainer, self._rates, lr, followed, meters)
        isolate_trial(self._trainer, watch)
        return watch

    def _run(
        self, watch: TrialWatch, stream: BatchStream, steps: int, enough: Callable[[], bool] = lambda: False
    ) -> bool:
        """Run batches until the rate has broken or the steps are made; False where a signal cut it short."""
        loop = self._trainer.fit_loop.epoch_loop
        fetcher = _Fetcher(stream)
        while watch.steps < steps and not watch.broken and not enough():
            if fetcher.done:
                loop.batch_progress.reset_on_run()
            with suppress(StopIteration):  # the module's on_train_batch_start may ask to skip the rest of an epoch
                self._signals.let_through(loop.advance, fetcher)
            if largest_anywhere(self._trainer.strategy, float(bool(self._signals.pending))):
                return False
            if watch.steps == 0 and fetcher.index > _MAX_BATCHES_WITHOUT_STEP * self._trainer.accumulate_grad_batches:
                raise RuntimeError(_no_step(fetcher.index, self._run_state.moved()))
        return True


def _no_step(batches: int, moved: bool) -> str:
    """What went wrong where no optimizer of the Trainer made a step."""
    message = (
        f"expected the training step to make optimizer steps, got none of configure_optimizers' in {batches} batches"
    )
    if not moved:
        return f"{message}, and no parameter moved; check that the training step calls their step()"
    return (
        f"{message}, although parameters moved: something else updates them, such as optimizers that step within "
        "backward, or by methods other than step() (SAM's first_step and second_step), and the search cannot set their "
        "rates; let configure_optimizers return what makes the updates by step(), or train without the finder"
    )


class _Fetcher:
    """What the training loop takes batches from."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        self.index = 0
        self.done = True

    def __next__(self) -> tuple[Any, int, int]:
        batch, batch_idx, dataloader_idx, self.done = self._stream[self.index]
        self.index += 1
        return batch, batch_idx, dataloader_idx
