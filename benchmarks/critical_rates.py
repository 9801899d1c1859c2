"""Both critical rates along real runs: of the loss (η_c), of the neurons (η*), and 2/λmax, beside the learning rate.

    python benchmarks/critical_rates.py [--steps 300] [--every 3] [--seed 0]

Writes docs/critical_rates.png and docs/evidence/critical-rates.md. Networks and data are those of `rates_tasks.py`,
rates the best of the sweep in docs/evidence/rates.md, with a warm-up and a cosine to 0. One task more is gradient
descent on a whole table at a constant rate, as in the literature on the edge of stability.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from rates_tasks import Task, all_tasks, shape
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import lightning_topo as lt

DOCS = Path(__file__).resolve().parent.parent / "docs"
# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"


@dataclass(frozen=True)
class Experiment:
    """A run of a task; a batch size of 0 takes all training examples in each."""

    title: str
    task: str
    lr: float
    schedule: str = "cosine"
    steps: float = 1.0  # times those of the others
    batch_size: int | None = None


EXPERIMENTS = (
    Experiment("GPT, AdamW", "gpt/adamw", 0.002),
    Experiment("ResNet with BatchNorm, momentum 0.9", "resnet/momentum", 0.25),
    Experiment("convolutional net, SGD", "conv/sgd", 0.5),
    Experiment("perceptron, gradient descent, constant rate", "diabetes/sgd", 0.1, "constant", 2.0, 0),
)


@dataclass(frozen=True)
class Curves:
    """What was measured in a run, by the step."""

    experiment: Experiment
    rate: dict[int, float]
    loss: dict[int, float]  # critical rate of the loss
    neurons: dict[int, float]
    hessian: dict[int, float]  # 2 / λmax
    seconds: float


class Batches(IterableDataset):
    def __init__(self, make: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.make()


class Module(pl.LightningModule):
    def __init__(self, task: Task, experiment: Experiment, steps: int, seed: int) -> None:
        super().__init__()
        self.task, self.experiment, self.steps = task, experiment, steps
        self.network = task.model(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.task.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> dict:
        optimizer = self.task.optimizer(self.network, self.experiment.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: shape(min(step, self.steps - 1), self.steps, self.experiment.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def task_of(experiment: Experiment) -> Task:
    tasks = all_tasks()
    return tasks.get(experiment.task) or replace(tasks["diabetes/adam"], name=experiment.task)


def run(experiment: Experiment, steps: int, every: int, seed: int) -> Curves:
    task, steps = task_of(experiment), round(steps * experiment.steps)
    whole = task.data().train

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return iter([whole] * steps) if experiment.batch_size == 0 else task.batches(steps, seed)

    sharpness = lt.SharpnessMonitor(every, max_overhead=None)
    neurons = lt.BiLipschitzMonitor(every_n_train_steps=every, max_overhead=None)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=[sharpness, neurons], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10**6,
    )  # fmt: skip
    began = time.perf_counter()
    pl.seed_everything(seed, verbose=False)
    trainer.fit(Module(task, experiment, steps, seed), DataLoader(Batches(batches), batch_size=None))
    eta_star: dict[int, float] = {}
    for record in neurons.history:
        eta_star[record.step] = min(record.critical_lr, eta_star.get(record.step, float("inf")))
    return Curves(
        experiment,
        {record.step: record.learning_rate for record in sharpness.history},
        {record.step: record.critical_lr for record in sharpness.history},
        eta_star,
        {record.step: 2 / record.lambda_max for record in sharpness.history if record.lambda_max > 0},
        time.perf_counter() - began,
    )


def draw(runs: list[Curves], path: Path) -> None:
    figure = Figure(figsize=(11, 7.6), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2).flat
    for ax, curves in zip(axes, runs, strict=True):
        lines = (
            ("2/λmax", curves.hessian, GREY, ":", 1.2),
            ("η* of the neurons", curves.neurons, ORANGE, "-", 1.3),
            ("η_c of the loss", curves.loss, BLUE, "-", 1.3),
            ("learning rate η", curves.rate, "black", "--", 1.5),
        )
        for label, values, colour, style, width in lines:
            points = sorted((step, value) for step, value in values.items() if 0 < value < float("inf"))
            if points:
                ax.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=width)
        never = [step for step, value in curves.loss.items() if value == 0]
        if never:
            ax.plot(never, [ax.get_ylim()[0]] * len(never), "v", color=BLUE, markersize=4, label="η_c = 0")
        ax.set(title=curves.experiment.title, xlabel="step", ylabel="rate", yscale="log")
        ax.grid(alpha=0.25)
    legends = [ax.get_legend_handles_labels() for ax in figure.axes]
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def quartiles(values: list[float]) -> str:
    if len(values) < 4:
        return "-"
    low, middle, high = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in statistics.quantiles(values))
    return f"{middle} ({low} to {high})"


def ratios(upper: dict[int, float], lower: dict[int, float], steps: range) -> list[float]:
    both = [step for step in upper if step in lower and step in steps and lower[step] > 0]
    return [upper[step] / lower[step] for step in both if upper[step] < float("inf")]


def page(runs: list[Curves], options: argparse.Namespace) -> str:
    rows = []
    for curves in runs:
        total = round(options.steps * curves.experiment.steps)
        for name, steps in (("first third", range(total // 3)), ("last two thirds", range(total // 3, total))):
            measured = [value for step, value in curves.loss.items() if step in steps]
            cells = [
                quartiles(ratios(curves.loss, curves.rate, steps)),
                quartiles(ratios(curves.neurons, curves.rate, steps)),
                quartiles(ratios(curves.loss, curves.neurons, steps)),
                quartiles(ratios(curves.loss, curves.hessian, steps)),
                f"{sum(value == 0 for value in measured)} of {len(measured)}",
            ]
            rows.append(f"| {curves.experiment.title} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            "# Critical rates of the loss and of the neurons",
            "",
            "Made by `benchmarks/critical_rates.py` "
            f"(updates measured: one in {options.every}; steps: {options.steps}, twice as many in the last run; "
            f"seed {options.seed}).",
            "",
            "η_c is the smallest rate at which the update would not have lowered the loss of its own batch, η\\* the",
            "smallest at which it would not be one-to-one on the neurons of some layer. Rates are the best of the",
            "sweep in [rates](rates.md), with a warm-up of 10% and a cosine to 0; the last run is gradient descent on",
            "a whole table (scikit-learn's diabetes, squared error) at a constant rate.",
            "",
            "![Critical rates along four runs](../critical_rates.png)",
            "",
            "Median over the updates of a part of the run, and in brackets its quartiles:",
            "",
            "| run | part | η_c / η | η\\* / η | η_c / η\\* | η_c λmax / 2 | η_c = 0 |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            "For a quadratic loss η_c λmax / 2 is at least 1 under gradient descent, and 1 where the gradient points",
            "along the leading eigenvector. With momentum and Adam the update is not the gradient, and it may lie",
            "below. The GPT's fused attention has no second derivative, so that λmax is not known there.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    runs = []
    for experiment in EXPERIMENTS:
        runs.append(run(experiment, options.steps, options.every, options.seed))
        print(f"{experiment.title}: {runs[-1].seconds:.0f} s, {len(runs[-1].loss)} measurements", flush=True)
    draw(runs, DOCS / "critical_rates.png")
    text = page(runs, options)
    (DOCS / "evidence" / "critical-rates.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
