"""Networks that are built in other ways than most, small, each with an example input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from small_networks import Made, Net, conv, photo
from torch import Tensor, nn
from torch.nn import functional


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.3 * torch.randn(*shape))


def kolmogorov_arnold() -> Made:
    """Every weight is a spline of its unit; the knots are the same for all units."""

    def bases(x: Tensor, knots: Tensor, order: int = 3) -> Tensor:
        x = x[..., None]
        result = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x)
        for k in range(1, order + 1):
            rising = (x - knots[:, : -k - 1]) / (knots[:, k:-1] - knots[:, : -k - 1])
            falling = (knots[:, k + 1 :] - x) / (knots[:, k + 1 :] - knots[:, 1:-k])
            result = rising * result[..., :-1] + falling * result[..., 1:]
        return result

    def layer(n_in: int, n_out: int) -> nn.Module:
        parts = {"base": parameter(n_out, n_in), "spline": parameter(n_out, n_in, 8), "scale": parameter(n_out, n_in)}
        net = Net(
            lambda net, x: (
                functional.linear(functional.silu(x), net.base)
                + functional.linear(bases(x, net.knots).flatten(1), (net.spline * net.scale[..., None]).flatten(1))
            ),
            **parts,
        )
        net.register_buffer("knots", (torch.arange(-3.0, 9.0) * 0.4 - 1).expand(n_in, -1).contiguous())
        return net

    return nn.Sequential(layer(4, 7), layer(7, 6), layer(6, 2)), torch.rand(8, 4) * 2 - 1


def weighted_key_values() -> Made:
    """RWKV: means over the past, weighted by keys and a decay of each channel, in a loop over time."""

    def mixed(y: Tensor, share: Tensor) -> Tensor:
        return share * y + (1 - share) * functional.pad(y, (0, 0, 1, -1))

    def over_time(net: Any, k: Tensor, v: Tensor) -> Tensor:
        total, norm, results = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), []
        for t in range(k.shape[1]):
            now = (net.bonus + k[:, t]).exp()
            results.append((total + now * v[:, t]) / (norm + now))
            decay, weight = (-net.decay.exp()).exp(), k[:, t].exp()
            total, norm = decay * total + weight * v[:, t], decay * norm + weight
        return torch.stack(results, 1)

    def forward(net: Any, tokens: Tensor) -> Tensor:
        x = net.embed(tokens)
        y = net.norm1(x)
        k, v, r = (layer(mixed(y, net.shares[i])) for i, layer in enumerate((net.key, net.value, net.receptance)))
        x = x + net.out(r.sigmoid() * over_time(net, k, v))
        y = net.norm2(x)
        hidden = net.up(mixed(y, net.shares[3])).relu().square()
        return net.head(x + net.gate(mixed(y, net.shares[4])).sigmoid() * net.down(hidden))

    square = {name: nn.Linear(8, 8, bias=False) for name in ("key", "value", "receptance", "out", "gate")}
    parts = {
        "embed": nn.Embedding(15, 8), "norm1": nn.LayerNorm(8), "norm2": nn.LayerNorm(8), "bonus": parameter(8),
        "decay": parameter(8), "shares": nn.Parameter(torch.rand(5, 8)), "up": nn.Linear(8, 20, bias=False),
        "down": nn.Linear(20, 8, bias=False), "head": nn.Linear(8, 15),
    }  # fmt: skip
    return Net(forward, **parts, **square), torch.randint(15, (2, 6))


def gated_linear_attention() -> Made:
    """A state of keys by values for each head, which the gates of the keys let fade."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        gate = functional.logsigmoid(net.widen(net.narrow(x))) / 16
        q, k, v, g = (part.unflatten(-1, (3, -1)).transpose(1, 2) for part in (net.q(x), net.k(x), net.v(x), gate))
        state, results = torch.zeros(len(x), 3, 2, 4, dtype=x.dtype), []
        for t in range(x.shape[1]):
            state = state * g[:, :, t].exp()[..., None] + k[:, :, t, :, None] * v[:, :, t, None]
            results.append((q[:, :, t, :, None] * state).sum(-2))
        y = net.norm(torch.stack(results, 2)).transpose(1, 2).flatten(2)
        return net.head(x + net.out(y * functional.silu(net.gate(x))))

    parts = {
        "stem": nn.Linear(5, 12), "q": nn.Linear(12, 6), "k": nn.Linear(12, 6), "v": nn.Linear(12, 12),
        "gate": nn.Linear(12, 12), "narrow": nn.Linear(12, 4), "widen": nn.Linear(4, 6), "norm": nn.LayerNorm(4),
        "out": nn.Linear(12, 12), "head": nn.Linear(12, 3),
    }  # fmt: skip
    return Net(forward, **parts), torch.randn(2, 4, 5)


