"""Step clipping beside plain training and six other ways to clip, at multiples of the critical learning rate.

    python benchmarks/clipping.py real small          # runs that are missing, most informative first
    python benchmarks/clipping.py forms               # other bounds, and other ways to treat the optimizer's memory
    python benchmarks/clipping.py real --task "conv/*" --seeds 1 2 --at 16 suggestion
    python benchmarks/clipping.py forms --method "*by itself" --task "*/*" --at 4 16 --seeds 0 1 2
    python benchmarks/clipping.py teachers            # the two regressions, with a bound by the loss as well
    python benchmarks/clipping.py cost                # time of a step in which nothing is clipped
    python benchmarks/clipping.py page                # docs/evidence/clipping.md from what is there

Real: tasks of ``rates.py``, 300 updates with a warm-up of 10% and a cosine to 0. Small: the networks of ``tasks.py``,
each with SGD, momentum, Adam and AdamW, 300 updates with the same schedule on four fifths of its data. Rates are
multiples of η* as the topological finder finds it, or what it suggests. Losses and accuracies are of validation data,
in evaluation mode. Each run is appended to ``--out`` as it ends and is not made again.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import rates_tasks
import tasks as small_tasks
import torch
from clipping_cost import CASES, cost
from clipping_loss_bound import bounded_by_loss
from clipping_page import WITH_LOSS, write_page
from clipping_rivals import FORMS, RIVALS, Guard
from finder import Module, trainer
from rates import quiet
from rates_store import Key, Run, Store
from rates_suggest import finder, suggestion
from rates_tasks import shape
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_topo.clipping import StepClipper
from lightning_topo.finder import topological_lr_find

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
STEPS = 300
SUGGESTION = "suggestion"
RATES = ("16", "0.25", "4", "0.5", "1", SUGGESTION)
FORM_RATES = ("16", "0.5", "4", "0.25")
FORM_TASKS = ("conv/momentum", "conv/adamw", "perceptron/momentum", "perceptron/adamw", "conv-batchnorm/momentum")
ONLY_ADAM = ("update clipping",)
TEACHERS = ("figure-eight/*", "two-circles/*")


@dataclass(frozen=True)
class Small:
    """A small network with the methods of a real task."""

    task: small_tasks.Task
    name: str
    default_lr: float = 1e-3  # the finder's module needs one; the search does not depend on it

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.task.build()

    def optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        return self.task.optimizer(model.parameters(), lr=lr)

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self.task.loss

    def batches(self, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        (x, y), _ = parts(self.task.name)
        generator = torch.Generator().manual_seed(11 + 100 * seed)
        for _ in range(steps):
            rows = torch.randint(0, len(x), (self.task.batch_size,), generator=generator)
            yield x[rows], y[rows]

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield parts(self.task.name)[1]


@dataclass(frozen=True)
class Real:
    """A task of ``rates.py``."""

    task: rates_tasks.Task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.task.data().validation(min(512, 16 * self.task.batch_size))


@cache
def parts(name: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Four fifths of a small task's data to train on, and the rest."""
    x, y = small_tasks.all_tasks()[name].data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order.tensor_split([len(x) * 4 // 5])
    return (x[train], y[train]), (x[test], y[test])


def small() -> dict[str, Small]:
    found: dict[str, Small] = {}
    for name, task in small_tasks.all_tasks().items():
        network = name.split("/")[0]
        network = "digits-conv" if network == "conv" else network  # of the real tasks one is called conv
        for optimizer, make in small_tasks.OPTIMIZERS.items():
            known = small_tasks.Task(name, task.build, task.data, task.loss, make, task.batch_size)
            found.setdefault(f"{network}/{optimizer}", Small(known, f"{network}/{optimizer}"))
    return found


def real() -> dict[str, Real]:
    return {name: Real(task) for name, task in rates_tasks.all_tasks().items()}


# The rates.


def critical_lr(store: Store, task: Small | Real, seed: int) -> float:
    """η*, searched for once and kept; on other batches than those of the runs."""

    def search() -> tuple[float | None, int]:
        if isinstance(task, Real):
            found = finder(task.task, seed)
            return found.lr, found.steps
        with TemporaryDirectory() as folder:
            search = topological_lr_find(trainer(folder), Module(task.task), task.task.loader(50), update_attr=False)
        return search.critical_lr, search.total_steps

    return kept_rate(store, Key(task.name, STEPS, seed, "cosine", "η*"), search)


def suggested_lr(store: Store, task: Small | Real, seed: int, schedule: str) -> float:
    """What the finder suggests for a run with this schedule, likewise; of real tasks that of ``rates.py``."""
    known = Store(EVIDENCE / "rates.jsonl").runs.get(Key(task.name, STEPS, seed, schedule, "finder"))
    if known is not None:
        return known.extra["lr"]

    def search() -> tuple[float | None, int]:
        found = suggestion(task, seed, STEPS, schedule)  # type: ignore[arg-type]
        return found.lr, found.steps

    return kept_rate(store, Key(task.name, STEPS, seed, schedule, "suggested"), search)


def kept_rate(store: Store, key: Key, search: Callable[[], tuple[float | None, int]]) -> float:
    if key not in store.runs:
        began = time.process_time()
        lr, steps = search()
        if lr is None:
            raise RuntimeError(f"the finder found no rate for {key.task}")
        store.add(Run(key, math.nan, math.nan, steps, time.process_time() - began, {"lr": lr}))
    return store.runs[key].extra["lr"]


# One run.


@torch.no_grad()
def validate(task: Small | Real, model: nn.Module) -> tuple[float, float | None]:
    """Loss and accuracy in evaluation mode; no accuracy where nothing is classified."""
    model.eval()
    total = right = count = numbers = 0.0
    for x, y in task.validation():
        output = model(x)
        total, count = total + len(x) * task.loss(output, y).item(), count + len(x)
        if y.dtype == torch.long:
            right, numbers = right + float((output.argmax(-1) == y).sum()), numbers + y.numel()
    model.train()
    loss = total / count
    return loss if math.isfinite(loss) else math.inf, right / numbers if numbers else None


def outcome(task: Small | Real, guard: Guard, lr: float, seed: int, schedule: str) -> tuple[float, dict[str, Any]]:
    """Validation loss at the end, ``inf`` where training diverged, and what else is worth keeping."""
    model = task.model(seed)
    optimizer = task.optimizer(model, lr)
    example = next(iter(task.batches(1, seed)))[0]
    with guard(model, optimizer, example) as guarding:
        for step, (x, y) in enumerate(task.batches(STEPS, seed)):
            for settings in optimizer.param_groups:
                settings["lr"] = lr * shape(step, STEPS, schedule)
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            if not math.isfinite(loss.item()):
                return math.inf, {"accuracy": None}
            loss.backward()
            optimizer.step()
    final, accuracy = validate(task, model)
    extra: dict[str, Any] = {"accuracy": accuracy}
    if isinstance(guarding, StepClipper):
        extra["clipped"] = round(guarding.clipped_updates / guarding.updates, 4)
    return final, extra


@dataclass(frozen=True)
class Case:
    """One run: ``at`` is the rate as a multiple of η*, or ``suggestion``."""

    task: Small | Real
    method: str
    at: str
    seed: int
    schedule: str

    def lr(self, store: Store) -> float:
        if self.at == SUGGESTION:
            return suggested_lr(store, self.task, self.seed, self.schedule)
        return float(self.at) * critical_lr(store, self.task, self.seed)

    def outcome(self, lr: float) -> tuple[float, dict[str, Any]]:
        if self.method != WITH_LOSS:
            return outcome(self.task, (RIVALS | FORMS)[self.method], lr, self.seed, self.schedule)
        itself = self.task.task if isinstance(self.task, Real) else self.task  # which the module holds, and is copied
        model, clipping = bounded_by_loss(itself, lr, STEPS, self.seed, self.schedule)
        final, accuracy = validate(self.task, model)
        return final, {"accuracy": accuracy, "clipped": round(clipping.clipped_updates / clipping.updates, 4)}


def run(store: Store, case: Case) -> None:
    key = Key(case.task.name, STEPS, case.seed, case.schedule, case.method, case.at)
    if key in store.runs:
        return
    lr = case.lr(store)
    start, _ = validate(case.task, case.task.model(case.seed))
    began = time.process_time()
    loss, extra = case.outcome(lr)
    store.add(Run(key, loss, start, STEPS, time.process_time() - began, {**extra, "lr": float(f"{lr:.6g}")}))
    print(case.task.name, case.seed, case.method, case.at, f"{loss:.4f}", extra, flush=True)


def measure_cost(store: Store) -> None:
    for network, batch, optimizer in CASES:
        key = Key(network, batch, 0, "", "cost", optimizer)
        if key not in store.runs:
            began = time.process_time()
            found = cost(network, batch, optimizer)
            store.add(Run(key, math.nan, math.nan, batch, time.process_time() - began, dict(found)))
            print(network, batch, optimizer, found, flush=True)


def cases(what: str, options: argparse.Namespace) -> Iterator[Case]:
    everything: dict[str, Any] = small() | real() if what == "forms" else real() if what == "real" else small()
    methods = FORMS if what == "forms" else ("plain", WITH_LOSS) if what == "teachers" else (*RIVALS, WITH_LOSS)
    among = FORM_TASKS if what == "forms" and options.task == ["*"] else TEACHERS if what == "teachers" else ("*",)
    rates = options.at or (FORM_RATES if what in ("forms", "teachers") else RATES)
    for schedule in options.schedule:
        for seed in options.seeds:
            for at in rates:
                for name, task in everything.items():
                    if not any(fnmatch(name, one) for one in options.task) or not any(fnmatch(name, o) for o in among):
                        continue
                    for method in methods:
                        if method in ONLY_ADAM and not name.split("/")[1].startswith("adam"):
                            continue
                        if any(fnmatch(method, pattern) for pattern in options.method):
                            yield Case(task, method, at, seed, schedule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["real", "small", "forms", "teachers", "cost", "page"])
    parser.add_argument("--task", nargs="+", default=["*"], help="globs on task names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--method", nargs="+", default=["*"], help="globs on methods")
    parser.add_argument("--at", nargs="+", help=f"rates: multiples of η*, or {SUGGESTION}")
    parser.add_argument("--schedule", nargs="+", default=["cosine"], choices=["cosine", "constant"])
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=EVIDENCE / "clipping.jsonl")
    options = parser.parse_args()
    if options.data_dir:
        os.environ["FASHION_MNIST"] = options.data_dir
    torch.set_num_threads(1)
    quiet()
    store = Store(options.out)
    for what in options.what:
        if what == "page":
            write_page(store, Store(EVIDENCE / "rates.jsonl"), options.out.with_suffix(".md"))
            continue
        if what == "cost":
            measure_cost(store)
            continue
        for case in cases(what, options):
            run(store, case)


if __name__ == "__main__":
    main()
