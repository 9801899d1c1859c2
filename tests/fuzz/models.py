"""Small networks of many kinds, drawn at random; the same draw gives the same network with the same weights."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.LeakyReLU)


@dataclass(frozen=True)
class Input:
    """What a network takes, and how many classes it tells apart.

    Attributes:
        shape: Shape of one example.
        tokens: Size of the vocabulary, 0 for floating-point examples.
        classes: Width of the output.
        needs_two: Whether a training batch of one example is none, as for BatchNorm.
    """

    shape: tuple[int, ...]
    tokens: int
    classes: int
    needs_two: bool = False


def _norm(r: random.Random, n: int, image: bool = False) -> list[nn.Module]:
    kind = r.choice(("none", "none", "batch", "layer"))
    if kind == "batch":
        return [nn.BatchNorm2d(n) if image else nn.BatchNorm1d(n)]
    if kind == "layer":
        return [nn.GroupNorm(1, n) if image else nn.LayerNorm(n)]
    return []


def perceptron(r: random.Random) -> tuple[nn.Module, Input]:
    d, classes = r.randint(1, 10), r.randint(2, 5)
    layers: list[nn.Module] = []
    n = d
    for width in [r.choice((2, 3, 8, 17, 33)) for _ in range(r.randint(1, 3))]:
        layers += [nn.Linear(n, width, bias=r.random() < 0.8), *_norm(r, width), r.choice(_ACTIVATIONS)()]
        layers += [nn.Dropout(r.choice((0.1, 0.5)))] if r.random() < 0.3 else []
        n = width
    return nn.Sequential(*layers, nn.Linear(n, classes)), Input((d,), 0, classes)


class _Residual(nn.Module):
    def __init__(self, r: random.Random, n: int) -> None:
        super().__init__()
        inner = r.choice((2, 5, 8))
        self.branch = nn.Sequential(
            nn.Conv2d(n, inner, 3, padding=1), *_norm(r, inner, True), nn.ReLU(), nn.Conv2d(inner, n, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def convolutional(r: random.Random) -> tuple[nn.Module, Input]:
    channels, size, classes = r.randint(1, 3), r.choice((4, 6)), r.randint(2, 5)
    first, second = r.choice((2, 4, 9)), r.choice((3, 6, 16))
    layers = [nn.Conv2d(channels, first, 3, padding=1, bias=r.random() < 0.7), *_norm(r, first, True), nn.ReLU()]
    layers += [_Residual(r, first)] if r.random() < 0.4 else []
    layers += [nn.Conv2d(first, second, 3, stride=r.choice((1, 2)), padding=1), *_norm(r, second, True), nn.GELU()]
    if r.random() < 0.3:
        layers += [nn.Conv2d(second, second, 3, padding=1, groups=second), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(r.choice((1, 2))), nn.Flatten(), nn.LazyLinear(classes)]
    net = nn.Sequential(*layers)
    net.eval()(torch.zeros(2, channels, size, size))  # sizes of the lazy layer
    return net.train(), Input((channels, size, size), 0, classes)


class _Sequence(nn.Module):
    """Tokens or vectors in a row, something over them, the last or the mean of what it gives."""

    def __init__(self, r: random.Random, tokens: int, d: int, classes: int, over: nn.Module, width: int) -> None:
        super().__init__()
        self.enter = nn.Embedding(tokens, d) if tokens else nn.Linear(3, d)
        self.over, self.mean = over, r.random() < 0.5
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.over(self.enter(x))
        h = h[0] if isinstance(h, tuple) else h
        return self.head(h.mean(1) if self.mean else h[:, -1])


def recurrent(r: random.Random) -> tuple[nn.Module, Input]:
    tokens, d, hidden, classes = r.choice((0, 7, 13)), r.choice((3, 6)), r.choice((2, 5, 12)), r.randint(2, 5)
    both = r.random() < 0.3
    over = r.choice((nn.LSTM, nn.LSTM, nn.GRU, nn.RNN))(
        d, hidden, r.randint(1, 2), batch_first=True, bidirectional=both
    )
    net = _Sequence(r, tokens, d, classes, over, hidden * (1 + both))
    length = r.randint(2, 5)
    return net, Input((length,) if tokens else (length, 3), tokens, classes)


def transformer(r: random.Random) -> tuple[nn.Module, Input]:
    tokens, classes, heads = r.choice((0, 7, 13)), r.randint(2, 5), r.choice((1, 2))
    d = heads * r.choice((2, 4))
    layer = nn.TransformerEncoderLayer(
        d,
        heads,
        r.choice((5, 16)),
        dropout=r.choice((0.0, 0.2)),
        activation=r.choice(("relu", "gelu")),
        batch_first=True,
        norm_first=r.random() < 0.5,
    )
    over = nn.TransformerEncoder(layer, r.randint(1, 2), enable_nested_tensor=False)
    length = r.randint(2, 5)
    return _Sequence(r, tokens, d, classes, over, d), Input((length,) if tokens else (length, 3), tokens, classes)


class _Tied(nn.Module):
    """The next token, by the embedding that the last ones were read with."""

    def __init__(self, tokens: int, d: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, d)
        self.inner = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d))
        self.out = nn.Linear(d, tokens, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.embedding(x).mean(1)))


def tied(r: random.Random) -> tuple[nn.Module, Input]:
    tokens = r.choice((5, 11))
    return _Tied(tokens, r.choice((3, 6)), r.choice((4, 10))), Input((r.randint(1, 4),), tokens, tokens)


class _Shared(nn.Module):
    """One layer that is used again and again."""

    def __init__(self, d: int, n: int, classes: int, times: int) -> None:
        super().__init__()
        self.enter, self.again, self.head = nn.Linear(d, n), nn.Linear(n, n), nn.Linear(n, classes)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.enter(x))
        for _ in range(self.times):
            h = torch.tanh(self.again(h))
        return self.head(h)


def shared(r: random.Random) -> tuple[nn.Module, Input]:
    d, classes = r.randint(2, 6), r.randint(2, 4)
    return _Shared(d, r.choice((3, 8)), classes, r.randint(2, 3)), Input((d,), 0, classes)


MODELS = {f.__name__: f for f in (perceptron, convolutional, recurrent, transformer, tied, shared)}


def draw_network(kind: str, r: random.Random, frozen: bool) -> tuple[nn.Module, Input]:
    """A network of a kind; ``frozen``: its first layer is not trained."""
    net, takes = MODELS[kind](r)
    if frozen:
        layers = [module for module in net.modules() if next(module.parameters(recurse=False), None) is not None]
        layers[0].requires_grad_(False)
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    return net, Input(takes.shape, takes.tokens, takes.classes, batch_norm)
