"""The topological learning-rate finder against the truth and against four other ways to choose a learning rate.

    python benchmarks/finder.py                     # all tasks, one after the other (about half an hour on one core)
    python benchmarks/finder.py --task "digits-*"   # some
    python benchmarks/finder.py --jobs 4            # in processes
    python benchmarks/finder.py --table             # the table from what is there
    python benchmarks/finder.py --critical          # only η* beside the truth, at a constant rate and under a warm-up
    python benchmarks/finder.py --cost              # time on 10 M parameters, beside Lightning's own search

Each task's measurements are kept in ``--out`` as JSON, and not made again.

Truth: the largest rate at which every update keeps κ < 1, found from the first update's 1/K down on a grid of 10%, and
then on one of 2% from half as much again as the first rate that held. The rates that hold need not form an interval,
so that a bisection would answer by luck. *Same batches*: over the 50 steps that the finder saw. *Median*: over 200
steps, the median of five other batch orders. *Under a warm-up*: both follow the same linear warm-up over 20 steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner import Tuner
from tasks import OPTIMIZERS, Task, all_tasks
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from valley import valley

from lightning_topo.finder import topological_lr_find
from lightning_topo.functional import sharpness
from lightning_topo.neurons import NeuronGroup, find_neuron_groups

HOLD, LONG, TRAINED = 50, 200, 500
WARM_UP = 20
GRID = 1.02
SAFETIES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.125)
OTHER_ORDERS = (11, 12, 13, 14, 15)
TRAIN_ORDER = 20


class Module(pl.LightningModule):
    """A task as a user would write it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.net, self.lr = task, task.model(), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.task.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.optimizer(self.parameters(), lr=self.lr)


class WarmingUp(Module):
    """The same under a warm-up."""

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = super().configure_optimizers()
        scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(folder: str, max_steps: int = -1) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=100 if max_steps == -1 else -1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


# The truth: trials in plain torch.


def updates(
    task: Task, lr: float, batches: list[list[Tensor]], groups: tuple[NeuronGroup, ...], warm_up: int = 1
) -> int:
    """Updates that keep κ < 1 at a rate, all of ``batches`` if it holds."""
    model = task.model()
    optimizer = task.optimizer(model.parameters(), lr=lr)
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warm_up)
        before = [group.points(model) for group in groups]
        if not descend(task, model, optimizer, x, y):
            return step
        after = [group.points(model) for group in groups]
        if not all(p.isfinite().all() for p in model.parameters()):
            return step
        if any(criticality(p, q) >= 1 for p, q in zip(before, after, strict=True)):
            return step
    return len(batches)


