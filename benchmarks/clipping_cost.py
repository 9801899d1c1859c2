"""What step clipping takes of a step in which nothing is clipped, and which part of that is passing over memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_topo.clipping import StepClipper
from lightning_topo.neurons import find_neuron_groups

STEPS, SETTLED = 60, 10


def perceptron(width: int) -> nn.Module:
    sizes = (784, width, width)
    layers = [part for n_in, n_out in pairwise(sizes) for part in (nn.Linear(n_in, n_out), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def convolutional(width: int) -> nn.Module:
    def block(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]

    layers = [nn.Unflatten(1, (1, 28, 28)), *block(1, width), *block(width, 2 * width), *block(2 * width, 4 * width)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * 4 * width, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "perceptron, 64 wide": lambda: perceptron(64),
    "perceptron, 640 wide": lambda: perceptron(640),
    "perceptron, 2,048 wide": lambda: perceptron(2048),
    "convolutional, 80 to 320 channels": lambda: convolutional(80),
}
OPTIMIZERS = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-6),
}


def cost(network: str, batch: int, optimizer: str) -> dict[str, float]:
    """Processor milliseconds of a step, medians over updates that take turns with and without clipping.

    Returns:
        Parameters; the step without (``plain``), what is added before and after the optimizer's step, and how long a
        copy of the parameters (``copy``), and a copy, two differences and two norms (``passes``), take on their own
        after a step has filled the caches.
    """
    torch.manual_seed(0)
    x, y = torch.randn(batch, 784), torch.randint(0, 10, (batch,))
    plain, clipped = (NETWORKS[network]() for _ in range(2))
    makers = [OPTIMIZERS[optimizer](model) for model in (plain, clipped)]
    clipper = StepClipper(makers[1], clipped, find_neuron_groups(clipped, x))
    kept, moved = ([p.detach().clone() for p in plain.parameters()] for _ in range(2))
    times: dict[str, list[float]] = {name: [] for name in ("plain", "before", "after", "copy", "passes")}
    for _ in range(STEPS):
        times["plain"].append(timed(lambda: descend(plain, makers[0], x, y)))
        times["copy"].append(timed(lambda: copy(plain, kept)))
        descend(plain, makers[0], x, y)
        times["passes"].append(timed(lambda: passes(plain, kept, moved)))
        backward(clipped, makers[1], x, y)
        times["before"].append(timed(clipper.before))
        makers[1].step()
        times["after"].append(timed(clipper.after))
    if clipper.clipped_updates:
        raise RuntimeError(f"expected updates below the bound, got {clipper.clipped_updates} that were scaled back")
    found = {name: round(1e3 * statistics.median(values[SETTLED:]), 3) for name, values in times.items()}
    return {"parameters": sum(p.numel() for p in plain.parameters()), **found}


def timed(act: Callable[[], object]) -> float:
    began = time.thread_time()
    act()
    return time.thread_time() - began


def backward(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    backward(model, optimizer, x, y)
    optimizer.step()


@torch.no_grad()
def copy(model: nn.Module, kept: list[Tensor]) -> None:
    torch._foreach_copy_(kept, list(model.parameters()))


@torch.no_grad()
def passes(model: nn.Module, kept: list[Tensor], moved: list[Tensor]) -> None:
    copy(model, kept)
    for _ in range(2):
        for target, a, b in zip(moved, model.parameters(), kept, strict=True):
            torch.sub(a, b, out=target)
        torch._foreach_norm(moved)


CASES = [
    ("perceptron, 64 wide", 64, "momentum"),
    *(("perceptron, 640 wide", batch, name) for batch in (64, 256, 1024) for name in OPTIMIZERS),
    ("perceptron, 2,048 wide", 128, "momentum"),
    ("convolutional, 80 to 320 channels", 32, "momentum"),
]
