"""What a neuron is in a given network: specification, discovery, exchange test, selection."""

from lightning_topo.neurons.group import Member, NeuronGroup

__all__ = ["Member", "NeuronGroup"]
