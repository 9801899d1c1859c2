"""The topological learning-rate finder as a callback."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch

from lightning_topo._lightning import Callback
from lightning_topo.finder._attribute import LearningRateAttribute
from lightning_topo.finder._progress import SearchProgress
from lightning_topo.finder._random_state import random_state_kept
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._trials import TrialRunner
from lightning_topo.finder.result import DEFAULT_SAFETY, TopologicalLRResult
from lightning_topo.finder.search import CriticalRateSearch
from lightning_topo.neurons import NeuronGroup, example_inputs_from_batch, select_groups
from lightning_topo.sharding import require_whole_updates


class TopologicalLearningRateFinder(Callback):
    r"""Find the critical learning rate η* at the start of a fit, and train below it.

    .. math:: \eta^* = \max \{\eta : \kappa < 1 \text{ in every group at each of the first updates at base rate } \eta\}

    Just before the first training batch it holds candidate rates for ``hold_steps`` optimizer steps each, always from
    the same start over the same batches, and brackets η*: below it every update is one-to-one on the neurons. Training
    then starts, from the state it was about to start from, at ``safety · η*``. The batches run through Lightning's own
    training loop, so precision, clipping, accumulation, manual optimization and DDP are the run's; validation,
    callbacks and loggers see nothing, and weights, optimizer, counters, random state and batch order are put back.

    Reference: arXiv 2510.02670, section 3.

    The result is saved in checkpoints: a resumed fit does not search again. List it before callbacks that read the
    learning rate at the start of a batch, such as ``LearningRateMonitor``.

    Args:
        min_lr: Smallest base learning rate to try.
        max_lr: Largest base learning rate to try; the search starts there.
        hold_steps: Optimizer steps for which a rate has to hold. As many batches are kept in memory (times ``orders``
            and accumulation), those that the trials reached.
        tolerance: The bracket around η* is closed when its ends are within a factor of 1 + tolerance.
        safety: Share of η* to train at, in (0, 1].
        groups: Neuron groups to watch: None (all that are found), a glob or a list of globs on their names, or a
            list of ``NeuronGroup``.
        orders: Batch orders over which a rate has to hold. More make η* safer against the luck of one order.
        update_attr: Whether to train at the suggestion: set the model's attribute, every parameter group by a common
            factor, and the schedulers' base rates.
        attr_name: Attribute that holds the learning rate, dotted names too; default ``lr`` or ``learning_rate``, on the
            model, its ``hparams`` or the data module.

    Attributes:
        result: What was found, a :class:`TopologicalLRResult`, or None before the search.

    Raises:
        ValueError: When an option is out of range.
        TypeError: At the start of a fit whose strategy shards the parameters over the processes.

    Example:
        >>> finder = TopologicalLearningRateFinder(safety=0.25)
        >>> # Trainer(callbacks=[finder]).fit(model)
        >>> finder.optimal_lr is None  # before the fit
        True
    """

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 100.0,
        hold_steps: int = 50,
        tolerance: float = 0.1,
        safety: float = DEFAULT_SAFETY,
        groups: str | list[str] | list[NeuronGroup] | None = None,
        orders: int = 1,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        for name, value in (("hold_steps", hold_steps), ("orders", orders)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        if not 0 < safety <= 1:
            raise ValueError(f"expected 0 < safety <= 1, got {safety}; it is the share of η* to train at")
        self._search = CriticalRateSearch(min_lr, max_lr, tolerance)
        self._hold_steps, self._safety, self._groups, self._orders = hold_steps, safety, groups, orders
        self._update_attr, self._attr_name = update_attr, attr_name
        self.result: TopologicalLRResult | None = None

    @property
    def optimal_lr(self) -> float | None:
        """The suggestion, ``safety · η*``; None before the search, or where η* was not found."""
        return None if self.result is None else self.result.suggestion(self._safety)

    def state_dict(self) -> dict[str, Any]:
        """The result, in primitives."""
        return {"result": None if self.result is None else self.result.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the result of the run that is resumed."""
        saved = state_dict["result"]
        self.result = None if saved is None else TopologicalLRResult.from_dict(saved)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which nothing can be found."""
        if stage == "fit" and self.result is None and not trainer.fast_dev_run:
            require_searchable(trainer.strategy)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Search, once, before the first update."""
        if self.result is not None:
            return
        if trainer.fast_dev_run:
            if batch_idx == 0:
                warnings.warn("The learning-rate search is left out under `fast_dev_run`.", stacklevel=2)
            return
        attribute = self._attribute(pl_module, trainer.datamodule)
        rates = base_rates(trainer, attribute)
        self.result = self._find(trainer, pl_module, batch, rates, trainer.progress_bar_callback is not None)
        self._advise()
        if attribute is not None and self._update_attr and self.optimal_lr is not None:
            attribute.set(self.optimal_lr)
            rates.move_to(self.optimal_lr)
        self._log(trainer)

    def _attribute(self, module: Any, datamodule: Any) -> LearningRateAttribute | None:
        """Where the model keeps its rate; it has to be somewhere only if it is to be set."""
        if self._update_attr:
            return LearningRateAttribute.find(module, datamodule, self._attr_name)
        with suppress(AttributeError):
            return LearningRateAttribute.find(module, datamodule, self._attr_name)
        return None

    def _find(
        self, trainer: Any, module: Any, batch: Any, rates: BaseRates, show_progress: bool
    ) -> TopologicalLRResult:
        """The whole search, from a Trainer that is about to run a training batch."""
        _require_supported(trainer)
        runner = TrialRunner(trainer, module, self._find_groups(module, batch), rates, self._hold_steps, self._orders)
        state = self._search.init()
        with SearchProgress(show_progress and trainer.is_global_zero) as progress:
            while not self._search.terminate(state):
                progress.trying(state)
                state = self._search.step(state, runner(state.next_lr))
        return self._search.result(state)

    def _find_groups(self, module: Any, batch: Any) -> Sequence[NeuronGroup]:
        by_hand = isinstance(self._groups, list) and all(isinstance(group, NeuronGroup) for group in self._groups)
        declared = getattr(module, "example_input_array", None) is not None
        # Groups given by hand are taken as they are: the module may have no forward, or not be copyable.
        example = None if by_hand or declared else example_inputs_from_batch(module, batch)
        with random_state_kept():
            return select_groups(module, self._groups, example)

    def _advise(self) -> None:
        assert self.result is not None
        if self.result.status != "found":
            warnings.warn(_ADVICE[self.result.status].format(*self.result.bracket), stacklevel=3)

    def _log(self, trainer: Any) -> None:
        assert self.result is not None
        if self.result.critical_lr is None or self.optimal_lr is None:
            return
        low, high = self.result.bracket
        values = {"critical_lr": self.result.critical_lr, "suggestion": self.optimal_lr, "held": low, "broke": high}
        values["steps"] = float(self.result.total_steps)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            separator = logger.group_separator
            logger.log_metrics({f"lr_find{separator}{name}": value for name, value in values.items()}, step=step)
            if trainer.is_global_zero and hasattr(logger.experiment, "add_figure"):
                logger.experiment.add_figure("lr_find", self.result.plot(safety=self._safety).figure, step)
        device = trainer.strategy.root_device
        metrics = {f"lr_find/{name}": torch.tensor(value, device=device) for name, value in values.items()}
        trainer.callback_metrics.update(metrics)


_ADVICE = {
    "not_reached": "No learning rate up to max_lr={0:g} broke an update, so the critical learning rate is not known, "
    "and the learning rate stays as it is. Raise max_lr or hold_steps.",
    "below_min": "Even the learning rate min_lr={1:g} broke an update, so the critical learning rate is not known, and "
    "the learning rate stays as it is. Lower min_lr, or check the initialisation of the model.",
}


def require_searchable(strategy: Any) -> None:
    """Raise a TypeError, at the start, where trials could not see what an update does to all neurons."""
    require_whole_updates(strategy, "find the learning rate under another one, or train without the finder")


def base_rates(trainer: Any, attribute: LearningRateAttribute | None) -> BaseRates:
    """The base rates of the run's optimizers, relative to the model's attribute where there is one."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return BaseRates(trainer.optimizers, schedulers, None if attribute is None else float(attribute.get()))


def _require_supported(trainer: Any) -> None:
    if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise TypeError(
            "expected a training_step(batch, ...), got one that takes dataloader_iter and fetches its own batches; the "
            "search has to show every trial the same batches"
        )
