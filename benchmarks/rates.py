"""Ways to choose a learning rate, on real tasks with the schedules that people use, by validation loss.

    python benchmarks/rates.py sweep control                   # the denominators, and the rate control
    python benchmarks/rates.py rivals searches defaults --seeds 0
    python benchmarks/rates.py sweep --steps 3000 --task "conv/*" --seeds 0 --schedule constant
    python benchmarks/rates.py control --set share=0.4 --variant share=0.4
    python benchmarks/rates.py page                            # docs/evidence/rates.md from what is there

Each run is appended to ``--out`` as it ends and is not made again: a restart goes on. Columns: ``sweep``, ``control``
(the package's), ``clipped`` (with step clipping beside it), ``averaged`` (at a constant share, the weights averaged),
``prototype`` (its rule once more, with all settings free), ``defaults``, those of ``SEARCHES`` and ``RIVALS``, or
``searches`` and ``rivals`` for all of these.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from rates_control import Settings, averaged, product, prototype
from rates_page import write_page
from rates_rivals import RIVALS
from rates_store import Key, Run, Store
from rates_suggest import SEARCHES
from rates_sweep import sweep
from rates_tasks import Task, all_tasks, scaled_tasks
from rates_train import plain

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"


def chosen(options: argparse.Namespace) -> Iterator[tuple[Task, int, int, str]]:
    """Task, steps, seed, schedule, most informative first: all tasks of a seed before the next."""
    for steps in options.steps:
        for schedule in options.schedule:
            for seed in options.seeds:
                for task in (scaled_tasks() if options.scaled else all_tasks()).values():
                    if any(fnmatch(task.name, pattern) for pattern in options.task):
                        yield task, steps, seed, schedule


def outcome(column: str, task: Task, steps: int, seed: int, schedule: str, settings: Settings) -> tuple[Any, ...]:
    """Validation loss, steps spent on a search, what else is worth keeping."""
    if column in ("control", "clipped"):
        share = settings.share if settings != Settings() else None
        loss, control = product(task, steps, seed, schedule, share, clipped=column == "clipped")
        low, high = control.range or (math.nan, math.nan)
        return loss, 0, {"rates": [low, high], "updates": control.updates}
    if column == "averaged":
        loss, control = averaged(task, steps, seed, settings.share)
        return loss, 0, {"updates": control.updates}
    if column == "prototype":
        loss, control = prototype(task, steps, seed, schedule, settings)
        rates = [float(f"{rate * task.default_lr:.4g}") for rate in control.rates[:: max(1, steps // 10)]]
        return loss, 0, {"measured": control.measured, "rates": rates}
    if column == "defaults":
        return plain(task, task.default_lr, steps, seed, schedule), 0, {}
    if column in SEARCHES:
        found = SEARCHES[column](task, seed, steps, schedule)
        loss = math.inf if found.lr is None else plain(task, found.lr, steps, seed, schedule)
        return loss, found.steps, {"lr": found.lr}
    return RIVALS[column](task, steps, seed, schedule), 0, {}


def run(store: Store, column: str, variant: str, settings: Settings, case: tuple[Task, int, int, str]) -> None:
    task, steps, seed, schedule = case
    key = Key(task.name, steps, seed, schedule, column, variant)
    if key in store.runs:
        return
    start = task.validate(task.model(seed))
    began = time.process_time()
    try:
        loss, searched, extra = outcome(column, task, steps, seed, schedule, settings)
    except RuntimeError as error:  # a rival that meets numbers which are not finite
        loss, searched, extra = math.inf, 0, {"error": str(error)[:200]}
    store.add(Run(key, loss, start, steps + searched, time.process_time() - began, extra))
    best = store.best(task.name, steps, seed, schedule)
    print(*case[1:], task.name, column, variant, f"{loss:.4f}", f"{loss / best:.3f}" if best else "", flush=True)


def expanded(what: list[str]) -> list[str]:
    sets = {"searches": list(SEARCHES), "rivals": list(RIVALS)}
    return [column for name in what for column in sets.get(name, [name])]


def settings_of(pairs: list[str]) -> Settings:
    values = dict(pair.split("=") for pair in pairs)
    return Settings(**{k: int(v) if k == "window" else float(v) for k, v in values.items()})


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="columns, or page")
    parser.add_argument("--task", nargs="+", default=["*"], help="globs on task names")
    parser.add_argument("--steps", nargs="+", type=int, default=[300])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--schedule", nargs="+", default=["cosine"], choices=["cosine", "constant"])
    parser.add_argument("--set", nargs="*", default=[], help="settings of the control, as share=0.4")
    parser.add_argument("--variant", default="", help="name under which other settings are kept")
    parser.add_argument("--scaled", action="store_true", help="wider, deeper, larger batches")
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=EVIDENCE / "rates.jsonl")
    options = parser.parse_args()
    if options.data_dir:
        os.environ["FASHION_MNIST"] = options.data_dir
    torch.set_num_threads(1)
    quiet()
    store = Store(options.out)
    if options.what == ["page"]:
        write_page(store, options.out.with_suffix(".md"))
        return
    settings = settings_of(options.set)
    for case in chosen(options):
        for column in expanded(options.what):
            if column == "sweep":
                sweep(store, *case)
            else:
                run(store, column, options.variant, settings, case)


if __name__ == "__main__":
    main()
