"""What the monitors cost: the time of a training run with each of them over the same run without.

    python benchmarks/overhead.py [--part time counts idle] [--seconds 60] [--repeats 5] [--network MLP] [--json FILE]

Each repetition trains the same network for the same number of steps without a monitor and with each one at its
defaults, in four threads of one process that take turns of half a second, so that other load on the machine meets all
of them; the table has the median of the ratios of processor time. The second table is the time of one measurement
against the number of neurons. torch has one thread, so that a free core hides nothing. A monitor's first measurements
are made in any run, so that runs of a few seconds cost more.

The third table counts, without an accelerator at hand, what monitors and step clipping have it do in an optimizer
step, its hooks included, beyond what the step does without them: kernels (operations that are no views), operations
dispatched, and reads, where the host waits for the device (see `counting.py`). The fourth is what attached monitors
that measure nothing take of a step: their hooks, timed within a fit, and whole fits in turns as above.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from counting import Counts
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer import call
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.functional import betti_at_scale, bi_lipschitz, persistence
from lightning_topo.updates.step_hooks import _StepHook

MONITORS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "BiLipschitzMonitor": lt.BiLipschitzMonitor,
    "PersistenceMonitor": lt.PersistenceMonitor,
    "SharpnessMonitor": lt.SharpnessMonitor,
    "SharpnessMonitor, critical": lambda: lt.SharpnessMonitor(method="critical"),
    "TopologicalRateControl": lt.TopologicalRateControl,
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
        for one in monitor if isinstance(monitor, list) else [monitor] if monitor is not None else []:
            if hasattr(one, "_budget"):
                one._budget._clock = time.thread_time  # the others' turns are no training time of this run
            callbacks.append(one)
        return lambda: train(network, callbacks, steps)

    return turns.run({name: task(name, monitor) for name, monitor in monitors.items()})


def overhead(networks: list[str], names: list[str], seconds: float, repeats: int) -> list[dict]:
    rows = []
    names = ["none", *(name for name in names if name != "none")]
    for network in networks:
        train(network, [lt.PersistenceMonitor()], 3)  # imports and caches
        short, long = (processor_seconds(network, {"none": None}, steps)["none"] for steps in (10, 60))
        steps = max(10, round(seconds / (long - short) * 50))
        ratios: dict[str, list[float]] = {name: [] for name in names}
        coverage, a_minute = {}, {}
        for _ in range(repeats):
            monitors = {name: MONITORS[name]() for name in names}
            times = processor_seconds(network, monitors, steps)
            for name, value in times.items():
                ratios[name].append(value / times["none"])
                if hasattr(monitors[name], "_budget"):
                    coverage[name] = monitors[name]._budget.coverage
                    a_minute[name] = 60 * monitors[name]._budget.made / value
            print(network, steps, {name: round(value, 2) for name, value in times.items()}, flush=True)
        parameters = sum(p.numel() for p in NETWORKS[network][0]()[0].parameters())
        rows += [
            {
                "network": f"{network} ({parameters / 1e6:.2g} M)",
                "monitor": name,
                "steps": steps,
                "ratio": statistics.median(ratios[name]),
                "ratios": ratios[name],
                "coverage": coverage.get(name),
                "a_minute": a_minute.get(name),
            }
            for name in names[1:]
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


# Counts: small networks, for only the number of operations matters.


class Residual(nn.Module):
    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        same = stride == 1 and width == out
        self.skip = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (y + self.skip(x)).relu()


def resnet18(width: int = 8) -> tuple[nn.Module, torch.Tensor]:
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        for block in range(2):
            layers.append(Residual(before, width << stage, 2 if stage and not block else 1))
            before = width << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10)), torch.randn(
        8, 3, 16, 16
    )


def gpt(depth: int) -> tuple[nn.Module, torch.Tensor]:
    return Transformer(width=16, depth=depth, length=8), torch.randint(0, 256, (4, 8))


def small_mlp() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(8, 64)


def small_convolutional() -> tuple[nn.Module, torch.Tensor]:
    network, x = convolutional()
    return network, x[:4]


COUNTED: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "MLP": small_mlp,
    "convolutional": small_convolutional,
    "transformer, 6 blocks": lambda: gpt(6),
    "ResNet-18": resnet18,
    "GPT, 12 blocks": lambda: gpt(12),
    "GPT, 48 blocks": lambda: gpt(48),
}
NEVER = 1e-9  # a share of the training time that no measurement keeps
GUARDS: dict[str, Callable[[], Any]] = {
    "BiLipschitzMonitor, measured": lambda: lt.BiLipschitzMonitor(max_overhead=None),
    "BiLipschitzMonitor, not measured": lambda: lt.BiLipschitzMonitor(max_overhead=NEVER),
    "PersistenceMonitor, measured": lambda: lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1),
    "PersistenceMonitor, not measured": lambda: lt.PersistenceMonitor(max_overhead=NEVER, every_n_train_steps=1),
    "step clipping, not clipped": lambda: lt.TopologicalStepClipping(1.0),
    "step clipping, clipped": lambda: lt.TopologicalStepClipping(1e-7),
    "rate control, measured": lambda: lt.TopologicalRateControl(every_n_train_steps=1),
    "rate control, watched": lambda: lt.TopologicalRateControl(every_n_train_steps=10**6),
}


class Counted(Module):
    """Counts its optimizer's steps, hooks included."""

    def __init__(self, network: nn.Module):
        super().__init__(network)
        self.automatic_optimization = False
        self.counts: list[Counts] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        with Counts() as counts:
            optimizer.step()
        self.counts.append(counts)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-6, foreach=True)  # as on an accelerator


