"""Matplotlib figures of results; each function returns the axes it drew on."""

from lightning_topo.plots.barcode import plot_barcode
from lightning_topo.plots.betti_curves import plot_betti_curves
from lightning_topo.plots.history import (
    counts_distinct,
    plot_criticality,
    plot_learning_rates,
    plot_neurons_left,
    plot_overview,
    plot_stretch,
)
from lightning_topo.plots.neuron_cloud import plot_neuron_cloud, principal_axes, principal_plane, start_colours
from lightning_topo.plots.persistence_diagram import plot_persistence_diagram
from lightning_topo.plots.sharpness import plot_sharpness

__all__ = [
    "counts_distinct",
    "plot_barcode",
    "plot_betti_curves",
    "plot_criticality",
    "plot_learning_rates",
    "plot_neuron_cloud",
    "plot_neurons_left",
    "plot_overview",
    "plot_persistence_diagram",
    "plot_sharpness",
    "plot_stretch",
    "principal_axes",
    "principal_plane",
    "start_colours",
]
