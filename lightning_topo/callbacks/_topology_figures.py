"""Which measurements of a run get figures, and when there is time to draw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._clouds_3d import write_clouds
from lightning_topo.callbacks._figures import write_figures
from lightning_topo.callbacks._snapshot import Snapshot
from lightning_topo.callbacks._starts import Start
from lightning_topo.callbacks._topology import PersistenceRecord
from lightning_topo.plots import (
    plot_barcode,
    plot_betti_curves,
    plot_neuron_cloud,
    plot_persistence_diagram,
    principal_plane,
)
from lightning_topo.plots.picture import card_letters, set_card_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a group's four figures take, until it has been measured.
_SECONDS = 0.4
# Figures at the end are drawn while the run has spent less than this, or less than this share of max_overhead.
_GRANTED_SECONDS = 1.0
_SHARE_AT_END = 0.6


@dataclass(frozen=True)
class _Measured:
    """A measurement that may be drawn: where a group was, where it started, and how far it has moved."""

    step: int
    snapshot: Snapshot
    start: Start
    scale: float
    moved: float


class TopologyFigures:
    """Figures of neuron groups' measurements 1, 2, 4, 8, ... and of the last, drawn as the budget allows.

    One that still waits when the group's next is due gives way to it. Where there are too many groups to be shown one
    by one, only the group that has moved farthest is drawn, at the end.

    Args:
        budget: The monitor's, to which drawing is charged.
        announcer: Says what could not be drawn.
        in_space: Whether to give the neuron clouds to TensorBoard's pages Mesh and Projector, too.
    """

    def __init__(self, budget: OverheadBudget, announcer: Announcer, in_space: bool = False) -> None:
        self._budget, self._announcer, self._in_space = budget, announcer, in_space
        self._due: dict[str, _Measured] = {}
        self._latest: dict[str, _Measured] = {}

    def add(self, record: PersistenceRecord, snapshot: Snapshot, start: Start, each: bool) -> None:
        """Have a measurement drawn, if its number in its group says so or no later one comes.

        Args:
            record: What was measured.
            snapshot: The sample of which it was.
            start: The first measurement, and how many there have been, this one included.
            each: Whether each group is drawn.
        """
        moved = max(record.drift, default=0.0)
        due = each and start.n_measured.bit_count() == 1
        measured = _Measured(record.step, snapshot, start, record.scale, moved)
        (self._due if due else self._latest)[record.group] = measured
        if due:
            self._latest.pop(record.group, None)

    def draw_affordable(self, trainer: Any) -> None:
        """Draw those due that there is time for."""
        for name in list(self._due):
            if self._budget.affords("figures", guess=_SECONDS):
                self._draw(trainer, name, self._due.pop(name))

    def draw_last(self, trainer: Any, latest: bool = True, each: bool = True) -> None:
        """Draw those that wait, one in any case, and the last measurements where ``latest``; then forget them."""
        waiting = self._due | (self._latest if latest else {})
        self._due, self._latest = {}, {}
        if not each and waiting:
            farthest = max(waiting, key=lambda name: waiting[name].moved)
            waiting = {farthest: waiting[farthest]}
        for index, (name, measured) in enumerate(waiting.items()):
            granted = index == 0 or self._budget.spent < _GRANTED_SECONDS
            if granted or self._budget.affords("figures", share=_SHARE_AT_END):
                self._draw(trainer, name, measured)

    def _draw(self, trainer: Any, name: str, measured: _Measured) -> None:
        with self._announcer.never_fatal("draw figures"), self._budget.spending(kind="figures"):
            with card_letters():
                axes = _axes(measured)
            for ax in axes.values():
                set_card_title(ax, f"{name}, step {measured.step}")
            figures: dict[str, Any] = {f"topology/{name}/{kind}": ax.figure for kind, ax in axes.items()}
            write_figures(trainer, figures, measured.step, self._announcer)
            if self._in_space:
                points, start = measured.snapshot.points, measured.start.snapshot.points
                write_clouds(trainer, f"topology/{name}", points, start, measured.step)


def _axes(measured: _Measured) -> dict[str, Axes]:
    first, diagrams, scale = measured.start.snapshot, measured.snapshot.diagrams, measured.scale
    plane = None if first.points.shape[1] == 2 else principal_plane(first.points)
    return {
        "diagram": plot_persistence_diagram(diagrams, scale=scale),
        "barcode": plot_barcode(diagrams, scale=scale),
        "curves": plot_betti_curves(diagrams, start=first.diagrams, scale=scale),
        "cloud": plot_neuron_cloud(measured.snapshot.points, start=first.points, plane=plane),
    }
