"""What the experiments share: one monitored run on an ordinary Trainer, and many of them in two processes."""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from setups import Task
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.callbacks.bi_lipschitz_monitor import BiLipschitzRecord
from lightning_topo.callbacks.persistence_monitor import PersistenceRecord
from lightning_topo.callbacks.sharpness_monitor import SharpnessRecord
from lightning_topo.functional import betti_at_scale, bi_lipschitz

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "GD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
}
# Neurons closer than this share of the diameter count as one, singular values below this share of the largest as none.
MERGED = 1e-3


@dataclass(frozen=True)
class Experiment:
    """One run: the task of a seed, the rule it is learned by, and how often to measure."""

    family: str  # runs of one family differ in learning rate and seed alone
    role: str  # "small" and "large" as the paper has them; "below" and "above" η* where those are not
    task: Callable[[int], Task]
    optimizer: str
    lr: float
    epochs: int
    seed: int = 0
    scale: float = 0.25  # of the Betti numbers, as a share of the diameter
    updates_every: int = 1  # κ of every n-th update
    epochs_every: int = 1  # topology and sharpness of every n-th epoch

    @property
    def name(self) -> str:
        """A file name."""
        return f"{self.family}, {self.optimizer} {self.lr:g}, seed {self.seed}".replace(", ", "_").replace(" ", "-")


@dataclass(frozen=True)
class Run:
    """What the monitors of one experiment saw."""

    experiment: Experiment
    updates: list[BiLipschitzRecord]
    topology: list[PersistenceRecord]  # at the start, then every ``epochs_every`` epochs
    sharpness: list[SharpnessRecord]
    losses: np.ndarray  # (steps,)
    start: np.ndarray  # (n, D)
    end: np.ndarray  # (n, D)
    ranks: tuple[int, int]  # of the hidden activations at the start and at the end
    seconds: float  # of one core

    @property
    def criticality(self) -> float:
        """Largest κ of a measured update; infinite for a run that ended in NaN."""
        return max((record.criticality for record in self.updates), default=0.0) if self.finite else math.inf

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.end).all())

    @property
    def kept(self) -> bool:
        """Whether κ stayed below 1: every measured update was one-to-one on the neurons."""
        return self.criticality < 1

    @property
    def broken(self) -> int:
        return sum(record.criticality >= 1 for record in self.updates)

    @property
    def epochs(self) -> np.ndarray:
        """At which epoch each topology record was taken."""
        return self.experiment.epochs_every * np.arange(len(self.topology))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.losses) // self.experiment.epochs

    @cached_property
    def distinct(self) -> tuple[int, int]:
        """How many neurons are apart (components at 0.001 times the diameter) at the start and at the end."""
        return distinct(self.start), distinct(self.end) if self.finite else 0

    @cached_property
    def distortion(self) -> float:
        """Upper / lower of the map that the whole run made of the neurons."""
        if not self.finite:
            return math.inf
        return bi_lipschitz(torch.from_numpy(self.start), torch.from_numpy(self.end)).distortion