def descend(task: Task, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> bool:
    optimizer.zero_grad()
    loss = task.loss(model(x), y)
    loss.backward()
    optimizer.step()
    return math.isfinite(loss.item())


def criticality(before: Tensor, after: Tensor) -> float:
    """κ by matrix products in double precision alone: good to 1e-6 or better here, and a third of the time."""
    p, u = before.double(), after.double() - before.double()
    rounding = (2 * torch.finfo(after.dtype).eps) ** 2 * after.double().square().sum(1)
    p2, u2 = squared_distances(p), squared_distances(u)
    resolved = (p2 > 0) & (u2 >= rounding[:, None] + rounding)
    return math.sqrt(max(float((u2 / p2).where(resolved, 0.0).max()), 0.0))


def squared_distances(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    norms = x.square().sum(1)
    return torch.addmm(norms[:, None] + norms, x, x.T, alpha=-2.0).fill_diagonal_(0.0)


def first_update_rate(task: Task, batches: list[list[Tensor]], groups: tuple[NeuronGroup, ...]) -> float:
    """1/K of the first update, at a rate that single precision resolves."""
    model = task.model()
    before = [group.points(model) for group in groups]
    descend(task, model, task.optimizer(model.parameters(), lr=1.0), *batches[0])
    return 1 / max(criticality(p, group.points(model)) for p, group in zip(before, groups, strict=True))


def true_rate(task: Task, order: int, steps: int, groups: tuple[NeuronGroup, ...], warm_up: int = 1) -> float:
    batches = task.batches(order, steps)
    lr = first_update_rate(task, batches, groups) * GRID * warm_up
    top = lr
    for grid in (1.1, GRID):
        while updates(task, lr, batches, groups, warm_up) < steps:
            lr /= grid
        lr = lr if grid == GRID else min(1.5 * lr, top)
    return lr * math.sqrt(GRID)


def zone(task: Task, truth: float, groups: tuple[NeuronGroup, ...], warm_up: int = 1) -> tuple[float, float]:
    """The lowest rate that broke and the largest that held over the finder's batches, from 0.4 to 1.5 of the truth."""
    batches = task.batches(0, HOLD)
    broke, held = truth * GRID, truth
    for lr in (truth * 1.05**k for k in range(-18, 9)):
        if updates(task, lr, batches, groups, warm_up) < HOLD:
            broke = min(broke, lr)
        else:
            held = max(held, lr)
    return broke, held


# Other ways to choose a rate.


def lightning_suggestion(task: Task, folder: str) -> dict[str, float | None]:
    found = Tuner(trainer(folder)).lr_find(Module(task), task.loader(0), update_attr=False)
    return {"lr": found.suggestion(), "steps": len(found.results["loss"])}


def valley_suggestion(task: Task) -> dict[str, float | None]:
    model = task.model()
    rate, steps = valley(model, task.optimizer(model.parameters(), lr=1e-7), task.batches(0, 100), task.loss)
    return {"lr": rate, "steps": steps}


def sharpness_suggestion(task: Task) -> dict[str, float | None]:
    model = task.model()
    x, y = task.data()
    with sdpa_kernel(SDPBackend.MATH):  # flash attention has no second derivative
        value = sharpness(lambda: task.loss(model(x), y), model.parameters())
    return {"lr": 1 / value if value > 0 else None, "steps": 0}


def ramp_suggestion(
    task: Task, groups: tuple[NeuronGroup, ...], start: float = 1e-6, end: float = 100.0, steps: int = 100
) -> dict[str, float | None]:
    """The rate at which κ first reaches 1 on an exponential ramp, an estimate of η*."""
    model = task.model()
    optimizer = task.optimizer(model.parameters(), lr=start)
    for step, (x, y) in enumerate(task.batches(0, steps)):
        rate = start * (end / start) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = [group.points(model) for group in groups]
        if not descend(task, model, optimizer, x, y):
            return {"lr": rate, "steps": step + 1}
        if any(not criticality(p, g.points(model)) < 1 for p, g in zip(before, groups, strict=True)):
            return {"lr": rate, "steps": step + 1}
    return {"lr": None, "steps": steps}


# What a rate is worth.


def final_loss(task: Task, lr: float) -> float:
    """Training loss over all data after 500 steps, ``inf`` where it diverged."""
    model = task.model()
    optimizer = task.optimizer(model.parameters(), lr=lr)
    for x, y in task.batches(TRAIN_ORDER, TRAINED):
        if not descend(task, model, optimizer, x, y):
            return math.inf
    x, y = task.data()
    with torch.no_grad():
        loss = task.loss(model(x), y).item()
    return loss if math.isfinite(loss) else math.inf


def best_of_grid(task: Task, around: float) -> dict[str, float]:
    """Final losses at 10^(k/4), from a hundredth of a rate to ten times it, and on while the best is at an edge."""
    losses: dict[int, float] = {}
    centre = round(4 * math.log10(around))
    low, high = centre - 8, centre + 4
    while True:
        for k in range(low, high + 1):
            if k not in losses:
                losses[k] = final_loss(task, 10 ** (k / 4))
        best = min(losses, key=lambda k: losses[k])
        if low < best < high:
            return {f"{10 ** (k / 4):.4g}": losses[k] for k in sorted(losses)}
        low, high = (low - 4, high) if best == low else (low, high + 4)


# One task.


def measure(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    quiet()
    started = time.perf_counter()
    task = all_tasks()[name]
    with TemporaryDirectory() as folder:
        row: dict[str, Any] = {"task": name}
        for orders in (1, 3):
            began = time.perf_counter()
            found = topological_lr_find(trainer(folder), Module(task), task.loader(0), orders=orders, update_attr=False)
            seconds = time.perf_counter() - began
            row[f"finder_{orders}"] = {**found.to_dict(), "seconds": seconds}
        row["lightning"] = lightning_suggestion(task, folder)
    groups = find_neuron_groups(task.model(), task.data()[0][:8])
    row["valley"] = valley_suggestion(task)
    row["sharpness"] = sharpness_suggestion(task)
    row["ramp"] = ramp_suggestion(task, groups)
    row["truth_same"] = true_rate(task, 0, HOLD, groups)
    row["truth_others"] = [true_rate(task, order, LONG, groups) for order in OTHER_ORDERS]
    row["truth_median"] = statistics.median(row["truth_others"])
    critical = row["finder_1"]["critical_lr"]
    row["grid"] = best_of_grid(task, critical)
    row["start_loss"] = start_loss(task)
    row["losses"] = {f"finder {safety:g}": final_loss(task, safety * critical) for safety in SAFETIES}
    row["losses"]["finder auto"] = final_loss(task, row["finder_1"]["safety"] * critical)
    for key in ("lightning", "valley", "sharpness"):
        row["losses"][key] = final_loss(task, row[key]["lr"]) if row[key]["lr"] else math.inf
    row["losses"]["ramp"] = final_loss(task, row["ramp"]["lr"] / 2) if row["ramp"]["lr"] else math.inf
    row["seconds"] = time.perf_counter() - started
    return row


def start_loss(task: Task) -> float:
    x, y = task.data()
    with torch.no_grad():
        return task.loss(task.model()(x), y).item()


def quiet() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def critical(name: str) -> dict[str, Any]:
    """η* of the finder and the truth over the same batches: at a constant rate, and under a warm-up."""
    torch.set_num_threads(1)
    quiet()
    task = all_tasks()[name]
    groups = find_neuron_groups(task.model(), task.data()[0][:8])
    row: dict[str, Any] = {"task": name}
    for key, module, warm_up in (("constant", Module(task), 1), ("warm-up", WarmingUp(task), WARM_UP)):
        with TemporaryDirectory() as folder:
            found = topological_lr_find(trainer(folder), module, task.loader(0), safety=1.0, update_attr=False)
        truth = true_rate(task, 0, HOLD, groups, warm_up)
        broke, held = zone(task, truth, groups, warm_up)
        row[key] = {"critical_lr": found.critical_lr, "steps": found.total_steps, "truth": truth}
        row[key] |= {"alternating": found.alternating, "lowest_broke": broke, "largest_held": held}
    return row


def show_critical(rows: list[dict[str, Any]]) -> None:
    for key in ("constant", "warm-up"):
        ratios = [row[key]["critical_lr"] / row[key]["truth"] for row in rows]
        within = share(ratios, lambda r: 1 / 1.1 <= r <= 1.1)
        steps = statistics.median(row[key]["steps"] for row in rows)
        print(f"{key}: η* over the truth {quantiles(ratios)}, within 10%: {within}, {steps:.0f} steps in the median")
        outside = [f"{row['task']} {r:.2f}" for row, r in zip(rows, ratios, strict=True) if not 1 / 1.1 <= r <= 1.1]
        print("  outside:", ", ".join(outside) or "none")
        alternate = [row for row in rows if row[key]["lowest_broke"] < row[key]["largest_held"]]
        of_zones = [beside_zone(row[key]) for row in rows]
        names = ", ".join(f"{row['task']}{'*' if row[key]['alternating'] else ''}" for row in alternate)
        print(f"  rates alternate on {len(alternate)} (*: and the finder says so): {names or 'none'}")
        print(f"  within 10% of the zone: {share(of_zones, lambda r: 1 / 1.1 <= r <= 1.1)}")


def beside_zone(found: dict[str, float]) -> float:
    """η* over the nearer end of the zone, 1 within it."""
    low, high = sorted((found["lowest_broke"], found["largest_held"]))
    return found["critical_lr"] / min(max(found["critical_lr"], low), high)


# What it costs on a large network.


def cost(optimizer: str) -> str:
    """Processor seconds of a search and of Lightning's, in one process, for 9.6 M parameters and digits of 28 x 28."""
    torch.set_num_threads(1)
    quiet()
    task = Task("wide/" + optimizer, wide, large_digits, nn.functional.cross_entropy, OPTIMIZERS[optimizer])
    with TemporaryDirectory() as folder:

        def theirs() -> Any:
            return Tuner(trainer(folder)).lr_find(Module(task), task.loader(0), update_attr=False)

        def ours() -> Any:
            return topological_lr_find(trainer(folder), Module(task), task.loader(0), update_attr=False)

        seconds, results = {}, {}
        for name, search in (("lr_find", theirs), ("ours", ours)):
            began = time.process_time()
            results[name] = search()
            seconds[name] = time.process_time() - began
    n_theirs, n_ours = len(results["lr_find"].results["loss"]), results["ours"].total_steps
    return (
        f"{optimizer}: lr_find {seconds['lr_find']:.1f} s ({n_theirs} steps), ours {seconds['ours']:.1f} s "
        f"({n_ours} steps, eta* {results['ours'].critical_lr:.3g}), ratio {seconds['ours'] / seconds['lr_find']:.2f}"
    )


def wide() -> nn.Module:
    widths = (784, 2000, 2000, 2000)
    hidden = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(2000, 10))


def large_digits() -> tuple[Tensor, Tensor]:
    x, y = all_tasks()["conv/sgd"].data()
    return nn.functional.interpolate(x.view(-1, 1, 8, 8), size=28, mode="bilinear").flatten(1), y


# The tables.


def quantiles(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.3g})"


def loss_ratio(row: dict[str, Any], key: str) -> float:
    best = min(row["grid"].values())
    loss = row["losses"][key]
    return math.inf if loss > row["start_loss"] else loss / best


def share(values: list[float], holds: Callable[[float], bool]) -> str:
    return f"{sum(map(holds, values))} of {len(values)}"


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'task':34s} {'η*':>9s} /same  /median | orders=3 /same /median | steps 1, 3 | loss ratio at 1, 1/2, 1/4 η*"
    )
    for row in rows:
        one, three = row["finder_1"], row["finder_3"]
        ratios = [f"{loss_ratio(row, f'finder {safety:g}'):8.2f}" for safety in (1.0, 0.5, 0.25)]
        print(
            f"{row['task']:34s} {one['critical_lr']:9.3g} {one['critical_lr'] / row['truth_same']:5.2f}"
            f" {one['critical_lr'] / row['truth_median']:7.2f} | {three['critical_lr'] / row['truth_same']:13.2f}"
            f" {three['critical_lr'] / row['truth_median']:7.2f} | {one['total_steps']:4d} {three['total_steps']:5d} |",
            *ratios,
        )
    print()
    same = [row["finder_1"]["critical_lr"] / row["truth_same"] for row in rows]
    print("η* over same-batches truth:", quantiles(same), "within 10%:", share(same, lambda r: 1 / 1.1 <= r <= 1.1))
    for orders in (1, 3):
        ratio = [row[f"finder_{orders}"]["critical_lr"] / row["truth_median"] for row in rows]
        steps = [row[f"finder_{orders}"]["total_steps"] for row in rows]
        within = share(ratio, lambda r: 0.75 <= r <= 1.33)
        print(f"orders={orders}: over median truth {quantiles(ratio)}, within 0.75 to 1.33: {within}", end="; ")
        print(f"optimizer steps {quantiles(steps)}")
    print(
        "\nmethod          steps   estimate / median truth          loss / best of grid             diverged  above 10x"
    )
    for label, key, estimate in columns():
        ratios = [loss_ratio(row, key) for row in rows]
        rates = [rate / row["truth_median"] for row in rows if (rate := estimate(row))]
        steps = statistics.median(spent(row, key) for row in rows)
        finite = sorted(ratios)
        print(
            f"{label:14s} {steps:6.0f}   {quantiles(rates):32s} median {finite[len(finite) // 2]:8.2f}  "
            f"worst {max(ratios):8.3g}   {sum(map(math.isinf, ratios)):5d} {sum(r > 10 for r in ratios):10d}"
        )


