"""Networks as people write them (those of torchvision, timm and others), small, each with an example input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Made = tuple[nn.Module, Any]


class Net(nn.Module):
    """Modules and parameters by name, and a forward pass that is given as a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Tensor:
        return self._forward(self, *args)


def conv(n_in: int, n_out: int, kernel: int = 3, activation: type[nn.Module] = nn.ReLU, **options: Any) -> nn.Module:
    options = {"padding": kernel // 2, "bias": False, **options}
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel, **options), nn.BatchNorm2d(n_out), activation())


def photo(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


def pooled(*layers: nn.Module, n: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 5))


def vgg() -> Made:
    body = [conv(3, 6), conv(6, 6), nn.MaxPool2d(2), conv(6, 8), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    head = [nn.Linear(32, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 5)]
    return nn.Sequential(*body, *head), photo()


def densenet() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for layer in net.layers:
            x = torch.cat([x, layer(x)], 1)
        return net.head(net.transition(x).mean((2, 3)))

    def layer(n: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 4, 3, padding=1, bias=False))

    layers = nn.ModuleList(layer(n) for n in (6, 10, 14))
    return Net(forward, stem=conv(3, 6), layers=layers, transition=conv(18, 8, 1), head=nn.Linear(8, 5)), photo()


def inception() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(torch.cat([branch(x) for branch in net.branches], 1).mean((2, 3)))

    branches = nn.ModuleList([
        conv(6, 4, 1), nn.Sequential(conv(6, 3, 1), conv(3, 5)), nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(6, 4, 1)),
    ])  # fmt: skip
    return Net(forward, stem=conv(3, 6), branches=branches, head=nn.Linear(13, 5)), photo()


def squeezenet() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.squeeze(net.stem(x)).relu()
        return net.head(torch.cat([net.narrow(x).relu(), net.wide(x).relu()], 1)).mean((2, 3))

    parts = {"squeeze": nn.Conv2d(6, 4, 1), "narrow": nn.Conv2d(4, 6, 1), "wide": nn.Conv2d(4, 6, 3, padding=1)}
    return Net(forward, stem=conv(3, 6), **parts, head=nn.Conv2d(12, 5, 1)), photo()


def shufflenet() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        kept, changed = net.stem(x).chunk(2, 1)
        x = torch.cat([kept, net.branch(changed)], 1)
        x = x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return net.head(net.last(x).mean((2, 3)))

    branch = nn.Sequential(conv(4, 4, 1), conv(4, 4, groups=4, activation=nn.Identity), conv(4, 4, 1))
    return Net(forward, stem=conv(3, 8), branch=branch, last=conv(8, 6, 1), head=nn.Linear(6, 5)), photo()


def squeeze_excite(x: Tensor, net: Any) -> Tensor:
    return x * net.expand(net.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def mobilenet_v3() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + net.project(squeeze_excite(net.depthwise(net.widen(x)), net))
        return net.head(functional.hardswish(net.last(x).mean((2, 3))))

    parts = {
        "stem": conv(3, 6, activation=nn.Hardswish), "widen": conv(6, 12, 1, nn.Hardswish), "last": conv(6, 8, 1),
        "depthwise": conv(12, 12, groups=12, activation=nn.Hardswish), "project": conv(12, 6, 1, nn.Identity),
        "reduce": nn.Conv2d(12, 4, 1), "expand": nn.Conv2d(4, 12, 1), "head": nn.Linear(8, 5),
    }  # fmt: skip
    return Net(forward, **parts), photo()


def resnext() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head((x + net.block(x)).relu().mean((2, 3)))

    block = nn.Sequential(conv(6, 8, 1), conv(8, 8, groups=2), conv(8, 6, 1, nn.Identity))
    return Net(forward, stem=conv(3, 6), block=block, head=nn.Linear(6, 5)), photo()


def pre_activation() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        for block in net.blocks:
            x = x + block(x)
        return net.head(net.norm(x).relu().mean((2, 3)))

    def block() -> nn.Module:
        inner = [nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)]
        return nn.Sequential(*inner, nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))

    blocks = nn.ModuleList([block(), block()])
    return Net(forward, stem=nn.Conv2d(3, 8, 3), blocks=blocks, norm=nn.GroupNorm(2, 8), head=nn.Linear(8, 5)), photo()


def rep_vgg() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head((net.wide(x) + net.narrow(x) + net.norm(x)).relu().mean((2, 3)))

    wide, narrow = conv(6, 6, 3, nn.Identity), conv(6, 6, 1, nn.Identity)
    parts = {"wide": wide, "narrow": narrow, "norm": nn.BatchNorm2d(6)}
    return Net(forward, stem=conv(3, 6), **parts, head=nn.Linear(6, 5)), photo()


