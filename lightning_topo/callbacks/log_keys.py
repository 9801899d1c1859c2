"""Every key that the callbacks log, declared once with what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LogKeys:
    """The keys of one callback.

    Attributes:
        prefix: First part of each key.
        overall: What ``<prefix>/<name>`` says, by name.
        group: What ``<prefix>/<neuron group>/<name>`` says, by name.
        dimension: What ``<prefix>/<neuron group>/<name>_<k>`` says, one key a homology dimension k, by name.
        logarithms: Figures over all groups of which TensorBoard gets the base-10 logarithm, too.
        group_logarithms: The same of figures of a group.
    """

    prefix: str
    overall: Mapping[str, str] = field(default_factory=dict)
    group: Mapping[str, str] = field(default_factory=dict)
    dimension: Mapping[str, str] = field(default_factory=dict)
    logarithms: tuple[str, ...] = ()
    group_logarithms: tuple[str, ...] = ()

    def of_run(self, name: str) -> str:
        """The key of a figure over all groups."""
        return f"{self.prefix}/{_declared(name, self.overall)}"

    def of_group(self, group: str, name: str) -> str:
        """The key of a figure of one group."""
        return f"{self.prefix}/{group}/{_declared(name, self.group)}"

    def of_dimension(self, group: str, name: str, k: int) -> str:
        """The key of a figure of one group in one homology dimension."""
        return f"{self.prefix}/{group}/{_declared(name, self.dimension)}_{k}"

    @property
    def coverage(self) -> str:
        """The key of the share of due measurements that were made."""
        return self.of_run("coverage")


def _declared(name: str, known: Mapping[str, str]) -> str:
    if name not in known:
        raise KeyError(f"expected a declared log key, one of {', '.join(known)}; got {name!r}; declare it in log_keys")
    return name


_COVERAGE = "share of the due measurements that were made"

BILIPSCHITZ = LogKeys(
    "bilipschitz",
    overall={
        "learning_rate": "largest learning rate η of the groups' latest values",
        "criticality": "largest criticality κ of the groups' latest values",
        "median_criticality": "median κ of the groups' latest values",
        "critical_lr": "smallest critical learning rate η* of the groups' latest values",
        "squeeze": "largest 1 - lower of the groups' latest values",
        "stretch": "largest upper - 1 of the groups' latest values",
        "broken_updates": "measured updates so far with κ >= 1 in some group",
        "coverage": _COVERAGE,
    },
    group={
        "learning_rate": "largest learning rate η that moves the group",
        "lower": "smallest factor by which the update changed a distance between two neurons",
        "upper": "largest factor by which the update changed a distance between two neurons",
        "distortion": "upper / lower",
        "criticality": "κ = max |u_i - u_j| / |p_i - p_j|, which is η / η*",
        "critical_lr": "η* = η / κ",
    },
    logarithms=("learning_rate", "criticality", "median_criticality", "critical_lr"),
    group_logarithms=("criticality",),
)
TOPOLOGY = LogKeys(
    "topology",
    overall={
        "distinct_share": "smallest share of a group's neurons that are distinct, of the groups' latest values",
        "dormant": "largest share of a group's units that are dormant, of the groups' latest values",
        "coverage": _COVERAGE,
    },
    group={
        "covering_radius": "largest distance of a neuron to the sample of which the diagrams are",
        "diameter": "largest distance between two neurons of the sample",
        "distinct": "neurons left when those closer than a tenth of the neighbours' distance at the start count as one",
        "dormant": "share of the units whose activations hardly differ on the batch",
        "effective_rank": "effective rank of the units' activations on the batch",
    },
    dimension={
        "betti": "Betti number at the scale",
        "entropy": "persistence entropy in nats",
        "total_persistence": "sum of the finite bars' lengths",
        "drift": "bottleneck distance to the first diagram, both divided by their diameter",
        "certified_betti": "bars of the first diagram that are certainly alive now",
    },
)
SHARPNESS = LogKeys(
    "sharpness",
    overall={
        "learning_rate": "largest learning rate η of the update",
        "critical_lr": "η_c, the smallest rate at which the update would not have lowered the loss of its own batch",
        "lambda_max": "largest eigenvalue λmax of the Hessian of the batch's loss",
        "inverse": "1 / λmax",
        "coverage": _COVERAGE,
    },
    logarithms=("learning_rate", "critical_lr"),
)
CLIPPING = LogKeys(
    "clipping",
    overall={
        "scale": "smallest factor of a parameter in the batch's updates",
        "criticality_before": "root of the sum of squares of the groups' κ of the optimizer's own update",
        "criticality_after": "the same of the update that was made, at most the bound",
        "clipped_updates": "updates so far that were scaled back",
        "clipped_share": "their share of the last 100 updates",
        "bound": "bound on that, which goes down with the learning rate",
        "loss_critical_lr": "critical learning rate of the loss along the update measured last",
    },
    group={
        "scale": "smallest factor of the group's parameters",
        "criticality_before": "κ of the optimizer's own update",
        "criticality_after": "κ of the update that was made",
    },
)
_CONTROL = {
    "learning_rate": "rate of the update, of the parameter group with the largest full rate",
    "critical_lr": "critical learning rate η* as it was measured last",
    "share": "learning_rate / critical_lr",
    "log10_learning_rate": "its logarithm: TensorBoard's page of custom scalars has no logarithmic scale",
    "log10_critical_lr": "the same of critical_lr",
}
CONTROL = LogKeys("control", overall=_CONTROL, group=_CONTROL)
LR_FIND = LogKeys(
    "lr_find",
    overall={
        "critical_lr": "critical learning rate η*",
        "suggestion": "suggested learning rate",
        "held": "largest rate that held",
        "broke": "smallest rate that broke",
        "steps": "optimizer steps that the search took",
    },
)


def has_logarithm(key: str) -> bool:
    """Whether TensorBoard gets the base-10 logarithm of a figure, too."""
    prefix, *group, name = key.split("/")
    declared = {keys.prefix: keys.group_logarithms if group else keys.logarithms for keys in (BILIPSCHITZ, SHARPNESS)}
    return name in declared.get(prefix, ())
