"""What is remembered and logged of what an update did to a neuron group."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from lightning_topo.callbacks.log_keys import BILIPSCHITZ
from lightning_topo.functional import BiLipschitz
from lightning_topo.neurons import NeuronGroup


@dataclass(frozen=True)
class BiLipschitzRecord:
    """One update of one neuron group.

    Attributes:
        step: Step under which it was logged.
        group: Name of the neuron group.
        learning_rate: η, the largest rate among the optimizer's parameter groups that hold the neurons' parameters.
        lower: Smallest ratio of distances between neurons after and before the update.
        upper: Largest ratio.
        distortion: upper / lower.
        criticality: κ = η / η*; at 1 and above neurons can merge.
        critical_lr: η* = η / κ.
        n_unresolved: Pairs of neurons that float rounding could not resolve.
    """

    step: int
    group: str
    learning_rate: float
    lower: float
    upper: float
    distortion: float
    criticality: float
    critical_lr: float
    n_unresolved: int


def record_of(step: int, group: NeuronGroup, rate: float, constants: BiLipschitz) -> BiLipschitzRecord:
    """What is remembered of an update of a group, made at a rate."""
    critical = constants.criticality
    return BiLipschitzRecord(
        step,
        group.name,
        rate,
        constants.lower,
        constants.upper,
        constants.distortion,
        critical,
        rate / critical if critical != 0 else math.inf,
        constants.n_unresolved,
    )


def update_metrics(
    records: dict[str, BiLipschitzRecord], current: Iterable[BiLipschitzRecord], broken_updates: int
) -> dict[str, float]:
    """The figures to be logged, by their keys.

    Args:
        records: Of the update, by group.
        current: The latest of every group.
        broken_updates: Measured updates so far with κ >= 1 in some group.
    """
    keys = BILIPSCHITZ
    metrics: dict[str, float] = {keys.of_run("broken_updates"): broken_updates}
    for name, record in records.items():
        metrics |= {keys.of_group(name, field): getattr(record, field) for field in keys.group}
    resolved = [record for record in current if not math.isnan(record.criticality)]
    if resolved:
        metrics[keys.of_run("learning_rate")] = max(record.learning_rate for record in resolved)
        metrics[keys.of_run("criticality")] = max(record.criticality for record in resolved)
        metrics[keys.of_run("median_criticality")] = median(record.criticality for record in resolved)
        metrics[keys.of_run("critical_lr")] = min(record.critical_lr for record in resolved)
        metrics[keys.of_run("squeeze")] = max(1 - record.lower for record in resolved)
        metrics[keys.of_run("stretch")] = max(record.upper - 1 for record in resolved)
    return metrics
