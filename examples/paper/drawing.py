"""What the figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from common import Run
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image

COLOURS = {"below": "#56B4E9", "small": "#0072B2", "large": "#D55E00", "above": "#8B0000"}
# Curves that coincide stay visible: the lower rate is the wider line beneath.
WIDTHS = {"below": 5.0, "small": 5.0, "large": 2.5, "above": 1.0}
LINES = "line: η* = 1/K of each measured update; cross: update with κ ≥ 1; dots: 1/λmax; dashed: η"


def grid(
    rows: int, columns: int, width: float = 2.2, height: float = 1.9, **options: object
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes, without pyplot."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path) -> Path:
    for ax in figure.axes:
        ax.tick_params(labelsize="x-small")
        if ax.name != "3d":
            ax.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)  # a palette: a third of the size
    return path


def rate(run: Run) -> str:
    return f"{run.experiment.lr:g} ({run.experiment.role})"


def title(run: Run) -> str:
    return f"{run.experiment.optimizer} {rate(run)}\nκ ≤ {run.criticality:.2g}"


def critical_lr(runs: Sequence[Run], path: Path, columns: int) -> Path:
    """η* = 1/K of every measured update beside η and 1/λmax, a panel a family and a colour a run."""
    families = by_family(runs)
    figure, axes = grid(math.ceil(len(families) / columns), columns, 8.4 / columns, 3.2)
    for ax, (name, family) in zip(axes.flat, families.items(), strict=False):
        for run in family:
            _critical_lr(ax, run)
        # Most happens in the first updates.
        ax.set(xscale="log", yscale="log", title=name, xlabel="update")
        legend(ax)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate")
    for ax in axes.flat[len(families) :]:
        ax.axis("off")
    caption(figure, LINES)
    return save(figure, path)


def _critical_lr(ax: Axes, run: Run) -> None:
    colour = COLOURS[run.experiment.role]
    steps = np.array([1 + record.step for record in run.updates])
    values = np.array([record.critical_lr for record in run.updates])
    broken = np.array([record.criticality >= 1 for record in run.updates], dtype=bool)
    ax.plot(steps, values, color=colour, lw=0.8, alpha=0.8, label=f"η = {rate(run)}")
    ax.plot(steps[broken], values[broken], "x", ms=4, mew=1, color=colour)
    ax.axhline(run.experiment.lr, color=colour, ls="--", lw=1)
    inverse = [(1 + record.step, record.inverse) for record in run.sharpness if record.inverse > 0]
    if inverse:
        ax.plot(*zip(*inverse, strict=True), ".", ms=3, color=colour)


def legend(ax: Axes, below: float = 0.2) -> None:
    """Beneath the panel, by a share of its height, where it hides nothing."""
    ax.legend(fontsize="x-small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=3)
    ax.title.set_fontsize("small")
    ax.xaxis.label.set_fontsize("small")
    ax.yaxis.label.set_fontsize("small")


def caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize="small", color="#555555", wrap=True)


def hues(n: int, colours: Colormap) -> np.ndarray:
    return colours(np.arange(n) / n)


def by_family(runs: Sequence[Run], seed: int = 0) -> dict[str, list[Run]]:
    """The runs of one seed, family by family, in order of the learning rate."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        if run.experiment.seed == seed:
            families.setdefault(f"{run.experiment.family}, {run.experiment.optimizer}", []).append(run)
    return {name: sorted(family, key=lambda run: run.experiment.lr) for name, family in families.items()}
