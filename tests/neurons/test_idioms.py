"""Idioms of published models that once hid their units, each with the groups that theory gives it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_topo.neurons import discover_neurons

from .conftest import Net, check_groups, check_members


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


def heads(x, n=2):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).flatten(2)


def shifted(scores):
    """Transformer-XL: position i of row j comes from position i - j, by a pad, a view and a slice."""
    n, h, q, k = scores.shape
    return functional.pad(scores, (1, 0)).view(n, h, k + 1, q)[:, :, 1:].view(n, h, q, k)


def shifted_by_join(scores):
    """XLNet: the same with zeros in front."""
    n, h, q, k = scores.shape
    zeros = torch.zeros(n, h, q, 1, dtype=scores.dtype)
    return torch.cat([zeros, scores], -1).view(n, h, k + 1, q)[:, :, 1:].view_as(scores)


def shifted_by_lookup(scores):
    n, h, q, k = scores.shape
    index = (torch.arange(k) - torch.arange(q)[:, None]) % k
    return scores.gather(-1, index.expand(n, h, q, k))


def shifted_by_strides(scores):
    n, h, q, k = scores.shape
    padded = functional.pad(scores, (1, 0)).contiguous()
    return padded.as_strided((n, h, q, k), (h * q * (k + 1), q * (k + 1), k, 1), q)


def relative(shift):
    def forward(net, x):
        t = x.shape[1]
        q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
        positions = torch.sin(torch.arange(t)[:, None] * torch.tensor([1.0, 0.3])).to(x)
        distant = (q + net.u[:, None]) @ heads(net.p(positions)[None]).mT
        weights = (q @ k.mT + shift(distant)).softmax(-1)
        return net.out(merged(weights @ v).mean(1))

    names = {name: nn.Linear(5, 8) for name in ("q", "k", "v")}
    return Net(forward, **names, p=nn.Linear(2, 8), u=parameter(2, 4), out=nn.Linear(8, 3)), torch.randn(2, 6, 5)


def broadcast_under_padding(net, x):
    """Mamba-2: what all heads share is padded in time."""
    shared = net.shared(x)[:, :, None].expand(-1, -1, 6, -1)
    shared = functional.pad(shared, (0, 0, 0, 0, 0, 3))
    chunks = shared.unflatten(1, (2, -1)).cumsum(2)
    return net.out((chunks * net.scale[:, None]).tanh().mean((1, 2, 4)))


def windows(x, width):
    """Longformer: overlapping windows, as strides."""
    n, h, t, c = x.shape
    x = x.contiguous()
    return x.as_strided((n, h, 2 * t // width - 1, width, c), (h * t * c, t * c, c * width // 2, c, 1))


def windowed(net, x):
    q, k, v = (windows(heads(layer(x)), 4) for layer in (net.q, net.k, net.v))
    return net.out((functional.softmax(q @ k.mT, -1) @ v).mean((2, 3)).flatten(1))


def transposed_windows(net, x):
    """The same of a tensor whose axes lie in another order in memory."""
    q, k, v = (layer(x).unflatten(-1, (2, -1)).permute(1, 0, 2, 3) for layer in (net.q, net.k, net.v))  # (t, n, h, c)
    parts = []
    for part in (q, k, v):
        part = part.permute(1, 2, 0, 3)
        n, h, t, c = part.shape
        parts.append(part.as_strided((n, h, t - 2, 3, c), (t * h * c, c, h * c, h * c, 1)))
    q, k, v = parts
    return net.out((functional.softmax(q @ k.mT, -1) @ v).mean((2, 3)).flatten(1))


def sparse_queries(net, x):
    """Informer: the queries with the largest scores, by an index over batch times heads, and keys by a constant one."""
    n, t, _ = x.shape
    q, k, v = (heads(layer(x)).flatten(0, 1) for layer in (net.q, net.k, net.v))
    sample = torch.tensor([0, 3, 1])
    some = (q @ k[:, sample].mT).amax(-1)
    top = some.topk(2, -1).indices
    rows = torch.arange(q.shape[0])[:, None]
    mixed = v.mean(1, keepdim=True).expand(-1, t, -1).clone()
    mixed[rows, top] = (q[rows, top] @ k.mT).softmax(-1) @ v
    return net.out(merged(mixed.unflatten(0, (n, 2))).mean(1))


def batch_and_heads_by_index(net, x):
    """The same with an index for each of the two."""
    n = len(x)
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    top = (q @ k.mT).amax(-1).topk(2, -1).indices
    batch, head = torch.arange(n)[:, None, None], torch.arange(2)[None, :, None]
    chosen = q[batch, head, top]
    return net.out(merged((chosen @ k.mT).softmax(-1) @ v).mean(1))


def attending(forward, *, t=6):
    layers = {name: nn.Linear(5, 8) for name in ("q", "k", "v")}
    return Net(forward, **layers, out=nn.Linear(8, 3)), torch.randn(2, t, 5)


def group_packed(net, x):
    """InternLM2: in each group, queries and then their key and value."""
    packed = net.qkv(x).unflatten(-1, (2, 5, 4))
    q, k, v = packed[..., :3, :].flatten(2, 3), packed[..., -2, :], packed[..., -1, :]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2).repeat_interleave(3, 1), v.transpose(1, 2).repeat_interleave(3, 1)
    return net.out(merged(functional.scaled_dot_product_attention(q, k, v)).mean(1))


def shuffled(shuffle):
    def forward(net, x):
        return net.out(shuffle(net.first(x)).relu().mean((2, 3)))

    return Net(forward, first=nn.Conv2d(3, 8, 1), out=nn.Linear(8, 2)), torch.randn(2, 3, 4, 4)


def pooled_along_time(net, x):
    """Funnel: a pool of two in time and of one across the units."""
    return net.out(functional.avg_pool2d(net.inp(x)[:, None], (2, 1)).squeeze(1).relu().mean(1))


def convolved_along_time(net, x):
    """Nystromformer: heads as channels, a kernel in time, one position across the values."""
    return net.out(merged(net.conv(heads(net.v(x)))).mean(1))


def spectral(net, x):
    """Autoformer: correlation by way of the spectrum."""
    q, k = (torch.fft.rfft(layer(x), dim=1) for layer in (net.q, net.k))
    return net.out(torch.fft.irfft(q * torch.conj(k), n=x.shape[1], dim=1).mean(1))


def bounded_embedding(net, x):
    return net.out(net.embed(x).mean(1).relu())


def scaled_by_segment(net, x):
    """Falcon-H1: a buffer of multipliers, one number everywhere unless somebody sets others."""
    gate, up = (net.both(x) * net.multipliers).chunk(2, -1)
    return net.down(gate.sigmoid() * up)


def multiplied(net):
    net.register_buffer("multipliers", torch.ones(10))
    return net


def looped(net, x):
    """Head by head, on slices of the packed projections."""
    q, k, v = (layer(x) for layer in (net.q, net.k, net.v))
    heads_of = [slice(i * 4, i * 4 + 4) for i in range(2)]
    return net.out(torch.cat([softmaxed(q[..., i], k[..., i]) @ v[..., i] for i in heads_of], -1).mean(1))


def softmaxed(q, k, bias=0.0):
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    return (q @ k.mT / q.shape[-1] ** 0.5 + bias).masked_fill(~mask, float("-inf")).softmax(-1)


def distances(t):
    return (torch.arange(t) - torch.arange(t)[:, None]).abs()


def with_linear_biases(net, x):
    """ALiBi: scores fall with the distance, in each head by a slope of its own."""
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    bias = torch.tensor([0.5, 0.25])[:, None, None] * distances(x.shape[1])
    return net.out(merged(softmaxed(q, k, -bias) @ v).mean(1))


def with_linear_biases_by_einsum(net, x):
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    bias = torch.einsum("h,qk->hqk", torch.tensor([0.5, 0.25]), distances(x.shape[1]).float())
    return net.out(merged(softmaxed(q, k, -bias.expand(len(x), -1, -1, -1)) @ v).mean(1))


def with_linear_biases_in_a_loop(net, x):
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    far = distances(x.shape[1])
    each = [softmaxed(q[:, i], k[:, i], -far * slope) @ v[:, i] for i, slope in enumerate((0.5, 0.25))]
    return net.out(merged(torch.stack(each, 1)).mean(1))


def with_learned_linear_biases_in_a_loop(net, x):
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    far = distances(x.shape[1]).to(x)
    each = [softmaxed(q[:, i], k[:, i], -far * net.slopes[i]) @ v[:, i] for i in range(2)]
    return net.out(merged(torch.stack(each, 1)).mean(1))


def different_heads(net, x):
    """A loop whose turns do different things tells its heads apart."""
    q, k, v = (heads(layer(x)) for layer in (net.q, net.k, net.v))
    one, other = softmaxed(q[:, 0], k[:, 0]) @ v[:, 0], (q[:, 1] @ k[:, 1].mT).sigmoid() @ v[:, 1]
    return net.out(merged(torch.stack([one, other], 1)).mean(1))


def sloped(case):
    model, example = case
    model.slopes = parameter(2)
    return model, example


RELATIVE = {"heads": 2, "values": 4, "keys": 4}


def splines(net, x):
    """Kolmogorov-Arnold: every weight a function of its unit, made of hats at knots that are the same for all units."""
    for layer in (net.first, net.second):
        hats = (1 - (x[..., None] - layer.knots).abs() / 0.5).clamp_min(0)
        x = functional.silu(x) @ layer.base.T + hats.flatten(1) @ (layer.shape * layer.scale[..., None]).flatten(1).T
    return x


def spline_layer(n_in, n_out):
    layer = nn.Module()
    layer.register_buffer("knots", torch.linspace(-1, 1, 5).expand(n_in, -1).contiguous())
    layer.base, layer.scale, layer.shape = parameter(n_out, n_in), parameter(n_out, n_in), parameter(n_out, n_in, 5)
    return layer


def aligned(identity):
    """PointNet: each cloud's channels are mixed by a matrix of its own, near the identity."""

    def forward(net, x):
        x = net.points(x).relu()
        matrix = net.mix(net.summary(x).relu().amax(2))
        matrix = identity(matrix, net.eye)
        return net.out((matrix.mT @ x).relu()).amax(2)

    net = Net(
        forward, points=nn.Conv1d(3, 4, 1), summary=nn.Conv1d(4, 5, 1), mix=nn.Linear(5, 16), out=nn.Conv1d(4, 2, 1)
    )
    net.register_buffer("eye", torch.eye(4))
    return net, torch.randn(2, 3, 7)


