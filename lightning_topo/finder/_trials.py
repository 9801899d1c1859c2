"""Trials of learning rates, by Lightning's own training loop on the run's own model and data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo._lightning import Callback
from lightning_topo.finder._batches import BatchStream
from lightning_topo.finder._interrupts import DeferredSignals, surely
from lightning_topo.finder._isolation import isolate_trial
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._run_state import RunState
from lightning_topo.finder._trial_meter import TrialMeter
from lightning_topo.finder.result import Trial
from lightning_topo.neurons import NeuronGroup

# A gradient scaler may skip the first updates; a model that never steps is an error.
_MAX_BATCHES_WITHOUT_STEP = 100


class TrialRunner:
    """Holds a learning rate from the present state of a fit, and puts that state back.

    Each batch goes through ``advance`` of the Trainer's own training loop, so that precision, clipping, accumulation,
    strategy and manual optimization are the run's. Callbacks, loggers, profiler and schedulers are set aside meanwhile.

    Args:
        trainer: A Trainer that is about to run a training batch.
        module: Its LightningModule.
        groups: The neuron groups to watch.
        rates: Base rates of the run's optimizers.
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
        hold_steps: int,
        orders: int,
        run_state: RunState,
        signals: DeferredSignals,
    ) -> None:
        self._trainer, self._rates, self._hold_steps = trainer, rates, hold_steps
        self._meters = {id(optimizer): TrialMeter(optimizer, module, groups) for optimizer in trainer.optimizers}
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

    def _hold(self, lr: float, stream: BatchStream) -> Trial | None:
        def hold() -> Trial | None:
            self._run_state.branch()
            watch = _Watch(self._trainer, self._meters, self._rates, lr)
            isolate_trial(self._trainer, watch)
            with watch.hooks():
                return watch.trial() if self._run(watch, stream) else None

        return surely(hold, self._run_state.restore)

    def _run(self, watch: _Watch, stream: BatchStream) -> bool:
        """Run batches until the rate has broken or held; False where a signal cut it short."""
        loop = self._trainer.fit_loop.epoch_loop
        fetcher = _Fetcher(stream)
        while watch.steps < self._hold_steps and not watch.broken:
            if fetcher.done:
                loop.batch_progress.reset_on_run()
            with suppress(StopIteration):  # the module's on_train_batch_start may ask to skip the rest of an epoch
                self._signals.let_through(loop.advance, fetcher)
            if _largest_anywhere(self._trainer.strategy, float(bool(self._signals.pending))):
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


class _Watch(Callback):
    """Sets the rate before each update, and measures its criticality after it; a callback that hears the losses."""

    def __init__(
        self,
        trainer: Any,
        meters: Mapping[int, TrialMeter],
        rates: BaseRates,
        lr: float,
    ) -> None:
        self._trainer, self._meters, self._rates, self._lr = trainer, meters, rates, lr
        self._counts = dict.fromkeys(meters, 0)
        self._steps_before_batch = 0
        self._losses = list[float]()
        self._kappa, self._group, self._broke_at = 0.0, None, None  # type: float, str | None, int | None

    @property
    def steps(self) -> int:
        """Optimizer steps so far; where several optimizers take turns, those of the busiest."""
        return max(self._counts.values())

    @property
    def broken(self) -> bool:
        """Whether an update was not one-to-one, or something is no longer finite."""
        return self._broke_at is not None

    def trial(self) -> Trial:
        """What was seen."""
        return Trial(
            self._lr, not self.broken, self._broke_at, self._kappa, tuple(self._losses), self._group, self.steps
        )

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Listen to the updates of all optimizers."""
        handles = [o.register_step_pre_hook(self._before_step) for o in self._trainer.optimizers]
        handles += [o.register_step_post_hook(self._after_step) for o in self._trainer.optimizers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the loss, the mean over all processes; end the trial where it is not finite."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel():
            # A step of manual optimization may return several losses: their mean is what is told of them.
            value = float(trainer.strategy.reduce(loss.detach().float().mean(), reduce_op="mean"))
            self._losses.append(value)
            if not math.isfinite(value):
                self._diverged(value)
        self._steps_before_batch = self.steps
        self._require_same_optimizers()

    def _require_same_optimizers(self) -> None:
        if {id(optimizer) for optimizer in self._trainer.optimizers} != self._meters.keys():
            raise RuntimeError(
                "expected the Trainer to keep its optimizers during a trial of a learning rate, but the training step "
                "or a hook of the module replaced them, and the search cannot hold the rates of the new ones; replace "
                "them in a callback, which trials do not call, or train without the finder"
            )

    def _diverged(self, loss: float) -> None:
        if self._steps_before_batch == 0:
            raise ValueError(
                f"expected a finite training loss before the first update, got {loss}; no learning rate can help, "
                "check the model's initialisation and its data"
            )
        self._break(math.inf, None)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._rates.hold(optimizer, self._lr)
        self._meters[id(optimizer)].before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self.broken:
            worst, name = self._meters[id(optimizer)].after()
            worst = _largest_anywhere(self._trainer.strategy, worst)
            if worst >= 1:
                self._break(worst, name)
            elif worst > self._kappa:
                self._kappa, self._group = worst, name
        self._counts[id(optimizer)] += 1

    def _break(self, kappa: float, group: str | None) -> None:
        if not self.broken:
            self._broke_at, self._kappa, self._group = self.steps, kappa, group


def _largest_anywhere(strategy: Any, value: float) -> float:
    """The largest value over all processes, so that all take the same decisions."""
    tensor = torch.tensor(value, device=strategy.root_device)
    return float(strategy.reduce(tensor, reduce_op="max"))
