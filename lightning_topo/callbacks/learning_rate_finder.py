"""The topological learning-rate finder as a callback."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import torch

from lightning_topo._lightning import Callback
from lightning_topo._user_warning import warn_user
from lightning_topo.finder import RateFinder, RateWatch, RunIdentity, SearchOptions, TopologicalLRResult
from lightning_topo.neurons import NeuronGroup


class TopologicalLearningRateFinder(Callback):
    r"""Find the critical learning rate η* at the start of a fit, and train below it.

    $$\eta^* = \max \{\eta : \kappa < 1 \text{ in every group at each of the first updates at base rate } \eta\}$$

    Just before the first training batch it tries candidate rates for ``hold_steps`` optimizer steps each, always from
    the same start over the same batches, and brackets η*: below it every update is one-to-one on the neurons. Then it
    tries shares of η* for ``trial_steps`` each, and training starts, from the state it was about to start from, at the
    share whose trial ended lowest. Trials follow the run's own schedule from its start: a warm-up is part of what is
    found, one that is longer than a trial is compressed into it. The batches run through Lightning's own
    training loop, so precision, clipping, accumulation, manual optimization and DDP are the run's; validation,
    callbacks and loggers see nothing, and weights, optimizer, counters, random state and batch order are put back. So
    are data sets and what they count, and the random generators to which the module, its data, and the globals and
    closures that their code names lead. Not put back are other globals, attributes of classes, files that were written
    and iterators that a data set keeps; of these the search warns before it begins. Signals wait until the run is as it
    was, and are then answered; Ctrl-C ends a batch at once.

    Reference: arXiv 2510.02670, section 3.

    The result is saved in checkpoints with what it was found for: a resumed fit does not search again, a fit of another
    model, with other optimizers, on other data or by another Trainer does, such as the next fold of a cross-validation.
    List it before callbacks that read the learning rate at the start of a batch, such as ``LearningRateMonitor``.

    Args:
        min_lr: Smallest base learning rate to try.
        max_lr: Largest base learning rate to try; the search starts there.
        hold_steps: Optimizer steps for which a rate has to hold. As many batches are kept in memory (times ``orders``
            and accumulation), those that the trials reached.
        tolerance: The bracket around η* is closed when its ends are within a factor of 1 + tolerance, of its square
            where rates that hold and rates that break alternate; the result says where they do.
        safety: ``"auto"``, or the share of η* to train at, in (0, 1]. ``"auto"`` chooses it by short trials, and half
            of that for a run whose rate does not decay; where they cannot tell (no loss is returned, or several), it is
            a quarter.
        groups: Neuron groups to watch: None (all that are found), a glob or a list of globs on their names, or a
            list of ``NeuronGroup``.
        orders: Batch orders over which a rate has to hold. More make η* safer against the luck of one order.
        update_attr: Whether to train at the suggestion: set the model's attribute, every parameter group by a common
            factor, and the schedulers' base rates.
        attr_name: Attribute that holds the learning rate, dotted names too; default ``lr`` or ``learning_rate``, on the
            model, its ``hparams`` or the data module.
        trial_steps: Optimizer steps of each short trial, at least 5; one that cannot end lowest makes fewer.
        schedule: Whether trials follow the run's own schedule; False holds the rate constant.

    Attributes:
        result: What was found, a ``TopologicalLRResult``, or None before the search.
        from_environment: Whether the environment variable added it: it steps back for one that the user added, and
            sets the rates of the optimizers also where the model has no attribute for them.

    Raises:
        ValueError: When an option is out of range.
        TypeError: At the start of a fit whose strategy shards the parameters over the processes.

    Example:
        >>> finder = TopologicalLearningRateFinder()
        >>> # Trainer(callbacks=[finder]).fit(model)
        >>> finder.optimal_lr is None  # before the fit
        True
    """

    from_environment: bool = False

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 100.0,
        hold_steps: int = 50,
        tolerance: float = 0.1,
        safety: float | Literal["auto"] = "auto",
        groups: str | list[str] | list[NeuronGroup] | None = None,
        orders: int = 1,
        update_attr: bool = True,
        attr_name: str = "",
        trial_steps: int = 25,
        schedule: bool = True,
    ) -> None:
        options = SearchOptions(
            min_lr, max_lr, hold_steps, tolerance, safety, groups, orders, update_attr, attr_name, trial_steps, schedule
        )
        self._finder = RateFinder(options)
        self.result: TopologicalLRResult | None = None
        self._run: RunIdentity | None = None
        self._decided = False  # whether this fit has searched, or has seen that it need not
        self._unreadable = self._yields = False
        self._watch: RateWatch | None = None

    @property
    def state_key(self) -> str:
        """Of one that the environment has added another, so that a Trainer can hold both."""
        return f"{type(self).__qualname__}{'@environment' if self.from_environment else ''}"

    @property
    def optimal_lr(self) -> float | None:
        """The suggestion, a share of η*; None before the search, or where η* was not found."""
        return None if self.result is None else self._finder.suggestion(self.result)

    def state_dict(self) -> dict[str, Any]:
        """The result and the run that it belongs to, in primitives."""
        if self.result is None:
            return {"result": None}
        return {"result": self.result.to_dict(), "run": {} if self._run is None else self._run.now().words}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the result of the run that is resumed; what cannot be read is said, and the resume goes on."""
        self._run = _read_run(state_dict)
        try:
            saved = state_dict["result"]
            self.result = None if saved is None else TopologicalLRResult.from_dict(saved)
        except Exception as error:  # a state of another version, or one that was edited
            self.result, self._unreadable = None, True
            warn_user(
                f"TopologicalLearningRateFinder cannot read its state in the checkpoint ({type(error).__name__}: "
                f"{error}). The run goes on at the learning rates of the checkpoint, without a new search; start it "
                "without ckpt_path to search again."
            )

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which nothing can be found."""
        if stage != "fit":
            return
        self._decided = self._unreadable = False
        rivals = [
            one for one in trainer.callbacks if isinstance(one, TopologicalLearningRateFinder) and one is not self
        ]
        self._yields = self.from_environment and any(not rival.from_environment for rival in rivals)
        self._finder.requires_attribute = not self.from_environment
        if self._yields:
            return
        if self.result is None and not trainer.fast_dev_run:
            self._finder.require_searchable(trainer.strategy)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Search, once, before the first update."""
        if self._yields or self._unreadable or (self._decided and self.result is not None):
            return
        if trainer.fast_dev_run:
            if not self._decided:
                warn_user("The learning-rate search is left out under `fast_dev_run`.")
            self._decided = True
            return
        run = RunIdentity.of(trainer, pl_module)
        if self._is_due(trainer, run):
            self.result = None  # what is known of another run is none of this one's, also if the search fails
            self.result, self._watch = self._finder.run(trainer, pl_module, batch)
            self._log(trainer, pl_module)
        self._show(trainer)
        self._run, self._decided = run, True

    def _is_due(self, trainer: Any, run: RunIdentity) -> bool:
        """Whether to search: nothing is known, or what is known is of another run; all processes decide alike."""
        others = [] if self.result is None or self._run is None else self._run.differences(run)
        if others:
            self._finder.say(
                trainer, f"Learning-rate search: the known rate is another {' and '.join(others)}'s, so it is made anew"
            )
        due = self.result is None or bool(others)
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look no longer at the rates of optimizers that have made their first update."""
        if self._watch is not None:
            self._watch.release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take off what is left of the hooks."""
        if self._watch is not None:
            self._watch.release(all_of_them=True)
            self._watch = None

    def _values(self) -> dict[str, float]:
        """What is logged; nothing where η* was not found."""
        if self.result is None or self.result.critical_lr is None or self.optimal_lr is None:
            return {}
        low, high = self.result.bracket
        values = {"critical_lr": self.result.critical_lr, "suggestion": self.optimal_lr, "held": low, "broke": high}
        return {**values, "steps": float(self.result.total_steps)}

    def _log(self, trainer: Any, module: Any) -> None:
        values = self._values()
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers if values else ():
            self._log_to(logger, values, step, trainer.is_global_zero)
            self._log_hyperparameters(logger, module)

    def _show(self, trainer: Any) -> None:
        """Let callbacks monitor the values, also in a fit that goes on from a checkpoint."""
        device = trainer.strategy.root_device
        metrics = {f"lr_find/{name}": torch.tensor(value, device=device) for name, value in self._values().items()}
        trainer.callback_metrics.update(metrics)

    def _log_to(self, logger: Any, values: dict[str, float], step: int, lead: bool) -> None:
        assert self.result is not None
        try:
            separator = logger.group_separator
            logger.log_metrics({f"lr_find{separator}{name}": value for name, value in values.items()}, step=step)
            if lead and hasattr(logger.experiment, "add_figure"):
                logger.experiment.add_figure("lr_find", self.result.plot().figure, step)
        except Exception as error:  # a disk that is full, a network that is gone, a plot that fails
            warn_user(
                f"TopologicalLearningRateFinder could not write to {type(logger).__name__} ({type(error).__name__}: "
                f"{error}). Training goes on. What was found is in the callback's result, which result.plot() draws."
            )

    def _log_hyperparameters(self, logger: Any, module: Any) -> None:
        """Give the logger the new rate where it was told of the old one as a hyperparameter."""
        if self._watch is None or not getattr(module, "_log_hyperparams", False):
            return
        hparams = dict(module.hparams)
        if hparams != dict(module.hparams_initial):
            with suppress(Exception):  # some, such as MLflow's, refuse a second value; the metrics tell it anyway
                logger.log_hyperparams(hparams)


def _read_run(state: dict[str, Any]) -> RunIdentity | None:
    """The run that a saved result belongs to; None where that is not known."""
    words = state.get("run") if isinstance(state, dict) else None
    if not isinstance(words, dict):
        return None
    return RunIdentity({str(name): text for name, text in words.items() if isinstance(text, str)})