def choosing(kept):
    """Some units are chosen by their size, and what is kept of them is read."""

    def forward(net, x):
        return kept(net, net.up(x).relu())

    last = {"rows": nn.Embedding(7, 2)} if kept is largest_looked_up else {"down": nn.Linear(7, 2)}
    return Net(forward, up=nn.Linear(4, 7), **last), torch.randn(5, 4)


def largest_placed(net, h):
    values, indices = h.topk(3)
    return net.down(torch.zeros_like(h).scatter(-1, indices, values))


def largest_kept(net, h):
    return net.down(h * functional.one_hot(h.topk(3)[1], 7).sum(-2).to(h))


def largest_above_the_least(net, h):
    return net.down(h * (h >= h.topk(3)[0][:, -1:]))


def largest_looked_up(net, h):
    values, indices = h.sort(-1, descending=True)
    return (net.rows(indices[:, :3]) * values[:, :3, None]).sum(1)


def straight_through(net, h):
    shares = h.softmax(-1)
    hard = torch.zeros_like(shares).scatter_(-1, shares.max(-1, keepdim=True)[1], 1.0)
    return net.down(hard + shares - shares.detach())


def counted(net, h):
    """The numbers of the units are used as numbers."""
    return net.down(h * h.topk(3)[1].sum(-1, keepdim=True))


