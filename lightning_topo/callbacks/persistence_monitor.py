"""PersistenceMonitor: the topology of each layer's neuron cloud over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lightning_topo._lightning import rank_zero_info
from lightning_topo.callbacks._activation_figures import ActivationFigures, listed
from lightning_topo.callbacks._charts import Charts, topology_charts
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
from lightning_topo.callbacks._run_length import is_last_batch
from lightning_topo.callbacks._starts import Starts
from lightning_topo.callbacks._state import count_or_none
from lightning_topo.callbacks._topology import GroupTopology, PersistenceRecord, overall_metrics, topology_metrics
from lightning_topo.callbacks._topology_admission import TopologyAdmission
from lightning_topo.callbacks._topology_figures import TopologyFigures
from lightning_topo.callbacks.log_keys import TOPOLOGY
from lightning_topo.functional.betti import PAPER_SCALE
from lightning_topo.neurons import NeuronGroup
from lightning_topo.sharding import measured_model
from lightning_topo.verdict import Findings, Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The neurons of the start are kept until there is time to measure them, up to this many numbers of all groups (256 MiB
# in single precision).
_MOST_KEPT = 2**26
# Groups of fewer units, as attention heads, have no topology to speak of: they are measured where they are asked for.
_FEWEST = 8


class PersistenceMonitor(OptionedCallback):
    """Measures the topology of the neurons, how far they are from the start, and how many are left.

    Betti numbers b0 (components), b1 (loops), b2 (voids) are those of the Vietoris-Rips complex of a group's neurons
    at ``scale`` times their diameter. Diagrams are taken of a farthest-point sample of the first measurement, the
    same neurons throughout, whose covering radius r is logged: a diagram of all neurons is within 2r.

    How many neurons are left is seen in three ways: the distinct ones, when neurons closer than a tenth of the
    neighbours' distance at the start count as one (``functional.distinct_neurons``); the share of dormant units, whose
    activations differ from input to input by at most 0.025 of the layer's mean (``functional.dormant_share``); and the
    effective rank of the activations (``functional.effective_rank``). The activations are those of the batch that was
    just trained on, as the layer that reads the units receives them: at most 256 inputs and positions, of the first
    process's batch. Where no such layer is called, or it is compiled, these two are left out, and that is said.

    Logged as ``topology/<group>/{betti_k, entropy_k, total_persistence_k, drift_k, certified_betti_k,
    covering_radius, diameter, distinct, dormant, effective_rank}`` for up to eight groups, and over all groups as
    ``topology/{distinct_share, dormant, coverage}``. Figures of the diagrams, the barcode, the Betti numbers over all
    scales and the neuron cloud (in the first principal plane of the start, coloured by where each neuron started) are
    made of measurements 1, 2, 4, 8, ... and of the last, or, of more than eight groups, at the end of the one that has
    moved farthest. They wait until ``max_overhead`` allows them, and one that still waits when the group's next is due
    gives way to it. At the end one group's are made in any case, and more while the run has spent less than a second in
    all, or less than ``max_overhead`` allows.

    Measured before the first update, after every n-th optimizer step (at the end of its batch, which may make several),
    and at the end of training. A measurement that is expected to take more than ``max_overhead`` allows is left out,
    the first included: the neurons of the start are kept, and measured as soon as the length of the run is known and
    there is time for it. Groups that take more take turns. Where parameters are replaced in the fit (pruning, a layer
    that has grown), the groups are found again, and of neurons that are others now drift is counted anew.

    Args:
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found and
            have at least 8 units.
        max_dim: Highest homology dimension of the diagrams. 2 takes seconds for 256 neurons.
        max_neurons: Size of the sample of which diagrams are computed.
        scale: Share of the diameter at which Betti numbers are counted. ``"auto"`` chooses it for each group at its
            start: the middle of the longest bar (``functional.longest_bar_scale``).
        betti_max_dim: Highest homology dimension of the Betti numbers.
        betti_max_neurons: Largest number of neurons of which Betti numbers are computed; of larger groups a
            farthest-point sample is taken, and a sample need not have the Betti numbers of the whole.
        every_n_train_steps: Measure after every n-th optimizer step.
        max_overhead: Share of the training time that measuring may take; due measurements beyond it are left out.
            None makes every due measurement.
        tolerance: Diagrams are not computed again while ½·log(upper/lower) of the sample since the last ones is at
            most this, for then they have moved by no more (in log scale, after rescaling). 0 always computes.
        figures: Whether to give figures to the loggers that take them: TensorBoard, Weights & Biases, MLflow, Comet,
            and as files beside the metrics those that have a folder. ``"3d"``: also the neuron clouds in space, to be
            turned with the mouse, on TensorBoard's pages Mesh and Projector.
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
    later_options = MappingProxyType({"per_group": "auto"})

    def __init__(
        self,
        groups: Groups = None,
        max_dim: int = 1,
        max_neurons: int = 256,
        scale: float | Literal["auto"] = PAPER_SCALE,
        betti_max_dim: int = 2,
        betti_max_neurons: int = 1024,
        every_n_train_steps: int = 50,
        max_overhead: float | None = 0.05,
        tolerance: float = 0.0,
        figures: bool | Literal["3d"] = True,
        per_group: PerGroup = "auto",
    ) -> None:
        self.groups = groups
        self.every_n_train_steps = require_positive_int("every_n_train_steps", every_n_train_steps)
        self.max_overhead = require_share("max_overhead", max_overhead)
        self.max_dim = require_positive_int("max_dim", max_dim, at_least=0)
        self.max_neurons = require_positive_int("max_neurons", max_neurons, at_least=2)
        self.betti_max_dim = require_positive_int("betti_max_dim", betti_max_dim, at_least=0)
        self.betti_max_neurons = require_positive_int("betti_max_neurons", betti_max_neurons, at_least=2)
        if scale != "auto" and not (isinstance(scale, int | float) and 0 < scale <= 1):
            raise ValueError(f"scale is a share of the diameter, a number in (0, 1], or 'auto'; but got {scale!r}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0; but got {tolerance!r}.")
        if figures not in (True, False, "3d"):
            raise ValueError(f"figures must be True, False or '3d', but got {figures!r}.")
        self.scale, self.tolerance, self.figures = scale, tolerance, figures
        self.per_group = require_per_group(per_group)
        self.history: list[PersistenceRecord] = []
        self.active = False
        self._fit = MonitoredFit(type(self).__name__, groups, self.max_overhead, self.per_group)
        self._announcer, self._budget = self._fit.announcer, self._fit.budget
        self._neurons: FoundGroups = self._fit.neurons
        self._figures = TopologyFigures(self._budget, self._announcer, in_space=figures == "3d")
        fixed = None if scale == "auto" else scale
        compared = max_neurons, max_dim, betti_max_neurons, betti_max_dim, fixed, tolerance
        self._topology = GroupTopology(*compared, Starts(self._announcer))
        self._admission = TopologyAdmission(self._fit, betti_max_neurons)
        self._activations = ActivationFigures(self._budget, self._announcer)
        self._measured_at: int | None = None
        self._companions: tuple[OptionedCallback, ...] = ()
        self._forget_fit()
        self.skip_empty_hooks()

    def _forget_fit(self) -> None:
        """Nothing of a fit's model is left."""
        self._fit.forget()
        self._turns: list[NeuronGroup] = []
        self._kept: dict[str, tuple[int, Tensor]] = {}
        self._activations.forget()
        self._current: dict[str, PersistenceRecord] = {}
        self._begun_at: int | None = None
        self._begun_with = 0
        self._global_step = 0

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
        """Find the groups, take the first snapshots, unless a checkpoint brought them, and listen to activations."""
        if not self._neurons.ready:
            self._find(trainer, pl_module, batch)
        self.hear("on_train_batch_start", not self._neurons.ready)
        if self._turns and self._fit.processes.lead:
            due = self._begun_at is not None or self._due(trainer.global_step + 1)
            self._activations.begin(trainer, batch_idx, due, self._fit.model, self._turns)

    def _find(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        found = self._fit.find(trainer, pl_module, batch)
        if not self._neurons.ready:
            return  # an empty batch
        if found:
            self._begin(trainer, pl_module, found)
        self._fit.write_layout(trainer)

    def _begin(self, trainer: Any, pl_module: Any, found: Sequence[NeuronGroup]) -> None:
        self._turns = self._large(found)
        few = [group.name for group in found if group not in self._turns]
        if few:
            rank_zero_info(
                trainer,
                f"{type(self).__name__} leaves out groups of fewer than {_FEWEST} units ({listed(few)}); name them "
                "in groups to have them measured.",
            )
        with self._announcer.never_fatal():
            sizes = {
                group.name: (self._admission.pool_size(group), group.dimension(self._fit.model))
                for group in self._turns
            }
            self._topology.starts.drop_unfit(sizes)
        missing = [group for group in self._turns if group.name not in self._topology.starts]
        if not self._fit.processes.agreed(len(missing)):
            return
        self._begun_at = logger_step(trainer)
        if self.max_overhead is None or self._fit.processes.several:
            before = len(self.history)
            self._measure(trainer, pl_module)
            self._begun_with = max(0, len(self.history) - before)
        else:
            with self._announcer.never_fatal(), self._budget.spending(pl_module.device):
                self._keep(logger_step(trainer), missing)

    def _large(self, found: Sequence[NeuronGroup]) -> list[NeuronGroup]:
        """The groups to be measured: those asked for, otherwise those that are large enough."""
        return [group for group in found if self.groups is not None or group.n_units(self._fit.model) >= _FEWEST]

    def _keep(self, step: int, groups: Sequence[NeuronGroup]) -> None:
        """Keep the neurons of the start, to be measured when there is time for it."""
        total = 0
        for group in groups:
            total += group.n_units(self._fit.model) * group.dimension(self._fit.model)
            if total <= _MOST_KEPT:
                self._kept[group.name] = step, group.points(self._fit.model)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when a due number of optimizer steps is reached, and what is left of the start."""
        if not self._turns:
            return
        step, listened = trainer.global_step, self._begun_at is not None or self._activations.listens
        if listened:
            self._activations.end(trainer)
            self._tell_activations_of_start(trainer)
        if self._due(step):
            self._find_again(trainer, pl_module, batch)
            self._measure(trainer, pl_module)
        elif self._kept and self._fit.length is not None and self._fit.length.doubled():
            self._measure_starts(trainer)
        if listened:
            self._begun_at, self._begun_with = None, 0
            self._activations.drop()
        ahead, self._global_step = max(1, step - self._global_step), step  # a batch may make several steps
        soon = self._due(step + ahead) or trainer.is_last_batch or is_last_batch(trainer, batch_idx + 1)
        self.hear("on_train_batch_start", soon and self._fit.processes.lead)

    def _due(self, step: int) -> bool:
        """Whether a measurement is due after so many optimizer steps."""
        return multiple_reached(self.every_n_train_steps, step, self._measured_at)

    def _find_again(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        """Look for the groups again where the model has changed, as by pruning or a layer that has grown."""
        if self._neurons.changed(trainer.optimizers):
            self._fit.find_again(trainer, pl_module, batch)
            self._turns, self._current = self._large(self._neurons.found), {}
            names = [group.name for group in self._turns]
            self._kept = {name: kept for name, kept in self._kept.items() if name in names}
            self._activations.forget()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure what training ended with."""
        if self._turns:
            self._find_again(trainer, pl_module, None)
            self._measure(trainer, pl_module)
            self._figures.draw_last(trainer, each=self._fit.shows_groups)
            if self._fit.processes.lead and self._budget.left_all_out:
                self._announcer.warn_once(
                    "PersistenceMonitor measured nothing in this fit: a measurement takes longer than "
                    f"max_overhead={self.max_overhead:g} leaves in a fit of this length. Pass a larger max_overhead, "
                    "or None to measure at every due step."
                )

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Draw the figures that have waited, and leave the layers as they were."""
        self._activations.forget()
        self._figures.draw_last(trainer, latest=False, each=self._fit.shows_groups)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the model."""
        self._forget_fit()

    def charts(self) -> Charts:
        """TensorBoard charts: title and the tags drawn together."""
        shown = [group for group in self._fit.shown_groups if group in self._turns]
        return topology_charts(shown, self._fit.of_run(self.history))

    def findings(self) -> Findings:
        """What has been measured in the present or last fit, for a verdict or a report."""
        topology = self._fit.of_run(self.history)
        return Findings(topology=topology, no_topology_because="" if topology else self._fit.why_no_topology())

    def summary(self) -> Verdict:
        """Say what the present or last fit did to the neurons; ``print`` it."""
        return verdict(gather((self, *self._companions)))

    def plot(self, ax: Axes | None = None, show: bool = False) -> Axes:
        """Plot what is left of the neurons of each group; see ``plots.plot_neurons_left``."""
        from lightning_topo.plots import plot_neurons_left

        return plot_neurons_left(self._fit.of_run(self.history), ax, show)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        """Measure the groups that there is time for; every process enters."""
        if self._measured_at == trainer.global_step:
            return  # gradient accumulation, or the end right after a due step
        self._measure_starts(trainer)
        metrics: dict[str, float] = {}
        self._fit.model, admitted = measured_model(trainer, pl_module), False
        for group in list(self._turns):
            if group.name not in self._kept and self._admission.admits(group):
                admitted = True
                self._turns.append(self._turns.pop(self._turns.index(group)))
                with self._announcer.never_fatal(), self._budget.spending(pl_module.device):
                    if self._fit.processes.read:
                        points = group.points(self._fit.model, self._admission.pool(group))
                        if self._fit.processes.lead:
                            metrics |= self._measure_group(group, trainer, points, logger_step(trainer))
        self._measured_at = trainer.global_step
        if admitted:
            self._write(trainer, metrics, logger_step(trainer))
        self._figures.draw_affordable(trainer)

    def _measure_starts(self, trainer: Any) -> None:
        """Measure the neurons of the start that were kept, those that there is time for by now."""
        for group in list(self._turns):
            if group.name in self._kept and self._admission.affords(group) and self._admission.admits(group):
                step, points = self._kept.pop(group.name)
                metrics: dict[str, float] = {}
                with self._announcer.never_fatal(), self._budget.spending(points.device):
                    metrics = self._measure_group(group, trainer, points, step, now=self._begun_at is not None)
                self._write(trainer, metrics, step)

    def _write(self, trainer: Any, metrics: dict[str, float], step: int) -> None:
        with self._budget.spending():
            over_all = {TOPOLOGY.coverage: self._budget.coverage, **overall_metrics(self._current.values())}
            self._fit.write(trainer, metrics | (over_all if metrics else {}), step)

    def _tell_activations_of_start(self, trainer: Any) -> None:
        """The activations of the first batch are those of the start, which was measured before it."""
        if self._begun_at is None:
            return
        metrics: dict[str, float] = {}
        for index in range(len(self.history) - self._begun_with, len(self.history)):
            record = self.history[index]
            figures = self._activations.of(record.group)
            self.history[index] = replace(record, **figures)
            metrics |= {TOPOLOGY.of_group(record.group, name): value for name, value in figures.items()}
        self._write(trainer, metrics, self._begun_at)

    def _measure_group(
        self, group: NeuronGroup, trainer: Any, points: Tensor, step: int, now: bool = True
    ) -> dict[str, float]:
        if not bool(points.isfinite().all()):
            self._announcer.warn_once(
                f"Neurons of {group.name} are NaN or infinite at step {step}: the run has diverged there. "
                f"{type(self).__name__} goes on with the other groups.",
                kind=f"diverged {group.name}",
            )
            return {}
        record, snapshot, start = self._topology.measure(group.name, points, step)
        record = replace(record, **(self._activations.of(group.name) if now else {}))
        self._current[group.name] = record
        charts = self.charts()
        remember(self.history, [record])
        if self.charts() != charts:
            self._fit.write_layout(trainer)
        if self.figures and takes_figures(trainer):
            self._figures.add(record, snapshot, start, each=self._fit.shows_groups)
        return topology_metrics(record)
