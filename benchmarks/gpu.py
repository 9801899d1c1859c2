"""What the callbacks cost and reach on a GPU, with networks of the size that people train there.

    python benchmarks/gpu.py measurement steps     # time of one measurement, and of a step with each callback
    python benchmarks/gpu.py search                # the finder beside Lightning's
    python benchmarks/gpu.py control --steps 1000  # validation loss under rate control beside a sweep of five rates
    python benchmarks/gpu.py page                  # docs/evidence/gpu.md from what is there

Precision is bf16-mixed. A step's time is wall time after the first ten steps; runs with and without a callback follow
each other, and the plain one is made again at the end. Each result is appended to ``--out`` as it comes. With
``--small`` everything runs on tiny networks, on the CPU where there is no GPU: to see whether the script works.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from gpu_networks import SETTINGS, Module, Setting, batches, validation_loss
from pytorch_lightning.tuner import Tuner
from rates import quiet

import lightning_topo as lt
from lightning_topo.updates import UpdateMeter

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEVER = 1e-9  # a share of the training time that no measurement keeps
SEED = 1

GUARDS: dict[str, Callable[[], list[Any]]] = {
    "plain": lambda: [],
    "three monitors, idle": lambda: [
        lt.BiLipschitzMonitor(max_overhead=NEVER),
        lt.PersistenceMonitor(max_overhead=NEVER),
        lt.SharpnessMonitor(max_overhead=NEVER),
    ],
    "BiLipschitzMonitor": lambda: [lt.BiLipschitzMonitor()],
    "PersistenceMonitor": lambda: [lt.PersistenceMonitor()],
    "SharpnessMonitor": lambda: [lt.SharpnessMonitor()],
    "three monitors": lambda: [lt.BiLipschitzMonitor(), lt.PersistenceMonitor(), lt.SharpnessMonitor()],
    "BiLipschitzMonitor, every update": lambda: [lt.BiLipschitzMonitor(max_overhead=None)],
    "step clipping, nothing near": lambda: [lt.TopologicalStepClipping(1.0)],
    "step clipping, every update clipped": lambda: [lt.TopologicalStepClipping(1e-4)],
    "rate control": lambda: [lt.TopologicalRateControl()],
    "plain again": lambda: [],
}


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def trainer(steps: int = -1, callbacks: list[Any] | None = None) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, precision="bf16-mixed",
        logger=False, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip


class Timer(pl.Callback):
    """Times the steps after the first ten, for so many seconds, waiting for the device only at both ends."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0

    def on_train_start(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps += 1
        if self.steps == 10:
            wait()
            self.first, self.began = time.perf_counter() - self.began, time.perf_counter()
        if self.steps > 10 and self.steps % 10 == 0 and time.perf_counter() - self.began > self.seconds:
            wait()
            self.milliseconds = 1e3 * (time.perf_counter() - self.began) / (self.steps - 10)
            trainer.should_stop = True


def steps(name: str, setting: Setting, small: bool, seconds: float, guards: list[str]) -> list[dict[str, Any]]:
    """The time of a step with each callback."""
    rows: list[dict[str, Any]] = []
    for guard in ("warm-up", *guards):
        callbacks, timer = GUARDS.get(guard, list)(), Timer(seconds)
        pl.seed_everything(SEED, verbose=False)
        trainer(callbacks=[timer, *callbacks]).fit(Module(setting, small), batches(setting, small, DEVICE))
        row = {"network": name, "guard": guard, "ms": timer.milliseconds, "steps": timer.steps, "first": timer.first}
        row["coverage"] = {
            type(one).__name__: [one._budget.made, one._budget.due] for one in callbacks if hasattr(one, "_budget")
        }
        if DEVICE == "cuda":
            row["GiB"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        if guard != "warm-up":
            plain = rows[0]["ms"] if rows else row["ms"]
            rows.append(row | {"ratio": row["ms"] / plain})
            print(name, guard, {k: v for k, v in rows[-1].items() if k not in ("network", "guard")}, flush=True)
        del callbacks
        gc.collect()
    return rows


def measurement(name: str, setting: Setting, small: bool, repeats: int = 30) -> list[dict[str, Any]]:
    """The time of measuring one update of all groups: until it is queued, and until it is done."""
    rows = []
    pl.seed_everything(SEED, verbose=False)
    model = Module(setting, small).to(DEVICE)
    batch = next(iter(batches(setting, small, DEVICE)))
    groups = lt.find_neuron_groups(model, batch[0])
    optimizer = setting.optimizer(model.parameters(), lr=setting.lr)
    for what, size, estimates in (("all constants, 256 neurons", 256, False), ("estimate, 64 neurons", 64, True)):
        meter = UpdateMeter(optimizer, model, groups, size, estimates=estimates)
        queued, done = [], []
        for _ in range(repeats):
            optimizer.zero_grad()
            model.loss(batch).backward()
            wait()
            began = time.perf_counter()
            meter.before(meter.sets)
            middle = time.perf_counter()
            optimizer.step()
            wait()
            after = time.perf_counter()
            found = meter.after()
            end = time.perf_counter()
            assert found is not None
            list(found.rows())
            queued.append(1e3 * (middle - began + end - after))
            done.append(1e3 * (time.perf_counter() - after))
        rows.append(
            {
                "network": name, "what": what, "groups": len(groups), "sets": len(meter.sets),
                "queued": statistics.median(queued[3:]), "done": statistics.median(done[3:]),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def search(name: str, setting: Setting, small: bool, steps: int) -> list[dict[str, Any]]:
    """η* and the suggestion, and the time of the search beside Lightning's."""
    pl.seed_everything(SEED, verbose=False)
    module, began = Module(setting, small, steps=steps), time.perf_counter()
    found = lt.topological_lr_find(trainer(steps), module, batches(setting, small, DEVICE, seed=3), update_attr=False)
    ours = time.perf_counter() - began
    pl.seed_everything(SEED, verbose=False)
    module, began = Module(setting, small), time.perf_counter()
    theirs = Tuner(trainer(steps)).lr_find(module, batches(setting, small, DEVICE, seed=3), update_attr=False)
    row = {
        "network": name, "critical_lr": found.critical_lr, "suggestion": found.suggestion(), "status": found.status,
        "steps": found.total_steps, "seconds": ours, "theirs": theirs.suggestion() if theirs else None,
        "their_seconds": time.perf_counter() - began,
    }  # fmt: skip
    print(row, flush=True)
    return [row]


RATES = {
    "mlp": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    "resnet": (0.0125, 0.05, 0.1, 0.2, 0.4),
    "gpt": (1e-4, 3e-4, 6e-4, 1.2e-3, 2.4e-3),
}


def control(name: str, setting: Setting, small: bool, steps: int) -> list[dict[str, Any]]:
    """Validation loss at the end of a run under rate control, and at five rates."""
    rows = []
    runs: list[tuple[str, float | None]] = [("rate control", None), *((f"{lr:g}", lr) for lr in RATES[name])]
    for what, lr in runs:
        pl.seed_everything(SEED, verbose=False)
        callback = lt.TopologicalRateControl() if lr is None else None
        module, began = Module(setting, small, lr, steps), time.perf_counter()
        trainer(steps, [] if callback is None else [callback]).fit(module, batches(setting, small, DEVICE, seed=7))
        wait()
        seconds = time.perf_counter() - began
        loss = validation_loss(module, small, DEVICE)
        rows.append({"network": name, "run": what, "steps": steps, "loss": loss, "seconds": seconds})
        if callback is not None:
            rows[-1]["rates"] = [c.range for _, c in callback._controlled]
        print(rows[-1], flush=True)
        gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["measurement", "steps", "search", "control"])
    parser.add_argument("--networks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--guards", nargs="+", choices=list(GUARDS), default=list(GUARDS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps, of each callback")
    parser.add_argument("--steps", type=int, default=1000, help="of a run of the parts search and control")
    parser.add_argument("--out", type=Path, default=EVIDENCE / "gpu.jsonl")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    quiet()
    parts: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "measurement": lambda name: measurement(name, SETTINGS[name], options.small),
        "steps": lambda name: steps(name, SETTINGS[name], options.small, options.seconds, options.guards),
        "search": lambda name: search(name, SETTINGS[name], options.small, options.steps),
        "control": lambda name: control(name, SETTINGS[name], options.small, options.steps),
    }
    for part in options.parts:
        for name in options.networks:
            rows = parts[part](name)
            with options.out.open("a") as file:
                file.writelines(json.dumps({"part": part, **row}) + "\n" for row in rows)


if __name__ == "__main__":
    main()
