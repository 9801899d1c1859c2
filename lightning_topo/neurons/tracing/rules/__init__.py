"""What each operation does to the axes of its tensors."""

from lightning_topo.neurons.tracing.rules import choice, contraction, layer, lookup, rearrangement, reduction, spatial
from lightning_topo.neurons.tracing.rules.choice import hand_on_names
from lightning_topo.neurons.tracing.rules.registry import RULES, pointwise

__all__ = [
    "RULES",
    "choice",
    "contraction",
    "hand_on_names",
    "layer",
    "lookup",
    "pointwise",
    "rearrangement",
    "reduction",
    "spatial",
]
