"""BiLipschitzMonitor: how far each update stretches and squeezes the neurons, and how close it is to η*."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.callbacks._group_monitor import Groups
from lightning_topo.callbacks._monitor import require_positive_int
from lightning_topo.callbacks._processes import measured_model
from lightning_topo.callbacks._sample import NeuronSample
from lightning_topo.callbacks._updates import UpdateMonitor
from lightning_topo.functional import bi_lipschitz
from lightning_topo.neurons import NeuronGroup

# On a limited budget, groups are measured together while a turn's work (see NeuronSample) is at most this: 0.3 seconds
# on one core.
_WORK_PER_TURN = 2**25


@dataclass(frozen=True)
class BiLipschitzRecord:
    """One update of one neuron group.

    Attributes:
        step: Step under which it was logged.
        group: Name of the neuron group.
        learning_rate: η, the largest rate among the optimizer's parameter groups that hold the neurons' parameters.
        lower: Smallest ratio of distances between neurons after and before the update.
        upper: Largest ratio.
        distortion: upper / lower.
        criticality: κ = η / η*; at 1 and above neurons can merge.
        critical_lr: η* = η / κ.
        n_unresolved: Pairs of neurons that float rounding could not resolve.
    """

    step: int
    group: str
    learning_rate: float
    lower: float
    upper: float
    distortion: float
    criticality: float
    critical_lr: float
    n_unresolved: int


class BiLipschitzMonitor(UpdateMonitor[BiLipschitzRecord]):
    """Measures how optimizer updates move the neurons relative to each other.

    For a neuron group with points p_i (all parameters that move with unit i) an update has

    - lower, upper: the smallest and largest ratio |p_i' - p_j'| / |p_i - p_j|, and distortion = upper / lower,
    - criticality κ = max |u_i - u_j| / |p_i - p_j| with u = p' - p; below 1 the update is one-to-one on the neurons,
    - critical learning rate η* = η / κ.

    Reference: arXiv 2510.02670, section 3. Logged as ``bilipschitz/<group>/{learning_rate, lower, upper, distortion,
    criticality, critical_lr}``, and over all groups ``bilipschitz/{learning_rate, criticality, critical_lr,
    broken_updates, coverage}``: the largest κ and the smallest η* of the groups' latest values, the measured updates
    so far with κ >= 1, and the share of due updates that were measured.

    Where ``max_overhead`` is limited, groups that together have too many neurons and parameters for one measurement
    (about 0.3 s on one core) take turns.

    Training is not touched: the points are copied before and after ``optimizer.step`` and compared. Works with any
    torch optimizer, several of them, parameter groups, gradient accumulation, clipping, mixed precision and manual
    optimization. With several updates in one batch, the one of the largest κ is logged; the history has all.

    Args:
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_neurons: Largest number of neurons compared in a group, None for all. Of larger groups those are compared
            that an estimate over all pairs finds to decide the constants: κ is a lower bound, mostly attained. All
            points are kept over the update for this, unless a group has more than 2²⁸ parameters; then half of a
            sample is random, and the bound is weaker.
        every_n_train_steps: Measure every n-th update of each optimizer.
        max_overhead: Share of the training time that measuring may take; due updates beyond it are left out. None
            measures every group at every due update.

    Attributes:
        history: List of ``BiLipschitzRecord``.
        broken_updates: Measured updates of the run with κ >= 1 in some group.

    Raises:
        ValueError: When an option is out of range; at the first batch, when ``groups`` names no group.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.BiLipschitzMonitor(every_n_train_steps=10)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].criticality
    """

    name = "bilipschitz"

    def __init__(
        self,
        groups: Groups = None,
        max_neurons: int | None = 256,
        every_n_train_steps: int = 1,
        max_overhead: float | None = 0.05,
    ) -> None:
        super().__init__(groups, every_n_train_steps, max_overhead)
        self.max_neurons = None if max_neurons is None else require_positive_int("max_neurons", max_neurons, at_least=2)
        self.broken_updates = 0
        self._updates: list[int] = []
        self._samples: dict[str, NeuronSample] = {}
        self._queues: list[deque[NeuronGroup]] = []
        self._model: Any = None
        self._before: dict[str, Tensor] = {}
        self._learning_rates: dict[str, float] = {}
        self._latest: dict[str, BiLipschitzRecord] = {}
        self._current: dict[str, BiLipschitzRecord] = {}
        self._measured = False

    def state_dict(self) -> dict[str, Any]:
        """Counts of measurements, updates and broken updates."""
        return {**super().state_dict(), "updates": list(self._updates), "broken_updates": self.broken_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        super().load_state_dict(state_dict)
        self._updates, self.broken_updates = list(state_dict["updates"]), state_dict["broken_updates"]

    def forget(self) -> None:
        """A run begins anew, and updates are counted from there."""
        super().forget()
        self._updates, self.broken_updates = [], 0

    def groups_found(self, trainer: Any, pl_module: Any) -> None:
        """Watch the optimizers' updates."""
        keep_all = not self._processes.sharded  # only sampled rows are gathered
        self._samples = {group.name: NeuronSample(group, self.max_neurons, keep_all) for group in self._found}
        self._queues = [deque(self._found) for _ in trainer.optimizers]
        self._current = {}
        self._model = measured_model(trainer, pl_module)
        if len(self._updates) != len(trainer.optimizers):
            self._updates = [0] * len(trainer.optimizers)
        self.listen(trainer)

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        charts = {"learning rate η and critical learning rate η*": _tags("bilipschitz", "learning_rate", "critical_lr")}
        for group in self._found:
            prefix = f"bilipschitz/{group.name}"
            if len(self._found) > 1:
                charts[f"{group.name}: η and η*"] = _tags(prefix, "learning_rate", "critical_lr")
            charts[f"{group.name}: lower and upper constant"] = _tags(prefix, "lower", "upper")
        return charts

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Disarm the hooks and log what the batch's updates did."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._measured:
            with self._budget.spending():
                self._current |= self._latest
                metrics = _metrics(self._latest, self._current.values(), self.broken_updates) if self._latest else {}
                self.write(trainer, metrics)
            self._latest, self._measured = {}, False

    def release(self) -> None:
        """Listen no more."""
        super().release()
        self._before, self._latest, self._measured, self._model = {}, {}, False, None

    def before_step(self, index: int, optimizer: Optimizer) -> None:
        """Keep the neurons, where the update is to be measured."""
        self._before = {}
        due = self._updates[index] % self.every_n_train_steps == 0
        self._updates[index] += 1
        if due and self.admits():
            self._measured = True
            if self._processes.read:
                with self.never_fatal(), self._budget.spending(self._model.device):
                    self._before_update(index, optimizer, self._model)

    def after_step(self, index: int, optimizer: Optimizer) -> None:
        """Compare the neurons with those that were kept."""
        if self._before:
            with self.never_fatal(), self._budget.spending(self._model.device):
                self._after_update(self._model)

    def _before_update(self, index: int, optimizer: Optimizer, model: Any) -> None:
        for group, learning_rate in self._turn(index, optimizer, model):
            self._learning_rates[group.name] = learning_rate
            self._before[group.name] = self._samples[group.name].before(model)

    def _turn(self, index: int, optimizer: Optimizer, model: Any) -> list[tuple[NeuronGroup, float]]:
        """Groups to measure now, and their learning rates: on a limited budget those that have waited longest.

        The rates are read before the update: after it a scheduler may already have set the next ones.
        """
        queue, work = self._queues[index], 0
        turn: list[tuple[NeuronGroup, float]] = []
        for _ in range(len(queue)):
            learning_rate = _learning_rate(queue[0], optimizer, model)
            if learning_rate is not None:
                work += self._samples[queue[0].name].work(model)
                if turn and work > _WORK_PER_TURN and self.max_overhead is not None:
                    break
                turn.append((queue[0], learning_rate))
            queue.rotate(-1)
        return turn

    def _after_update(self, model: Any) -> None:
        before, self._before = self._before, {}
        moved = [group for group in self._found if group.name in before]
        # All are read before any is compared: what fails in the first process must not keep the others waiting.
        after = {group.name: self._samples[group.name].after(model) for group in moved}
        if not self._processes.lead:
            return
        compared = [self._compare(group, before[group.name], after[group.name], model) for group in moved]
        records = [record for record in compared if record is not None]
        # A gradient scaler inside the optimizer can skip the update: nothing moved, and there is nothing to tell.
        if not any(record.criticality != 0 for record in records):
            return
        self.broken_updates += any(record.criticality >= 1 for record in records)
        self.remember(records)
        for record in records:
            known = self._latest.get(record.group)
            if known is None or not record.criticality <= known.criticality:
                self._latest[record.group] = record

    def _compare(self, group: NeuronGroup, before: Tensor, after: Tensor, model: Any) -> BiLipschitzRecord | None:
        eps = _eps(group, model)
        before, after = self._samples[group.name].chosen(before, after, eps)
        if not bool(before.isfinite().all() & after.isfinite().all()):
            self.warn_diverged(group, self._step)
            self._current.pop(group.name, None)
            return None
        result = bi_lipschitz(before, after, eps)
        rate, critical = self._learning_rates[group.name], result.criticality
        return BiLipschitzRecord(
            self._step,
            group.name,
            rate,
            result.lower,
            result.upper,
            result.distortion,
            critical,
            rate / critical if critical != 0 else math.inf,
            result.n_unresolved,
        )


