"""Betti numbers of PersistenceMonitor against gudhi's Rips complex, at every epoch of one run of the real networks.

    python examples/paper/gudhi_agreement.py [--fast]        needs gudhi, which only the tests install

gudhi's numbers are those of the complex with edges up to 0.25 times the diameter and simplices up to dimension 3. A
complex whose tetrahedra would not fit in memory is made smaller by gudhi's own edge collapse first, which keeps the
homology.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import real_networks
import torch
from common import TwoLayers, arguments, train
from torch import Tensor

_MAX_TETRAHEDRA = 2e7
RATES = (("GD", 0.5), ("GD", 10.0), ("Adam", 1e-3), ("Adam", 1e-2))


@dataclass(frozen=True)
class Agreement:
    """One run: Betti numbers of the callback and of gudhi at each measurement."""

    optimizer: str
    lr: float
    n_neurons: int
    ours: list[tuple[int, ...]]
    gudhi: list[tuple[int, ...]]

    @property
    def n_equal(self) -> int:
        return sum(a == b for a, b in zip(self.ours, self.gudhi, strict=True))


class Clouds(pl.Callback):
    """Keeps the neurons at the start and after every epoch, when PersistenceMonitor measures too."""

    def __init__(self) -> None:
        self.clouds: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: TwoLayers) -> None:
        self.clouds.append(pl_module.neurons())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: TwoLayers) -> None:
        self.clouds.append(pl_module.neurons())


def gudhi_betti(neurons: Tensor, scale: float = 0.25) -> tuple[int, ...]:
    import gudhi

    points = neurons.double()
    distances = torch.pdist(points).numpy()
    threshold = scale * distances.max()
    square = np.zeros((len(points), len(points)))
    square[np.triu_indices(len(points), 1)] = distances
    tree = gudhi.RipsComplex(distance_matrix=square + square.T, max_edge_length=threshold).create_simplex_tree(1)
    degree = 2 * (tree.num_simplices() - tree.num_vertices()) / tree.num_vertices()
    if tree.num_vertices() * degree**3 / 24 > _MAX_TETRAHEDRA:
        # At one scale the length of an edge says nothing, and equal lengths collapse further.
        for simplex, _ in tree.get_skeleton(1):
            tree.assign_filtration(simplex, 0.0)
        tree.collapse_edges(nb_iterations=10)
    tree.expansion(3)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    betti = tree.betti_numbers()
    return tuple([*betti, 0, 0, 0][:3])


def compare(optimizer: str, lr: float, n_neurons: int, epochs: int, output: Path) -> Agreement:
    experiment = next(e for e in real_networks.experiments() if e.optimizer == optimizer)
    experiment = dataclasses.replace(
        experiment,
        family=f"gudhi {n_neurons}",
        task=partial(real_networks.task, None, n_neurons),
        lr=lr,
        epochs=epochs,
        updates_every=10**6,
    )
    clouds = Clouds()
    run = train(experiment, output, [clouds])
    ours = [record.betti for record in run.topology]
    return Agreement(optimizer, lr, n_neurons, ours, [gudhi_betti(cloud) for cloud in clouds.clouds[: len(ours)]])


def jobs(fast: bool = False) -> list[tuple[str, float, int, int]]:
    """Optimizer, learning rate, neurons, epochs; the last is a run of the figure itself, all 1,024 neurons."""
    return [(*rate, 256, 2 if fast else 20) for rate in RATES] + ([] if fast else [("GD", 0.5, 1024, 20)])


def available() -> bool:
    return importlib.util.find_spec("gudhi") is not None


if __name__ == "__main__":
    options = arguments(argparse.ArgumentParser())
    for job in jobs(options.fast):
        result = compare(*job, options.output)
        print(
            f"{result.optimizer} {result.lr:g}, {result.n_neurons} neurons:",
            f"{result.n_equal} of {len(result.ours)} equal",
        )
        assert result.n_equal == len(result.ours), list(zip(result.ours, result.gudhi, strict=True))