def counts_of(network: str, guard: Any, steps: int = 10) -> Counts:
    """Of a step like the others: after the first ones, which have more to do."""
    pl.seed_everything(0, verbose=False)
    made, x = COUNTED[network]()
    module, data = Counted(made), TensorDataset(x, torch.randint(0, 10, (len(x),)))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[] if guard is None else [guard],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=10**6,
    )
    trainer.fit(module, DataLoader(data, batch_size=len(x)))
    return sorted(module.counts[steps // 2 :], key=lambda counts: (counts.operations, counts.reads))[steps // 4]


def count_rows(networks: list[str]) -> list[dict]:
    """What each guard adds to an optimizer step."""
    rows = []
    for network in networks:
        plain = counts_of(network, None)
        for name, make in GUARDS.items():
            counts = counts_of(network, make())
            added = {what: getattr(counts, what) - getattr(plain, what) for what in ("kernels", "operations", "reads")}
            names = dict(counts.by_name - plain.by_name)
            rows.append({"network": network, "guard": name} | added | {"by_name": names})
    return rows


def show_counts(rows: list[dict]) -> None:
    networks = list(dict.fromkeys(row["network"] for row in rows))
    print("\nAdded to an optimizer step: kernels / operations dispatched / reads\n")
    print("| | " + " | ".join(networks) + " |\n|---|" + "---|" * len(networks))
    for name in GUARDS:
        found = {row["network"]: row for row in rows if row["guard"] == name}
        cells = [f"{found[n]['kernels']} / {found[n]['operations']} / {found[n]['reads']}" for n in networks]
        print(f"| {name} | " + " | ".join(cells) + " |")


# Attached and idle: three monitors whose budget allows no measurement.


def idle_monitors() -> list[Any]:
    return [
        lt.BiLipschitzMonitor(max_overhead=NEVER),
        lt.PersistenceMonitor(max_overhead=NEVER),
        lt.SharpnessMonitor(max_overhead=NEVER),
    ]


def idle_row(seconds: float, repeats: int) -> dict:
    """Microseconds a step, hook by hook, and the ratio of processor times of fits in turns."""
    hooks = idle_hooks()
    short, long = (processor_seconds("MLP", {"none": None}, steps)["none"] for steps in (10, 200))
    steps = max(100, round(seconds / (long - short) * 190))
    ratios = []
    for _ in range(repeats):
        times = processor_seconds("MLP", {"none": [], "idle": idle_monitors()}, steps)
        ratios.append(times["idle"] / times["none"])
    return {"hooks": hooks, "ratio": statistics.median(ratios), "ratios": ratios, "step": 1e3 * (long - short) / 190}


def idle_hooks(steps: int = 3000) -> dict[str, float]:
    """Microseconds a step of what Lightning and the optimizer call, with the monitors less without."""
    found = {}
    for name, monitors in (("none", []), ("idle", idle_monitors())):
        pl.seed_everything(0, verbose=False)
        samples: dict[str, list[float]] = {}
        network, x = small_mlp()
        with (
            timed(call, "_call_callback_hooks", samples, lambda args: args[1]),
            timed(_StepHook, "__call__", samples, lambda args: "optimizer step"),
        ):
            trainer = pl.Trainer(
                max_steps=steps,
                accelerator="cpu",
                logger=False,
                callbacks=monitors,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            x = x.repeat(500, 1)
            data = TensorDataset(x, torch.randint(0, 10, (len(x),)))
            trainer.fit(Module(network), DataLoader(data, batch_size=8))
        often = {what: values for what, values in samples.items() if len(values) >= steps}
        # The lower quartile, of the second half: other load only adds.
        quartiles = {what: statistics.quantiles(v[len(v) // 2 :])[0] for what, v in often.items()}
        found[name] = {what: value * round(len(often[what]) / steps) for what, value in quartiles.items()}
    return {what: 1e6 * (value - found["none"].get(what, 0.0)) for what, value in found["idle"].items()}


@contextmanager
def timed(owner: Any, name: str, samples: dict[str, list[float]], what: Callable[[Any], str]) -> Iterator[None]:
    """Keep the seconds of each call of a function."""
    function = getattr(owner, name)

    def timing(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            samples.setdefault(what(args), []).append(time.perf_counter() - began)

    with mock.patch.object(owner, name, timing):
        yield


def show_idle(row: dict) -> None:
    print("\nAll three monitors attached, none measuring, microseconds of a step\n")
    print("| " + " | ".join([*row["hooks"], "together"]) + " |\n|" + "---|" * (len(row["hooks"]) + 1))
    values = [*row["hooks"].values(), sum(row["hooks"].values())]
    print("| " + " | ".join(f"{value:.1f}" for value in values) + " |")
    print(f"\nWhole fits in turns, steps of {row['step']:.2f} ms: {row['ratio']:.3f} times plain")


def show_times(times: list[dict], rows: list[dict]) -> None:
    print("\n| network | monitor | time with / without | due updates measured | a minute |\n|---|---|---|---|---|")
    for row in rows:
        measured = "- | -" if row["coverage"] is None else f"{row['coverage']:.1%} | {row['a_minute']:.1f}"
        print(f"| {row['network']} | {row['monitor']} | {row['ratio']:.3f} | {measured} |")
    print("\n| neurons | " + " | ".join(f"{name} (ms)" for name in list(times[0])[1:]) + " |\n|---|---|---|---|")
    for time_row in times:
        print(f"| {time_row['n']} | " + " | ".join(f"{value:.1f}" for value in list(time_row.values())[1:]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=("time", "counts", "idle"), default=["time", "counts", "idle"])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of one run without a monitor")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument("--monitor", choices=MONITORS, nargs="+", default=list(MONITORS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")

    found: dict[str, Any] = {}
    if "time" in options.part:
        found |= {"measurement": measurement_times()}
        found |= {"overhead": overhead(options.network, options.monitor, options.seconds, options.repeats)}
        show_times(found["measurement"], found["overhead"])
    if "counts" in options.part:
        found["counts"] = count_rows(list(COUNTED))
        show_counts(found["counts"])
    if "idle" in options.part:
        found["idle"] = idle_row(options.seconds, options.repeats)
        show_idle(found["idle"])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
