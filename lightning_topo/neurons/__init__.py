"""What a neuron is in a given network: specification, discovery, exchange test, selection, merging."""

from lightning_topo.neurons.discovery import Discovery, UncoveredAxis, discover_neurons, find_neuron_groups
from lightning_topo.neurons.exchange.example import ExampleCall, example_inputs_from_batch, is_empty_batch
from lightning_topo.neurons.exchange.sandbox import NoTrialRunError
from lightning_topo.neurons.exchange.symmetry import is_permutation_symmetric
from lightning_topo.neurons.group import NeuronGroup
from lightning_topo.neurons.member import Member
from lightning_topo.neurons.merging import MergedGroup, MergeReport, merge_neurons
from lightning_topo.neurons.select import select_groups

__all__ = [
    "Discovery",
    "ExampleCall",
    "Member",
    "MergeReport",
    "MergedGroup",
    "NeuronGroup",
    "NoTrialRunError",
    "UncoveredAxis",
    "discover_neurons",
    "example_inputs_from_batch",
    "find_neuron_groups",
    "is_empty_batch",
    "is_permutation_symmetric",
    "merge_neurons",
    "select_groups",
]
