"""Neurons in R^3: 4,096 sigmoid units in a solid double torus learn a teacher.

python examples/paper/neurons_r3.py [--fast] [--output FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import drawing
import matplotlib
import torch
from common import Experiment, Run, main
from setups import Task, double_torus, teacher_task

RATES = {
    "GD": {"below": 0.0006, "small": 0.0008, "large": 0.0009},
    "Adam": {"below": 0.001, "small": 0.03, "large": 0.1},
    "momentum": {"small": 0.001, "large": 0.00125},
}
WEIGHT_SCALE = 128**-0.25


def task(seed: int) -> Task:
    return teacher_task(double_torus(4096, torch.Generator().manual_seed(seed)), seed, WEIGHT_SCALE)


def experiments(fast: bool = False) -> list[Experiment]:
    return [
        # At 0.08 times the diameter both holes are open; κ is over all 8 million pairs, of every fourth update.
        Experiment("double torus", role, task, optimizer, lr, 3 if fast else 20, 0, 0.08, 8 if fast else 4)
        for optimizer, rates in RATES.items()
        for role, lr in rates.items()
        if not fast or optimizer == "momentum"
    ]


def figures(runs: Sequence[Run], output: Path) -> list[Path]:
    families = drawing.by_family(runs)
    columns = 1 + max(map(len, families.values()))
    clouds, axes = drawing.grid(len(families), columns, 2.2, 2.3, subplot_kw={"projection": "3d"})
    colours = matplotlib.colormaps["viridis"]
    for row, (name, family) in zip(axes, families.items(), strict=True):
        for ax in row[1 + len(family) :]:
            ax.axis("off")
        along = family[0].start[:, 1]
        panels = [(family[0].start, f"{name}: start")] + [(run.end, drawing.title(run)) for run in family]
        for ax, (points, title) in zip(row, panels, strict=False):
            shade = colours((along - along.min()) / (along.max() - along.min()))
            ax.scatter(*points[::2].T, s=1, c=shade[::2], lw=0)
            ax.tick_params(pad=-3)
            ax.locator_params(nbins=3)
            ax.set_title(title, fontsize="small")
    drawing.caption(
        clouds, "neurons (two incoming weights, outgoing weight), coloured by the second coordinate at the start"
    )
    return [
        drawing.save(clouds, output / "neurons_r3_clouds.png"),
        drawing.critical_lr(runs, output / "neurons_r3_critical_lr.png", columns=2),
    ]


if __name__ == "__main__":
    main(experiments, figures)
