"""Ways to choose a learning rate, on real tasks with the schedules that people use, by validation loss.

    python benchmarks/rates.py sweep                        # the denominators: best of a sweep
    python benchmarks/rates.py sweep --steps 3000 --task "conv/*" --seeds 0 --schedule constant

Each run is appended to ``--out`` as it ends and is not made again: a restart goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import torch
from rates_store import Store
from rates_sweep import sweep
from rates_tasks import Task, all_tasks

RESULTS = Path(__file__).parents[1] / "docs" / "evidence" / "rates.jsonl"


def chosen(options: argparse.Namespace) -> Iterator[tuple[Task, int, int, str]]:
    """Task, steps, seed, schedule, most informative first: all tasks of a seed before the next."""
    for steps in options.steps:
        for schedule in options.schedule:
            for seed in options.seeds:
                for task in all_tasks().values():
                    if any(fnmatch(task.name, pattern) for pattern in options.task):
                        yield task, steps, seed, schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="columns")
    parser.add_argument("--task", nargs="+", default=["*"], help="globs on task names")
    parser.add_argument("--steps", nargs="+", type=int, default=[300])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--schedule", nargs="+", default=["cosine"], choices=["cosine", "constant"])
    parser.add_argument("--data-dir", help="folder of Fashion-MNIST's four files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.data_dir:
        os.environ["FASHION_MNIST"] = options.data_dir
    torch.set_num_threads(1)
    store = Store(options.out)
    for task, steps, seed, schedule in chosen(options):
        for what in options.what:
            if what == "sweep":
                sweep(store, task, steps, seed, schedule)
                print(task.name, steps, seed, schedule, store.best(task.name, steps, seed, schedule), flush=True)


if __name__ == "__main__":
    main()