def _learning_rate(group: NeuronGroup, optimizer: Optimizer, model: Any) -> float | None:
    """Largest rate at which the optimizer moves the neurons, or None when it does not hold them."""
    members = {id(parameter) for parameter in group.parameters(model)}
    rates = [
        float(settings.get("lr", math.nan))
        for settings in optimizer.param_groups
        if any(id(parameter) in members for parameter in settings["params"])
    ]
    return max(rates, default=None)


def _eps(group: NeuronGroup, model: Any) -> float:
    """Spacing of the coarsest numbers that the neurons are stored in."""
    return max(torch.finfo(parameter.dtype).eps for parameter in group.parameters(model))


def _tags(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


def _metrics(
    records: dict[str, BiLipschitzRecord], current: Iterable[BiLipschitzRecord], broken_updates: int
) -> dict[str, float]:
    metrics: dict[str, float] = {"bilipschitz/broken_updates": broken_updates}
    fields = ("learning_rate", "lower", "upper", "distortion", "criticality", "critical_lr")
    for name, record in records.items():
        metrics |= {f"bilipschitz/{name}/{field}": getattr(record, field) for field in fields}
    resolved = [record for record in current if not math.isnan(record.criticality)]
    if resolved:
        metrics["bilipschitz/learning_rate"] = max(record.learning_rate for record in resolved)
        metrics["bilipschitz/criticality"] = max(record.criticality for record in resolved)
        metrics["bilipschitz/critical_lr"] = min(record.critical_lr for record in resolved)
    return metrics
