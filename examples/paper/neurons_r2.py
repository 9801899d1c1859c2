"""Neurons in R^2: 1,024 sigmoid units learn a teacher from a figure-eight and from two circles.

    python examples/paper/neurons_r2.py [--fast] [--output FOLDER]

Below η* the plane is deformed and never folded, so that a curve of neurons keeps its self-crossings;
above it is folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import drawing
import matplotlib
import numpy as np
from common import Experiment, Run, main
from setups import Task, figure_eight, teacher_task, two_circles

CURVES = {"figure-eight": figure_eight, "two circles": two_circles}
N_CLOSED_CURVES = {"figure-eight": 1, "two circles": 2}
SEEDS = (0, 1, 2)
# start, optimizer, epochs, learning rates
FAMILIES = (
    ("figure-eight", "GD", 100, {"small": 0.0025, "large": 0.003}),
    ("two circles", "GD", 100, {"small": 0.0025, "large": 0.003}),
    ("two circles", "Adam", 40, {"small": 1e-4, "large": 1e-2, "above": 0.3}),
    ("figure-eight", "momentum", 50, {"small": 0.0005, "large": 0.0045, "above": 0.0047}),
)


def task(curve: str, seed: int) -> Task:
    return teacher_task(CURVES[curve](), seed)


def experiments(fast: bool = False) -> list[Experiment]:
    return [
        # At 0.04 times the diameter the two loops of either start are open.
        Experiment(
            curve,
            role,
            partial(task, curve),
            optimizer,
            lr,
            5 if fast else epochs,
            seed,
            0.04,
            epochs_every=1 if fast else epochs // 20,
        )
        for curve, optimizer, epochs, rates in FAMILIES
        for seed in (SEEDS[:1] if fast else SEEDS)
        for role, lr in rates.items()
        if not fast or optimizer == "GD" or role != "large"
    ]


def crossings(neurons: np.ndarray, n_curves: int) -> int:
    """How often the closed curves through consecutive neurons cross themselves and each other."""
    start = neurons.astype(float)
    end = np.concatenate([np.roll(curve, -1, axis=0) for curve in np.split(start, n_curves)])
    side_of_start, side_of_end = _side(start, end, start), _side(start, end, end)
    apart = side_of_start * side_of_end < 0  # [i, j]: segment j has an end on each side of segment i's line
    return int(np.triu(apart & apart.T).sum())


def _side(start: np.ndarray, end: np.ndarray, points: np.ndarray) -> np.ndarray:
    along = end - start
    to = points[None] - start[:, None]
    return np.sign(along[:, None, 0] * to[..., 1] - along[:, None, 1] * to[..., 0])


def n_crossings(run: Run) -> tuple[int, int]:
    n_curves = N_CLOSED_CURVES[run.experiment.family]
    return crossings(run.start, n_curves), crossings(run.end, n_curves)


def figures(runs: Sequence[Run], output: Path) -> list[Path]:
    families = drawing.by_family(runs)
    columns = 1 + max(map(len, families.values()))
    clouds, axes = drawing.grid(len(families), columns)
    colours = matplotlib.colormaps["hsv"]
    for row, (name, family) in zip(axes, families.items(), strict=True):
        for ax in row[1 + len(family) :]:
            ax.axis("off")
        panels = [(family[0].start, f"{name}: start")] + [(run.end, drawing.title(run)) for run in family]
        for ax, (points, title) in zip(row, panels, strict=False):
            ax.scatter(*points.T, s=2, c=drawing.hues(len(points), colours), lw=0)
            ax.set_title(title, fontsize="small")
            ax.locator_params(axis="x", nbins=4)
    drawing.caption(
        clouds, "neurons (incoming weight, outgoing weight), coloured by their place on the curve at the start"
    )
    return [
        drawing.save(clouds, output / "neurons_r2_clouds.png"),
        drawing.critical_lr(runs, output / "neurons_r2_critical_lr.png", columns=2),
    ]


if __name__ == "__main__":
    main(experiments, figures)
