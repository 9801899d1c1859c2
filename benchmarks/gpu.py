"""What the callbacks cost and reach on a GPU, with networks of the size that people train there.

    python benchmarks/gpu.py measurement steps     # time of one measurement, and of a step with each callback
    python benchmarks/gpu.py search                # the finder beside Lightning's
    python benchmarks/gpu.py control --steps 1000  # validation loss under rate control beside a sweep of five rates
    python benchmarks/gpu.py page                  # docs/evidence/gpu.md from what is there

Precision is bf16-mixed. A step's time is wall time after the first ten steps; plain runs are made before and after each
one with a callback. Each result is appended to ``--out`` as it comes. With
``--small`` everything runs on tiny networks, on the CPU where there is no GPU: to see whether the script works.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from gpu_networks import SETTINGS, Module, Setting, batches, validation_loss
from gpu_page import page
from pytorch_lightning.tuner import Tuner
from rates import quiet

import lightning_topo as lt
from lightning_topo.updates import UpdateMeter

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEVER = 1e-9  # a share of the training time that no measurement keeps
SEED = 1

GUARDS: dict[str, Callable[[], list[Any]]] = {
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
    "step clipping, every update clipped": lambda: [lt.TopologicalStepClipping(3e-3)],
    "rate control": lambda: [lt.TopologicalRateControl()],
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


def timed(setting: Setting, small: bool, seconds: float, callbacks: list[Any]) -> Timer:
    pl.seed_everything(SEED, verbose=False)
    timer = Timer(seconds)
    trainer(callbacks=[timer, *callbacks]).fit(Module(setting, small), batches(setting, small, DEVICE))
    return timer


def steps(name: str, setting: Setting, small: bool, seconds: float, guards: list[str]) -> Iterator[dict[str, Any]]:
    """The time of a step with each callback over that of the plain runs before and after it."""
    timed(setting, small, seconds / 2, [])
    plain = timed(setting, small, seconds, []).milliseconds
    for guard in guards:
        callbacks = GUARDS[guard]()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        timer = timed(setting, small, seconds, callbacks)
        row = {"network": name, "guard": guard, "ms": timer.milliseconds, "steps": timer.steps, "first": timer.first}
        row["coverage"] = {
            type(one).__name__: [one._budget.made, one._budget.due] for one in callbacks if hasattr(one, "_budget")
        }
        row["clipped"] = sum(getattr(one, "clipped_updates", 0) for one in callbacks)
        if DEVICE == "cuda":
            row["GiB"] = torch.cuda.max_memory_allocated() / 2**30
        del callbacks
        gc.collect()
        before, plain = plain, timed(setting, small, seconds, []).milliseconds
        yield row | {"plain": [before, plain], "ratio": 2 * timer.milliseconds / (before + plain)}


def measurement(name: str, setting: Setting, small: bool, repeats: int = 30) -> Iterator[dict[str, Any]]:
    """The time of measuring one update of all groups: until it is queued, and until it is done."""
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
        yield {
            "network": name, "what": what, "groups": len(groups), "sets": len(meter.sets),
            "queued": statistics.median(queued[3:]), "done": statistics.median(done[3:]),
        }  # fmt: skip


def search(name: str, setting: Setting, small: bool, steps: int) -> Iterator[dict[str, Any]]:
    """η* and the suggestion, and the time of the search beside Lightning's."""
    pl.seed_everything(SEED, verbose=False)
    module, began = Module(setting, small, steps=steps), time.perf_counter()
    found = lt.topological_lr_find(trainer(steps), module, batches(setting, small, DEVICE, seed=3), update_attr=False)
    ours = time.perf_counter() - began
    pl.seed_everything(SEED, verbose=False)
    module, began = Module(setting, small), time.perf_counter()
    theirs = Tuner(trainer(steps)).lr_find(module, batches(setting, small, DEVICE, seed=3), update_attr=False)
    yield {
        "network": name, "critical_lr": found.critical_lr, "suggestion": found.suggestion(), "status": found.status,
        "steps": found.total_steps, "seconds": ours, "theirs": theirs.suggestion() if theirs else None,
        "their_seconds": time.perf_counter() - began,
    }  # fmt: skip


class Rates(pl.Callback):
    """Remembers the rates that a control uses, a hundredth of them."""

    def __init__(self, control: Any) -> None:
        self.control, self.rates = control, list[float]()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step % max(1, trainer.max_steps // 100) == 0:
            self.rates += self.control.learning_rates.values()


def control(name: str, setting: Setting, small: bool, steps: int) -> Iterator[dict[str, Any]]:
    """Validation loss at the end of a run under rate control, and at five rates."""
    runs: list[tuple[str, float | None]] = [("rate control", None), *((f"{lr:g}", lr) for lr in setting.sweep)]
    for what, lr in runs:
        pl.seed_everything(SEED, verbose=False)
        callback = lt.TopologicalRateControl() if lr is None else None
        module, began = Module(setting, small, lr, steps), time.perf_counter()
        used = Rates(callback)
        trainer(steps, [] if callback is None else [callback, used]).fit(
            module, batches(setting, small, DEVICE, seed=7)
        )
        wait()
        seconds = time.perf_counter() - began
        loss = validation_loss(module, small, DEVICE)
        row = {"network": name, "run": what, "steps": steps, "loss": loss, "seconds": seconds}
        yield row | ({} if callback is None else {"rates": used.rates})
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=["measurement", "steps", "search", "control", "page"])
    parser.add_argument("--networks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--guards", nargs="+", choices=list(GUARDS), default=list(GUARDS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps, of each callback")
    parser.add_argument("--steps", type=int, default=1000, help="of a run of the parts search and control")
    parser.add_argument("--out", type=Path, default=EVIDENCE / "gpu.jsonl")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.parts == ["page"]:
        rows = [json.loads(row) for row in options.out.read_text().splitlines()]
        options.out.with_suffix(".md").write_text(page(rows))
        return
    quiet()
    parts: dict[str, Callable[[str], Iterator[dict[str, Any]]]] = {
        "measurement": lambda name: measurement(name, SETTINGS[name], options.small),
        "steps": lambda name: steps(name, SETTINGS[name], options.small, options.seconds, options.guards),
        "search": lambda name: search(name, SETTINGS[name], options.small, options.steps),
        "control": lambda name: control(name, SETTINGS[name], options.small, options.steps),
    }
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    for part in options.parts:
        for name in options.networks:
            for row in parts[part](name):
                print(row, flush=True)
                with options.out.open("a") as file:
                    file.write(json.dumps({"part": part, "when": "after", "device": device, **row}) + "\n")


if __name__ == "__main__":
    main()
