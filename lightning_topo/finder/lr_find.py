"""The topological learning-rate finder as a function, for use before a fit."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from torch._dynamo import OptimizedModule

from lightning_topo._lightning import Callback
from lightning_topo._user_warning import warn_user
from lightning_topo.finder._interrupts import DeferredSignals, SearchCutShortError, surely
from lightning_topo.finder._isolation import isolate, lightning_of
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._run_state import RunState
from lightning_topo.finder.options import SearchOptions
from lightning_topo.finder.rate_finder import RateFinder, say_irreplaceable
from lightning_topo.finder.result import TopologicalLRResult


def topological_lr_find(
    trainer: Any, model: Any, train_dataloaders: Any = None, datamodule: Any = None, **options: Any
) -> TopologicalLRResult | None:
    r"""Find the critical learning rate η* of a model before it is fitted, and set the model's attribute below it.

    Used as ``Tuner.lr_find``. The trainer and the model are set up as by ``fit``, the search of
    ``TopologicalLearningRateFinder`` runs at the first training batch, and everything is put back; then the
    suggestion is set on the model (unless ``update_attr=False``), for its ``configure_optimizers`` to use. No callback,
    logger or validation sees any of it, and nothing is written.

    $$\eta^* = \max \{\eta : \kappa < 1 \text{ at each of the first updates at base rate } \eta\}$$

    Args:
        trainer: A Trainer, fresh or after a fit.
        model: The LightningModule.
        train_dataloaders: As of ``Trainer.fit``.
        datamodule: As of ``Trainer.fit``.
        **options: Those of ``TopologicalLearningRateFinder``.

    Returns:
        The result; None under ``fast_dev_run``, with a warning.

    Raises:
        ValueError: When an option is out of range, there is no training batch, no neuron group, no learning rate that
            can be set, or the loss is not finite to begin with.
        TypeError: When the strategy shards the parameters over the processes.
        AttributeError: When the model has no attribute to set.

    Example:
        >>> # result = topological_lr_find(trainer, model, train_dataloaders)
        >>> # result.plot(); trainer.fit(model, train_dataloaders)
    """
    finder = RateFinder(SearchOptions(**options))
    if trainer.fast_dev_run:
        warn_user("The learning-rate search is left out under `fast_dev_run`.")
        return None
    finder.require_searchable(trainer.strategy)
    attribute = finder.attribute(model, datamodule)
    start, result = time.monotonic(), None
    while result is None:
        result = _search(trainer, finder, model, train_dataloaders, datamodule)
    result = replace(result, seconds=time.monotonic() - start)  # of which launchers bring nothing back
    finder.advise(result)
    if attribute is not None:
        finder.tell(trainer, result, attribute, float(attribute.get()))
    finder.set(result, attribute)
    return result


def _search(trainer: Any, finder: RateFinder, model: Any, loaders: Any, datamodule: Any) -> TopologicalLRResult | None:
    """The result of a private fit that leaves no trace; None where a signal cut it short and was answered."""
    signals = DeferredSignals(within=False)

    def search() -> TopologicalLRResult:
        run_state = RunState(trainer, model, {"train_dataloaders": loaders, "datamodule": datamodule})
        say_irreplaceable(run_state, trainer.is_global_zero)

        def fit() -> TopologicalLRResult:
            run_state.branch()
            return signals.let_through(_launch, trainer, finder, signals, model, loaders, datamodule)

        return surely(fit, run_state.restore)

    try:
        return signals.during(search)
    except SearchCutShortError:
        return None


class _SearchDoneError(Exception):
    """Ends the private fit once its search is done."""


class _SearchAndStop(Callback):
    """The only callback of the private fit."""

    def __init__(self, finder: RateFinder, signals: DeferredSignals, shown: bool) -> None:
        self._finder, self._signals, self._shown = finder, signals, shown
        self.result: TopologicalLRResult | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        rates = BaseRates.of_run(trainer, self._finder.attribute(pl_module, trainer.datamodule))
        self.result = self._finder.find(trainer, pl_module, batch, rates, self._signals, self._shown)
        raise _SearchDoneError


def _launch(
    trainer: Any, finder: RateFinder, signals: DeferredSignals, model: Any, loaders: Any, datamodule: Any
) -> TopologicalLRResult:
    """Run the private fit in every process of the strategy; the result of the first comes back."""
    lightning = lightning_of(trainer)
    if isinstance(model, OptimizedModule):
        model = import_module(f"{lightning}.utilities.compile")._maybe_unwrap_optimized(model)
    trainer.strategy._lightning_module = model
    trainer.state.fn = import_module(f"{lightning}.trainer.states").TrainerFn.FITTING
    trainer.state.status = import_module(f"{lightning}.trainer.states").TrainerStatus.RUNNING
    trainer.training = True
    only = _SearchAndStop(finder, signals, trainer.progress_bar_callback is not None)
    _isolate(trainer, only)
    run = partial(_private_fit, trainer, only, model, loaders, datamodule)
    launcher = trainer.strategy.launcher
    # Launchers move what they bring back between devices, and refuse frozen dataclasses.
    return TopologicalLRResult.from_dict(run() if launcher is None else launcher.launch(run))


def _isolate(trainer: Any, only: _SearchAndStop) -> None:
    """Nobody else sees the private fit, and it starts from the beginning. What is set here, the run state puts back."""
    isolate(trainer, only)
    trainer._callback_connector._attach_model_callbacks = _nothing
    trainer._signal_connector.register_signal_handlers = _nothing  # signals go to the handlers that there are now
    trainer.num_sanity_val_steps = 0
    trainer.limit_val_batches = 0
    loop = trainer.fit_loop
    batches = loop.epoch_loop
    updates = (
        batches.automatic_optimization.optim_progress.optimizer.step,
        batches.manual_optimization.optim_step_progress,
    )
    for progress in (loop.epoch_progress, batches.batch_progress, *updates):
        progress.reset()


def _private_fit(
    trainer: Any, only: _SearchAndStop, model: Any, train_dataloaders: Any, datamodule: Any
) -> dict[str, Any]:
    try:
        trainer._fit_impl(model, train_dataloaders, None, datamodule)
    except _SearchDoneError:
        pass
    finally:
        import_module(f"{lightning_of(trainer)}.trainer.call")._call_teardown_hook(trainer)
        trainer._teardown()
    if only.result is None:
        raise ValueError(
            "expected the trainer to reach a training batch, but it reached none; check the training data, "
            "limit_train_batches, max_epochs and max_steps"
        )
    return only.result.to_dict()


def _nothing() -> None:
    """In the place of what a private fit is not to do."""
