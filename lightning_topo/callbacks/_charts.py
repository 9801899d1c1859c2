"""The charts on TensorBoard's page of custom scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_topo.callbacks._control_record import optimizer_name
from lightning_topo.callbacks._tensorboard import logarithm_of
from lightning_topo.callbacks.log_keys import BILIPSCHITZ, CONTROL, SHARPNESS, TOPOLOGY
from lightning_topo.neurons import NeuronGroup

# Keys that are drawn in a chart, by its title. Of several charts of one title that of the callback is shown that sets
# the rates, else the first.
Charts = dict[str, list[str]]
# One chart of the rates, whichever monitors there are.
_RATES = "log10 of the learning rate η, the critical rate η*, and η_c of the loss"
_OF_RATES = ("learning_rate", "critical_lr")


def update_charts(groups: Sequence[NeuronGroup]) -> Charts:
    """Criticality first, then the learning rate beside the critical rates, then how distances change.

    Args:
        groups: Those whose figures the logger gets.
    """
    keys = BILIPSCHITZ
    over_all = ("criticality", "median_criticality")
    of_groups = [logarithm_of(keys.of_group(group.name, "criticality")) for group in groups]
    rates = [logarithm_of(keys.of_run(name)) for name in _OF_RATES]
    charts = {
        "log10 of κ: neurons can merge above 0": of_groups or [logarithm_of(keys.of_run(name)) for name in over_all],
        _RATES: [*rates, logarithm_of(SHARPNESS.of_run("critical_lr"))],
        "1 - lower and upper - 1: how far updates squeeze and stretch": [
            keys.of_run(name) for name in ("squeeze", "stretch")
        ],
        "updates with κ ≥ 1, so far": [keys.of_run("broken_updates")],
    }
    for group in groups if len(groups) > 1 else ():
        rates = [keys.of_group(group.name, name) for name in _OF_RATES]
        charts[f"{group.name}: η and η*"] = rates
    return charts


def loss_charts(critical: bool, hessian: bool) -> Charts:
    """The learning rate beside the critical rate of the loss, and the inverse sharpness, each where it is measured."""
    rates = [logarithm_of(SHARPNESS.of_run(name)) for name in _OF_RATES]
    charts = {_RATES: rates, "inverse sharpness 1 / λmax": [SHARPNESS.of_run("inverse")]}
    return {title: charts[title] for title, wanted in zip(charts, (critical, hessian), strict=True) if wanted}


def control_charts(n_optimizers: int) -> Charts:
    """The learning rate beside the critical rates, of one optimizer or of each of several."""
    keys = [CONTROL.of_run(name) for name in _OF_RATES]
    if n_optimizers > 1:  # of which one alone may be controlled
        keys += [CONTROL.of_group(optimizer_name(i), name) for i in range(n_optimizers) for name in _OF_RATES]
    return {_RATES: [logarithm_of(key) for key in (*keys, SHARPNESS.of_run("critical_lr"))]}


def topology_charts(groups: Sequence[NeuronGroup], history: Sequence[Any]) -> Charts:
    """How many neurons are left, and Betti numbers, each where it has moved by now: most stay what they were.

    Args:
        groups: Those whose figures the logger gets.
        history: Records of all groups.
    """
    charts: Charts = {}
    if groups:
        charts["distinct neurons"] = [TOPOLOGY.of_group(group.name, "distinct") for group in groups]
    charts["smallest share of distinct neurons, largest share of dormant units"] = [
        TOPOLOGY.of_run(name) for name in ("distinct_share", "dormant")
    ]
    seen: dict[str, list[tuple[int, ...]]] = {}
    for record in history:
        seen.setdefault(record.group, []).append(record.betti)
    for group in groups:
        courses = zip(*seen.get(group.name, []), strict=False)
        moved = [k for k, course in enumerate(courses) if len(set(course)) > 1]
        if moved:
            tags = [TOPOLOGY.of_dimension(group.name, "betti", k) for k in moved]
            charts[f"{group.name}: Betti numbers that moved"] = tags
    return charts
