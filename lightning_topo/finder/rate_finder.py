"""The whole search of a Trainer's run for its critical learning rate, at a training batch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lightning_topo.finder._attribute import LearningRateAttribute
from lightning_topo.finder._progress import SearchProgress
from lightning_topo.finder._random_state import random_state_kept
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._trials import TrialRunner
from lightning_topo.finder.options import SearchOptions
from lightning_topo.finder.result import TopologicalLRResult
from lightning_topo.neurons import NeuronGroup, example_inputs_from_batch, select_groups
from lightning_topo.sharding import require_whole_updates

_ADVICE = {
    "not_reached": "No learning rate up to max_lr={0:g} broke an update, so the critical learning rate is not known, "
    "and the learning rate stays as it is. Raise max_lr or hold_steps.",
    "below_min": "Even the learning rate min_lr={1:g} broke an update, so the critical learning rate is not known, and "
    "the learning rate stays as it is. Lower min_lr, or check the initialisation of the model.",
}


class RateFinder:
    r"""Searches for η* from the state in which a Trainer is about to run a training batch, and sets what it suggests.

    .. math:: \eta^* = \max \{\eta : \kappa < 1 \text{ in every group at each of the first updates at base rate } \eta\}

    Reference: arXiv 2510.02670, section 3.

    Args:
        options: What to search for, and what to do with what was found.

    Example:
        >>> RateFinder(SearchOptions(safety=0.5)).options.safety
        0.5
    """

    def __init__(self, options: SearchOptions) -> None:
        self.options = options

    @staticmethod
    def require_searchable(strategy: Any) -> None:
        """Raise a TypeError where trials could not see what an update does to all neurons."""
        require_whole_updates(strategy, "find the learning rate under another one, or train without the finder")

    def attribute(self, module: Any, datamodule: Any) -> LearningRateAttribute | None:
        """Where the model keeps its learning rate; None if that is nowhere and nothing is to be set.

        Raises:
            AttributeError: When the rate is to be set and there is no such attribute.
        """
        if self.options.update_attr:
            return LearningRateAttribute.find(module, datamodule, self.options.attr_name)
        with suppress(AttributeError):
            return LearningRateAttribute.find(module, datamodule, self.options.attr_name)
        return None

    def rates(self, trainer: Any, attribute: LearningRateAttribute | None) -> BaseRates:
        """The base rates of a run's optimizers, relative to the model's attribute where there is one."""
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        return BaseRates(trainer.optimizers, schedulers, None if attribute is None else float(attribute.get()))

    def find(self, trainer: Any, module: Any, batch: Any, rates: BaseRates, show_progress: bool) -> TopologicalLRResult:
        """Search; the run is afterwards as it was.

        Args:
            trainer: A Trainer that is about to run a training batch.
            module: Its LightningModule.
            batch: The batch, on the module's device.
            rates: The base rates of its optimizers.
            show_progress: Whether to show a progress bar, in the first process.

        Returns:
            What was found.
        """
        _require_supported(trainer)
        groups, options = self._groups(module, batch), self.options
        runner = TrialRunner(trainer, module, groups, rates, options.hold_steps, options.orders)
        search = options.search()
        state = search.init()
        with SearchProgress(show_progress and trainer.is_global_zero) as progress:
            while not search.terminate(state):
                progress.trying(state)
                state = search.step(state, runner(state.next_lr))
        return search.result(state)

    def suggestion(self, result: TopologicalLRResult) -> float | None:
        """The rate to train at, or None where η* was not found."""
        return result.suggestion(self.options.safety)

    def set(
        self, result: TopologicalLRResult, attribute: LearningRateAttribute | None, rates: BaseRates | None = None
    ) -> None:
        """Let the model, and a run that has begun, train at the suggestion, if that is wanted and there is one."""
        lr = self.suggestion(result)
        if attribute is None or not self.options.update_attr or lr is None:
            return
        attribute.set(lr)
        if rates is not None:
            rates.move_to(lr)

    @staticmethod
    def advise(result: TopologicalLRResult, stacklevel: int) -> None:
        """Warn, on behalf of the caller, where η* was not found, and say what to do about it."""
        if result.status != "found":
            warnings.warn(_ADVICE[result.status].format(*result.bracket), stacklevel=stacklevel + 1)

    def _groups(self, module: Any, batch: Any) -> Sequence[NeuronGroup]:
        wanted = self.options.groups
        by_hand = isinstance(wanted, list) and all(isinstance(group, NeuronGroup) for group in wanted)
        declared = getattr(module, "example_input_array", None) is not None
        # Groups given by hand are taken as they are: the module may have no forward, or not be copyable.
        example = None if by_hand or declared else example_inputs_from_batch(module, batch)
        with random_state_kept():
            return select_groups(module, wanted, example)


def _require_supported(trainer: Any) -> None:
    if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise TypeError(
            "expected a training_step(batch, ...), got one that takes dataloader_iter and fetches its own batches; the "
            "search has to show every trial the same batches"
        )
