"""What a neuron is in a given network: specification, discovery, exchange test, selection."""

from lightning_topo.neurons.example import ExampleCall, example_inputs_from_batch
from lightning_topo.neurons.group import Member, NeuronGroup
from lightning_topo.neurons.symmetry import is_permutation_symmetric

__all__ = ["ExampleCall", "Member", "NeuronGroup", "example_inputs_from_batch", "is_permutation_symmetric"]
