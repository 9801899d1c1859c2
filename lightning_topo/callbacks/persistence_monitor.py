"""PersistenceMonitor: the topology of each layer's neuron cloud over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_topo.callbacks._charts import topology_charts
from lightning_topo.callbacks._due import multiple_reached
from lightning_topo.callbacks._figures import takes_figures
from lightning_topo.callbacks._findings import gather, ours
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks._log_writer import logger_step
from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int, require_share
from lightning_topo.callbacks._per_group import PerGroup, require_per_group
from lightning_topo.callbacks._processes import hidden_neurons
from lightning_topo.callbacks._starts import Starts
from lightning_topo.callbacks._state import count_or_none
from lightning_topo.callbacks._topology import GroupTopology, PersistenceRecord
from lightning_topo.callbacks._topology_cost import expected_seconds
from lightning_topo.callbacks._topology_figures import TopologyFigures
from lightning_topo.callbacks.log_keys import TOPOLOGY
from lightning_topo.neurons import NeuronGroup
from lightning_topo.sharding import measured_model
from lightning_topo.verdict import Findings, Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The neurons of the start are kept until there is time to measure them, up to this many numbers of all groups (256 MiB
# in single precision).
_MOST_KEPT = 2**26


class PersistenceMonitor(OptionedCallback):
    """Measures the topology of the neurons: Betti numbers, persistence, and how far they are from the start.

    Betti numbers b0 (components), b1 (loops), b2 (voids) are those of the Vietoris-Rips complex of a group's neurons
    at ``scale`` times their diameter. Diagrams are taken of a farthest-point sample of the first measurement, the
    same neurons throughout, whose covering radius r is logged: a diagram of all neurons is within 2r.

    Logged as ``topology/<group>/{betti_k, entropy_k, total_persistence_k, drift_k, certified_betti_k,
    covering_radius, diameter}`` and ``topology/coverage``. With a TensorBoard logger, figures of the diagrams, the
    barcode and the neuron cloud (in the first principal plane of the start, coloured by where each neuron started)
    are made of measurements 1, 2, 4, 8, ... and of the last. They wait until ``max_overhead`` allows them, and one that
    still waits when the group's next is due gives way to it. At the end one group's are made in any case, and more
    while the run has spent less than a second in all, or less than ``max_overhead`` allows.

    Measured before the first update, after every n-th optimizer step (at the end of its batch, which may make several),
    and at the end of training. A measurement that is expected to take more than ``max_overhead`` allows is left out,
    the first included: the neurons of the start are kept, and measured as soon as the length of the run is known and
    there is time for it. Groups that take more take turns. Where parameters are replaced in the fit (pruning, a layer
    that has grown), the groups are found again, and of neurons that are others now drift is counted anew.

    Args:
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_dim: Highest homology dimension of the diagrams. 2 takes seconds for 256 neurons.
        max_neurons: Size of the sample of which diagrams are computed.
        scale: Share of the diameter at which Betti numbers are counted.
        betti_max_dim: Highest homology dimension of the Betti numbers.
        betti_max_neurons: Largest number of neurons of which Betti numbers are computed; of larger groups a
            farthest-point sample is taken, and a sample need not have the Betti numbers of the whole.
        every_n_train_steps: Measure after every n-th optimizer step.
        max_overhead: Share of the training time that measuring may take; due measurements beyond it are left out.
            None makes every due measurement.
        tolerance: Diagrams are not computed again while ½·log(upper/lower) of the sample since the last ones is at
            most this, for then they have moved by no more (in log scale, after rescaling). 0 always computes.
        figures: Whether to give figures to the loggers that take them: TensorBoard, Weights & Biases, MLflow, Comet,
            and as files beside the metrics those that have a folder.
        per_group: Whether loggers get the figures of each group: ``True``, ``False``, or ``"auto"`` for up to eight
            groups. ``history`` and ``trainer.callback_metrics`` have them in any case.

    Attributes:
        history: List of ``PersistenceRecord``.

    Raises:
        ValueError: When an option is out of range; at the first batch, when ``groups`` names no group.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.PersistenceMonitor(every_n_train_steps=100)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].betti
        >>> # print(monitor.summary()); monitor.plot()
    """

    name = "topology"

    def __init__(
        self,
        groups: Groups = None,
        max_dim: int = 1,
        max_neurons: int = 256,
        scale: float = 0.25,
        betti_max_dim: int = 2,
        betti_max_neurons: int = 1024,
        every_n_train_steps: int = 50,
        max_overhead: float | None = 0.05,
        tolerance: float = 0.0,
        figures: bool = True,
        per_group: PerGroup = "auto",
    ) -> None:
        self.groups = groups
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.max_dim = require_positive_int("max_dim", max_dim, at_least=0)
        self.max_neurons = require_positive_int("max_neurons", max_neurons, at_least=2)
        self.betti_max_dim = require_positive_int("betti_max_dim", betti_max_dim, at_least=0)
        self.betti_max_neurons = require_positive_int("betti_max_neurons", betti_max_neurons, at_least=2)
        if not 0 < scale <= 1:
            raise ValueError(f"scale is a share of the diameter, a number in (0, 1]; but got {scale!r}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0; but got {tolerance!r}.")
        self.scale, self.tolerance, self.figures = scale, tolerance, figures
        self.per_group = require_per_group(per_group)
        self.history: list[PersistenceRecord] = []
        self.active = False
        self._fit = MonitoredFit(type(self).__name__, groups, self.max_overhead, self.per_group)
        self._announcer, self._budget = self._fit.announcer, self._fit.budget
        self._neurons: FoundGroups = self._fit.neurons
        self._figures = TopologyFigures(self._budget, scale, self._announcer)
        compared = max_neurons, max_dim, betti_max_neurons, betti_max_dim, scale, tolerance
        self._topology = GroupTopology(*compared, Starts(self._announcer))
        self._measured_at: int | None = None
        self._companions: tuple[OptionedCallback, ...] = ()
        self._forget_fit()
        self.skip_empty_hooks()

    def _forget_fit(self) -> None:
        """Nothing of a fit's model is left."""
        self._fit.forget()
        self._turns: list[NeuronGroup] = []
        self._kept: dict[str, tuple[int, Tensor]] = {}

    @property
    def discovery_seconds(self) -> float:
        """Seconds that finding the groups took in this fit; they count as overhead."""
        return self._fit.discovery_seconds

    @property
    def ready(self) -> bool:
        """Whether the groups are known, and with them the charts."""
        return self._neurons.ready

    def state_dict(self) -> dict[str, Any]:
        """Counts, the first snapshot of each group as tensors and numbers, and the figures that were logged last."""
        return self._fit.state() | {"measured_at": self._measured_at, "first": self._topology.starts.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the saved first snapshots."""
        saved = self._fit.load_state(state_dict)
        self._measured_at = saved.get("measured_at", count_or_none, None)
        self._topology.starts.forget()
        saved.get("first", self._topology.starts.load, None)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Decide whether to measure, and forget an earlier fit, which may have been of another model."""
        self._fit.enter(trainer)
        self._forget_fit()
        self._topology.forget_last()
        self._companions = ours(callback for callback in trainer.callbacks if callback is not self)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._fit.begin_anew(self.history)
            self._topology.starts.forget()
            self._measured_at = None
        self.active = self.active and self._fit.unhindered(hidden_neurons(trainer.strategy))
        self.hear("on_train_batch_start", self.active)
        self.hear("on_train_batch_end", self.active)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count training time."""
        self._budget.start()
        if self.active:
            self._fit.start(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, and take the first snapshots, unless a checkpoint brought them."""
        found = self._fit.find(trainer, pl_module, batch)
        if not self._neurons.ready:
            return  # an empty batch
        self.hear("on_train_batch_start", False)
        if found:
            self._begin(trainer, pl_module, found)
        self._fit.write_layout(trainer)

    def _begin(self, trainer: Any, pl_module: Any, found: Sequence[NeuronGroup]) -> None:
        self._turns = list(found)
        with self._announcer.never_fatal():
            sizes = {group.name: (self._pool_size(group), group.dimension(self._fit.model)) for group in found}
            self._topology.starts.drop_unfit(sizes)
        missing = self._fit.processes.agreed([group.name for group in found if group.name not in self._topology.starts])
        if not missing:
            return
        if self.max_overhead is None or self._fit.processes.several:
            self._measure(trainer, pl_module)
        else:
            with self._announcer.never_fatal(), self._budget.spending(pl_module.device):
                self._keep(logger_step(trainer), [group for group in found if group.name in missing])

    def _keep(self, step: int, groups: Sequence[NeuronGroup]) -> None:
        """Keep the neurons of the start, to be measured when there is time for it."""
        total = 0
        for group in groups:
            total += group.n_units(self._fit.model) * group.dimension(self._fit.model)
            if total <= _MOST_KEPT:
                self._kept[group.name] = step, group.points(self._fit.model)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when a due number of optimizer steps is reached, and what is left of the start."""
        if self._neurons.found:
            if multiple_reached(self.every_n_train_steps, trainer.global_step, self._measured_at):
                self._find_again(trainer, pl_module, batch)
                self._measure(trainer, pl_module)
            elif self._kept and self._fit.length is not None and self._fit.length.doubled():
                self._measure_starts(trainer)

    def _find_again(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        """Look for the groups again where the model has changed, as by pruning or a layer that has grown."""
        if self._neurons.changed(trainer.optimizers):
            self._fit.find_again(trainer, pl_module, batch)
            names = [group.name for group in self._neurons.found]
            self._turns = list(self._neurons.found)
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure what training ended with."""
        if self._neurons.found:
            self._find_again(trainer, pl_module, None)
            self._measure(trainer, pl_module)
            self._figures.draw_last(trainer)
            if self._fit.processes.lead and self._budget.left_all_out:
                self._announcer.warn_once(
                    "PersistenceMonitor measured nothing in this fit: a measurement takes longer than "
                    f"max_overhead={self.max_overhead:g} leaves in a fit of this length. Pass a larger max_overhead, "
                    "or None to measure at every due step."
                )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Draw the figures that have waited."""
        self._figures.draw_last(trainer, latest=False)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the model."""
        self._forget_fit()

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        return topology_charts(self._fit.shown_groups, self.history)

    def findings(self) -> Findings:
        """What has been measured in the present or last fit, for a verdict or a report."""
        return Findings(topology=self._fit.of_run(self.history))

    def summary(self) -> Verdict:
        """Say what the present or last fit did to the neurons; ``print`` it."""
        return verdict(gather((self, *self._companions)))

    def plot(self, ax: Axes | None = None, show: bool = False) -> Axes:
        """Plot what is left of the neurons of each group; see ``plots.plot_neurons_left``."""
        from lightning_topo.plots import plot_neurons_left

        return plot_neurons_left(self._fit.of_run(self.history), ax, show)

    def _pool_size(self, group: NeuronGroup) -> int:
        pool = self._pool(group)
        return group.n_units(self._fit.model) if pool is None else len(pool)

    def _pool(self, group: NeuronGroup) -> Tensor | None:
        """The neurons to choose from, None for all: where they lie on several processes, a part is gathered."""
        n = group.n_units(self._fit.model)
        if not self._fit.processes.sharded or n <= self.betti_max_neurons:
            return None
        return torch.randperm(n, generator=torch.Generator().manual_seed(0))[: self.betti_max_neurons]

    def _admits(self, group: NeuronGroup) -> bool:
        return self._fit.admission.admits(group.name, *self._prospect(group))

    def _affords(self, group: NeuronGroup) -> bool:
        return self._budget.affords(group.name, *self._prospect(group))

    def _prospect(self, group: NeuronGroup) -> tuple[float, float]:
        """What the group's first measurement will cost, and the training time of the run, both in seconds."""
        guess = run_time = 0.0
        if self.max_overhead is not None and self._fit.processes.lead and not self._budget.knows(group.name):
            with self._announcer.never_fatal():
                n, dimension = self._pool_size(group), group.dimension(self._fit.model)
                guess = expected_seconds(n, dimension, self.betti_max_neurons)
                run_time = self._fit.run_seconds()
        return guess, run_time

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        """Measure the groups that there is time for; every process enters."""
        if self._measured_at == trainer.global_step:
            return  # gradient accumulation, or the end right after a due step
        self._measure_starts(trainer)
        metrics: dict[str, float] = {}
        self._fit.model, admitted = measured_model(trainer, pl_module), False
        for group in list(self._turns):
            if group.name not in self._kept and self._admits(group):
                admitted = True
                self._turns.append(self._turns.pop(self._turns.index(group)))
                with self._announcer.never_fatal(), self._budget.spending(pl_module.device):
                    if self._fit.processes.read:
                        points = group.points(self._fit.model, self._pool(group))
                        if self._fit.processes.lead:
                            metrics |= self._measure_group(group, trainer, points, logger_step(trainer))
        self._measured_at = trainer.global_step
        if admitted:
            self._write(trainer, metrics, logger_step(trainer))
        self._figures.draw_affordable(trainer)

    def _measure_starts(self, trainer: Any) -> None:
        """Measure the neurons of the start that were kept, those that there is time for by now."""
        for group in self._neurons.found:
            if group.name in self._kept and self._affords(group) and self._admits(group):
                step, points = self._kept.pop(group.name)
                metrics: dict[str, float] = {}
                with self._announcer.never_fatal(), self._budget.spending(points.device):
                    metrics = self._measure_group(group, trainer, points, step)
                self._write(trainer, metrics, step)

    def _write(self, trainer: Any, metrics: dict[str, float], step: int) -> None:
        with self._budget.spending():
            coverage = {TOPOLOGY.coverage: self._budget.coverage} if metrics else {}
            self._fit.write(trainer, metrics | coverage, step)

    def _measure_group(self, group: NeuronGroup, trainer: Any, points: Tensor, step: int) -> dict[str, float]:
        if not bool(points.isfinite().all()):
            self._announcer.warn_once(
                f"Neurons of {group.name} are NaN or infinite at step {step}: the run has diverged there. "
                f"{type(self).__name__} goes on with the other groups.",
                kind=f"diverged {group.name}",
            )
            return {}
        record, snapshot, start = self._topology.measure(group.name, points, step)
        charts = self.charts()
        remember(self.history, [record])
        if self.charts() != charts:
            self._fit.write_layout(trainer)
        if self.figures and takes_figures(trainer):
            self._figures.add(group.name, step, snapshot, start.snapshot.points, start.n_measured)
        return _metrics(record)


def _metrics(record: PersistenceRecord) -> dict[str, float]:
    metrics: dict[str, float] = {
        TOPOLOGY.of_group(record.group, name): getattr(record, name) for name in TOPOLOGY.group
    }
    for name in TOPOLOGY.dimension:
        values: Sequence[float] = getattr(record, name)
        metrics |= {TOPOLOGY.of_dimension(record.group, name, k): value for k, value in enumerate(values)}
    return metrics
