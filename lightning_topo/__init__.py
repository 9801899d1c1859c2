"""See what training does to the neurons of a network, and find the learning rate at which it destroys them."""

from lightning_topo import functional, metrics
from lightning_topo.callbacks import (
    BiLipschitzMonitor,
    PersistenceMonitor,
    SharpnessMonitor,
    TopologicalAlarm,
    TopologicalLearningRateFinder,
    TopologicalRateControl,
    TopologicalStepClipping,
    report,
)
from lightning_topo.clipping import topological_step_clipping
from lightning_topo.control import topological_rate_control
from lightning_topo.finder import TopologicalLRResult, Trial, topological_lr_find
from lightning_topo.neurons import (
    Member,
    MergeReport,
    NeuronGroup,
    find_neuron_groups,
    is_permutation_symmetric,
    merge_neurons,
)

__version__ = "0.2.0"

__all__ = [
    # callbacks
    "BiLipschitzMonitor",
    "PersistenceMonitor",
    "SharpnessMonitor",
    "TopologicalAlarm",
    "TopologicalLearningRateFinder",
    "TopologicalRateControl",
    "TopologicalStepClipping",
    # what a fit did to the neurons, on one page
    "report",
    # the finder, the clipping and the control without a fit
    "TopologicalLRResult",
    "Trial",
    "topological_lr_find",
    "topological_rate_control",
    "topological_step_clipping",
    # neurons
    "Member",
    "MergeReport",
    "NeuronGroup",
    "find_neuron_groups",
    "is_permutation_symmetric",
    "merge_neurons",
    # sub-packages
    "functional",
    "metrics",
]
