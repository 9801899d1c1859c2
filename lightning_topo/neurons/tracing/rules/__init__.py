"""What each operation does to the axes of its tensors."""

from lightning_topo.neurons.tracing.rules import contraction, layer, lookup, rearrangement, reduction, spatial
from lightning_topo.neurons.tracing.rules.registry import RULES, pointwise

__all__ = ["RULES", "contraction", "layer", "lookup", "pointwise", "rearrangement", "reduction", "spatial"]