def ghostnet() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.primary(x)
        return net.head(torch.cat([x, net.cheap(x)], 1)[:, :11].mean((2, 3)))

    return Net(forward, primary=conv(3, 6), cheap=conv(6, 6, groups=6), head=nn.Linear(11, 5)), photo()


def conv_mixer() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x)
        x = net.pointwise(x + net.depthwise(x))
        return net.head(x.mean((2, 3)))

    parts = {"depthwise": conv(8, 8, 5, nn.GELU, groups=8), "pointwise": conv(8, 8, 1, nn.GELU)}
    return Net(forward, patch=conv(3, 8, 4, nn.GELU, stride=4, padding=0), **parts, head=nn.Linear(8, 5)), photo()


def mlp_mixer() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).mT
        x = x + net.tokens(net.norm1(x).mT).mT
        x = x + net.channels(net.norm2(x))
        return net.head(net.norm3(x).mean(1))

    def mlp(n: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n, hidden), nn.GELU(), nn.Linear(hidden, n))

    norms = {f"norm{i}": nn.LayerNorm(8) for i in (1, 2, 3)}
    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "tokens": mlp(16, 10), "channels": mlp(8, 12), "head": nn.Linear(8, 5)}
    return Net(forward, **parts, **norms), photo()


def gated_mlp() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).mT
        kept, gate = functional.gelu(net.up(net.norm(x))).chunk(2, -1)
        x = x + net.down(kept * net.spatial(net.gate_norm(gate).mT).mT)
        return net.head(x.mean(1))

    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "norm": nn.LayerNorm(8), "up": nn.Linear(8, 12), "down": nn.Linear(6, 8)}
    return Net(forward, **parts, gate_norm=nn.LayerNorm(6), spatial=nn.Linear(16, 16), head=nn.Linear(8, 5)), photo()


def res_mlp() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).mT
        x = x + net.scale1 * net.tokens((net.alpha * x + net.beta).mT).mT
        return net.head((x + net.scale2 * net.channels(x)).mean(1))

    scales = {name: nn.Parameter(torch.full((8,), 0.1)) for name in ("scale1", "scale2", "alpha", "beta")}
    channels = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "tokens": nn.Linear(16, 16), "channels": channels}
    return Net(forward, **parts, **scales, head=nn.Linear(8, 5)), photo()


def attend(net: Any, x: Tensor, heads: int = 2, **options: Any) -> Tensor:
    q, k, v = net.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return net.out(functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2))


def timm_vit() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = torch.cat([net.token.expand(len(x), -1, -1), net.patch(x).flatten(2).mT], 1) + net.places
        x = x + net.scale * attend(net, net.norm1(x))
        x = x + net.mlp(net.norm2(x))
        return net.head(x[:, 0])

    parts = {
        "patch": nn.Conv2d(3, 8, 4, 4), "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "head": nn.Linear(8, 5),
        "token": nn.Parameter(torch.randn(1, 1, 8)), "places": nn.Parameter(torch.randn(1, 17, 8)),
        "mlp": nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), "norm1": nn.LayerNorm(8),
        "norm2": nn.LayerNorm(8), "scale": nn.Parameter(torch.full((8,), 0.1)),
    }  # fmt: skip
    return Net(forward, **parts), photo()


def cross_covariance() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x).flatten(2).mT
        q, k, v = net.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 4, 1)
        weights = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).mT * net.temperature
        return net.head((x + net.out((weights.softmax(-1) @ v).flatten(1, 2).mT)).mean(1))

    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "head": nn.Linear(8, 5)}
    return Net(forward, **parts, temperature=nn.Parameter(torch.ones(2, 1, 1))), photo()