def capsules() -> Made:
    """Votes of capsules, routed by agreement."""

    def squashed(x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return square / (1 + square) * x / square.sqrt()

    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        u = net.primary(net.stem(x).relu())
        u = squashed(u.unflatten(1, (6, 4)).flatten(3).permute(0, 1, 3, 2).flatten(1, 2))
        votes = (net.votes @ u[:, :, None, :, None]).squeeze(-1)
        logits = torch.zeros(*votes.shape[:3], 1, dtype=x.dtype)
        for _ in range(3):
            digits = squashed((logits.softmax(2) * votes).sum(1, keepdim=True))
            logits = logits + (votes * digits).sum(-1, keepdim=True)
        digits = digits.squeeze(1)
        return digits.norm(dim=-1), net.decoder(digits.flatten(1))

    decoder = nn.Sequential(nn.Linear(15, 10), nn.ReLU(), nn.Linear(10, 16), nn.Sigmoid())
    parts = {"stem": nn.Conv2d(1, 8, 5), "primary": nn.Conv2d(8, 24, 5, 2), "votes": parameter(1, 96, 3, 5, 4)}
    return Net(forward, **parts, decoder=decoder), torch.randn(2, 1, 15, 15)


def graph_convolution() -> Made:
    """A dense, normalised adjacency matrix, and weights that are no layers."""

    def forward(net: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency + torch.eye(len(adjacency), dtype=x.dtype)
        scale = adjacency.sum(1).rsqrt()
        adjacency = scale[:, None] * adjacency * scale
        h = net.norm(adjacency @ (x @ net.weights[0]) + net.biases[0]).relu()
        h = (h + adjacency @ (h @ net.weights[1]) + net.biases[1]).relu()
        return (adjacency @ (h @ net.weights[2])).log_softmax(-1)

    weights = nn.ParameterList([parameter(4, 8), parameter(8, 8), parameter(8, 3)])
    parts = {"weights": weights, "biases": nn.ParameterList([parameter(8), parameter(8)]), "norm": nn.BatchNorm1d(8)}
    return Net(forward, **parts), (torch.randn(6, 4), (torch.rand(6, 6) < 0.4).float())


def fourier_operator() -> Made:
    """Weights of the lowest frequencies, kept as real and imaginary parts."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.up(x).mT
        for spectrum, local in zip(net.spectra, net.locals, strict=True):
            modes = torch.fft.rfft(x)
            low = torch.einsum("bix,iox->box", modes[..., :3], torch.view_as_complex(spectrum).to(modes.dtype))
            low = functional.pad(low, (0, modes.shape[-1] - 3))
            x = functional.gelu(torch.fft.irfft(low, n=x.shape[-1]) + local(x))
        return net.down(functional.gelu(net.hidden(x.mT)))

    spectra = nn.ParameterList([parameter(6, 6, 3, 2) for _ in range(2)])
    locals_ = nn.ModuleList(nn.Conv1d(6, 6, 1) for _ in range(2))
    parts = {"up": nn.Linear(2, 6), "hidden": nn.Linear(6, 10), "down": nn.Linear(10, 1)}
    return Net(forward, **parts, spectra=spectra, locals=locals_), torch.randn(2, 10, 2)


def sinusoidal() -> Made:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.out((3 * net.second((5 * net.first(x)).sin())).sin())

    return Net(forward, first=nn.Linear(2, 8), second=nn.Linear(8, 7), out=nn.Linear(7, 1)), torch.rand(5, 2)


def diffusion_unet() -> Made:
    """Blocks that a time step scales and shifts, attention over pixels, and a way across."""

    def block(n_in: int, n_out: int) -> nn.Module:
        def forward(net: Any, x: Tensor, step: Tensor) -> Tensor:
            scale, shift = net.step(functional.silu(step))[..., None, None].chunk(2, 1)
            y = net.norm2(net.first(functional.silu(net.norm1(x)))) * (1 + scale) + shift
            return net.shortcut(x) + net.second(functional.silu(y))

        parts = {"first": nn.Conv2d(n_in, n_out, 3, padding=1), "second": nn.Conv2d(n_out, n_out, 3, padding=1)}
        shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        norms = {"norm1": nn.GroupNorm(2, n_in), "norm2": nn.GroupNorm(2, n_out)}
        return Net(forward, **parts, **norms, step=nn.Linear(12, 2 * n_out), shortcut=shortcut)

    def attended(net: Any, x: Tensor) -> Tensor:
        q, k, v = net.qkv(net.norm(x).flatten(2)).reshape(2 * len(x), 24, -1).chunk(3, 1)
        weights = torch.einsum("bct,bcs->bts", q / 8**0.25, k / 8**0.25).softmax(-1)
        mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(len(x), 16, -1)
        return x + net.mixed(mixed).view_as(x)

    def forward(net: Any, x: Tensor, step: Tensor) -> Tensor:
        waves = step[:, None] * torch.tensor([1.0, 0.2, 0.04], dtype=x.dtype)
        step = net.time(torch.cat([waves.cos(), waves.sin()], -1))
        across = net.block1(net.stem(x), step)
        y = attended(net, net.block2(net.down(across), step))
        y = net.up(functional.interpolate(y, scale_factor=2, mode="nearest"))
        y = net.block3(torch.cat([y, across], 1), step)
        return net.head(functional.silu(net.last_norm(y)))

    parts = {
        "time": nn.Sequential(nn.Linear(6, 12), nn.SiLU(), nn.Linear(12, 12)), "stem": nn.Conv2d(3, 8, 3, padding=1),
        "block1": block(8, 8), "down": nn.Conv2d(8, 16, 3, 2, 1), "block2": block(16, 16), "norm": nn.GroupNorm(2, 16),
        "qkv": nn.Conv1d(16, 48, 1), "mixed": nn.Conv1d(16, 16, 1), "up": nn.Conv2d(16, 8, 3, padding=1),
        "block3": block(16, 8), "last_norm": nn.GroupNorm(2, 8), "head": nn.Conv2d(8, 3, 3, padding=1),
    }  # fmt: skip
    return Net(forward, **parts), (torch.randn(2, 3, 8, 8), torch.rand(2))


def slot_attention() -> Made:
    """Slots, the same at the start, that compete for the input."""

    def forward(net: Any, x: Tensor) -> Tensor:
        k, v = net.key(x), net.value(x)
        slots = net.start.expand(len(x), -1, -1)
        for _ in range(2):
            weights = torch.einsum("bid,bjd->bij", net.query(net.norm1(slots)), k).softmax(1) + 1e-8
            update = torch.einsum("bij,bjd->bid", weights / weights.sum(-1, keepdim=True), v)
            slots = net.cell(update.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + net.mlp(net.norm2(slots))
        return net.head(slots)

    mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    layers = {"key": nn.Linear(5, 7), "query": nn.Linear(8, 7), "value": nn.Linear(5, 6), "head": nn.Linear(8, 3)}
    norms = {"norm1": nn.LayerNorm(8), "norm2": nn.LayerNorm(8)}
    return Net(forward, **layers, **norms, start=parameter(1, 4, 8), cell=nn.GRUCell(6, 8), mlp=mlp), (
        torch.randn(2, 6, 5)
    )


def convolutional_lstm() -> Made:
    """With weights from the cell to its gates."""

    def forward(net: Any, frames: Tensor) -> Tensor:
        h = c = torch.zeros(len(frames), 6, *frames.shape[-2:], dtype=frames.dtype)
        for x in frames.unbind(1):
            i, f, g, o = net.gates(torch.cat([x, h], 1)).split(6, 1)
            c = (f + net.peep[0] * c).sigmoid() * c + (i + net.peep[1] * c).sigmoid() * g.tanh()
            h = (o + net.peep[2] * c).sigmoid() * c.tanh()
        return net.out(h)

    parts = {"gates": nn.Conv2d(8, 24, 3, padding=1), "peep": parameter(3, 6, 1, 1), "out": nn.Conv2d(6, 1, 1)}
    return Net(forward, **parts), torch.randn(2, 3, 2, 5, 5)


def crossed_features() -> Made:
    """Columns of embeddings that are multiplied with each other, deep layers beside them, and factors of pairs."""

    def forward(net: Any, indices: Tensor) -> Tensor:
        start = torch.cat([table(column) for table, column in zip(net.tables, indices.unbind(1), strict=True)], -1)
        x = start * net.widen(net.narrow(start)) + start
        factors = net.factors(indices + torch.arange(3) * 7)
        pairs = (factors.sum(1).square() - factors.square().sum(1)).sum(1, keepdim=True) / 2
        return net.head(torch.cat([x, net.deep(start), pairs], -1))

    tables = nn.ModuleList(nn.Embedding(7, 4) for _ in range(3))
    deep = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU())
    parts = {"narrow": nn.Linear(12, 5), "widen": nn.Linear(5, 12), "factors": nn.Embedding(21, 6)}
    return Net(forward, **parts, tables=tables, deep=deep, head=nn.Linear(23, 1)), torch.randint(7, (4, 3))


def multi_scale_residual() -> Made:
    """Res2Net: parts of the channels, each with what the one before it has made."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        first, *others = net.narrow(x).split(3, 1)
        made, results = torch.zeros_like(first), [first]
        for part, inner in zip(others, net.inner, strict=True):
            made = inner(part + made)
            results.append(made)
        return net.head((x + net.wide(torch.cat(results, 1))).relu().amax((2, 3)))

    inner = nn.ModuleList(conv(3, 3) for _ in range(3))
    wide = conv(12, 10, 1, nn.Identity)
    return Net(forward, stem=conv(3, 10), narrow=conv(10, 12, 1), inner=inner, wide=wide, head=nn.Linear(10, 2)), (
        photo(8)
    )


def selective_kernels() -> Made:
    """Two kernels that a softmax weighs channel by channel, and a map of where to look."""

    def forward(net: Any, x: Tensor) -> Tensor:
        both = torch.stack([net.small(x), net.large(x)], 1)
        shares = net.expand(net.reduce(both.sum(1).mean((2, 3))).relu()).unflatten(-1, (2, 6)).softmax(1)
        y = (both * shares[..., None, None]).sum(1)
        where = net.where(torch.stack([y.mean(1), y.amax(1)], 1)).sigmoid()
        return net.head((y * where).mean((2, 3)))

    parts = {"reduce": nn.Linear(6, 4), "expand": nn.Linear(4, 12), "where": nn.Conv2d(2, 1, 3, padding=1)}
    return Net(forward, small=conv(3, 6), large=conv(3, 6, 5), **parts, head=nn.Linear(6, 2)), photo(8)


def point_clouds() -> Made:
    """PointNet: channels mixed by a matrix that each cloud makes, near the identity."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.points(x)
        matrix = net.mix(net.summary(x).amax(2)).unflatten(-1, (6, 6)) + torch.eye(6, dtype=x.dtype)
        x = matrix.mT @ x
        whole = net.features(x).amax(2, keepdim=True).expand(-1, -1, x.shape[2])
        return net.head(torch.cat([x, whole], 1))

    def layer(n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(nn.Conv1d(n_in, n_out, 1), nn.BatchNorm1d(n_out), nn.ReLU())

    layers = {"points": layer(3, 6), "summary": layer(6, 8), "features": layer(6, 10)}
    return Net(forward, **layers, mix=nn.Linear(8, 36), head=nn.Conv1d(16, 4, 1)), torch.randn(2, 3, 7)


def latent_attention() -> Made:
    """Queries, keys and values through narrow layers; a part of the keys that all heads share, turned by position."""

    def turned(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2])[:, None].to(x.dtype)
        one, other = x[..., ::2], x[..., 1::2]
        rotated = (one * angles.cos() - other * angles.sin(), one * angles.sin() + other * angles.cos())
        return torch.stack(rotated, -1).flatten(-2)

    def forward(net: Any, tokens: Tensor) -> Tensor:
        x = net.embed(tokens)
        q = net.query(net.query_norm(net.query_in(x))).unflatten(-1, (3, 6)).transpose(1, 2)
        latent, turn = net.latent(x).split([5, 2], -1)
        k, v = net.key_value(net.latent_norm(latent)).unflatten(-1, (3, 7)).transpose(1, 2).split([4, 3], -1)
        q = torch.cat([q[..., :4], turned(q[..., 4:])], -1)
        k = torch.cat([k, turned(turn[:, None]).expand(-1, 3, -1, -1)], -1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return net.head(x + net.out(mixed.transpose(1, 2).flatten(2)))

    parts = {
        "embed": nn.Embedding(11, 12), "query_in": nn.Linear(12, 8), "query_norm": nn.RMSNorm(8),
        "query": nn.Linear(8, 18), "latent": nn.Linear(12, 7), "latent_norm": nn.RMSNorm(5),
        "key_value": nn.Linear(5, 21), "out": nn.Linear(9, 12), "head": nn.Linear(12, 11),
    }  # fmt: skip
    return Net(forward, **parts), torch.randint(11, (2, 5))


def retention() -> Made:
    """A decay of its own for each head, and a norm over each."""

    def forward(net: Any, tokens: Tensor) -> Tensor:
        x = net.embed(tokens)
        q, k, v = (layer(x).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (net.q, net.k, net.v))
        apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        decays = torch.tensor([0.9, 0.95, 0.98], dtype=x.dtype)[:, None, None]
        y = (q @ k.mT * (decays ** apart.clamp_min(0)).tril()) @ v
        y = net.norm(y.transpose(1, 2).flatten(2).flatten(0, 1)).view(*x.shape[:2], -1)
        return net.head(x + net.out(functional.silu(net.gate(x)) * y))

    layers = {name: nn.Linear(12, n, bias=False) for name, n in {"q": 12, "k": 12, "v": 24, "gate": 24}.items()}
    parts = {"embed": nn.Embedding(9, 12), "norm": nn.GroupNorm(3, 24, affine=False), "out": nn.Linear(24, 12)}
    return Net(forward, **layers, **parts, head=nn.Linear(12, 9)), torch.randint(9, (2, 5))


def set_transformer() -> Made:
    """Points that are learned stand between the items of a set, and seeds ask for the result."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        between = net.points.expand(len(x), -1, -1)
        between = between + net.first(between, x, x)[0]
        x = x + net.second(x, between, between)[0]
        seeds = net.seeds.expand(len(x), -1, -1)
        return net.head((seeds + net.third(seeds, x, x)[0]).sum(1))

    attentions = {name: nn.MultiheadAttention(8, 2, batch_first=True) for name in ("first", "second", "third")}
    parts = {"embed": nn.Linear(3, 8), "points": parameter(1, 5, 8), "seeds": parameter(1, 4, 8)}
    return Net(forward, **attentions, **parts, head=nn.Linear(8, 2)), torch.randn(2, 6, 3)


def hypernetwork() -> Made:
    """A network that makes the weights of another one."""

    def forward(net: Any, x: Tensor, context: Tensor) -> Tensor:
        h = net.context(context).relu()
        y = (net.first(h).unflatten(-1, (6, 4)) @ x[..., None])[..., 0] + net.bias(h)
        return torch.einsum("bi,bio->bo", y.tanh(), net.second(h).unflatten(-1, (6, 2)))

    layers = {name: nn.Linear(8, n) for name, n in {"first": 24, "bias": 6, "second": 12}.items()}
    return Net(forward, context=nn.Linear(3, 8), **layers), (torch.randn(3, 4), torch.randn(3, 3))


def quantised_codes() -> Made:
    """A codebook whose nearest vector stands for each place, with the gradient handed past it."""

    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = net.encoder(x).movedim(1, -1)
        flat = z.flatten(0, 2)
        distances = (
            flat.square().sum(1, keepdim=True) + net.codes.weight.square().sum(1) - 2 * flat @ net.codes.weight.T
        )
        codes = net.codes(distances.argmin(1)).view_as(z)
        loss = (codes.detach() - z).square().mean() + (codes - z.detach()).square().mean()
        return net.decoder((z + (codes - z).detach()).movedim(-1, 1)), loss

    encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    decoder = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))
    return Net(forward, encoder=encoder, codes=nn.Embedding(9, 6), decoder=decoder), torch.randn(2, 1, 8, 8)


UNUSUAL: dict[str, Callable[[], Made]] = {
    "Kolmogorov-Arnold (splines)": kolmogorov_arnold,
    "RWKV": weighted_key_values,
    "gated linear attention": gated_linear_attention,
    "capsules": capsules,
    "graph convolution (dense)": graph_convolution,
    "Fourier neural operator": fourier_operator,
    "SIREN": sinusoidal,
    "diffusion U-Net with attention": diffusion_unet,
    "slot attention": slot_attention,
    "convolutional LSTM": convolutional_lstm,
    "DCN V2 and factorisation machine": crossed_features,
    "Res2Net": multi_scale_residual,
    "selective kernels, CBAM": selective_kernels,
    "PointNet": point_clouds,
    "latent attention (MLA)": latent_attention,
    "RetNet": retention,
    "Set Transformer": set_transformer,
    "hypernetwork": hypernetwork,
    "VQ-VAE": quantised_codes,
}
