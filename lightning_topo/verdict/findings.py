"""What the monitors of a fit have measured, and the few numbers that a verdict rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol


class UpdateRecord(Protocol):
    """What is read of a ``BiLipschitzRecord``."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def group(self) -> str: ...  # noqa: D102
    @property
    def learning_rate(self) -> float: ...  # noqa: D102
    @property
    def lower(self) -> float: ...  # noqa: D102
    @property
    def upper(self) -> float: ...  # noqa: D102
    @property
    def criticality(self) -> float: ...  # noqa: D102
    @property
    def critical_lr(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Findings:
    """What the monitors of a fit have measured.

    Attributes:
        updates: What each measured update did to each neuron group, in the order of the updates.
        topology: Topology of the groups over time.
        sharpness: Sharpness of the loss over time.
        made: Optimizer steps of the run.
        measured: Those of which the neurons were compared.
        broken: Those of them with κ >= 1 in some group.
        top_rate: Largest learning rate of the optimizer steps, measured or not; 0 where it is not known.
        sizes: Number of neurons of each group.
        diverged: Groups whose neurons became NaN or infinite.
        clones_excluded: Whether every update was measured, on all neurons, and had κ < 1: none have become clones.
        controlled: Whether TopologicalRateControl chose the rates.
        nothing_because: Why no update was measured, as a whole sentence; empty where some were.
        no_topology_because: The same of the neurons' topology, where it was to be measured.
        no_sharpness_because: The same of the sharpness of the loss.
    """

    updates: Sequence[UpdateRecord] = ()
    topology: Sequence[Any] = ()
    sharpness: Sequence[Any] = ()
    made: int = 0
    measured: int = 0
    broken: int = 0
    top_rate: float = 0.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    diverged: tuple[str, ...] = ()
    clones_excluded: bool = False
    controlled: bool = False
    nothing_because: str = ""
    no_topology_because: str = ""
    no_sharpness_because: str = ""


@dataclass(frozen=True)
class GroupSummary:
    """One neuron group over a fit.

    Attributes:
        group: Its name.
        n_neurons: How many neurons it has, None where that is not known.
        largest: Its largest κ.
        at_step: When that was.
        median: Its median κ.
        broken: Its records with κ >= 1.
        measured: Its records with a κ.
        critical_lr: Median η*.
        lower: Smallest ratio of distances of an update.
        upper: Largest ratio.
    """

    group: str
    n_neurons: int | None
    largest: float
    at_step: int
    median: float
    broken: int
    measured: int
    critical_lr: float
    lower: float
    upper: float


def group_summaries(findings: Findings) -> list[GroupSummary]:
    """The groups of a fit, the one with the largest κ first."""
    of_group: dict[str, list[UpdateRecord]] = {}
    for record in findings.updates:
        if not math.isnan(record.criticality):
            of_group.setdefault(record.group, []).append(record)
    summaries = []
    for name, records in of_group.items():
        peak = max(records, key=lambda record: record.criticality)
        kappas = [record.criticality for record in records]
        summaries.append(
            GroupSummary(
                name,
                findings.sizes.get(name),
                peak.criticality,
                peak.step,
                median(kappas),
                sum(kappa >= 1 for kappa in kappas),
                len(kappas),
                median(record.critical_lr for record in records),
                min(record.lower for record in records),
                max(record.upper for record in records),
            )
        )
    return sorted(summaries, key=lambda summary: -summary.largest)
