"""The overview of a run: one figure of all groups, in the loggers that take figures."""

from __future__ import annotations

from typing import Any

from lightning_topo.callbacks._figures import takes_figures, write_figures
from lightning_topo.callbacks._log_writer import logger_step
from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.plots import plot_overview
from lightning_topo.plots.history import worst_of_each_step
from lightning_topo.verdict import Findings

_TAG = "lightning_topo/overview"
# Drawn after 16, 32, 64, ... measured updates, where the budget has time for it, and at the end.
_FIRST = 16
# What drawing takes until it has been done once, with matplotlib's import.
_SECONDS = 0.8


class Overview:
    """Draws the overview of a fit.

    Args:
        fit: Its budget, processes and announcer.
        wanted: Whether to draw at all.
    """

    def __init__(self, fit: MonitoredFit, wanted: bool) -> None:
        self._fit, self._wanted = fit, wanted
        self._drawn = 0

    def begin_anew(self) -> None:
        """The run starts at its first step."""
        self._drawn = 0

    def draw_due(self, trainer: Any, measured: int, findings: Any) -> None:
        """Draw when twice as many updates have been measured as at the last time; ``findings`` gives what is drawn."""
        if measured >= max(_FIRST, 2 * self._drawn) and self._fit.budget.affords("overview", guess=_SECONDS):
            self._drawn = measured
            with self._fit.budget.spending(kind="overview"):
                self.draw(trainer, findings())

    def draw(self, trainer: Any, findings: Findings) -> None:
        """Draw what has been measured by now."""
        with self._fit.announcer.never_fatal("draw the overview"):
            if not (self._wanted and self._fit.processes.lead and findings.updates and takes_figures(trainer)):
                return
            figure = plot_overview(findings.updates, findings.sharpness, _title(findings))
            write_figures(trainer, {_TAG: figure}, logger_step(trainer), self._fit.announcer)


def _title(findings: Findings) -> str:
    worst = worst_of_each_step(findings.updates)
    if not worst:
        return "no κ could be resolved"
    peak = max(worst, key=lambda record: record.criticality)
    return f"largest κ {peak.criticality:.2g}: {peak.group}, step {peak.step}"
