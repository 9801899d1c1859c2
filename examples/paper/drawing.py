"""What the figures share."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from common import Run
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from PIL import Image

COLOURS = {"below": "#56B4E9", "small": "#0072B2", "large": "#D55E00", "above": "#B22222"}
KEY = "light blue: below, blue: small, orange: large, red: above"


def grid(
    rows: int, columns: int, width: float = 2.6, height: float = 2.1, **options: object
) -> tuple[Figure, np.ndarray]:
    """A figure and its (rows, columns) axes, without pyplot."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=75, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path) -> Path:
    for ax in figure.axes:
        if ax.name != "3d":
            ax.spines[["top", "right"]].set_visible(False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)  # a palette: a third of the size
    return path


def title(run: Run) -> str:
    experiment = run.experiment
    return f"{experiment.optimizer} {experiment.lr:g} ({experiment.role})\nκ ≤ {run.criticality:.2g}"


def critical_lr(ax: Axes, runs: Sequence[Run]) -> None:
    """η* = 1/K of every measured update (line), 1/λmax (dots) and the learning rate (dashed), a colour a run."""
    for run in runs:
        colour = COLOURS[run.experiment.role]
        steps = np.array([record.step for record in run.updates])
        values = np.array([record.critical_lr for record in run.updates])
        ax.plot(steps, values, color=colour, lw=0.8, alpha=0.8, label=f"η*, {run.experiment.role}")
        inverse = [(record.step, record.inverse) for record in run.sharpness if record.inverse > 0]
        if inverse:
            ax.plot(*zip(*inverse, strict=True), ".", ms=4, color=colour, mec="black", mew=0.3)
        ax.axhline(run.experiment.lr, color=colour, ls="--", lw=1)
    ax.set_yscale("log")
    ax.set_xlabel("update")


def legend(figure: Figure, text: str) -> None:
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
