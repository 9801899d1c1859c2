"""Optimizers that need no rate, each as its authors advise (the packages are optional: see ``PACKAGES``).

Prodigy: rate 1, cosine annealing, ``safeguard_warmup`` where there is a warm-up, decay as of AdamW. D-Adaptation: rate
1, the schedule that the problem would have, decoupled decay. MoMo: rate 1 and 0.01 for Adam; a constant rate is said to
be enough, so both are run and the better counts. Schedule-Free: a warm-up and no schedule, rates 0.0025 and 1,
statistics of BatchNorm made anew before validation. With SGD and momentum the variants of SGD, else those of Adam.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from rates_tasks import Task
from rates_train import Fit, train
from torch import nn

PACKAGES = "pip install prodigyopt dadaptation momo-opt schedulefree"


def _is_sgd(task: Task) -> bool:
    return task.optimizer_name in ("sgd", "momentum")


def _decay(task: Task) -> float:
    return 0.01 if task.optimizer_name == "adamw" else 0.0


def prodigy(task: Task, steps: int, seed: int, schedule: str) -> float:
    from prodigyopt import Prodigy

    model = task.model(seed)
    warm = schedule != "constant"
    optimizer = Prodigy(model.parameters(), lr=1.0, weight_decay=_decay(task), safeguard_warmup=warm)
    return train(task, Fit(model, optimizer), steps, seed, schedule)


def d_adaptation(task: Task, steps: int, seed: int, schedule: str) -> float:
    from dadaptation import DAdaptAdam, DAdaptSGD

    model = task.model(seed)
    if _is_sgd(task):
        optimizer = DAdaptSGD(model.parameters(), lr=1.0, momentum=0.9 if task.optimizer_name == "momentum" else 0.0)
    else:
        optimizer = DAdaptAdam(model.parameters(), lr=1.0, weight_decay=_decay(task), decouple=True)
    return train(task, Fit(model, optimizer), steps, seed, schedule)


def momo(task: Task, steps: int, seed: int, schedule: str) -> float:
    from momo import Momo, MomoAdam

    losses = []
    for tried in {schedule, "constant"}:
        model = task.model(seed)
        if _is_sgd(task):
            optimizer = Momo(model.parameters(), lr=1.0)
        else:
            optimizer = MomoAdam(model.parameters(), lr=1e-2, weight_decay=_decay(task))

        def step(loss, optimizer=optimizer):
            return optimizer.step(loss=loss)

        losses.append(train(task, Fit(model, optimizer, step=step), steps, seed, tried))
    return min(losses)


def schedule_free(task: Task, steps: int, seed: int, schedule: str) -> float:
    from schedulefree import AdamWScheduleFree, SGDScheduleFree

    model = task.model(seed)
    warm_up = steps // 10
    if _is_sgd(task):
        optimizer = SGDScheduleFree(model.parameters(), lr=1.0, warmup_steps=warm_up)
    else:
        optimizer = AdamWScheduleFree(model.parameters(), lr=2.5e-3, warmup_steps=warm_up, weight_decay=_decay(task))
    optimizer.train()

    def finish() -> None:
        optimizer.eval()
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            with torch.no_grad():
                for x, _ in task.batches(50, seed + 1):
                    model(x)

    return train(task, Fit(model, optimizer, finish=finish), steps, seed, "constant")


RIVALS: dict[str, Callable[[Task, int, int, str], float]] = {
    "prodigy": prodigy,
    "d-adaptation": d_adaptation,
    "momo": momo,
    "schedule-free": schedule_free,
}
