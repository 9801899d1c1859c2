"""PersistenceMonitor: the topology of each layer's neuron cloud over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_topo.callbacks._group_monitor import GroupMonitor, Groups
from lightning_topo.callbacks._monitor import logger_step, multiple_reached, require_positive_int
from lightning_topo.callbacks._processes import measured_model
from lightning_topo.callbacks._snapshot import Cloud, Snapshot
from lightning_topo.callbacks._tensorboard import has_tensorboard
from lightning_topo.callbacks._topology_figures import TopologyFigures
from lightning_topo.functional import Persistence, persistence_entropy, total_persistence
from lightning_topo.functional.betti import betti_of_distances
from lightning_topo.neurons import NeuronGroup


@dataclass(frozen=True)
class PersistenceRecord:
    """Topology of one neuron group at one time; tuples have one entry a homology dimension.

    Attributes:
        step: Step under which it was logged.
        group: Name of the neuron group.
        betti: Betti numbers of all neurons (up to ``betti_max_neurons``) at ``scale`` times their diameter.
        entropy: Persistence entropy of the sample's diagrams, in nats.
        total_persistence: Sum of the finite bars' lengths.
        drift: Bottleneck distance to the first diagrams, each divided by its diameter.
        certified_betti: Bars of the sample's first diagrams that are certainly alive now, by the bi-Lipschitz
            constants of the sample's way since then.
        covering_radius: Largest distance of a neuron to the sample; 0 when all neurons are in it.
        diameter: Largest distance between two neurons of the sample.
    """

    step: int
    group: str
    betti: tuple[int, ...]
    entropy: tuple[float, ...]
    total_persistence: tuple[float, ...]
    drift: tuple[float, ...]
    certified_betti: tuple[int, ...]
    covering_radius: float
    diameter: float


class PersistenceMonitor(GroupMonitor[PersistenceRecord]):
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
    and at the end of training. Groups that take more than ``max_overhead`` allows take turns; drift is then counted
    from the first turn of each.

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
        figures: Whether to add figures to TensorBoard.

    Attributes:
        history: List of ``PersistenceRecord``.

    Raises:
        ValueError: When an option is out of range; at the first batch, when ``groups`` names no group.

    Example:
        >>> import lightning_topo as lt
        >>> monitor = lt.PersistenceMonitor(every_n_train_steps=100)
        >>> # trainer = Trainer(callbacks=[monitor]); trainer.fit(model); monitor.history[-1].betti
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
    ) -> None:
        super().__init__(groups, every_n_train_steps, max_overhead)
        self.max_dim = require_positive_int("max_dim", max_dim, at_least=0)
        self.max_neurons = require_positive_int("max_neurons", max_neurons, at_least=2)
        self.betti_max_dim = require_positive_int("betti_max_dim", betti_max_dim, at_least=0)
        self.betti_max_neurons = require_positive_int("betti_max_neurons", betti_max_neurons, at_least=2)
        if not 0 < scale <= 1:
            raise ValueError(f"scale is a share of the diameter, a number in (0, 1]; but got {scale!r}.")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be a number of at least 0; but got {tolerance!r}.")
        self.scale, self.tolerance, self.figures = scale, tolerance, figures
        self._figures = TopologyFigures(self._budget, scale, self.never_fatal)
        self._turns: list[NeuronGroup] = []
        self._dearest = 0.0
        self._forget_start()

    def _forget_start(self) -> None:
        self._first: dict[str, Snapshot] = {}
        self._last: dict[str, Snapshot] = {}
        self._betti_indices: dict[str, Tensor] = {}
        self._n_measured: dict[str, int] = {}
        self._measured_at: int | None = None

    def forget(self) -> None:
        """A run begins anew, and drift is counted from there."""
        super().forget()
        self._forget_start()

    def state_dict(self) -> dict[str, Any]:
        """Counts, and the first snapshot of each group as tensors and numbers."""
        first = {
            name: {
                "indices": snapshot.indices,
                "points": snapshot.points,
                "diagrams": list(snapshot.diagrams.diagrams),
                "diameter": snapshot.diagrams.diameter,
                "betti_indices": self._betti_indices[name],
                "n_measured": self._n_measured[name],
            }
            for name, snapshot in self._first.items()
        }
        return {**super().state_dict(), "first": first, "measured_at": self._measured_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the saved first snapshots."""
        super().load_state_dict(state_dict)
        self._forget_start()
        self._measured_at = state_dict["measured_at"]
        for name, saved in state_dict["first"].items():
            diagrams = Persistence(tuple(saved["diagrams"]), saved["diameter"], 0.0, len(saved["points"]))
            self._first[name] = Snapshot(saved["indices"], saved["points"], diagrams)
            self._betti_indices[name] = saved["betti_indices"]
            self._n_measured[name] = saved["n_measured"]

    def groups_found(self, trainer: Any, pl_module: Any) -> None:
        """Take the first snapshots, unless a checkpoint brought them."""
        model = measured_model(trainer, pl_module)
        self._turns, self._dearest = list(self._found), 0.0
        for name, snapshot in list(self._first.items()):
            if not self._fits(name, snapshot, model):
                self._warn_once(
                    f"The checkpoint holds a first snapshot of neuron group {name!r} that does not fit this model; "
                    "PersistenceMonitor drops it and measures drift from here on."
                )
                for kept in (self._first, self._betti_indices, self._n_measured):
                    del kept[name]
        if self._processes.agreed(any(group.name not in self._first for group in self._found)):
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure when a due number of optimizer steps is reached."""
        if self._found and multiple_reached(self.every_n_train_steps, trainer.global_step, self._measured_at):
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure what training ended with."""
        if self._found:
            self._measure(trainer, pl_module)
            self._figures.draw_last(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Draw the figures that have waited."""
        self._figures.draw_last(trainer, latest=False)

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        numbers = range(self.betti_max_dim + 1)
        return {
            f"{group.name}: Betti numbers": [f"topology/{group.name}/betti_{k}" for k in numbers]
            for group in self._found
        }

    def _fits(self, name: str, snapshot: Snapshot, model: Any) -> bool:
        group = next((group for group in self._found if group.name == name), None)
        if group is None:
            return False
        pool = self._pool(group, model)
        n = group.n_units(model) if pool is None else len(pool)
        most = int(max(snapshot.indices.max(), self._betti_indices[name].max()))
        return most < n and group.dimension(model) == snapshot.points.shape[1]

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        if self._measured_at == trainer.global_step:
            return  # gradient accumulation, or the end right after a due step
        metrics: dict[str, float] = {}
        model, admitted = measured_model(trainer, pl_module), False
        for group in list(self._turns):
            # A first measurement is expected to cost what the dearest so far did.
            if self.admits(group.name, guess=self._dearest):
                admitted, spent = True, self._budget.spent
                self._turns.append(self._turns.pop(self._turns.index(group)))
                with self.never_fatal(), self._budget.spending(pl_module.device):
                    points = group.points(model, self._pool(group, model)) if self._processes.read else None
                    if points is not None and self._processes.lead:
                        metrics |= self._measure_group(group, trainer, points)
                self._dearest = max(self._dearest, self._budget.spent - spent)
        self._measured_at = trainer.global_step
        if admitted:
            with self._budget.spending():
                self.write(trainer, metrics)
        self._figures.draw_affordable(trainer)

    def _pool(self, group: NeuronGroup, model: Any) -> Tensor | None:
        """The neurons to choose from, None for all: where they lie on several processes, a part is gathered."""
        n = group.n_units(model)
        if not self._processes.sharded or n <= self.betti_max_neurons:
            return None
        return torch.randperm(n, generator=torch.Generator().manual_seed(0))[: self.betti_max_neurons]

    def _measure_group(self, group: NeuronGroup, trainer: Any, points: Tensor) -> dict[str, float]:
        step = logger_step(trainer)
        if not bool(points.isfinite().all()):
            self.warn_diverged(group, step)
            return {}
        cloud = Cloud(points)
        snapshot, first = self._snapshot(group.name, cloud), self._first[group.name]
        self._n_measured[group.name] = self._n_measured.get(group.name, 0) + 1
        all_or_many = cloud.distances(self._betti_indices[group.name])
        record = PersistenceRecord(
            step,
            group.name,
            betti_of_distances(all_or_many, self.scale, self.betti_max_dim),
            persistence_entropy(snapshot.diagrams),
            total_persistence(snapshot.diagrams),
            snapshot.drift_from(first),
            snapshot.certified_since(first, self.scale),
            cloud.covering_radius(first.indices),
            snapshot.diagrams.diameter,
        )
        self.remember([record])
        if self.figures and has_tensorboard(trainer):
            self._figures.add(group.name, step, snapshot, first.points, self._n_measured[group.name])
        return _metrics(record)

    def _snapshot(self, name: str, cloud: Cloud) -> Snapshot:
        if name not in self._first:
            self._betti_indices[name] = cloud.farthest_point_sample(self.betti_max_neurons)
            indices = cloud.farthest_point_sample(self.max_neurons)
            self._first[name] = self._last[name] = Snapshot.take(cloud, indices, self.max_dim)
        elif name not in self._last or not self._last[name].still_holds(cloud, self.tolerance):
            self._last[name] = Snapshot.take(cloud, self._first[name].indices, self.max_dim)
        return self._last[name]


def _metrics(record: PersistenceRecord) -> dict[str, float]:
    prefix = f"topology/{record.group}"
    metrics: dict[str, float] = {
        f"{prefix}/covering_radius": record.covering_radius,
        f"{prefix}/diameter": record.diameter,
    }
    for field in ("betti", "entropy", "total_persistence", "drift", "certified_betti"):
        values: Sequence[float] = getattr(record, field)
        metrics |= {f"{prefix}/{field}_{k}": value for k, value in enumerate(values)}
    return metrics
