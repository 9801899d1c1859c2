"""What a measurement costs for large groups and many of them, and how close κ of a sample comes to κ of all neurons.

    python benchmarks/scaling.py [--quick] [--part cost sample groups] [--json scaling.json]

Three tables, about ten minutes on one core:

- cost: processor time and additional peak memory of one measurement, in a process of its own each, for n neurons of D
  coordinates in float32. The second measurement is timed, and the first one in brackets where it does more.
- sample: κ(sample) / κ(all) over updates at the start, in the middle and at the end of training widened networks of
  `tasks.py`, for samples that `BiLipschitzMonitor` would take; mean and smallest.
- groups: a network with 100 groups of 4,096 neurons: discovery and one measurement against a training step, and what
  the monitors take of a run of 600 steps.

Peak memory is read from /proc, and so needs Linux.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from tasks import OPTIMIZERS, _digits, _figure_eight, _perceptron, _student, _teacher_data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.clipping import StepClipper
from lightning_topo.finder._trial_meter import TrialMeter
from lightning_topo.functional import bi_lipschitz
from lightning_topo.updates import UpdateMeter
from lightning_topo.updates.drawn_sample import DrawnSample

SECONDS = 90.0  # limit for two measurements
SIZES = (64, 128, 256, 512)


# Cost: one group of n neurons with D coordinates.


def layer(n: int, dimension: int) -> tuple[nn.Module, lt.NeuronGroup]:
    """Units with D parameters each: incoming weights, bias, outgoing weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(dimension // 2, n), nn.ReLU(), nn.Linear(n, dimension - dimension // 2 - 1))
    members = (lt.Member("0.weight"), lt.Member("0.bias"), lt.Member("2.weight", axis=1))
    return model, lt.NeuronGroup("0", members)


@torch.no_grad()
def update(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter[:1]), alpha=1e-4)
        parameter.mul_(1 + 1e-4 * torch.randn(parameter.shape[0]).view(-1, *[1] * (parameter.ndim - 1)))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that holds all parameters; it makes no step."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def monitor_update(model: nn.Module, group: lt.NeuronGroup) -> Callable[[], None]:
    meter = UpdateMeter(sgd(model), model, [group], lt.BiLipschitzMonitor().max_neurons)

    def measure() -> None:
        meter.refresh()
        meter.before(meter.sets)
        yield_to(model)
        measurement = meter.after()
        assert measurement is not None
        measurement.constants()

    return measure


def compare_all(model: nn.Module, group: lt.NeuronGroup) -> Callable[[], None]:
    def measure() -> None:
        before = group.points(model)
        yield_to(model)
        bi_lipschitz(before, group.points(model))

    return measure


def monitor_persistence(model: nn.Module, group: lt.NeuronGroup) -> Callable[[], None]:
    monitor = lt.PersistenceMonitor(figures=False)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    trainer = SimpleNamespace(fit_loop=loop, loggers=[])

    def measure() -> None:
        monitor._measure_group(group, trainer, group.points(model), 0)
        yield_to(model)

    return measure


def trial_update(model: nn.Module, group: lt.NeuronGroup) -> Callable[[], None]:
    meter = TrialMeter(sgd(model), model, [group])

    def measure() -> None:
        meter.before()
        yield_to(model)
        meter.after()

    return measure


def clipped_update(model: nn.Module, group: lt.NeuronGroup) -> Callable[[], None]:
    clipper = StepClipper(sgd(model), model, [group])

    def measure() -> None:
        clipper.before()
        yield_to(model)
        clipper.after()

    return measure


MEASUREMENTS: dict[str, Callable[[nn.Module, lt.NeuronGroup], Callable[[], None]]] = {
    "bi_lipschitz of all": compare_all,
    "BiLipschitzMonitor": monitor_update,
    "PersistenceMonitor": monitor_persistence,
    "trial of the finder": trial_update,
    "step clipping": clipped_update,
}
_not_counted = 0.0


def yield_to(model: nn.Module) -> None:
    """Make the update, whose time is training's."""
    global _not_counted
    began = time.process_time()
    update(model)
    _not_counted += time.process_time() - began


def timed(measure: Callable[[], None]) -> float:
    global _not_counted
    _not_counted, began = 0.0, time.process_time()
    measure()
    return time.process_time() - began - _not_counted


