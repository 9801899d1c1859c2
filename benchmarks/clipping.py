"""Topological step clipping beside plain training, gradient-norm clipping and adaptive gradient clipping.

    python benchmarks/clipping.py                     # all tasks, one after the other (about half an hour on one core)
    python benchmarks/clipping.py --task "digits-*"   # some
    python benchmarks/clipping.py --table             # the tables from what is there
    python benchmarks/clipping.py --variants          # other bounds, and other ways to treat the optimizer's memory
    python benchmarks/clipping.py --cost              # time of a step on 10 M parameters

The networks of the finder's benchmark, each with SGD, momentum, Adam and AdamW, trained for 500 steps on four fifths of
its data at multiples of the critical learning rate η* that the finder finds there. Losses are of the training data;
accuracies are of the other fifth (for the teacher regressions 1 - MSE / variance). Each task's measurements are kept in
``--out`` as JSON, and not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from finder import Module, large_digits, quiet, trainer, wide
from tasks import OPTIMIZERS, Task, all_tasks
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.clipping import StepClipper, topological_step_clipping
from lightning_topo.finder import topological_lr_find
from lightning_topo.neurons import find_neuron_groups
from lightning_topo.updates.optimizer_state import OptimizerMemory

STEPS = 500
ORDER = 20
MULTIPLES = (0.25, 0.5, 1, 2, 4, 8, 32)
BOUND = 0.1


def tasks() -> dict[str, Task]:
    networks = {name.split("/")[0]: task for name, task in all_tasks().items()}
    return {
        f"{network}/{name}": replace(
            task, name=f"{network}/{name}", optimizer=optimizer, data=lambda t=task: part(t)[0]
        )
        for network, task in networks.items()
        for name, optimizer in OPTIMIZERS.items()
    }


def part(task: Task) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Four fifths of a task's data to train on, and the rest."""
    x, y = task.data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order.tensor_split([len(x) * 4 // 5])
    return (x[train], y[train]), (x[test], y[test])


# What a step is guarded by. Each takes the model and its optimizer, and acts while the block runs.


def norm_clipping(model: nn.Module, optimizer: Optimizer, task: Task) -> Any:
    return before_steps(optimizer, lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0))


def adaptive_gradient_clipping(model: nn.Module, optimizer: Optimizer, task: Task) -> Any:
    """Brock et al., arXiv 2102.06171, equation 3: unit-wise, λ = 0.01, ε = 0.001, the last layer left out."""
    *guarded, _ = [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]
    parameters = [p for module in guarded for p in module.parameters(recurse=False)]

    @torch.no_grad()
    def clip() -> None:
        for p in parameters:
            if p.grad is None:
                continue
            axes = tuple(range(1, p.ndim)) if p.ndim > 1 else None
            weight = torch.linalg.vector_norm(p, dim=axes, keepdim=True).clamp_min(1e-3)
            gradient = torch.linalg.vector_norm(p.grad, dim=axes, keepdim=True)
            p.grad.mul_((0.01 * weight / gradient.clamp_min(1e-12)).clamp_max(1.0))

    return before_steps(optimizer, clip)


@contextmanager
def before_steps(optimizer: Optimizer, act: Callable[[], object]) -> Iterator[None]:
    handle = optimizer.register_step_pre_hook(lambda *_: act() and None)
    try:
        yield
    finally:
        handle.remove()


def step_clipping(model: nn.Module, optimizer: Optimizer, task: Task, bound: float = BOUND) -> Any:
    groups = find_neuron_groups(model, task.data()[0][:8])
    return topological_step_clipping(optimizer, model, list(groups), bound)


METHODS: dict[str, Callable[[nn.Module, Optimizer, Task], Any]] = {
    "plain": lambda *_: nullcontext(),
    "norm 1.0": norm_clipping,
    "adaptive": adaptive_gradient_clipping,
    "step clipping": step_clipping,
}


# One run.


def run(task: Task, test: tuple[Tensor, Tensor], lr: float, method: Callable[..., Any], steps: int) -> dict[str, float]:
    """Final training loss and test accuracy, processor seconds, share of clipped updates."""
    model = task.model()
    optimizer = task.optimizer(model.parameters(), lr=lr)
    batches = task.batches(ORDER, steps)
    with method(model, optimizer, task) as guard:
        began = time.process_time()
        for x, y in batches:
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            optimizer.step()
            if not math.isfinite(loss.item()):
                break
        seconds = time.process_time() - began
    with torch.no_grad():
        x, y = task.data()
        final = task.loss(model(x), y).item()
        outcome = {"loss": final if math.isfinite(final) else math.inf, "accuracy": accuracy(model, *test)}
    outcome["ms"] = 1e3 * seconds / steps
    if isinstance(guard, StepClipper):
        outcome["clipped"] = guard.clipped_updates / guard.updates
    return outcome


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    out = model(x)
    if y.dtype == torch.long:
        return (out.argmax(1) == y).float().mean().item()
    value = 1 - ((out - y).square().mean() / y.var()).item()
    return max(value, 0.0) if math.isfinite(value) else 0.0


def critical_lr(task: Task) -> float:
    with TemporaryDirectory() as folder:
        return topological_lr_find(trainer(folder), Module(task), task.loader(0), update_attr=False).critical_lr


def measure(task: Task, network: Task) -> dict[str, Any]:
    (x, y), test = part(network)
    with torch.no_grad():
        start = task.loss(task.model()(x), y).item()
    row: dict[str, Any] = {"task": task.name, "start_loss": start, "critical_lr": critical_lr(task)}
    row["runs"] = {
        name: {f"{m:g}": run(task, test, m * row["critical_lr"], method, STEPS) for m in MULTIPLES}
        for name, method in METHODS.items()
    }
    return row


# Variants.

FORGET = OptimizerMemory.forget_pushes


def forget(optimizer: Optimizer, factors: dict[int, float]) -> None:
    """What step clipping does."""
    FORGET(OptimizerMemory(optimizer), factors)


def keep(optimizer: Optimizer, factors: dict[int, float]) -> None:
    """The optimizer's memory stays as it is."""


def scale(optimizer: Optimizer, factors: dict[int, float]) -> None:
    """First moments are scaled like the update, as if the optimizer had asked for what was made."""
    for parameter, state in optimizer.state.items():
        for name in ("momentum_buffer", "exp_avg"):
            if state.get(name) is not None:
                state[name].mul_(factors.get(id(parameter), 1.0))


def second_moments(optimizer: Optimizer, factors: dict[int, float]) -> None:
    """Adam remembers a gradient that is larger by 1/s, so that this update would have come out; momentum as usual."""
    for parameter, state in optimizer.state.items():
        factor = factors.get(id(parameter), 1.0)
        if "exp_avg_sq" in state:
            state["exp_avg_sq"].div_(max(factor, 1e-3) ** 2)
        elif state.get("momentum_buffer") is not None:
            state["momentum_buffer"].mul_(factor)


VARIANTS: dict[str, tuple[float, Callable[..., None]]] = {
    "0.1, first moments forgotten": (0.1, forget),
    "0.1, scaled": (0.1, scale),
    "0.05, scaled": (0.05, scale),
    "0.2, scaled": (0.2, scale),
    "0.5, scaled": (0.5, scale),
    "0.1, kept": (0.1, keep),
    "0.1, second moments raised": (0.1, second_moments),
}
VARIANT_TASKS = ("digits-relu-default", "digits-sigmoid-sphere", "conv", "conv-batchnorm", "transformer")
VARIANT_OPTIMIZERS = ("momentum", "adam")
VARIANT_MULTIPLES = (0.5, 4, 32)


def measure_variants(task: Task, network: Task) -> dict[str, Any]:
    _, test = part(network)
    lr = critical_lr(task)
    row: dict[str, Any] = {"task": task.name, "critical_lr": lr, "plain": {}}
    for m in VARIANT_MULTIPLES:
        row["plain"][f"{m:g}"] = run(task, test, m * lr, METHODS["plain"], STEPS)
    for name, (bound, remember) in VARIANTS.items():
        with mock.patch.object(
            OptimizerMemory, "forget_pushes", lambda memory, factors, act=remember: act(memory.optimizer, factors)
        ):
            guard = partial(step_clipping, bound=bound)
            row[name] = {f"{m:g}": run(task, test, m * lr, guard, STEPS) for m in VARIANT_MULTIPLES}
    return row


def show_variants(rows: list[dict[str, Any]]) -> None:
    print(f"{len(rows)} tasks. Loss after {STEPS} steps: median (worst)\n")
    print("| variant | " + " | ".join(f"{m:g} η*" for m in VARIANT_MULTIPLES) + " |")
    print("|---" * (len(VARIANT_MULTIPLES) + 1) + "|")
    for name in ("plain", *VARIANTS):
        losses = [[row[name][f"{m:g}"]["loss"] for row in rows] for m in VARIANT_MULTIPLES]
        print(f"| {name} | " + " | ".join(f"{statistics.median(x):.3g} ({max(x):.3g})" for x in losses) + " |")


# What it costs on a large network.


def cost(name: str, steps: int = 30) -> str:
    """Processor time of a step over plain, for 9.6 M parameters in layers of 2,000 neurons."""
    network = Task("wide", wide, large_digits, nn.functional.cross_entropy, OPTIMIZERS[name])
    lr = critical_lr(network)
    cells = []
    for m in (0.25, 1, 4):
        plain, ours = (run(network, network.data(), m * lr, METHODS[k], steps) for k in ("plain", "step clipping"))
        cells.append(f"{m:g} η*: {ours['ms']:.0f} / {plain['ms']:.0f} ms, {ours['clipped']:.0%} clipped")
    return f"{name} (η* {lr:.3g}): " + "; ".join(cells)


# The tables.


def diverged(run: dict[str, float], row: dict[str, Any]) -> bool:
    return not run["loss"] <= row["start_loss"]


def decades(row: dict[str, Any], method: str) -> float:
    """Decades of learning rate between neighbouring rates that both end within 10% of the task's best accuracy."""
    best = max(outcome["accuracy"] for runs in row["runs"].values() for outcome in runs.values())
    fine = [row["runs"][method][f"{m:g}"]["accuracy"] >= 0.9 * best for m in MULTIPLES]
    return sum(math.log10(b / a) for (a, b), both in zip(pairwise(MULTIPLES), pairwise(fine), strict=True) if all(both))


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{len(rows)} tasks. Loss after {STEPS} steps (median; diverged: above the loss of the start)\n")
    print("| rate | " + " | ".join(METHODS) + " | updates clipped |")
    print("|---" * (len(METHODS) + 2) + "|")
    for m in MULTIPLES:
        cells = []
        for name in METHODS:
            runs = [row["runs"][name][f"{m:g}"] for row in rows]
            lost = sum(diverged(r, row) for r, row in zip(runs, rows, strict=True))
            cells.append(f"{statistics.median(r['loss'] for r in runs):.3g} ({lost} diverged)")
        share = statistics.mean(row["runs"]["step clipping"][f"{m:g}"]["clipped"] for row in rows)
        print(f"| {m:g} η* | " + " | ".join(cells) + f" | {share:.0%} |")

    print("\nDecades of learning rate (of 2.11) that end within 10% of the task's best accuracy, mean over tasks;")
    print("tasks in which the method covers as many as any:")
    spans = {name: [decades(row, name) for row in rows] for name in METHODS}
    most = [max(values) for values in zip(*spans.values(), strict=True)]
    for name, values in spans.items():
        wins = sum(math.isclose(value, best) for value, best in zip(values, most, strict=True))
        print(f"  {name:14s} {statistics.mean(values):.2f}   {wins} of {len(rows)}")

    print(
        "\nLoss over plain where plain training is right (median and worst over tasks), and time of a step over plain:"
    )
    for m in MULTIPLES:
        pairs = [(row["runs"]["step clipping"][f"{m:g}"], row["runs"]["plain"][f"{m:g}"], row) for row in rows]
        losses = [ours["loss"] / plain["loss"] for ours, plain, row in pairs if not diverged(plain, row)]
        times = [ours["ms"] / plain["ms"] for ours, plain, _ in pairs if math.isfinite(plain["loss"])]  # ran to the end
        loss = f"{statistics.median(losses):6.2f} ({max(losses):.3g})" if losses else "-"
        time_text = f"{statistics.median(times):.2f} ({max(times):.2f})" if times else "-"
        print(f"  {m:5g} η*  loss {loss}, {len(losses)} tasks;  time {time_text}")


def show_tasks(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['task']} (η* {row['critical_lr']:.3g}), loss / accuracy at " + ", ".join(f"{m:g}" for m in MULTIPLES)
        )
        for name, runs in row["runs"].items():
            print(f"  {name:14s}", *(f"{r['loss']:9.3g}/{r['accuracy']:.2f}" for r in runs.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="*", help="glob on task names")
    parser.add_argument("--table", action="store_true", help="only show what is there")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/clipping"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    if options.cost:
        for name in ("momentum", "adam"):
            print(cost(name), flush=True)
        return
    folder = options.out / ("variants" if options.variants else "methods")
    folder.mkdir(parents=True, exist_ok=True)
    networks = {name.split("/")[0]: task for name, task in all_tasks().items()}
    rows = []
    for name, task in tasks().items():
        network, optimizer = name.split("/")
        left_out = options.variants and (network not in VARIANT_TASKS or optimizer not in VARIANT_OPTIMIZERS)
        if left_out or not fnmatch(name, options.task):
            continue
        path = folder / f"{name.replace('/', '-')}.json"
        if not path.exists() and not options.table:
            row = (measure_variants if options.variants else measure)(task, networks[network])
            path.write_text(json.dumps(row, indent=1))
            print(name, "done", flush=True)
        if path.exists():
            rows.append(json.loads(path.read_text()))
    if options.variants:
        show_variants(rows)
    else:
        show_tasks(rows)
        show(rows)


if __name__ == "__main__":
    main()
