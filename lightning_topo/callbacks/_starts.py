"""Where the neurons of each group started: the first snapshot, and what is counted from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._snapshot import Snapshot
from lightning_topo.callbacks._state import count, count_or_none
from lightning_topo.functional import Persistence


@dataclass
class Start:
    """The first measurement of a group.

    Attributes:
        snapshot: The sample that is followed, and its diagrams.
        betti_indices: The neurons of which Betti numbers are computed, shape (k,).
        n_neurons: How many neurons the group had; None where a checkpoint of an earlier version does not say.
        scale: Share of the diameter at which Betti numbers are counted; None where such a checkpoint does not say.
        nearest: Median nearest-neighbour distance of the neurons of which Betti numbers are computed; None likewise.
        size: Root mean square of their norms.
        n_measured: Measurements of the group so far.
    """

    snapshot: Snapshot
    betti_indices: Tensor
    n_neurons: int | None
    scale: float | None
    nearest: float | None
    size: float
    n_measured: int = 0

    def fits(self, n: int, dimension: int) -> bool:
        """Whether n neurons of so many coordinates can be those that started here."""
        most = int(max(self.snapshot.indices.max(), self.betti_indices.max()))
        return self.n_neurons in (n, None) and most < n and dimension == self.snapshot.points.shape[1]


class Starts:
    """The first measurement of each group, kept in checkpoints.

    Args:
        announcer: Says what no longer fits the model.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._of: dict[str, Start] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def __getitem__(self, name: str) -> Start:
        return self._of[name]

    def __setitem__(self, name: str, start: Start) -> None:
        self._of[name] = start

    def forget(self) -> None:
        """A run begins anew."""
        self._of = {}

    def drop_unfit(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        """Forget, and say so, what is of other neurons than the model has.

        Args:
            sizes: Number of neurons to choose from and of their coordinates, for each group of the model.
        """
        for name, start in list(self._of.items()):
            if name not in sizes or not start.fits(*sizes[name]):
                del self._of[name]
                self._announcer.warn_once(
                    f"The checkpoint holds a first snapshot of neuron group {name!r} that does not fit this model; "
                    "PersistenceMonitor drops it and measures drift from here on."
                )

    def drop_other(self, name: str, size: tuple[int, ...]) -> bool:
        """Forget, and say so, where a group started if it has other neurons by now, as when a layer has grown."""
        if name not in self._of or self._of[name].fits(*size):
            return False
        start = self._of.pop(name)
        had = f"{start.n_neurons} neurons of {start.snapshot.points.shape[1]} parameters"
        self._announcer.warn_once(
            f"Neuron group {name} had {had} and has {size[0]} of {size[1]}: they cannot be compared with each "
            "other, so PersistenceMonitor measures drift from here on."
        )
        return True

    def state(self) -> dict[str, Any]:
        """All of it, as tensors and numbers."""
        return {
            name: {
                "indices": start.snapshot.indices,
                "points": start.snapshot.points,
                "diagrams": list(start.snapshot.diagrams.diagrams),
                "diameter": start.snapshot.diagrams.diameter,
                "betti_indices": start.betti_indices,
                "n_neurons": start.n_neurons,
                "scale": start.scale,
                "nearest": start.nearest,
                "size": start.size,
                "n_measured": start.n_measured,
            }
            for name, start in self._of.items()
        }

    def load(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what ``state`` wrote; a group that cannot be read is left out, and that is said."""
        for name, values in saved.items():
            with self._announcer.never_fatal(f"read the saved start of {name!r}"):
                self._of[name] = _start(values)


def _start(saved: Mapping[str, Any]) -> Start:
    points, indices = saved["points"], saved["indices"]
    if not (points.ndim == 2 and len(points) == len(indices)):
        raise ValueError(f"expected points (k, D) of k indices, got {tuple(points.shape)} and {tuple(indices.shape)}")
    diagrams = Persistence(tuple(saved["diagrams"]), float(saved["diameter"]), 0.0, len(points))
    snapshot = Snapshot(indices, points, diagrams)
    scale, nearest = saved.get("scale"), saved.get("nearest")
    return Start(
        snapshot,
        saved["betti_indices"],
        count_or_none(saved.get("n_neurons")),
        None if scale is None else float(scale),
        None if nearest is None else float(nearest),
        float(saved.get("size", 0.0)),
        count(saved["n_measured"]),
    )