def linear_attention() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(net.stem(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        mixed = (q @ (k.mT @ v)) / (q @ k.sum(2, keepdim=True).mT)
        return net.out(mixed.transpose(1, 2).flatten(2).mean(1))

    return Net(forward, stem=nn.Linear(5, 8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 3)), torch.randn(2, 6, 5)


def windows_and_grid() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        x = x + attend(net, x)
        x = x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)
        return net.head(x.mean((2, 3)))

    parts = {"patch": nn.Conv2d(3, 8, 4, 4), "qkv": nn.Linear(8, 24), "out": nn.Linear(8, 8), "head": nn.Linear(8, 5)}
    return Net(forward, **parts), photo()


def feature_pyramid() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        fine = net.first(x)
        coarse = net.second(fine)
        top = net.side2(coarse)
        merged = net.side1(fine) + functional.interpolate(top, scale_factor=2, mode="nearest")
        return torch.cat([net.head(level).flatten(2) for level in (merged, top)], 2)

    parts = {"first": conv(3, 6, stride=2), "second": conv(6, 8, stride=2), "side1": nn.Conv2d(6, 7, 1)}
    return Net(forward, **parts, side2=nn.Conv2d(8, 7, 1), head=nn.Conv2d(7, 4, 3, padding=1)), photo()


def wavenet() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x, skips = net.stem(x), 0
        for dilation, both, out in zip((1, 2), net.both, net.outs, strict=True):
            gate, value = both(functional.pad(x, (dilation, 0))).chunk(2, 1)
            y = out(value.tanh() * gate.sigmoid())
            x, skips = x + y[:, :6], skips + y[:, 6:]
        return net.head(functional.relu(skips))

    both = nn.ModuleList(nn.Conv1d(6, 10, 2, dilation=d) for d in (1, 2))
    outs = nn.ModuleList(nn.Conv1d(5, 13, 1) for _ in range(2))
    return Net(forward, stem=nn.Conv1d(1, 6, 1), both=both, outs=outs, head=nn.Conv1d(7, 3, 1)), torch.randn(2, 1, 9)


def temporal_convolution() -> Made:
    parametrized = nn.utils.parametrizations.weight_norm

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.first(functional.pad(x, (2, 0))).relu()
        x = (x + net.second(functional.pad(x, (4, 0))).relu()).relu()
        return net.head(x[..., -1])

    parts = {"first": parametrized(nn.Conv1d(4, 6, 3)), "second": parametrized(nn.Conv1d(6, 6, 3, dilation=2))}
    return Net(forward, **parts, head=nn.Linear(6, 2)), torch.randn(2, 4, 9)


def conformer() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x + 0.5 * net.down(functional.silu(net.up(x)))
        x = x + attend(net, net.norm(x))
        y = functional.glu(net.point1(x.mT), dim=1)
        x = x + net.point2(functional.silu(net.batch_norm(net.depthwise(y)))).mT
        return net.head(x.mean(1))

    parts = {
        "stem": nn.Linear(5, 8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 8), "qkv": nn.Linear(8, 24),
        "out": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "point1": nn.Conv1d(8, 20, 1), "head": nn.Linear(8, 3),
        "depthwise": nn.Conv1d(10, 10, 3, padding=1, groups=10), "batch_norm": nn.BatchNorm1d(10),
        "point2": nn.Conv1d(10, 8, 1),
    }  # fmt: skip
    return Net(forward, **parts), torch.randn(2, 6, 5)


def perceiver() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        latents = net.latents.expand(len(x), -1, -1)
        latents = latents + net.attention(latents, x, x, need_weights=False)[0]
        return net.head(net.mlp(latents).mean(1))

    attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)
    mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 6))
    parts = {"latents": nn.Parameter(torch.randn(1, 4, 8)), "attention": attention, "mlp": mlp}
    return Net(forward, **parts, head=nn.Linear(6, 3)), torch.randn(2, 7, 5)


def deep_sets() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.rho(net.phi(x).sum(1))

    phi = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
    return Net(forward, phi=phi, rho=nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))), torch.randn(2, 7, 4)


def graph_attention() -> Made:
    def forward(net: Any, x: Tensor, adjacent: Tensor) -> Tensor:
        h = net.embed(x).unflatten(-1, (2, 4))
        scores = (h * net.source).sum(-1)[:, None] + (h * net.target).sum(-1)[None]
        scores = functional.leaky_relu(scores, 0.2).masked_fill(~adjacent[..., None], -1e9)
        return net.head(torch.einsum("ijh,jhc->ihc", scores.softmax(1), h).flatten(1).relu())

    vectors = {name: nn.Parameter(torch.randn(2, 4)) for name in ("source", "target")}
    adjacent = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    example = (torch.randn(6, 3), adjacent | torch.eye(6, dtype=torch.bool))
    return Net(forward, embed=nn.Linear(3, 8), head=nn.Linear(8, 2), **vectors), example


def variational() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        mean, spread = net.code(net.encoder(x).relu()).chunk(2, -1)
        return net.decoder(net.inner(mean + spread.exp() * torch.randn_like(mean)).relu())

    parts = {
        "encoder": nn.Linear(6, 10),
        "code": nn.Linear(10, 8),
        "inner": nn.Linear(4, 9),
        "decoder": nn.Linear(9, 6),
    }
    return Net(forward, **parts), torch.randn(3, 6)


def radiance_field() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        waves = torch.cat([f(x * 2.0**k) for k in range(2) for f in (torch.sin, torch.cos)], -1)
        y = net.second(net.first(waves).relu()).relu()
        return net.head(net.third(torch.cat([waves, y], -1)).relu())

    parts = {"first": nn.Linear(12, 8), "second": nn.Linear(8, 7), "third": nn.Linear(19, 6), "head": nn.Linear(6, 4)}
    return Net(forward, **parts), torch.randn(5, 3)


