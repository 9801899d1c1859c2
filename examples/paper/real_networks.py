"""Real networks: a 784-1024-10 sigmoid perceptron learns images of digits, its neurons on a 2-sphere in R^794.

    python examples/paper/real_networks.py [--fast] [--output runs/paper] [--data-dir PATH]

MNIST is used when ``--data-dir`` holds it (train-images-idx3-ubyte and train-labels-idx1-ubyte, gzipped or not, or
mnist.npz with x_train and y_train); otherwise the 1,797 images of scikit-learn's digits, 8x8 pixels enlarged to 28x28
bilinearly, once each an epoch and not augmented.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import drawing
import numpy as np
import torch
from common import Experiment, Run, arguments, train_all
from matplotlib.ticker import MaxNLocator
from setups import Task, sphere
from torch import Tensor, nn

FAMILY = "sphere"
RATES = {
    "GD": {"small": 0.01, "large": 0.5, "above": 10.0},
    "Adam": {"small": 1e-5, "large": 1e-3, "above": 1e-2},
}
SEEDS = (0, 1, 2)
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def images(data_dir: Path | None) -> tuple[Tensor, Tensor, str]:
    """Images (n, 784) in [0, 1], labels (n,), and what they are."""
    if data_dir is not None:
        found = {path.name.removesuffix(".gz"): path for path in sorted(data_dir.rglob("*"))}
        if all(name in found for name in _IDX):
            x, y = _read_idx(found[_IDX[0]], 16).reshape(-1, 784), _read_idx(found[_IDX[1]], 8)
        elif "mnist.npz" in found:
            with np.load(found["mnist.npz"]) as arrays:
                x, y = arrays["x_train"].reshape(-1, 784), arrays["y_train"]
        else:
            raise FileNotFoundError(f"expected {' and '.join(_IDX)} (.gz) or mnist.npz under {data_dir}, found neither")
        return torch.tensor(x / 255.0, dtype=torch.float32), torch.tensor(y).long(), f"{len(x):,} images of {data_dir}"
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    small = torch.tensor(x / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    large = nn.functional.interpolate(small, size=(28, 28), mode="bilinear").flatten(1)
    return large, torch.tensor(y), "scikit-learn's 1,797 digits, 8x8 pixels enlarged to 28x28 bilinearly (not MNIST)"


def _read_idx(path: Path, header: int) -> np.ndarray:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return np.frombuffer(data, np.uint8, offset=header).copy()


def task(data_dir: Path | None, n: int, seed: int) -> Task:
    x, y, _ = images(data_dir)
    return Task(sphere(n, 794, torch.Generator().manual_seed(seed)), x, y, 1024, nn.functional.cross_entropy)


def experiments(fast: bool = False, data_dir: Path | None = None) -> list[Experiment]:
    # Of MNIST's 59 updates an epoch κ is measured at every tenth, of the digits' two at both.
    every, epochs = 1 if data_dir is None else 10, 4 if fast else 20
    return [
        Experiment(FAMILY, role, partial(task, data_dir, 1024), optimizer, lr, epochs, seed, updates_every=every)
        for seed in (SEEDS[:1] if fast else SEEDS)
        for optimizer, rates in RATES.items()
        for role, lr in rates.items()
        if not fast or (optimizer == "GD" and role != "large")
    ]


def figures(runs: Sequence[Run], output: Path) -> list[Path]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.experiment.optimizer, run.experiment.role), []).append(run)
    columns = [optimizer for optimizer in RATES if any(key[0] == optimizer for key in groups)]

    betti, axes = drawing.grid(3, len(columns), 3.6, 1.9, sharex=True)
    for (optimizer, role), seeds in groups.items():
        for k, row in enumerate(axes):
            values = [[record.betti[k] for record in run.topology] for run in seeds]
            label = f"{seeds[0].experiment.lr:g} ({role})"
            _spread(row[columns.index(optimizer)], seeds[0].epochs, values, role, label)
    for k, row in enumerate(axes):
        row[0].set_ylabel(f"b{k}")
        for ax in row:
            ax.set_ylim(-0.2, max(2.2, ax.get_ylim()[1]))
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for ax, optimizer in zip(axes[0], columns, strict=True):
        ax.set_title(optimizer, fontsize="small")
        ax.legend(fontsize="x-small", frameon=False)
    drawing.legend(betti, "epoch; Betti numbers at 0.25 times the diameter, mean and range over the seeds")

    rates, axes = drawing.grid(1, len(columns), 4, 2.8)
    for (optimizer, role), seeds in groups.items():
        ax = axes[0, columns.index(optimizer)]
        inverse = [[record.inverse if record.inverse > 0 else np.nan for record in run.sharpness] for run in seeds]
        _spread(ax, np.arange(len(inverse[0])), inverse, role, f"1/λmax, {role}", ls=":")
        critical = [_per_epoch(run) for run in seeds]
        _spread(ax, np.arange(len(critical[0])), critical, role, f"η*, {role}")
        ax.axhline(seeds[0].experiment.lr, color=drawing.COLOURS[role], ls="--", lw=1)
        ax.set(yscale="log", xlabel="epoch", title=optimizer)
    axes[0, 0].set_ylabel("learning rate")
    drawing.legend(rates, f"solid: η* = 1/K, smallest of the epoch; dotted: 1/λmax; dashed: η; {drawing.KEY}")
    return [
        drawing.save(betti, output / "real_networks_betti.png"),
        drawing.save(rates, output / "real_networks_critical_lr.png"),
    ]


def _per_epoch(run: Run) -> list[float]:
    smallest = [np.nan] * run.experiment.epochs
    for record in run.updates:
        epoch = record.step // run.steps_per_epoch
        smallest[epoch] = np.nanmin([smallest[epoch], record.critical_lr])
    return smallest


def _spread(ax, x: np.ndarray, values: Sequence[Sequence[float]], role: str, label: str, ls: str = "-") -> None:
    # A run that has diverged has no later values.
    length = min(len(x), *map(len, values))
    table = np.array([row[:length] for row in values], dtype=float)
    colour = drawing.COLOURS[role]
    ax.plot(x[:length], table.mean(0), color=colour, ls=ls, lw=1.3, label=label)
    ax.fill_between(x[:length], table.min(0), table.max(0), color=colour, alpha=0.2, lw=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST")
    options = arguments(parser)
    print(f"Images: {images(options.data_dir)[2]}")
    runs = train_all(experiments(options.fast, options.data_dir), options.output, options.processes)
    print(*figures(runs, options.output), sep="\n")
