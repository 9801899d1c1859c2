"""Loss of plasticity on Fashion-MNIST whose labels mean something else in each epoch.

A perceptron (784-256-256-10, ReLU) learns one task after another: in each epoch over 20,000 images the ten labels are
permuted anew, so that the readout has to be learned again and again on the same images. After each task its accuracy on
the test images is taken, and of both hidden layers the distinct neurons, the dormant share and the effective rank. SGD
and Adam, at the rate that is usual and at five or ten times that, plain, under step clipping, and under rate control.

Writes docs/evidence/plasticity.md and docs/plasticity.png. The runs stay in a file of JSON lines; only missing ones are
made.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markdown_table import head, line
from matplotlib.figure import Figure
from rates_tasks import fashion
from torch import Tensor, nn

import lightning_topo as lt
from lightning_topo.functional import distinct_neurons, dormant_share, effective_rank

ROOT = Path(__file__).parents[1]
N_TASKS, N_IMAGES, BATCH, WIDTH, MEASURED = 20, 20_000, 128, 256, 512
OPTIMIZERS = {
    "SGD 0.1": (torch.optim.SGD, 0.1),
    "SGD 0.5": (torch.optim.SGD, 0.5),
    "Adam 0.001": (torch.optim.Adam, 1e-3),
    "Adam 0.01": (torch.optim.Adam, 1e-2),
}
WAYS = ("plain", "step clipping", "clipping at 0.1", "rate control")


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)
    )


def tasks(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each task what the ten labels mean there, and the order of the training images."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for _ in range(N_TASKS):
        meaning = torch.randperm(10, generator=generator)
        yield meaning, torch.randperm(N_IMAGES, generator=generator)


def treated(way: str, optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> AbstractContextManager[Any]:
    example = fashion().train[0][:4]
    if "clipping" in way:
        bound = {"max_criticality": 0.1} if "at 0.1" in way else {}
        return lt.topological_step_clipping(optimizer, model, example_input=example, **bound)
    if way == "rate control":
        return lt.topological_rate_control(optimizer, model, example, total_steps=steps, schedule="constant")
    return nullcontext()


def run(optimizer_name: str, way: str, seed: int) -> dict[str, Any]:
    """One network through all tasks."""
    (x, y), (test_x, test_y) = fashion().train, fashion().valid
    model = perceptron(seed)
    kind, rate = OPTIMIZERS[optimizer_name]
    optimizer = kind(model.parameters(), lr=rate)
    groups = lt.find_neuron_groups(model, x[:4])
    start = [group.points(model) for group in groups]
    rows = [state(model, groups, start, test_x)]
    began = time.process_time()
    with treated(way, optimizer, model, N_TASKS * (N_IMAGES // BATCH)) as treatment:
        for meaning, order in tasks(seed):
            for index in order.split(BATCH)[: N_IMAGES // BATCH]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[index]), meaning[y[index]]).backward()
                optimizer.step()
            accuracy = float((model(test_x).argmax(1) == meaning[test_y]).double().mean())
            rows.append({"accuracy": accuracy, **state(model, groups, start, test_x)})
    result = {"optimizer": optimizer_name, "way": way, "seed": seed, "rows": rows}
    result |= {"seconds": time.process_time() - began, "updates": N_TASKS * (N_IMAGES // BATCH)}
    if "clipping" in way:
        result["clipped"] = treatment.clipped_updates
    return result


@torch.no_grad()
def state(model: nn.Sequential, groups: Any, start: list[Tensor], images: Tensor) -> dict[str, list[float | None]]:
    """What is left of each hidden layer; None where it is no longer finite."""
    activations, h = [], images[:MEASURED]
    for layer in model:
        h = layer(h)
        if isinstance(layer, nn.ReLU):
            activations.append(h)
    measured: dict[str, list[float | None]] = {"distinct": [], "dormant": [], "silent": [], "effective_rank": []}
    for group, first, h in zip(groups, start, activations, strict=True):
        points = group.points(model)
        finite = bool(points.isfinite().all() and h.isfinite().all())
        measured["distinct"].append(distinct_neurons(points, first) if finite else None)
        measured["dormant"].append(dormant_share(h) if finite else None)
        measured["silent"].append(dormant_share(h, centred=False) if finite else None)
        measured["effective_rank"].append(effective_rank(h) if finite else None)
    return measured


# Page and figure.

COLOURS = {"plain": "#D55E00", "step clipping": "#0072B2", "clipping at 0.1": "#56B4E9", "rate control": "#009E73"}


def series(runs: list[dict[str, Any]], figure: str) -> np.ndarray:
    """A figure after each task, of each run, the mean of both layers; not finite counts as nothing left."""
    lost = 1.0 if figure in ("dormant", "silent") else 0.0
    values = [[row.get(figure, math.nan) for row in run["rows"]] for run in runs]
    return np.array(
        [[np.mean([lost if v is None else v for v in np.atleast_1d(task)]) for task in run] for run in values]
    )


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """One column an optimizer, one row a figure; a line for the mean over seeds, and between the seeds a shade."""
    figures = {
        "accuracy": "accuracy on the task",
        "dormant": "dormant share",
        "effective_rank": "effective rank",
        "distinct": f"distinct neurons of {WIDTH}",
    }
    axes = Figure(figsize=(12.8, 10.2), dpi=100, layout="constrained").subplots(
        len(figures), len(OPTIMIZERS), sharex=True, sharey="row", squeeze=False
    )
    for row, (figure, label) in zip(axes, figures.items(), strict=True):
        for ax, optimizer in zip(row, OPTIMIZERS, strict=True):
            for way in WAYS:
                chosen = [run for run in runs if (run["optimizer"], run["way"]) == (optimizer, way)]
                if not chosen:
                    continue
                values = series(chosen, figure)
                x = np.arange(values.shape[1])
                ax.fill_between(x, values.min(0), values.max(0), color=COLOURS[way], alpha=0.2, lw=0)
                ax.plot(x, values.mean(0), color=COLOURS[way], lw=2.0, label=way)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)
    for ax, optimizer in zip(axes[0], OPTIMIZERS, strict=True):
        ax.set_title(optimizer)
    for ax in axes[-1]:
        ax.set_xlabel("tasks learned")
        ax.set_xticks(range(0, N_TASKS + 1, 5))
    fullest = max(axes[-1], key=lambda ax: len(ax.lines))  # where every way was run
    fullest.legend(frameon=False, loc="lower right")
    axes[0][0].figure.savefig(path)


COLUMNS = (
    "optimizer",
    "",
    "seeds",
    "accuracy, tasks 1 to 3",
    "tasks 18 to 20",
    "dormant at the end",
    "by the paper's own score",
    "effective rank",
    "distinct of 256",
    "updates scaled back",
)


def table(runs: list[dict[str, Any]]) -> list[str]:
    lines = head(COLUMNS)
    for optimizer in OPTIMIZERS:
        for way in WAYS:
            chosen = [run for run in runs if (run["optimizer"], run["way"]) == (optimizer, way)]
            if not chosen:
                continue
            accuracy = series(chosen, "accuracy")
            end = {name: series(chosen, name)[:, -1] for name in chosen[0]["rows"][-1]}
            clipped = [run["clipped"] / run["updates"] for run in chosen if "clipped" in run]
            cells = (
                spread(accuracy[:, 1:4].mean(1), "{:.3f}"), spread(accuracy[:, -3:].mean(1), "{:.3f}"),
                spread(100 * end["dormant"], "{:.0f}", "%"), spread(100 * end["silent"], "{:.0f}", "%"),
                spread(end["effective_rank"], "{:.0f}"), spread(end["distinct"], "{:.0f}"),
                spread(100 * np.array(clipped), "{:.1f}", "%") if clipped else "-",
            )  # fmt: skip
            lines.append(line((optimizer, way, len(chosen), *cells)))
    return lines


def spread(values: np.ndarray, form: str, unit: str = "") -> str:
    """The mean over seeds, and from where to where they lie."""
    mean, least, most = (form.format(value) for value in (values.mean(), values.min(), values.max()))
    return f"{mean}{unit}" if least == most else f"{mean}{unit} ({least} to {most})"


def page(runs: list[dict[str, Any]]) -> None:
    """Rewrite the table of the page between its marks, and the figure; what is said about them stays."""
    draw(runs, ROOT / "docs/plasticity.png")
    target = ROOT / "docs/evidence/plasticity.md"
    before, rest = target.read_text().split("<!-- table -->\n")
    _, after = rest.split("<!-- end of the table -->\n")
    inner = "\n".join(["", *table(runs), "", ""])
    target.write_text(f"{before}<!-- table -->\n{inner}<!-- end of the table -->\n{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "docs/evidence/plasticity.jsonl")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="part of the name of the runs to make")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.exists() else []
    made = {(run["optimizer"], run["way"], run["seed"]) for run in known}
    for seed in range(options.seeds):
        for optimizer in OPTIMIZERS:
            for way in WAYS:
                if (optimizer, way, seed) in made or options.only not in f"{optimizer}/{way}/{seed}":
                    continue
                result = run(optimizer, way, seed)
                with options.runs.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                last = result["rows"][-1]
                known.append(result)
                print(f"{optimizer}, {way}, seed {seed}: {result['seconds']:.0f} s, {last}", flush=True)
    if not options.only:
        page(known)


if __name__ == "__main__":
    main()
