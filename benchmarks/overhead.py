"""What the monitors cost: the time of a training run with each of them over the same run without.

    python benchmarks/overhead.py [--seconds 60] [--repeats 5] [--network MLP] [--json overhead.json]

Each repetition trains the same network for the same number of steps without a monitor and with each one at its
defaults, in four threads of one process that take turns of half a second, so that other load on the machine meets all
of them; the table has the median of the ratios of processor time. The second table is the time of one measurement
against the number of neurons. torch has one thread, so that a free core hides nothing. A monitor's first measurements
are made in any run, so that runs of a few seconds cost more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.functional import betti_at_scale, bi_lipschitz, persistence

MONITORS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "BiLipschitzMonitor": lt.BiLipschitzMonitor,
    "PersistenceMonitor": lt.PersistenceMonitor,
    "SharpnessMonitor": lt.SharpnessMonitor,
}


class Attention(nn.Module):
    """Self-attention written out, so that it has second derivatives."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 8)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self, width: int = 384, depth: int = 6, vocabulary: int = 256, length: int = 64):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(tokens) + self.position).mean(1))


def mlp() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(2048, 64)


def convolutional() -> tuple[nn.Module, torch.Tensor]:
    layers: list[nn.Module] = []
    channels = (1, 64, 128, 256, 256)
    for width, following in itertools.pairwise(channels):
        layers += [nn.Conv2d(width, following, 3, padding=1), nn.BatchNorm2d(following), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(1024, 10)]
    return nn.Sequential(*layers, *head), torch.randn(1024, 1, 32, 32)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    return Transformer(), torch.randint(0, 256, (512, 64))


NETWORKS = {"MLP": (mlp, 64), "convolutional": (convolutional, 32), "transformer": (transformer, 16)}


class Module(pl.LightningModule):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Turns:
    """Lets threads run one at a time, in turns of half a second, so that other load meets all of them alike."""

    def run(self, tasks: dict[str, Callable[[], None]]) -> dict[str, float]:
        """Processor seconds of each task's thread."""
        self._events = {name: threading.Event() for name in tasks}
        self._order = list(tasks)
        self._since = time.perf_counter()
        seconds: dict[str, float] = {}

        def body(name: str, task: Callable[[], None]) -> None:
            self._events[name].wait()
            began = time.thread_time()
            task()
            seconds[name] = time.thread_time() - began
            self._leave(name)

        threads = [threading.Thread(target=body, args=item) for item in tasks.items()]
        for thread in threads:
            thread.start()
        self._events[self._order[0]].set()
        for thread in threads:
            thread.join()
        return seconds

    def step(self, name: str) -> None:
        """Called by the thread whose turn it is: hands over when its half second is over."""
        if time.perf_counter() - self._since > 0.5 and len(self._order) > 1:
            following = self._after(name)
            self._events[name].clear()
            self._hand_to(following)
            self._events[name].wait()

    def _leave(self, name: str) -> None:
        following = self._after(name)
        self._order.remove(name)
        if self._order:
            self._hand_to(following)

    def _after(self, name: str) -> str:
        return self._order[(self._order.index(name) + 1) % len(self._order)]

    def _hand_to(self, name: str) -> None:
        self._since = time.perf_counter()
        self._events[name].set()


class TakeTurns(pl.Callback):
    def __init__(self, turns: Turns, name: str) -> None:
        self.turns, self.name = turns, name

    def on_train_batch_end(self, *args: object) -> None:
        self.turns.step(self.name)


def train(network: str, callbacks: list[pl.Callback], steps: int) -> None:
    make, batch_size = NETWORKS[network]
    pl.seed_everything(0, verbose=False)
    module, x = make()
    data = DataLoader(TensorDataset(x, torch.randint(0, 10, (len(x),))), batch_size=batch_size, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=TensorBoardLogger(folder),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Module(module), data)


def processor_seconds(network: str, monitors: dict[str, Any], steps: int) -> dict[str, float]:
    """Of one fit with each monitor, its set-up included, run in turns."""
    turns = Turns()

    def task(name: str, monitor: Any) -> Callable[[], None]:
        callbacks = [TakeTurns(turns, name)]
        if monitor is not None:
            monitor._budget._clock = time.thread_time  # the others' turns are no training time of this run
            callbacks.append(monitor)
        return lambda: train(network, callbacks, steps)

    return turns.run({name: task(name, monitor) for name, monitor in monitors.items()})


def overhead(networks: list[str], seconds: float, repeats: int) -> list[dict]:
    rows = []
    for network in networks:
        train(network, [lt.PersistenceMonitor()], 3)  # imports and caches
        short, long = (processor_seconds(network, {"none": None}, steps)["none"] for steps in (10, 60))
        steps = max(10, round(seconds / (long - short) * 50))
        ratios: dict[str, list[float]] = {name: [] for name in MONITORS}
        coverage = {}
        for _ in range(repeats):
            monitors = {name: make() for name, make in MONITORS.items()}
            times = processor_seconds(network, monitors, steps)
            for name, value in times.items():
                ratios[name].append(value / times["none"])
                if monitors[name] is not None:
                    coverage[name] = monitors[name]._budget.coverage
            print(network, steps, {name: round(value, 2) for name, value in times.items()}, flush=True)
        parameters = sum(p.numel() for p in NETWORKS[network][0]()[0].parameters())
        rows += [
            {
                "network": f"{network} ({parameters / 1e6:.2g} M)",
                "monitor": name,
                "steps": steps,
                "ratio": statistics.median(ratios[name]),
                "ratios": ratios[name],
                "coverage": coverage[name],
            }
            for name in list(MONITORS)[1:]
        ]
    return rows


def measurement_times() -> list[dict]:
    """Median time of one measurement, in milliseconds, for n neurons of 256 coordinates."""
    rows = []
    for n in (64, 128, 256, 512, 1024):
        points = torch.randn(n, 256, generator=torch.Generator().manual_seed(n))
        moved = points + 0.01 * torch.randn(n, 256, generator=torch.Generator().manual_seed(0))
        tasks = {
            "bi_lipschitz": lambda p=points, q=moved: bi_lipschitz(p, q),
            "betti_at_scale": lambda p=points: betti_at_scale(p),
            "persistence H0+H1": lambda p=points: persistence(p),
        }
        rows.append({"n": n} | {name: _milliseconds(task) for name, task in tasks.items()})
    return rows


def _milliseconds(task: Callable[[], object], repeats: int = 7) -> float:
    task()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        task()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of one run without a monitor")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")

    times = measurement_times()
    rows = overhead(options.network, options.seconds, options.repeats)
    print("\n| network | monitor | time with / without | due updates measured |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['network']} | {row['monitor']} | {row['ratio']:.3f} | {row['coverage']:.1%} |")
    print("\n| neurons | " + " | ".join(f"{name} (ms)" for name in list(times[0])[1:]) + " |\n|---|---|---|---|")
    for time_row in times:
        print(f"| {time_row['n']} | " + " | ".join(f"{value:.1f}" for value in list(time_row.values())[1:]) + " |")
    if options.json:
        options.json.write_text(json.dumps({"overhead": rows, "measurement": times}, indent=1))


if __name__ == "__main__":
    main()
