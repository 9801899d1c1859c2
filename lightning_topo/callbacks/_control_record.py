"""What is remembered and logged of a controlled rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_topo.callbacks.log_keys import CONTROL


@dataclass(frozen=True)
class ControlRecord:
    """The rate of one update.

    Attributes:
        step: Step under which it was logged.
        optimizer: Number of the optimizer.
        learning_rate: η, the largest rate among the parameter groups.
        critical_lr: η* as it was measured last.
    """

    step: int
    optimizer: int
    learning_rate: float
    critical_lr: float


def optimizer_name(index: int) -> str:
    """What stands in the keys of several optimizers' rates for the group."""
    return f"optimizer_{index}"


def control_metrics(records: Sequence[ControlRecord]) -> dict[str, float]:
    """The figures of one update of each optimizer, by their keys."""
    metrics: dict[str, float] = {}
    for record in records:
        values = {"learning_rate": record.learning_rate, "critical_lr": record.critical_lr}
        values |= {f"log10_{name}": math.log10(value) for name, value in values.items() if value > 0}
        values["share"] = record.learning_rate / record.critical_lr
        for name, value in values.items():
            one = optimizer_name(record.optimizer)
            metrics[CONTROL.of_run(name) if len(records) == 1 else CONTROL.of_group(one, name)] = value
    return metrics
