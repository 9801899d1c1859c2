"""The topology of neuron groups at one time, and how far it is from where they started."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_topo.callbacks._snapshot import Cloud, Snapshot
from lightning_topo.callbacks._starts import Start, Starts
from lightning_topo.callbacks.log_keys import TOPOLOGY
from lightning_topo.functional import longest_bar_scale, persistence_entropy, total_persistence
from lightning_topo.functional.betti import betti_of_distances
from lightning_topo.functional.distinct import SHARE, distinct_of_distances, growth, median_nearest, size


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
        scale: Share of the diameter at which Betti numbers were counted.
        n_compared: Neurons of which Betti numbers and distinct ones were counted.
        distinct: How many of them are left when those that have come close count as one
            (``functional.distinct_neurons``); None where the start is not known well enough.
        dormant: Share of the units whose activations hardly differ on the batch (``functional.dormant_share``); None
            where the activations are not known.
        effective_rank: Effective rank of the activations on the batch (``functional.effective_rank``), or None.
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
    scale: float
    n_compared: int
    distinct: int | None
    dormant: float | None = None
    effective_rank: float | None = None


def topology_metrics(record: PersistenceRecord) -> dict[str, float]:
    """The figures to be logged of a record, by their keys, those that are known."""
    of_group = {TOPOLOGY.of_group(record.group, name): getattr(record, name) for name in TOPOLOGY.group}
    metrics: dict[str, float] = {key: value for key, value in of_group.items() if value is not None}
    for name in TOPOLOGY.dimension:
        values: Sequence[float] = getattr(record, name)
        metrics |= {TOPOLOGY.of_dimension(record.group, name, k): value for k, value in enumerate(values)}
    return metrics


def overall_metrics(current: Iterable[PersistenceRecord]) -> dict[str, float]:
    """The figures over all groups, of the latest record of each."""
    current = list(current)
    shares = [one.distinct / one.n_compared for one in current if one.distinct is not None]
    dormant = [one.dormant for one in current if one.dormant is not None]
    metrics = {TOPOLOGY.of_run("distinct_share"): min(shares)} if shares else {}
    return metrics | ({TOPOLOGY.of_run("dormant"): max(dormant)} if dormant else {})


class GroupTopology:
    """Measures the topology of neuron groups, each against its own start.

    Args:
        max_neurons: Size of the sample of which diagrams are computed.
        max_dim: Highest homology dimension of the diagrams.
        betti_max_neurons: Largest number of neurons of which Betti numbers are computed.
        betti_max_dim: Highest homology dimension of the Betti numbers.
        scale: Share of the diameter at which Betti numbers are counted; None: chosen at each group's start.
        tolerance: Diagrams are not computed again while they are certain to have moved by no more, in log scale.
        starts: Where the groups started.
    """

    def __init__(
        self,
        max_neurons: int,
        max_dim: int,
        betti_max_neurons: int,
        betti_max_dim: int,
        scale: float | None,
        tolerance: float,
        starts: Starts,
    ) -> None:
        self._max_neurons, self._max_dim = max_neurons, max_dim
        self._betti_max_neurons, self._betti_max_dim = betti_max_neurons, betti_max_dim
        self._scale, self._tolerance = scale, tolerance
        self.starts = starts
        self._last: dict[str, Snapshot] = {}

    def forget_last(self) -> None:
        """Compute the next diagrams of each group in any case."""
        self._last = {}

    def measure(self, name: str, points: Tensor, step: int) -> tuple[PersistenceRecord, Snapshot, Start]:
        """What a group's neurons are like now, the sample that is followed, and where they started.

        Args:
            name: Name of the group.
            points: Its neurons, finite, shape (n, D).
            step: Step under which it is logged.
        """
        cloud = Cloud(points)
        if self.starts.drop_other(name, tuple(points.shape)):
            self._last.pop(name, None)
        snapshot = self._snapshot(name, cloud)
        start = self.starts[name]
        start.n_measured += 1
        scale = start.scale = self._scale_of(start.snapshot) if start.scale is None else start.scale
        distances = cloud.distances(start.betti_indices)
        distinct = None
        if start.nearest is not None:
            grown = growth(cloud.sample(start.betti_indices), start.size)
            distinct = distinct_of_distances(distances, SHARE * start.nearest * grown)
        record = PersistenceRecord(
            step,
            name,
            betti_of_distances(distances, scale, self._betti_max_dim),
            persistence_entropy(snapshot.diagrams),
            total_persistence(snapshot.diagrams),
            snapshot.drift_from(start.snapshot),
            snapshot.certified_since(start.snapshot, scale),
            cloud.covering_radius(start.snapshot.indices),
            snapshot.diagrams.diameter,
            scale,
            len(distances),
            distinct,
        )
        return record, snapshot, start

    def _snapshot(self, name: str, cloud: Cloud) -> Snapshot:
        if name not in self.starts:
            self.starts[name] = self._start(cloud)
            self._last[name] = self.starts[name].snapshot
        elif name not in self._last or not self._last[name].still_holds(cloud, self._tolerance):
            self._last[name] = Snapshot.take(cloud, self.starts[name].snapshot.indices, self._max_dim)
        return self._last[name]

    def _start(self, cloud: Cloud) -> Start:
        first = Snapshot.take(cloud, cloud.farthest_point_sample(self._max_neurons), self._max_dim)
        compared = cloud.farthest_point_sample(self._betti_max_neurons)
        return Start(
            first,
            compared,
            len(cloud.points),
            self._scale_of(first),
            median_nearest(cloud.distances(compared)),
            size(cloud.sample(compared)),
        )

    def _scale_of(self, first: Snapshot) -> float:
        return longest_bar_scale(first.diagrams) if self._scale is None else self._scale
