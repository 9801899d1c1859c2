"""Matplotlib figures of results; each function returns the axes it drew on."""

from lightning_topo.plots.barcode import plot_barcode
from lightning_topo.plots.betti_curves import plot_betti_curves
from lightning_topo.plots.neuron_cloud import plot_neuron_cloud, principal_plane
from lightning_topo.plots.persistence_diagram import plot_persistence_diagram

__all__ = ["plot_barcode", "plot_betti_curves", "plot_neuron_cloud", "plot_persistence_diagram", "principal_plane"]
