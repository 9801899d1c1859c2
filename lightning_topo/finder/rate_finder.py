"""The whole search of a Trainer's run for its critical learning rate, at a training batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from lightning_topo._user_warning import warn_user
from lightning_topo.finder._attribute import LearningRateAttribute
from lightning_topo.finder._batches import first_with_items
from lightning_topo.finder._interrupts import DeferredSignals, surely
from lightning_topo.finder._isolation import lightning_of
from lightning_topo.finder._progress import SearchProgress
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._run_schedules import RunSchedules
from lightning_topo.finder._run_state import RunState
from lightning_topo.finder._share_trials import choose_share
from lightning_topo.finder._trials import TrialRunner
from lightning_topo.finder.options import SearchOptions
from lightning_topo.finder.overruled import RateWatch
from lightning_topo.finder.result import TopologicalLRResult
from lightning_topo.finder.search import CriticalRateSearch
from lightning_topo.neurons import NeuronGroup, example_inputs_from_batch, is_empty_batch, select_groups
from lightning_topo.sharding import require_whole_updates

_ADVICE = {
    "not_reached": "No learning rate up to max_lr={0:g} broke an update, so the critical learning rate is not known, "
    "and the learning rate stays as it is. Raise max_lr or hold_steps, or check that the loss depends on the weights.",
    "below_min": "Even the learning rate min_lr={1:g} broke an update, so the critical learning rate is not known, and "
    "the learning rate stays as it is. Lower min_lr, or check the initialisation of the model.",
}


class RateFinder:
    r"""Searches for η* from the state in which a Trainer is about to run a training batch, and sets what it suggests.

    $$\eta^* = \max \{\eta : \kappa < 1 \text{ in every group at each of the first updates at base rate } \eta\}$$

    Reference: arXiv 2510.02670, section 3.

    Args:
        options: What to search for, and what to do with what was found.

    Attributes:
        requires_attribute: Whether a model that is to be set has to keep its rate in an attribute; otherwise only its
            optimizers' rates are set where it has none.

    Example:
        >>> RateFinder(SearchOptions(safety=0.5)).options.safety
        0.5
    """

    def __init__(self, options: SearchOptions) -> None:
        self.options = options
        self.requires_attribute = True

    @staticmethod
    def require_searchable(strategy: Any) -> None:
        """Raise a TypeError where trials could not see what an update does to all neurons."""
        require_whole_updates(strategy, "find the learning rate under another one, or train without the finder")

    def run(self, trainer: Any, module: Any, batch: Any) -> tuple[TopologicalLRResult, RateWatch | None]:
        """Search within a fit, at a training batch, and let it train at what was found.

        Returns:
            What was found, and what looks whether the training code undoes it, where a rate was set.
        """
        attribute = self.attribute(module, trainer.datamodule)
        rates = BaseRates.of_run(trainer, attribute)
        signals = DeferredSignals(within=True)
        shown = trainer.progress_bar_callback is not None

        def find_and_set() -> TopologicalLRResult:
            result = self.find(trainer, module, batch, rates, signals, shown)
            self.set(result, attribute, rates)
            return result

        result = signals.during(find_and_set)
        self.advise(result)
        self.tell(trainer, result, attribute, rates.base_lr)
        lr = self.suggestion(result)
        if not self.options.update_attr or lr is None:
            return result, None
        factor = lr / rates.base_lr
        expected = {key: [rate * factor for rate in seen] for key, seen in rates.first_seen.items()}
        return result, RateWatch(trainer.optimizers, expected, "lr" if attribute is None else attribute.name)

    def attribute(self, module: Any, datamodule: Any) -> LearningRateAttribute | None:
        """Where the model keeps its learning rate; None if that is nowhere and nothing is to be set.

        Raises:
            AttributeError: When the rate is to be set and there is no such attribute.
        """
        if self.options.update_attr and self.requires_attribute:
            return LearningRateAttribute.find(module, datamodule, self.options.attr_name)
        with suppress(AttributeError):
            return LearningRateAttribute.find(module, datamodule, self.options.attr_name)
        return None

    def find(
        self, trainer: Any, module: Any, batch: Any, rates: BaseRates, signals: DeferredSignals, shown: bool
    ) -> TopologicalLRResult:
        """Search; the run is afterwards as it was, also where the search fails or is interrupted.

        Args:
            trainer: A Trainer that is about to run a training batch.
            module: Its LightningModule.
            batch: The batch, on the module's device.
            rates: The base rates of its optimizers.
            signals: Those that wait while a trial runs.
            shown: Whether to show a progress bar, in the first process.

        Returns:
            What was found.
        """
        self.require_searchable(trainer.strategy)
        _require_batches(trainer)
        start = time.monotonic()
        run_state = RunState(trainer, module)
        say_irreplaceable(run_state, trainer.is_global_zero)

        def search() -> TopologicalLRResult:
            options = self.options
            groups = signals.let_through(self._groups, trainer, module, batch, run_state)
            _require_moved(trainer, module, groups)
            with run_state.sources.kept():
                schedules = RunSchedules.of_run(trainer, module, rates, options.schedule)
            follow, hold = schedules.followed, options.hold_steps
            runner = TrialRunner(trainer, module, groups, rates, follow, hold, options.orders, run_state, signals)
            answer = partial(_answer, trainer, signals)
            with SearchProgress(shown and trainer.is_global_zero) as progress:
                result = _search(options.search(schedules.warm_up(hold)), runner, answer, progress)
                result = replace(result, safety=options.share, schedule=schedules.words)
                if options.safety == "auto" and result.status == "found":
                    result = choose_share(result, schedules, runner, options.trial_steps, answer, progress)
            return result

        result = surely(search, run_state.restore)
        return replace(result, seconds=time.monotonic() - start)

    def suggestion(self, result: TopologicalLRResult) -> float | None:
        """The rate to train at, or None where η* was not found; of the share that is wanted, else of the result's."""
        return result.suggestion(None if self.options.safety == "auto" else self.options.safety)

    def set(
        self, result: TopologicalLRResult, attribute: LearningRateAttribute | None, rates: BaseRates | None = None
    ) -> None:
        """Let the model, and a run that has begun, train at the suggestion, if that is wanted and there is one."""
        lr = self.suggestion(result)
        if not self.options.update_attr or lr is None:
            return
        changes: list[Callable[[], None]] = list(rates.changes(lr)) if rates is not None else []
        if attribute is not None:
            changes.insert(0, partial(attribute.set, lr))

        def change() -> None:
            for step in changes:
                step()

        surely(change, change)  # an interrupt finds all of the rates changed, or none

    def tell(
        self, trainer: Any, result: TopologicalLRResult, attribute: LearningRateAttribute | None, before: float
    ) -> None:
        """Say in the first process, through Lightning's logger, what was found and what was done with it."""
        *found, spent = result.lines()
        lr = self.suggestion(result)
        if lr is None or not self.options.update_attr:
            change = f"learning rate stays {before:.3g}"
        else:
            name = "" if attribute is None else f" {attribute.name}"
            change = f"learning rate{name} was {before:.3g}, is {lr:.3g}"
        for line in (*found, change, f"{spent}, {result.seconds:.1f} s"):
            self.say(trainer, f"Learning-rate search: {line}")

    @staticmethod
    def say(trainer: Any, message: str) -> None:
        """Give a message to Lightning's logger, in the first process."""
        import_module(f"{lightning_of(trainer)}.utilities.rank_zero").rank_zero_info(message)

    @staticmethod
    def advise(result: TopologicalLRResult) -> None:
        """Warn where η* was not found, and say what to do about it."""
        if result.status != "found":
            warn_user(_ADVICE[result.status].format(*result.bracket))

    def _groups(self, trainer: Any, module: Any, batch: Any, run_state: RunState) -> Sequence[NeuronGroup]:
        wanted = self.options.groups
        by_hand = isinstance(wanted, list) and all(isinstance(group, NeuronGroup) for group in wanted)
        declared = getattr(module, "example_input_array", None) is not None
        # Groups given by hand are taken as they are: the module may have no forward, or not be copyable.
        example = None if by_hand or declared else example_inputs_from_batch(module, batch)
        if example is not None and is_empty_batch(batch):
            example = example_inputs_from_batch(module, first_with_items(trainer, run_state.sources))
        with run_state.sources.kept():
            return select_groups(module, wanted, example)