def recommender() -> Made:
    def forward(net: Any, numbers: Tensor, users: Tensor, items: Tensor) -> Tensor:
        vectors = torch.stack([net.bottom(numbers), net.users(users), net.items(items)], 1)
        products = vectors @ vectors.mT
        rows, columns = torch.tril_indices(3, 3, -1)
        return net.top(torch.cat([vectors[:, 0], products[:, rows, columns]], 1))

    top = nn.Sequential(nn.Linear(11, 6), nn.ReLU(), nn.Linear(6, 1))
    bottom = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 8))
    parts = {"bottom": bottom, "users": nn.Embedding(9, 8), "items": nn.Embedding(7, 8), "top": top}
    return Net(forward, **parts), (torch.randn(3, 4), torch.randint(9, (3,)), torch.randint(7, (3,)))


def long_convolution() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        gate, value = net.both(x).chunk(2, -1)
        n = x.shape[1]
        spectrum = torch.fft.rfft(value, n=2 * n, dim=1) * torch.fft.rfft(net.filters, n=2 * n, dim=0)
        return net.head((gate.sigmoid() * torch.fft.irfft(spectrum, n=2 * n, dim=1)[:, :n]).mean(1))

    return Net(forward, both=nn.Linear(5, 12), filters=nn.Parameter(torch.randn(7, 6)), head=nn.Linear(6, 2)), (
        torch.randn(2, 7, 5)
    )


def diagonal_state_space() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        u, state, outputs = net.inp(x), torch.zeros(len(x), 6, 4, dtype=x.dtype), []
        for t in range(x.shape[1]):
            state = state * torch.sigmoid(net.decay) + u[:, t, :, None] * net.read
            outputs.append((state * net.write).sum(-1) + net.skip * u[:, t])
        return net.head(functional.gelu(torch.stack(outputs, 1)).mean(1))

    matrices = {name: nn.Parameter(torch.randn(6, 4)) for name in ("decay", "read", "write")}
    parts = {"inp": nn.Linear(5, 6), "skip": nn.Parameter(torch.ones(6)), "head": nn.Linear(6, 2)}
    return Net(forward, **parts, **matrices), torch.randn(2, 5, 5)


def highway() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        share = net.gate(x).sigmoid()
        return net.head(share * net.change(x).relu() + (1 - share) * x)

    parts = {"stem": nn.Linear(4, 8), "gate": nn.Linear(8, 8), "change": nn.Linear(8, 8), "head": nn.Linear(8, 2)}
    return Net(forward, **parts), torch.randn(3, 4)


def sequence_to_sequence() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        memory, (hidden, cell) = net.encoder(x)
        outputs, _ = net.decoder(x.flip(1), (hidden, cell))
        weights = (outputs @ net.score(memory).mT).softmax(-1)
        return net.head(torch.cat([outputs, weights @ memory], -1))

    parts = {"encoder": nn.LSTM(4, 6, batch_first=True), "decoder": nn.LSTM(4, 6, batch_first=True)}
    return Net(forward, **parts, score=nn.Linear(6, 6, bias=False), head=nn.Linear(12, 3)), torch.randn(2, 5, 4)


SMALL: dict[str, Callable[[], Made]] = {
    "VGG": vgg,
    "DenseNet": densenet,
    "Inception": inception,
    "SqueezeNet": squeezenet,
    "ShuffleNet V2": shufflenet,
    "MobileNetV3 block": mobilenet_v3,
    "ResNeXt": resnext,
    "pre-activation ResNet (GroupNorm)": pre_activation,
    "RepVGG": rep_vgg,
    "GhostNet": ghostnet,
    "ConvMixer": conv_mixer,
    "MLP-Mixer": mlp_mixer,
    "gMLP": gated_mlp,
    "ResMLP": res_mlp,
    "ViT as in timm": timm_vit,
    "XCiT": cross_covariance,
    "linear attention": linear_attention,
    "attention in windows": windows_and_grid,
    "feature pyramid": feature_pyramid,
    "WaveNet": wavenet,
    "temporal convolutions (weight norm)": temporal_convolution,
    "Conformer": conformer,
    "Perceiver": perceiver,
    "Deep Sets": deep_sets,
    "graph attention": graph_attention,
    "variational autoencoder": variational,
    "NeRF": radiance_field,
    "DLRM": recommender,
    "long convolution": long_convolution,
    "diagonal state space": diagonal_state_space,
    "highway net": highway,
    "LSTM encoder and decoder": sequence_to_sequence,
}
