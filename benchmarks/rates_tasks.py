"""Real tasks for the benchmark of learning rates: networks, data and optimizers, in plain torch.

Images are Fashion-MNIST (60,000 of them: Debian's package ``dataset-fashion-mnist``, or any folder with its files),
text is the source of Python's own library as bytes, tables are scikit-learn's. Nothing is downloaded. Weights depend on
the seed alone, batches on the seed and the step: two ways to choose a rate see the same run.
"""

from __future__ import annotations

import glob
import gzip
import itertools
import math
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CONTEXT, VOCABULARY, TEXT_BYTES = 64, 128, 6_000_000
VALIDATED, VALIDATED_LINES = 4096, 384

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], float]] = {  # and the rate of their documentation
    "sgd": (SGD, 1e-3),
    "momentum": (lambda params, lr: SGD(params, lr=lr, momentum=0.9), 1e-3),
    "adam": (Adam, 1e-3),
    "adamw": (lambda params, lr: AdamW(params, lr=lr, betas=(0.9, 0.99), weight_decay=0.01), 1e-3),
    "rmsprop": (RMSprop, 1e-2),
}


@dataclass(frozen=True)
class Data:
    """Training and validation examples, and how a batch is drawn of them."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, y = self.train
        index = torch.randint(0, len(x), (size,), generator=generator)
        return x[index], y[index]

    def validation(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.valid[0].split(size), self.valid[1].split(size), strict=True)


@dataclass(frozen=True)
class Text(Data):
    """Lines of bytes; the target is the next byte."""

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._lines(self.train[0], size, generator)

    def validation(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(999)
        for _ in range(VALIDATED_LINES // 64):
            yield self._lines(self.valid[0], 64, generator)

    def _lines(self, text: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        start = torch.randint(0, len(text) - CONTEXT - 1, (size, 1), generator=generator)
        lines = text[start + torch.arange(CONTEXT + 1)]
        return lines[:, :-1], lines[:, 1:]


@dataclass(frozen=True)
class Task:
    """One network, its data and its optimizer."""

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch_size: int

    @property
    def optimizer_name(self) -> str:
        return self.name.split("/")[1]

    @property
    def default_lr(self) -> float:
        return OPTIMIZERS[self.optimizer_name][1]

    def model(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        return OPTIMIZERS[self.optimizer_name][0](model.parameters(), lr=lr)

    def batches(self, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(11 + 100 * seed)
        for _ in range(steps):
            yield self.data().batch(self.batch_size, generator)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        """Loss on the validation examples in evaluation mode, ``inf`` where it is not finite."""
        model.eval()
        total = count = 0.0
        for x, y in self.data().validation(min(512, 16 * self.batch_size)):
            total += len(x) * self.loss(model(x), y).item()
            count += len(x)
        model.train()
        return total / count if math.isfinite(total) else math.inf


# Data.


@cache
def fashion() -> Data:
    return Data(_images("train"), tuple(part[:VALIDATED] for part in _images("t10k")))


@cache
def fashion_itself() -> Data:
    """Images whose target is the image."""
    images = fashion()
    return Data(*((x, x.flatten(1)) for x, _ in (images.train, images.valid)))


def _images(part: str) -> tuple[Tensor, Tensor]:
    folder = Path(os.environ.get("FASHION_MNIST", FASHION_MNIST))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected Fashion-MNIST in {folder}, which is not there; "
            "do: apt-get install dataset-fashion-mnist, or name the folder with --data-dir"
        )
    x = _read(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    return torch.from_numpy((x / 255 - 0.286) / 0.353), torch.from_numpy(
        _read(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64)
    )


def _read(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@cache
def text() -> Data:
    """Python's library, its files shuffled; the last twentieth is for validation."""
    pattern = os.path.join(sysconfig.get_paths()["stdlib"], "**", "*.py")
    files = sorted(f for f in glob.glob(pattern, recursive=True) if "site-packages" not in f and "/test" not in f)
    np.random.default_rng(0).shuffle(files)
    raw = b"\n".join(Path(f).read_bytes() for f in files)[:TEXT_BYTES]
    codes = torch.from_numpy(np.frombuffer(raw, np.uint8).astype(np.int64)).clamp(max=VOCABULARY - 1)
    cut = int(0.95 * len(codes))
    return Text((codes[:cut], codes[:cut]), (codes[cut:], codes[cut:]))