def memory(field: str) -> int:
    """VmRSS (resident now) or VmHWM (at most so far) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def child(sender: Any, name: str, n: int, dimension: int) -> None:
    model, group = layer(n, dimension)
    update(model)
    measure = MEASUREMENTS[name](model, group)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    resident = memory("VmRSS")
    times = [timed(measure), timed(measure)]
    sender.send((*times, memory("VmHWM") - resident))


def measured(name: str, n: int, dimension: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender, name, n, dimension))
    process.start()
    sender.close()  # so that a child that fails ends the wait
    try:
        if not receiver.poll(SECONDS):
            return {"first": None, "seconds": None, "bytes": None}
        first, seconds, peak = receiver.recv()
        return {"first": first, "seconds": seconds, "bytes": peak}
    finally:
        process.kill()
        process.join()


def cost_rows(sizes: list[int], dimensions: list[int]) -> list[dict]:
    print("\nTime (first, where it is twice as long) and additional peak memory of one measurement\n")
    print("| n | D | " + " | ".join(MEASUREMENTS) + " |\n|---|---|" + "---|" * len(MEASUREMENTS))
    rows = []
    for n in sizes:
        for dimension in dimensions:
            cells = []
            for name in MEASUREMENTS:
                # All pairs in all coordinates: minutes, and gigabytes.
                dear = n * n * dimension > 2**38 and name == "bi_lipschitz of all"
                result = None if dear else measured(name, n, dimension)
                cells.append(cell(result))
                rows.append({"n": n, "dimension": dimension, "measurement": name} | (result or {}))
            print(f"| {n:,} | {dimension:,} | " + " | ".join(cells) + " |", flush=True)
    return rows


def cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if result["seconds"] is None:
        return f"> {SECONDS / 2:.0f} s"
    first = f" ({seconds_text(result['first'])})" if result["first"] > 2 * result["seconds"] + 0.01 else ""
    return f"{seconds_text(result['seconds'])}{first}, {result['bytes'] / 2**20:,.0f} MiB"


def seconds_text(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1e3 * seconds:,.0f} ms"


# Sample: trained networks.


def deep(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 10))


Network = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], dict[str, float]]
NETWORKS: dict[str, Network] = {
    "digits, ReLU, n = 1,024": (
        lambda: _perceptron(nn.ReLU, False, 1024),
        _digits,
        {"sgd": 0.2, "momentum": 0.05, "adam": 1e-3},
    ),
    "digits, ReLU, n = 4,096": (
        lambda: _perceptron(nn.ReLU, False, 4096),
        _digits,
        {"sgd": 0.1, "momentum": 0.02, "adam": 5e-4},
    ),
    "digits, GELU, sphere, n = 2,048": (
        lambda: _perceptron(nn.GELU, True, 2048),
        _digits,
        {"sgd": 0.02, "momentum": 0.002, "adam": 1e-3},
    ),
    "digits, two hidden layers, n = 1,024": (
        lambda: deep(1024),
        _digits,
        {"sgd": 0.1, "momentum": 0.02, "adam": 5e-4},
    ),
    "teacher, figure-eight, n = 1,024": (
        lambda: _student(_figure_eight, 1024),
        _teacher_data,
        {"sgd": 5e-4, "momentum": 5e-5, "adam": 1e-3},
    ),
}


def shares(network: str, optimizer: str, steps: int) -> dict[str, list[float]]:
    """κ(sample) / κ(all) of each kind of sample, over the updates that are looked at and the groups."""
    build, data, rates = NETWORKS[network]
    torch.manual_seed(0)
    model, (x, y) = build(), data()
    loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    groups = lt.find_neuron_groups(model, x[:8])
    step = OPTIMIZERS[optimizer](model.parameters(), lr=rates[optimizer])
    meters = {str(size): UpdateMeter(step, model, groups, size) for size in SIZES}
    drawn = [DrawnSample(group, model, 256) for group in groups]
    watched = {start + k for start in (0, steps // 3, steps - 20) for k in (0, 1, 2, 5, 10)}
    ratios: dict[str, list[float]] = {kind: [] for kind in [*meters, "256 drawn"]}
    for index in range(steps):
        batch = torch.randint(len(x), (128,))
        step.zero_grad()
        loss(model(x[batch]), y[batch]).backward()
        if index not in watched:
            step.step()
            continue
        everything = [group.points(model) for group in groups]
        for meter in meters.values():
            meter.before(meter.sets)
        before = [sample.before() for sample in drawn]
        step.step()
        whole = {g.name: bi_lipschitz(p, g.points(model)).criticality for g, p in zip(groups, everything, strict=True)}
        parts = {kind: criticalities(meter) for kind, meter in meters.items()}
        parts["256 drawn"] = {}
        for sample, old in zip(drawn, before, strict=True):
            new = sample.after()
            sample.remember(old, new)
            parts["256 drawn"][sample.groups[0].name] = bi_lipschitz(old, new).criticality
        for kind, part in parts.items():
            for name, value in part.items():
                assert value <= whole[name] * (1 + 1e-12), (network, optimizer, index, kind)
                ratios[kind].append(value / whole[name])
    return ratios


def criticalities(meter: UpdateMeter) -> dict[str, float]:
    """κ of each group of the update that was just made."""
    measurement = meter.after()
    assert measurement is not None
    return {group.name: constants.criticality for group, constants in measurement.constants() if constants is not None}


def sample_rows(networks: list[str], steps: int) -> list[dict]:
    print("\nκ(sample) / κ(all): mean (smallest)\n")
    kinds = [*map(str, SIZES), "256 drawn before the update"]
    print("| network | optimizer | " + " | ".join(kinds) + " |\n|---|---|" + "---|" * len(kinds))
    rows = []
    for network in networks:
        for optimizer in NETWORKS[network][2]:
            ratios = shares(network, optimizer, steps)
            texts = [f"{statistics.fmean(values):.3f} ({min(values):.2f})" for values in ratios.values()]
            print(f"| {network} | {optimizer} | " + " | ".join(texts) + " |", flush=True)
            rows.append({"network": network, "optimizer": optimizer, "ratios": ratios})
    return rows


# Groups: a hundred of 4,096.


class Block(nn.Module):
    def __init__(self, width: int, n: int):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, n), nn.Linear(n, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Module(pl.LightningModule):
    def __init__(self, blocks: int, n: int, width: int = 64):
        super().__init__()
        self.net = nn.Sequential(*(Block(width, n) for _ in range(blocks)), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4)


def fit(module: pl.LightningModule, monitor: pl.Callback | None, steps: int) -> float:
    data = TensorDataset(torch.randn(4096, 64), torch.randint(0, 10, (4096,)))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[] if monitor is None else [monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    began = time.process_time()
    trainer.fit(module, DataLoader(data, batch_size=32))
    return time.process_time() - began


def group_rows(blocks: int, n: int, steps: int) -> list[dict]:
    module = Module(blocks, n)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    step = min(fit(Module(blocks, n), None, 10) for _ in range(2)) / 10
    began = time.process_time()
    groups = lt.find_neuron_groups(module, torch.randn(32, 64))
    discovery = time.process_time() - began
    every = lt.BiLipschitzMonitor(max_overhead=None)
    fit(module, every, 3)
    everything = (every._budget.spent - every.discovery_seconds) / 3
    row = {
        "groups": len(groups),
        "parameters": parameters,
        "step": step,
        "discovery": discovery,
        "measurement": everything,
        "steps": steps,
    }
    print(f"\n{len(groups)} groups, {parameters / 1e6:.0f} M parameters; {blocks} groups have {n:,} neurons\n")
    print("| what | seconds | training steps |\n|---|---|---|")
    for what, seconds in (("training step", step), ("discovery", discovery), ("all groups measured", everything)):
        print(f"| {what} | {seconds:.2f} | {seconds / step:.1f} |")
    print(
        "\n| monitor | updates | groups measured | discovery and measurements over training time |\n|---|---|---|---|"
    )
    for monitor in (lt.BiLipschitzMonitor(), lt.PersistenceMonitor(figures=False)):
        fit(Module(blocks, n), monitor, steps)
        elapsed = time.perf_counter() - (monitor._budget._began or 0.0)
        name = type(monitor).__name__
        row[name] = {
            "overhead": monitor._budget.spent / (elapsed - monitor._budget.spent),
            "records": len(monitor.history),
            "measured": len({record.group for record in monitor.history}),
        }
        print(f"| {name} | {steps} | {row[name]['measured']} | {row[name]['overhead']:.1%} |", flush=True)
    return [row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--part", nargs="+", choices=("cost", "sample", "groups"), default=["cost", "sample", "groups"])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quick, rows = options.quick, {}
    if "cost" in options.part:
        rows["cost"] = cost_rows(*(([256], [64]) if quick else ([256, 1024, 4096, 16384], [64, 1024, 8192])))
    if "sample" in options.part:
        rows["sample"] = sample_rows(list(NETWORKS)[:1] if quick else list(NETWORKS), 60 if quick else 600)
    if "groups" in options.part:
        rows["groups"] = group_rows(3 if quick else 100, 512 if quick else 4096, 10 if quick else 600)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