def spent(row: dict[str, Any], key: str) -> int:
    return row["finder_1"]["total_steps"] if key.startswith("finder") else row[key]["steps"]


def columns() -> list[tuple[str, str, Callable[[dict[str, Any]], float | None]]]:
    ours = [
        (f"{safety:g} η*", f"finder {safety:g}", lambda row, s=safety: s * row["finder_1"]["critical_lr"])
        for safety in SAFETIES
    ]
    chosen = ("suggestion", "finder auto", lambda row: row["finder_1"]["safety"] * row["finder_1"]["critical_lr"])
    theirs = [
        (label, key, lambda row, k=key: row[k]["lr"])
        for label, key in (
            ("lr_find", "lightning"),
            ("valley", "valley"),
            ("1/λmax", "sharpness"),
            ("κ ramp, half", "ramp"),
        )
    ]
    return [chosen, *ours, *theirs]


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '_')}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="*", help="glob on task names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "finder")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--critical", action="store_true", help="only η* beside the truth over the same batches")
    parser.add_argument("--cost", action="store_true", help="only the time on 10 M parameters")
    options = parser.parse_args()
    if options.cost:
        for optimizer in ("sgd", "momentum", "adam"):
            print(cost(optimizer), flush=True)
        return
    names = [name for name in all_tasks() if fnmatch(name, options.task)]
    if options.critical:
        rows = []
        for name in names:
            rows.append(critical(name))
            print(json.dumps(rows[-1]), flush=True)
        show_critical(rows)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    missing = [] if options.table else [name for name in names if not path_of(options.out, name).exists()]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, missing):
            path_of(options.out, row["task"]).write_text(json.dumps(row, indent=1))
            print(f"{row['task']} {row['seconds']:.0f} s", flush=True)
    rows = [json.loads(path.read_text()) for name in names if (path := path_of(options.out, name)).exists()]
    if rows:
        show(rows)


if __name__ == "__main__":
    main()