@cache
def table(name: str) -> Data:
    """A table of scikit-learn, standardised; two fifths are for validation."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    cut = 3 * len(x) // 5
    train, valid = order[:cut], order[cut:]
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-9)
    inputs = torch.tensor(x, dtype=torch.float32)
    if y.dtype.kind == "f":
        target = torch.tensor((y - y[train].mean()) / y[train].std(), dtype=torch.float32)[:, None]
    else:
        target = torch.tensor(y, dtype=torch.int64)
    return Data((inputs[train], target[train]), (inputs[valid], target[valid]))


# Networks.


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal)
        self.norm2, self.fc, self.proj = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.proj(nn.functional.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4, context: int = CONTEXT) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.token(codes) + self.position(torch.arange(codes.shape[1], device=codes.device))
        return self.head(self.norm(self.blocks(x)))


class ViT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(1, width, 7, 7), nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int = 96) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(VOCABULARY, 48), kind(48, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(codes))[0])


class Residual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.norm2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(nn.functional.relu(self.norm1(self.conv1(x)))))
        return nn.functional.relu(y + self.shortcut(x))


class MixerBlock(nn.Module):
    """Mixes patches, then channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 7, 7)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


def perceptron(width: int = 256, depth: int = 2) -> nn.Module:
    widths = [784] + depth * [width]
    hidden = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def sigmoid(width: int = 256) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Sigmoid(), nn.Linear(width, 10))


def normalised(width: int = 96, depth: int = 6) -> nn.Module:
    """A deep perceptron with LayerNorm."""
    widths = [784] + depth * [width]
    hidden = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.LayerNorm(o), nn.GELU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def convolutional(width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 5, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * width * 25, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def resnet(width: int = 12) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), Residual(width, width, 1),
        Residual(width, 2 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


def depthwise(width: int = 16) -> nn.Module:
    def block(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(n_in, n_in, 3, stride, 1, groups=n_in, bias=False), nn.BatchNorm2d(n_in), nn.ReLU6(),
            nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU6(),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
        *block(width, 2 * width, 2), *block(2 * width, 2 * width, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2 * width, 10),
    )  # fmt: skip


def autoencoder(width: int = 128) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.GELU(), nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width),
        nn.GELU(), nn.Linear(width, 784),
    )  # fmt: skip


def tabular(n_in: int, n_out: int, width: int = 64) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))


def flat_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


def _networks() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], Data], Callable, int, str]]:
    """Builder, data, loss, batch size, optimizers."""
    entropy, mse = flat_cross_entropy, nn.functional.mse_loss
    return {
        "perceptron": (perceptron, fashion, entropy, 128, "adamw momentum rmsprop"),
        "sigmoid": (sigmoid, fashion, entropy, 128, "adamw momentum"),
        "conv": (convolutional, fashion, entropy, 64, "adamw momentum sgd"),
        "resnet": (resnet, fashion, entropy, 64, "adamw momentum"),
        "depthwise": (depthwise, fashion, entropy, 64, "rmsprop momentum"),
        "layernorm": (normalised, fashion, entropy, 64, "adam"),
        "vit": (ViT, fashion, entropy, 64, "adamw momentum"),
        "mixer": (Mixer, fashion, entropy, 64, "adam"),
        "autoencoder": (autoencoder, fashion_itself, mse, 128, "adamw"),
        "gpt": (GPT, text, entropy, 12, "adamw sgd"),
        "lstm": (lambda: Recurrent(nn.LSTM), text, entropy, 12, "adamw"),
        "gru": (lambda: Recurrent(nn.GRU), text, entropy, 12, "adam"),
        "cancer": (lambda: tabular(30, 2), lambda: table("breast_cancer"), entropy, 32, "sgd"),
        "diabetes": (lambda: tabular(10, 1), lambda: table("diabetes"), mse, 32, "adam"),
    }


@cache
def all_tasks() -> dict[str, Task]:
    """Every task by name, in the order of the table."""
    return {
        f"{net}/{optimizer}": Task(f"{net}/{optimizer}", build, data, loss, size)
        for net, (build, data, loss, size, optimizers) in _networks().items()
        for optimizer in optimizers.split()
    }


@cache
def scaled_tasks() -> dict[str, Task]:
    """A few of the tasks four times as wide or as deep, or with batches eight times as large."""
    plain, scaled = all_tasks(), {}
    builds = {
        "wide-perceptron": ("perceptron", lambda: perceptron(width=1024)),
        "deep-perceptron": ("perceptron", lambda: perceptron(width=128, depth=8)),
        "wide-conv": ("conv", lambda: convolutional(width=64)),
        "wide-layernorm": ("layernorm", lambda: normalised(width=384)),
    }
    for name, (net, build) in builds.items():
        for task in plain.values():
            net_of_task, optimizer = task.name.split("/")
            if net_of_task == net and optimizer in ("adam", "adamw", "momentum"):
                scaled[f"{name}/{optimizer}"] = replace(task, name=f"{name}/{optimizer}", build=build)
    for name in ("perceptron/adamw", "perceptron/momentum", "conv/adamw", "conv/momentum", "depthwise/rmsprop"):
        task = plain[name]
        scaled[f"batch-{name}"] = replace(task, name=f"batch-{name}", batch_size=8 * task.batch_size)
    return scaled


def shape(step: int, steps: int, schedule: str) -> float:
    """Share of the base rate at a step: 10% linear warm-up and a cosine to 0, or constant."""
    if schedule == "constant":
        return 1.0
    return min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
