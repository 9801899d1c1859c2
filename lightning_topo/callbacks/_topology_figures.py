"""Which measurements of a run get figures, and when there is time to draw them."""

from __future__ import annotations

from typing import Any

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._figures import write_figures
from lightning_topo.callbacks._snapshot import Snapshot
from lightning_topo.callbacks._starts import Start
from lightning_topo.plots import (
    plot_barcode,
    plot_betti_curves,
    plot_neuron_cloud,
    plot_persistence_diagram,
    principal_plane,
)

# What a group's four figures take, until it has been measured.
_SECONDS = 0.4
# Figures at the end are drawn while the run has spent less than this, or less than this share of max_overhead.
_GRANTED_SECONDS = 1.0
_SHARE_AT_END = 0.6


class TopologyFigures:
    """Figures of each neuron group's measurements 1, 2, 4, 8, ... and of the last, drawn as the budget allows.

    One that still waits when the group's next is due gives way to it.

    Args:
        budget: The monitor's, to which drawing is charged.
        announcer: Says what could not be drawn.
    """

    def __init__(self, budget: OverheadBudget, announcer: Announcer) -> None:
        self._budget, self._announcer = budget, announcer
        self._due: dict[str, tuple[int, Snapshot, Start, float]] = {}
        self._latest: dict[str, tuple[int, Snapshot, Start, float]] = {}

    def add(self, name: str, step: int, snapshot: Snapshot, start: Start, scale: float) -> None:
        """Have a measurement drawn, if its number in its group says so or no later one comes.

        Args:
            name: Name of the neuron group.
            step: Step under which the figures are logged.
            snapshot: What was measured.
            start: The first measurement, and how many there have been, this one included.
            scale: Share of the diameter that is marked.
        """
        due = start.n_measured.bit_count() == 1
        (self._due if due else self._latest)[name] = (step, snapshot, start, scale)
        if due:
            self._latest.pop(name, None)

    def draw_affordable(self, trainer: Any) -> None:
        """Draw those due that there is time for."""
        for name in list(self._due):
            if self._budget.affords("figures", guess=_SECONDS):
                self._draw(trainer, name, *self._due.pop(name))

    def draw_last(self, trainer: Any, latest: bool = True) -> None:
        """Draw those that wait, one in any case, and the last measurements where ``latest``; then forget them."""
        waiting = self._due | (self._latest if latest else {})
        self._due, self._latest = {}, {}
        for index, (name, measured) in enumerate(waiting.items()):
            granted = index == 0 or self._budget.spent < _GRANTED_SECONDS
            if granted or self._budget.affords("figures", share=_SHARE_AT_END):
                self._draw(trainer, name, *measured)

    def _draw(self, trainer: Any, name: str, step: int, snapshot: Snapshot, start: Start, scale: float) -> None:
        with self._announcer.never_fatal("draw figures"), self._budget.spending(kind="figures"):
            first, diagrams = start.snapshot, snapshot.diagrams
            plane = None if first.points.shape[1] == 2 else principal_plane(first.points)
            axes = {
                "diagram": plot_persistence_diagram(diagrams, scale=scale),
                "barcode": plot_barcode(diagrams, scale=scale),
                "curves": plot_betti_curves(diagrams, start=first.diagrams, scale=scale),
                "cloud": plot_neuron_cloud(snapshot.points, start=first.points, plane=plane),
            }
            for ax in axes.values():
                ax.set_title(f"{name}, step {step}: {ax.get_title()}", fontsize="medium")
            figures: dict[str, Any] = {f"topology/{name}/{kind}": ax.figure for kind, ax in axes.items()}
            write_figures(trainer, figures, step, self._announcer)
