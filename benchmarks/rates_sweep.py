"""The best rate of a sweep: factor 2, from the optimizer's usual rate outwards until the best is not at an edge."""

from __future__ import annotations

import math
import time

from rates_store import Key, Run, Store
from rates_tasks import Task
from rates_train import plain

START = {"sgd": 0.25, "momentum": 0.0625, "adam": 2.0**-8, "adamw": 2.0**-8, "rmsprop": 2.0**-10}
LEAST, MOST = 2.0**-26, 2.0**12


def sweep(store: Store, task: Task, steps: int, seed: int, schedule: str) -> None:
    """Run what is missing of a sweep: a hill climb by factors of two, two rates on each side of the best."""
    first = store.sweep(task.name, steps, 0, schedule) or store.sweep(task.name, 300, seed, schedule)
    rate = min(first, key=first.__getitem__) if first else START[task.optimizer_name]
    start = task.validate(task.model(seed))
    while True:
        losses = store.sweep(task.name, steps, seed, schedule)
        best = min(losses, key=losses.__getitem__) if losses else rate
        if losses and math.isinf(losses[best]):
            best = min(losses)  # everything diverged so far: go down
        missing = [r for r in (best, best / 2, 2 * best, best / 4, 4 * best) if r not in losses and LEAST < r < MOST]
        if not missing:
            return
        began = time.process_time()
        loss = plain(task, missing[0], steps, seed, schedule)
        key = Key(task.name, steps, seed, schedule, "sweep", repr(missing[0]))
        store.add(Run(key, loss, start, steps, time.process_time() - began))