def say_irreplaceable(run_state: RunState, lead: bool) -> None:
    """Say, before a search begins, what it cannot put back."""
    if lead and run_state.sources.irreplaceable:
        warn_user(
            f"The learning-rate search cannot put back {run_state.sources.irreplaceable}: what its trials read from "
            "there, the run will not see. Make such iterators in __iter__, or open such files there."
        )


def _search(
    search: CriticalRateSearch, runner: TrialRunner, answer: Callable[[], None], progress: SearchProgress
) -> TopologicalLRResult:
    state = search.init()
    while not search.terminate(state):
        progress.trying(state)
        trial = runner(state.next_lr)
        if trial is None:
            answer()
        else:
            state = search.step(state, trial)
    return search.result(state)


def _answer(trainer: Any, signals: DeferredSignals) -> None:
    """Let the handlers of signals see the run as it was before the search, and end it where it is to end."""
    if trainer.world_size > 1:
        signals.share(partial(trainer.strategy.reduce, reduce_op="max"), trainer.strategy.root_device)
    signals.answer()
    # Lightning looks only after the next batch: there is to be none at a rate that nobody chose.
    if trainer.received_sigterm:
        raise import_module(f"{lightning_of(trainer)}.utilities.exceptions").SIGTERMException


def _require_moved(trainer: Any, module: Any, groups: Sequence[NeuronGroup]) -> None:
    moved = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    if not any(id(parameter) in moved for group in groups for parameter in group.parameters(module)):
        raise ValueError(
            "expected the optimizers of configure_optimizers to hold parameters of the neurons "
            f"({', '.join(group.name for group in groups[:3])}, ...), but they hold none; optimizers that the model "
            "keeps for itself, such as those that step within backward, have rates that the search cannot set: return "
            "them from configure_optimizers, or train without the finder"
        )


def _require_batches(trainer: Any) -> None:
    if type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise TypeError(
            "expected a training_step(batch, ...), got one that takes dataloader_iter and fetches its own batches; the "
            "search has to show every trial the same batches"
        )
