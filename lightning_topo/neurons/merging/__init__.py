"""Units that coincide become one, and the layers that hold them get smaller."""

from lightning_topo.neurons.merging.merge import merge_neurons
from lightning_topo.neurons.merging.report import MergedGroup, MergeReport

__all__ = ["MergeReport", "MergedGroup", "merge_neurons"]