def nearest(look_up):
    """A codebook, of which the nearest vector stands for each input."""

    def forward(net, x):
        h = net.up(x)
        distances = (h[:, None] - net.codes.weight).square().sum(-1)
        return net.down(look_up(net.codes, distances.argmin(-1)))

    return Net(forward, up=nn.Linear(4, 3), codes=nn.Embedding(6, 3), down=nn.Linear(3, 2)), torch.randn(5, 4)


def heads_as_modules(net, x):
    """Heads with parameters of their own: the units of each are found, the heads themselves are no axis of anything."""
    made = []
    for head in net.heads:
        q, k, v = (layer(x) for layer in head)
        made.append((q @ k.mT).softmax(-1) @ v)
    return net.out(torch.cat(made, -1)).mean(1)


CASES = {
    "relative positions, padded": (lambda: relative(shifted), RELATIVE),
    "relative positions, joined": (lambda: relative(shifted_by_join), RELATIVE),
    "relative positions, looked up": (lambda: relative(shifted_by_lookup), RELATIVE),
    "relative positions, by strides": (lambda: relative(shifted_by_strides), RELATIVE),
    "broadcast under padding": (
        lambda: (
            Net(broadcast_under_padding, shared=nn.Linear(3, 5), scale=parameter(6), out=nn.Linear(6, 2)),
            torch.randn(2, 5, 3),
        ),
        {"shared": 5, "scale": 6},
    ),
    "windows": (lambda: attending(windowed, t=8), {"heads": 2, "keys": 4, "values": 4}),
    "windows of a transposed tensor": (lambda: attending(transposed_windows), {"heads": 2, "keys": 4, "values": 4}),
    "sparse queries": (lambda: attending(sparse_queries), {"heads": 2, "keys": 4, "values": 4}),
    "batch and heads by index": (lambda: attending(batch_and_heads_by_index), {"heads": 2, "keys": 4, "values": 4}),
    "heads in a loop": (lambda: attending(looped), {"heads": 2, "keys": 4, "values": 4}),
    "linear biases": (lambda: attending(with_linear_biases), {"keys": 4, "values": 4}),
    "linear biases by einsum": (lambda: attending(with_linear_biases_by_einsum), {"keys": 4, "values": 4}),
    "linear biases in a loop": (lambda: attending(with_linear_biases_in_a_loop), {"keys": 4, "values": 4}),
    "learned linear biases in a loop": (
        lambda: sloped(attending(with_learned_linear_biases_in_a_loop)), {"heads": 2, "keys": 4, "values": 4},
    ),
    "a loop that treats heads differently": (
        lambda: attending(different_heads), {"keys": 4, "q": 4, "values": 4, "v": 4},
    ),
    "packed by groups of queries": (
        lambda: (Net(group_packed, qkv=nn.Linear(5, 40), out=nn.Linear(24, 3)), torch.randn(2, 6, 5)),
        {"heads": 2, "query_heads": 3, "keys": 4, "values": 4},
    ),
    "channel shuffle": (lambda: shuffled(nn.ChannelShuffle(2)), {"first": 4, "first.groups": 2}),
    "channel shuffle by index": (
        lambda: shuffled(lambda x: x[:, torch.arange(8).view(2, 4).T.flatten()]), {"first": 4, "first.groups": 2},
    ),
    "pool along time": (
        lambda: (Net(pooled_along_time, inp=nn.Linear(3, 5), out=nn.Linear(5, 2)), torch.randn(2, 6, 3)), {"inp": 5},
    ),
    "convolution along time": (
        lambda: (
            Net(convolved_along_time, v=nn.Linear(3, 8), conv=nn.Conv2d(2, 2, (3, 1), padding=(1, 0), groups=2),
                out=nn.Linear(8, 2)),
            torch.randn(2, 6, 3),
        ),
        {"v.groups": 2, "v": 4},
    ),
    "spectrum": (
        lambda: (Net(spectral, q=nn.Linear(3, 5), k=nn.Linear(3, 5), out=nn.Linear(5, 2)), torch.randn(2, 6, 3)),
        {"q": 5},
    ),
    "embedding of bounded length": (
        lambda: (
            Net(bounded_embedding, embed=nn.Embedding(9, 5, max_norm=1.0), out=nn.Linear(5, 2)),
            torch.randint(9, (2, 6)),
        ),
        {"embed": 5},
    ),
    "splines": (
        lambda: (Net(splines, first=spline_layer(3, 5), second=spline_layer(5, 2)), torch.randn(4, 3)), {"first": 5},
    ),
    "the largest units, placed": (lambda: choosing(largest_placed), {"up": 7}),
    "the largest units, kept": (lambda: choosing(largest_kept), {"up": 7}),
    "the largest units, by the least of them": (lambda: choosing(largest_above_the_least), {"up": 7}),
    "the largest units, looked up": (lambda: choosing(largest_looked_up), {"up": 7}),
    "the largest unit, with a gradient past it": (lambda: choosing(straight_through), {"up": 7}),
    "numbers of units as numbers": (lambda: choosing(counted), {}),
    "codes": (lambda: nearest(lambda codes, index: codes(index)), {"up": 3, "codes": 6}),
    "codes by index": (lambda: nearest(lambda codes, index: codes.weight[index]), {"up": 3, "codes": 6}),
    "codes as one of several": (
        lambda: nearest(lambda codes, index: functional.one_hot(index, 6).to(codes.weight) @ codes.weight),
        {"up": 3, "codes": 6},
    ),
    "heads as modules": (
        lambda: (
            Net(heads_as_modules, out=nn.Linear(8, 3), heads=nn.ModuleList(
                nn.ModuleList(nn.Linear(5, 4, bias=False) for _ in range(3)) for _ in range(2))),
            torch.randn(2, 6, 5),
        ),
        {"keys.0": 4, "values.0": 4, "keys.1": 4, "values.1": 4},
    ),
    "an identity is added": (
        lambda: aligned(lambda m, eye: m.view(-1, 4, 4) + eye), {"points": 4, "summary": 5},
    ),
    "an identity is added before the view": (
        lambda: aligned(lambda m, eye: (m + eye.flatten().repeat(len(m), 1)).view(-1, 4, 4)),
        {"points": 4, "summary": 5},
    ),
    "an identity made in the forward pass": (
        lambda: aligned(lambda m, eye: m.view(-1, 4, 4) + torch.eye(4, dtype=m.dtype)), {"points": 4, "summary": 5},
    ),
    "the diagonal is masked": (
        lambda: aligned(lambda m, eye: m.view(-1, 4, 4).masked_fill(eye.bool(), 0.0)), {"points": 4, "summary": 5},
    ),
    "multipliers that are all alike": (
        lambda: (
            multiplied(Net(scaled_by_segment, both=nn.Linear(3, 10), down=nn.Linear(5, 2))), torch.randn(2, 3),
        ),
        {"both": 5},
    ),
}  # fmt: skip
# What no output shows: the softmax takes a bias of the keys away, and a shift of all scores of a query.
INVISIBLE = {"k.bias", "p.bias", "qkv.bias"}


@pytest.mark.parametrize("case", CASES)
def test_groups(case):
    check_groups(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_groups_without_one_member_are_refused(case):
    check_members(CASES[case][0], INVISIBLE)


def test_what_a_shift_spoils_is_no_group():
    """Positions are told apart, and only they."""
    torch.manual_seed(0)
    model, example = relative(shifted)
    reasons = {(axis.parameter, axis.axis): axis.reason for axis in discover_neurons(model, example).uncovered}
    assert set(reasons) == {
        ("q.weight", 1),
        ("k.weight", 1),
        ("v.weight", 1),
        ("p.weight", 1),
        ("out.weight", 0),
        ("out.bias", 0),
    }
