"""The charts of the updates on TensorBoard's page of custom scalars."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_topo.callbacks._tensorboard import logarithm_tag
from lightning_topo.callbacks.log_keys import BILIPSCHITZ, SHARPNESS
from lightning_topo.neurons import NeuronGroup

# Tags of a chart by its title.
Charts = dict[str, list[str]]


def update_charts(groups: Sequence[NeuronGroup]) -> Charts:
    """Criticality first, then the learning rate beside the critical rates, then how distances change.

    Args:
        groups: Those whose figures the logger gets.
    """
    keys = BILIPSCHITZ
    over_all = ("criticality", "median_criticality")
    of_groups = [logarithm_tag(keys.of_group(group.name, "criticality")) for group in groups]
    rates = [logarithm_tag(keys.of_run(name)) for name in ("learning_rate", "critical_lr")]
    charts = {
        "log10 of κ: neurons can merge above 0": of_groups or [logarithm_tag(keys.of_run(name)) for name in over_all],
        "log10 of the learning rate η, the critical rate η*, and η_c of the loss": [
            *rates,
            logarithm_tag(SHARPNESS.prefix + "/critical_lr"),
        ],
        "1 - lower and upper - 1: how far updates squeeze and stretch": [
            keys.of_run(name) for name in ("squeeze", "stretch")
        ],
        "updates with κ ≥ 1, so far": [keys.of_run("broken_updates")],
    }
    for group in groups if len(groups) > 1 else ():
        rates = [keys.of_group(group.name, name) for name in ("learning_rate", "critical_lr")]
        charts[f"{group.name}: η and η*"] = rates
    return charts
