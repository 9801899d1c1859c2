"""Whether there is time to measure the topology of a group, and of which of its neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.callbacks._monitored_fit import MonitoredFit
from lightning_topo.callbacks._topology_cost import expected_seconds
from lightning_topo.neurons import NeuronGroup


class TopologyAdmission:
    """Asks the fit's budget for time, by what a group's first measurement is expected to take.

    Args:
        fit: The fit's model, processes and budget.
        most: Largest number of neurons of which Betti numbers are computed.
    """

    def __init__(self, fit: MonitoredFit, most: int) -> None:
        self._fit, self._most = fit, most

    def pool(self, group: NeuronGroup) -> Tensor | None:
        """The neurons to choose from, None for all: where they lie on several processes, a part is gathered."""
        n = group.n_units(self._fit.model)
        if not self._fit.processes.sharded or n <= self._most:
            return None
        return torch.randperm(n, generator=torch.Generator().manual_seed(0))[: self._most]

    def pool_size(self, group: NeuronGroup) -> int:
        """How many neurons there are to choose from."""
        pool = self.pool(group)
        return group.n_units(self._fit.model) if pool is None else len(pool)

    def admits(self, group: NeuronGroup) -> bool:
        """Count a due measurement of the group, and say whether to make it; every process enters."""
        return self._fit.admission.admits(group.name, *self._prospect(group))

    def affords(self, group: NeuronGroup) -> bool:
        """Whether there is time for the group now, by this process alone."""
        return self._fit.budget.affords(group.name, *self._prospect(group))

    def _prospect(self, group: NeuronGroup) -> tuple[float, float]:
        """What the group's first measurement will cost, and the training time of the run, both in seconds."""
        fit, guess, run_time = self._fit, 0.0, 0.0
        if fit.budget.max_overhead is not None and fit.processes.lead and not fit.budget.knows(group.name):
            with fit.announcer.never_fatal():
                n, dimension = self.pool_size(group), group.dimension(fit.model)
                guess, run_time = expected_seconds(n, dimension, self._most), fit.run_seconds()
        return guess, run_time
