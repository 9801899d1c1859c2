"""Real networks: a 784-1024-10 sigmoid perceptron learns images of digits, its neurons on a 2-sphere in R^794.

    python examples/paper/real_networks.py [--fast] [--output FOLDER] [--data-dir PATH]

The images are those of ``--data-dir``: MNIST or a set of its format (train-images-idx3-ubyte and
train-labels-idx1-ubyte, gzipped or not, or mnist.npz with x_train and y_train, at any depth). Without it they are the
60,000 of Fashion-MNIST where Debian's package dataset-fashion-mnist is installed (not with ``--fast``), else the 1,797
of scikit-learn's digits, 8x8 pixels enlarged to 28x28 bilinearly; an epoch is then five passes over them, 9 updates
instead of 59.
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
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from setups import Task, sphere
from torch import Tensor, nn

FAMILY = "sphere"
RATES = {
    "GD": {"small": 0.01, "large": 0.5, "above": 10.0},
    "Adam": {"small": 1e-5, "large": 1e-3, "above": 1e-2},
}
SEEDS = (0, 1, 2)
_DATA_DIR_HELP = "folder with MNIST or a set of its format; default: Fashion-MNIST where Debian's package is installed"
_OF_SEEDS = "mean and range over the seeds"
PASSES = 5  # over the digits in an epoch
PACKAGED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def installed() -> Path | None:
    """The folder of an installed data set of MNIST's format, if there is one."""
    return PACKAGED if all(any(PACKAGED.glob(f"{name}*")) for name in _IDX) else None


def arguments_with_data(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of ``common``, and where the images are; short runs take the digits unless told otherwise."""
    parser.add_argument("--data-dir", type=Path, help=_DATA_DIR_HELP)
    options = arguments(parser)
    if options.data_dir is None and not options.fast:
        options.data_dir = installed()
    return options


def images(data_dir: Path | None) -> tuple[Tensor, Tensor, str]:
    """Images (n, 784) in [0, 1], labels (n,), and what they are."""
    if data_dir is None:
        return _digits()
    found = {path.name.removesuffix(".gz"): path for path in sorted(data_dir.rglob("*")) if path.is_file()}
    if all(name in found for name in _IDX):
        x, y = (_read_idx(found[name]) for name in _IDX)
        source = f"{found[_IDX[0]].name} in {data_dir.name}"
    elif "mnist.npz" in found:
        with np.load(found["mnist.npz"]) as arrays:
            x, y = arrays["x_train"], arrays["y_train"]
        source = f"mnist.npz in {data_dir.name}"
    else:
        raise FileNotFoundError(f"expected {' and '.join(_IDX)} (.gz) or mnist.npz under {data_dir}, found neither")
    if x.shape != (len(y), 28, 28):
        raise ValueError(f"expected images (n, 28, 28) and labels (n,) in {data_dir}, got {x.shape} and {y.shape}")
    x = torch.tensor(x.reshape(-1, 784) / 255.0, dtype=torch.float32)
    return x, torch.tensor(y).long(), f"{len(x):,} images of {source}"


def _digits() -> tuple[Tensor, Tensor, str]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    small = torch.tensor(x / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    large = nn.functional.interpolate(small, size=(28, 28), mode="bilinear").flatten(1)
    return large, torch.tensor(y), "scikit-learn's 1,797 digits, 8x8 pixels enlarged to 28x28 bilinearly (not MNIST)"


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes: two zeros, type 8 (unsigned byte), the number of dimensions, each size in four bytes."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if data[:3] != bytes([0, 0, 8]):
        raise ValueError(f"expected an IDX file of unsigned bytes, which begins 00 00 08; {path} begins {data[:3]!r}")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def task(data_dir: Path | None, n: int, seed: int) -> Task:
    x, y, _ = images(data_dir)
    if data_dir is None:
        x, y = x.repeat(PASSES, 1), y.repeat(PASSES)
    return Task(sphere(n, 794, torch.Generator().manual_seed(seed)), x, y, 1024, nn.functional.cross_entropy)


def experiments(fast: bool = False, data_dir: Path | None = None) -> list[Experiment]:
    # Of MNIST's 59 updates an epoch κ is measured at every tenth, of the digits' 9 at each.
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

    betti, axes = drawing.grid(3, len(columns), 8.4 / len(columns), 1.6, sharex=True)
    for (optimizer, role), seeds in groups.items():
        for k, row in enumerate(axes):
            values = [[record.betti[k] for record in run.topology] for run in seeds]
            style = {"label": f"η = {drawing.rate(seeds[0])}", "lw": drawing.WIDTHS[role]}
            _spread(row[columns.index(optimizer)], seeds[0].epochs, values, role, **style)
    for k, row in enumerate(axes):
        row[0].set_ylabel(f"b{k}")
        for ax in row:
            ax.set_ylim(-0.2, max(2.2, ax.get_ylim()[1]))
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for top, bottom, optimizer in zip(axes[0], axes[-1], columns, strict=True):
        top.set_title(optimizer, fontsize="small")
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(bottom, below=0.5)
    drawing.caption(betti, f"Betti numbers at 0.25 times the diameter: {_OF_SEEDS}")

    rates, axes = drawing.grid(1, len(columns), 8.4 / len(columns), 3.4)
    for (optimizer, role), seeds in groups.items():
        ax = axes[0, columns.index(optimizer)]
        inverse = [[record.inverse if record.inverse > 0 else np.nan for record in run.sharpness] for run in seeds]
        _spread(ax, np.arange(len(inverse[0])), inverse, role, log=True, ls=":", lw=1.3)
        critical = [_per_epoch(run) for run in seeds]
        label = f"η = {drawing.rate(seeds[0])}"
        _spread(ax, np.arange(len(critical[0])), critical, role, log=True, label=label, lw=1.3)
        ax.axhline(seeds[0].experiment.lr, color=drawing.COLOURS[role], ls="--", lw=1)
        ax.set(yscale="log", xlabel="epoch", title=optimizer)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawing.legend(ax)
    axes[0, 0].set_ylabel("learning rate")
    drawing.caption(rates, f"solid: η* = 1/K, smallest of the epoch; dotted: 1/λmax; dashed: η; {_OF_SEEDS}")
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


def _spread(
    ax: Axes, x: np.ndarray, values: Sequence[Sequence[float]], role: str, log: bool = False, **style: object
) -> None:
    """Mean and range over the seeds; on a logarithmic axis the geometric mean."""
    # A run that has diverged has no later values.
    length = min(len(x), *map(len, values))
    table = np.array([row[:length] for row in values], dtype=float)
    mean = np.exp(np.log(table).mean(0)) if log else table.mean(0)
    colour = drawing.COLOURS[role]
    ax.plot(x[:length], mean, color=colour, **style)
    ax.fill_between(x[:length], table.min(0), table.max(0), color=colour, alpha=0.2, lw=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    options = arguments_with_data(parser)
    print(f"Images: {images(options.data_dir)[2]}")
    runs = train_all(experiments(options.fast, options.data_dir), options.output, options.processes)
    print(*figures(runs, options.output), sep="\n")