class TwoLayers(pl.LightningModule):
    """``readout(sigmoid(hidden(x)))`` without biases: neuron i is the point [W1[i, :], W2[:, i]]."""

    def __init__(self, task: Task, optimizer: str, lr: float):
        super().__init__()
        n, inputs = len(task.neurons), task.inputs.shape[1]
        self.hidden = nn.Linear(inputs, n, bias=False)
        self.readout = nn.Linear(n, task.neurons.shape[1] - inputs, bias=False)
        self.hidden.weight.data = task.neurons[:, :inputs].clone()
        self.readout.weight.data = task.neurons[:, inputs:].T.clone()
        self.loss, self.optimizer, self.lr = task.loss, optimizer, lr
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.sigmoid(self.hidden(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.losses.append(loss.detach())
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters(), lr=self.lr)

    def neurons(self) -> Tensor:
        return torch.cat([self.hidden.weight, self.readout.weight.T], dim=1).detach().clone()

    def activation_rank(self, x: Tensor) -> int:
        """Numerical rank of the hidden activations on (at most 1,024) inputs."""
        activations = torch.sigmoid(self.hidden(x[:1024])).detach().double()
        # Squares of the singular values, which float64 resolves to 1e-16 of the largest; six times faster.
        squares = torch.linalg.eigvalsh(activations @ activations.T)
        return int((squares > MERGED**2 * squares[-1]).sum())


def train(experiment: Experiment, output: Path, extra: Sequence[pl.Callback] = ()) -> Run:
    """Run one experiment on a Trainer with our three monitors in it; TensorBoard logs go to ``output``."""
    began = time.process_time()
    quiet()
    torch.set_num_threads(1)
    task = experiment.task(experiment.seed)
    steps = math.ceil(len(task.inputs) / task.batch_size)
    often = {"every_n_train_steps": experiment.epochs_every * steps, "max_overhead": None}
    updates = lt.BiLipschitzMonitor(max_neurons=None, every_n_train_steps=experiment.updates_every, max_overhead=None)
    # 512 of 1,024 neurons are dense enough that at these scales the plane's samples have the loops of the whole.
    topology = lt.PersistenceMonitor(scale=experiment.scale, max_neurons=512, figures=False, **often)
    sharpness = lt.SharpnessMonitor(**often)
    model = TwoLayers(task, experiment.optimizer, experiment.lr)
    start, rank = model.neurons(), model.activation_rank(task.inputs)
    trainer = pl.Trainer(
        max_epochs=experiment.epochs,
        accelerator="cpu",
        callbacks=[updates, topology, sharpness, *extra],
        logger=TensorBoardLogger(output / "logs", name=experiment.name, version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    shuffle = torch.Generator().manual_seed(experiment.seed)
    data = TensorDataset(task.inputs, task.targets)
    trainer.fit(model, DataLoader(data, task.batch_size, shuffle=True, generator=shuffle))
    return Run(
        experiment,
        updates.history,
        topology.history,
        sharpness.history,
        torch.stack(model.losses).numpy(),
        start.numpy(),
        model.neurons().numpy(),
        (rank, model.activation_rank(task.inputs) if bool(model.neurons().isfinite().all()) else 0),
        time.process_time() - began,
    )


def distinct(neurons: np.ndarray) -> int:
    return betti_at_scale(torch.from_numpy(neurons), MERGED, max_dim=0)[0]


def train_all(experiments: Sequence[Experiment], output: Path, processes: int = 2) -> list[Run]:
    """Run the experiments in as many processes, one thread each; the results come in their order."""
    if processes == 1:
        return [train(experiment, output) for experiment in experiments]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        jobs = [pool.apply_async(train, (experiment, output)) for experiment in experiments]
        runs = []
        for job in jobs:
            runs.append(job.get())
            print(f"  {runs[-1].seconds:5.0f} s  {runs[-1].experiment.name}", flush=True)
        return runs


def quiet() -> None:
    """Leave out what Lightning says about itself on every run."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*|.*Checkpoint directory.*")


def main(
    make_experiments: Callable[[bool], list[Experiment]],
    figures: Callable[[Sequence[Run], Path], list[Path]],
) -> None:
    """The command line of the script of one figure."""
    options = arguments(argparse.ArgumentParser())
    runs = train_all(make_experiments(options.fast), options.output, options.processes)
    print(*figures(runs, options.output), sep="\n")


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    parser.add_argument("--fast", action="store_true", help="shorter runs and fewer of them")
    parser.add_argument("--output", type=Path, help="default: runs/paper; with --fast runs/paper-fast")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    options.output = options.output or Path("runs/paper-fast" if options.fast else "runs/paper")
    options.output.mkdir(parents=True, exist_ok=True)
    return options
