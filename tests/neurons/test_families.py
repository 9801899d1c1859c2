"""Layers and idioms beyond the table of architectures, each with the groups that theory gives it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_topo.neurons import Member, discover_neurons

from .conftest import Net, check_groups, check_members

parametrizations = nn.utils.parametrizations


def attention(q, k, v, **options):
    out = functional.scaled_dot_product_attention(q, k, v, **options)
    return out.transpose(1, 2).flatten(2)


def timm_attention(net, x):
    n, t, width = x.shape
    q, k, v = net.qkv(x).reshape(n, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return net.out(attention(q, k, v).mean(1))


def neox_attention(net, x):
    n, t, _ = x.shape
    q, k, v = net.qkv(x).view(n, t, 2, -1).transpose(1, 2).chunk(3, dim=-1)
    return net.out(attention(q, k, v, is_causal=True).mean(1))


def bloom_attention(net, x):
    n, t, width = x.shape
    fused = net.qkv(x).view(n, t, 2, 3, width // 2)
    q, k, v = (fused[..., i, :].transpose(1, 2) for i in range(3))
    return net.out(attention(q, k, v).mean(1))


def multi_query_attention(net, x):
    n, t, _ = x.shape
    fused = net.qkv(x).view(n, t, 5, 4)
    q, k, v = (part.transpose(1, 2) for part in (fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]))
    return net.out(attention(q, k, v).mean(1))


def grouped_attention(net, x):
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    times = q.shape[1] // k.shape[1]
    return net.out(attention(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)).mean(1))


def batched_by_hand(net, x):
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, 2, 4).transpose(1, 2).reshape(n * 2, t, 4) for layer in (net.q, net.k, net.v))
    weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    return net.out(torch.bmm(weights, v).view(n, 2, t, 4).transpose(1, 2).reshape(n, t, 8).mean(1))


def qkv_net(forward):
    return Net(forward, qkv=nn.Linear(8, 24), out=nn.Linear(8, 3)), torch.randn(2, 5, 8)


def separate(n_queries, n_keys, forward):
    projections = {"q": nn.Linear(8, 4 * n_queries), "k": nn.Linear(8, 4 * n_keys), "v": nn.Linear(8, 4 * n_keys)}
    return Net(forward, **projections, out=nn.Linear(4 * n_queries, 3)), torch.randn(2, 5, 8)


def shuffled(net, x):
    x = net.grouped(net.wide(x).relu())
    x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
    return net.out(functional.pixel_shuffle(net.up(x).relu(), 2))


def cells(net, x):
    state, hidden = None, x.new_zeros(len(x), 5)
    for t in range(3):
        state = net.lstm(x[:, t], state)
        hidden = net.gru(state[0], hidden)
    return net.out(hidden)


def padded_shortcut(net, x):
    x = net.stem(x).relu()
    return net.out((net.conv(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))).mean((2, 3)))


def unet(net, x):
    down = net.down1(x).relu()
    return net.out(net.merge(torch.cat([down, net.up(net.down2(down).relu())], 1)).relu())


def fused_gate(net, x):
    gate, up = net.gate_up(x).chunk(2, -1)
    return net.down(functional.silu(gate) * up)


def squeeze_excite(net, x):
    x = net.conv(x).relu()
    scale = net.expand(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return net.out((x * scale).mean((2, 3)))


def mixture(net, x):
    x = net.inp(x)
    shares = net.router(x).softmax(-1)
    hidden = torch.einsum("bd,edf->bef", x, net.w1).relu()
    return net.out(torch.einsum("bef,efd,be->bd", hidden, net.w2, shares))


def dense(net, x):
    first = net.conv1(x)
    second = net.conv2(net.norm(first).relu())
    return net.out(torch.cat([first, second], 1).flatten(1))


def mixer(net, x):
    x = net.embed(x)
    x = x + net.tokens2(net.tokens1(net.norm(x).transpose(1, 2)).relu()).transpose(1, 2)
    return net.out(x.mean(1))


def variational(net, x):
    mean, log_variance = net.mean(x), net.log_variance(x)
    return net.out(net.decode(mean + torch.randn_like(mean) * (log_variance / 2).exp()).relu())


def rotary(net, x):
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1]).repeat(2)

    def turned(z):
        return z * angle.cos() + torch.cat([-z[..., 2:], z[..., :2]], -1) * angle.sin()

    return net.out(attention(turned(q), turned(k), v).mean(1))


def messages(net, x):
    """Along the edges of a graph, gathered in two ways."""
    source, target = torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 3, 4, 0, 0]])
    x = net.embed(x).relu()
    x = net.first(torch.zeros_like(x).index_add(0, target, x[source])).relu()
    places = target[:, None].expand(-1, x.shape[1])
    return net.out(torch.zeros_like(x).scatter_add_(0, places, x[source]))


def sparse_messages(net, x):
    return net.out(torch.sparse.mm(net.edges.to(x.dtype), net.inp(x)).relu())


def sparse_graph():
    net = Net(sparse_messages, inp=nn.Linear(3, 6), out=nn.Linear(6, 2))
    net.register_buffer("edges", torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [1.0, 1.0, 0.0]]).to_sparse())
    return net, torch.randn(3, 3)


def routed(net, x):
    """Each token goes through two of three experts."""
    x = net.inp(x)
    shares, chosen = net.router(x).topk(2)
    y = torch.zeros_like(x)
    for number, expert in enumerate(net.experts):
        tokens, rank = (chosen == number).nonzero(as_tuple=True)
        y.index_add_(0, tokens, expert(x[tokens]) * shares.softmax(-1)[tokens, rank, None])
    return net.out(x + y)


def ragged(net, x):
    lengths = torch.tensor([5, 3])
    x = nn.utils.rnn.pack_padded_sequence(net.inp(x), lengths, batch_first=True)
    return net.out(nn.utils.rnn.pad_packed_sequence(net.rnn(x)[0], batch_first=True)[0].sum(1))


def masked(net, x):
    """Some positions are taken out, changed and put back; others are filled with learned ones."""
    x = net.inp(x)
    seen = torch.arange(5).expand(2, 5) % 2 == 0
    y = torch.zeros_like(x)
    y[seen] = net.inner(x[seen]).relu()
    x = x.masked_scatter(~seen[..., None].expand_as(x), net.other(x[~seen]))
    return net.out((x + y).mean(1))


def patches(net, x):
    x = functional.unfold(net.inp(x), 3)
    x = functional.fold(net.mix(x.transpose(1, 2)).transpose(1, 2), (6, 6), 3)
    return net.out(functional.pixel_unshuffle(x.relu(), 2))


def windows(net, x):
    x = net.inp(x).transpose(1, 2).unfold(2, 4, 2)  # (N, units, windows, 4)
    return net.out(x.mean((2, 3)))


def unpooled(net, x):
    x, places = functional.max_pool2d(net.inp(x), 2, return_indices=True)
    return net.out(functional.max_unpool2d(x.sigmoid(), places, 2))


def spatial_transformer(net, x):
    grid = functional.affine_grid(net.matrix(net.locate(x.flatten(1)).relu()).view(-1, 2, 3), x.shape, False)
    return net.out(functional.grid_sample(net.inp(x), grid, align_corners=False).mean((2, 3)))


def complex_rotary(net, x):
    q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (net.q, net.k, net.v))
    angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1])
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)

    def turned(z):
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    return net.out(attention(turned(q), turned(k), v).mean(1))


def spectrum(net, x):
    return net.out(torch.fft.irfft(torch.fft.rfft(net.inp(x), dim=1) * 2, dim=1, n=4).relu().mean(1))


def prototypes(net, x):
    return net.out((-torch.cdist(net.inp(x), net.centres)).exp())


def radial():
    net = Net(prototypes, inp=nn.Linear(3, 4), out=nn.Linear(6, 2))
    net.centres = nn.Parameter(torch.randn(6, 4))
    return net, torch.randn(5, 3)


def picked(net, x):
    x = net.inp(x)
    return net.out(x[:, [0, 1, 2]].relu()) + net.other(x.index_select(1, torch.tensor([3, 4, 5, 6])).tanh())


def losses(net, x):
    x = net.inp(x).relu()
    target = torch.tensor([1, 0, 1, 1])
    return functional.cross_entropy(net.out(x), target) + functional.mse_loss(net.value(x)[:, 0], target.to(x.dtype))


def last_state(net, x):
    return net.out(net.rnn(x)[1][-1])


def sequence_mean(net, x):
    return net.out(net.rnn(x)[0].mean(1))


def image(*shape):
    return torch.randn(2, *shape)


def moe():
    net = Net(mixture, inp=nn.Linear(3, 4), router=nn.Linear(4, 5), out=nn.Linear(4, 2))
    net.w1, net.w2 = nn.Parameter(torch.randn(5, 4, 6)), nn.Parameter(torch.randn(5, 6, 4))
    return net, torch.randn(3, 3)


HEADS = {"attention.heads": 2, "attention.keys": 4, "attention.values": 4}
CASES = {
    "packed and indexed attention": (lambda: qkv_net(timm_attention), {"heads": 2, "keys": 4, "values": 4}),
    "attention packed by heads": (lambda: qkv_net(neox_attention), {"heads": 2, "keys": 4, "values": 4}),
    "attention packed by heads and indexed": (lambda: qkv_net(bloom_attention), {"heads": 2, "keys": 4, "values": 4}),
    "attention packed with one key for all queries": (
        lambda: (Net(multi_query_attention, qkv=nn.Linear(8, 20), out=nn.Linear(12, 3)), torch.randn(2, 6, 8)),
        {"heads": 3, "keys": 4, "values": 4},
    ),
    "grouped queries": (
        lambda: separate(6, 2, grouped_attention),
        {"heads": 2, "query_heads": 3, "keys": 4, "values": 4},
    ),
    "queries that share one key": (lambda: separate(3, 1, grouped_attention), {"heads": 3, "keys": 4, "values": 4}),
    "attention by batched products": (lambda: separate(2, 2, batched_by_hand), {"heads": 2, "keys": 4, "values": 4}),
    "rotary embedding": (lambda: separate(2, 2, rotary), {"heads": 2, "values": 4}),
    "transformer of torch": (
        lambda: (
            Net(
                lambda net, x: net.out(net.body(net.inp(x), net.inp(x)).mean(1)),
                inp=nn.Linear(3, 8),
                body=nn.Transformer(8, 2, 1, 1, 12, batch_first=True),
                out=nn.Linear(8, 2),
            ),
            torch.randn(2, 4, 3),
        ),
        {
            "body.residual": 8,
            **{
                f"body.{stack}coder.layers.0.{attended}.{kind}": n
                for stack, attended in (("en", "self_attn"), ("de", "self_attn"), ("de", "multihead_attn"))
                for kind, n in (("heads", 2), ("keys", 4), ("values", 4))
            },
            "body.encoder.layers.0.linear1": 12,
            "body.decoder.layers.0.linear1": 12,
        },
    ),
    "group norm": (
        lambda: (nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 1)), image(3, 6, 6)),
        {"0.groups": 2, "0": 3},
    ),
    "instance norm": (
        lambda: (
            nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.PReLU(4),
                nn.Conv2d(4, 6, 3, bias=False), nn.InstanceNorm2d(6), nn.Flatten(), nn.Linear(96, 2),
            ),
            image(1, 8, 8),
        ),
        {"0": 4, "3": 6},
    ),
    "grouped convolution, channel and pixel shuffle": (
        lambda: (
            Net(shuffled, wide=nn.Conv2d(3, 8, 1), grouped=nn.Conv2d(8, 8, 3, groups=2), up=nn.Conv2d(8, 16, 1),
                out=nn.Conv2d(4, 1, 1)),
            image(3, 6, 6),
        ),
        {"wide.groups": 2, "wide": 4, "grouped": 4, "up": 4},
    ),
    "transposed convolution and skip": (
        lambda: (
            Net(unet, down1=nn.Conv2d(1, 4, 3, padding=1), down2=nn.Conv2d(4, 6, 3, 2, 1),
                up=nn.ConvTranspose2d(6, 4, 2, 2), merge=nn.Conv2d(8, 5, 3, padding=1), out=nn.Conv2d(5, 1, 1)),
            image(1, 8, 8),
        ),
        {"down1": 4, "down2": 6, "up": 4, "merge": 5},
    ),
    "grouped transposed convolution": (
        lambda: (
            nn.Sequential(nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv1d(6, 1, 1)),
            image(2, 5),
        ),
        {"0.groups": 2, "0": 2, "1": 3},
    ),
    "concatenation": (
        lambda: (
            Net(dense, conv1=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), conv2=nn.Conv2d(4, 5, 1),
                out=nn.Linear(36, 2)),
            image(3, 4, 4),
        ),
        {"conv1": 4, "conv2": 5},
    ),
    "padded shortcut": (
        lambda: (
            Net(padded_shortcut, stem=nn.Conv2d(3, 4, 3, 1, 1), conv=nn.Conv2d(4, 9, 3, 2, 1), out=nn.Linear(9, 2)),
            image(3, 8, 8),
        ),
        {"residual": 4, "conv.0": 2, "conv.1": 3},
    ),
    "squeeze and excitation": (
        lambda: (
            Net(squeeze_excite, conv=nn.Conv2d(3, 8, 3), squeeze=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1),
                out=nn.Linear(8, 2)),
            image(3, 6, 6),
        ),
        {"conv": 8, "squeeze": 4},
    ),
    "fused gate": (lambda: (Net(fused_gate, gate_up=nn.Linear(4, 12), down=nn.Linear(6, 2)), image(4)), {"gate_up": 6}),
    "gated linear unit": (lambda: (nn.Sequential(nn.Linear(4, 12), nn.GLU(), nn.Linear(6, 2)), image(4)), {"0": 6}),
    "token mixing": (
        lambda: (
            Net(mixer, embed=nn.Linear(3, 4), norm=nn.LayerNorm(4), tokens1=nn.Linear(5, 7), tokens2=nn.Linear(7, 5),
                out=nn.Linear(4, 2)),
            image(5, 3),
        ),
        {"embed": 4, "tokens1": 7},
    ),
    "mixture of experts": (moe, {"inp": 4, "router": 5, "w1": 6, "w2": 4}),
    "pooling of channels that lie last": (
        lambda: (
            Net(lambda net, x: net.out(nn.functional.adaptive_avg_pool1d(net.inp(x).transpose(1, 2), 1).flatten(1)),
                inp=nn.Linear(3, 4), out=nn.Linear(4, 2)),
            image(5, 3),
        ),
        {"inp": 4},
    ),
    "noise of its own for each latent": (
        lambda: (
            Net(variational, mean=nn.Linear(4, 3), log_variance=nn.Linear(4, 3), decode=nn.Linear(3, 5),
                out=nn.Linear(5, 2)),
            image(4),
        ),
        {"decode": 5},
    ),
    "weights used twice": (
        lambda: (
            Net(lambda net, x: net.out(net.step(net.step(net.inp(x)).tanh()).tanh()), inp=nn.Linear(3, 5),
                step=nn.Linear(5, 5), out=nn.Linear(5, 2)),
            image(3),
        ),
        {"inp": 5},
    ),
    "embedding bag": (
        lambda: (nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)), torch.randint(9, (2, 6))),
        {"0": 4},
    ),
    "bilinear layer": (
        lambda: (
            Net(lambda net, x: net.out(net.pair(net.inp(x), x)), inp=nn.Linear(3, 4), pair=nn.Bilinear(4, 3, 5),
                out=nn.Linear(5, 2)),
            image(3),
        ),
        {"inp": 4, "pair": 5},
    ),
    "weight norm": (
        lambda: (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), image(3)),
        {"0": 4},
    ),
    "spectral norm": (
        lambda: (nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), image(3)),
        {"0": 4},
    ),
    "recurrent cells": (
        lambda: (
            Net(cells, lstm=nn.LSTMCell(3, 4), gru=nn.GRUCell(4, 5), out=nn.Linear(5, 2)),
            image(3, 3),
        ),
        {"lstm": 4, "gru": 5},
    ),
    "bidirectional": (
        lambda: (
            Net(sequence_mean, rnn=nn.GRU(3, 4, batch_first=True, bidirectional=True), out=nn.Linear(8, 2)),
            image(5, 3),
        ),
        {"rnn.l0": 4, "rnn.l0_reverse": 4},
    ),
    "last state of two layers": (
        lambda: (Net(last_state, rnn=nn.RNN(3, 4, 2, batch_first=True), out=nn.Linear(4, 2)), image(5, 3)),
        {"rnn.l0": 4, "rnn.l1": 4},
    ),
    "projected LSTM": (
        lambda: (
            Net(sequence_mean, rnn=nn.LSTM(3, 6, batch_first=True, proj_size=4), out=nn.Linear(4, 2)),
            image(5, 3),
        ),
        {"rnn.l0": 6, "rnn.weight_hr_l0": 4},
    ),
    "attention with projections of their own": (
        lambda: (
            Net(lambda net, x: net.out(net.attention(net.q(x), net.k(x), net.v(x), need_weights=False)[0].mean(1)),
                q=nn.Linear(3, 8), k=nn.Linear(3, 5), v=nn.Linear(3, 7), out=nn.Linear(8, 2),
                attention=nn.MultiheadAttention(8, 2, batch_first=True, kdim=5, vdim=7)),
            image(4, 3),
        ),
        {"q": 8, "k": 5, "v": 7, "attention.out_proj": 8, **HEADS},
    ),
    "attention to a learned key": (
        lambda: (
            Net(lambda net, x: net.out(net.attention(x, x, x)[0].mean(1)), out=nn.Linear(8, 2),
                attention=nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)),
            image(4, 8),
        ),
        {"attention.out_proj": 8, **HEADS},
    ),
    "messages along edges": (
        lambda: (
            Net(messages, embed=nn.Linear(3, 6), first=nn.Linear(6, 5), out=nn.Linear(5, 2)), torch.randn(5, 3),
        ),
        {"embed": 6, "first": 5},
    ),
    "sparse matrix of edges": (sparse_graph, {"inp": 6}),
    "routed experts": (
        lambda: (
            Net(routed, inp=nn.Linear(3, 6), router=nn.Linear(6, 3), out=nn.Linear(6, 2),
                experts=nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6)) for _ in range(3))),
            torch.randn(12, 3),
        ),
        {"experts.residual": 6, "experts.0.0": 8, "experts.1.0": 8, "experts.2.0": 8},
    ),
    "sequences of unequal lengths": (
        lambda: (
            Net(ragged, inp=nn.Linear(3, 5), rnn=nn.LSTM(5, 4, batch_first=True), out=nn.Linear(4, 2)), image(5, 3),
        ),
        {"inp": 5, "rnn": 4},
    ),
    "masked positions": (
        lambda: (
            Net(masked, inp=nn.Linear(3, 6), inner=nn.Linear(6, 6), other=nn.Linear(6, 6), out=nn.Linear(6, 2)),
            image(5, 3),
        ),
        {"residual": 6},
    ),
    "patches": (
        lambda: (
            Net(patches, inp=nn.Conv2d(1, 4, 1), mix=nn.Linear(36, 45), out=nn.Conv2d(20, 1, 1)), image(1, 6, 6),
        ),
        {"inp": 4, "mix": 5},
    ),
    "windows": (lambda: (Net(windows, inp=nn.Linear(3, 5), out=nn.Linear(5, 2)), image(8, 3)), {"inp": 5}),
    "unpooling": (
        lambda: (Net(unpooled, inp=nn.Conv2d(1, 4, 1), out=nn.Conv2d(4, 1, 1)), image(1, 6, 6)), {"inp": 4},
    ),
    "spatial transformer": (
        lambda: (
            Net(spatial_transformer, locate=nn.Linear(36, 7), matrix=nn.Linear(7, 6), inp=nn.Conv2d(1, 4, 1),
                out=nn.Linear(4, 2)),
            image(1, 6, 6),
        ),
        {"locate": 7, "inp": 4},
    ),
    "rotary embedding by complex numbers": (lambda: separate(2, 2, complex_rotary), {"heads": 2, "values": 4}),
    "Fourier transform over time": (
        lambda: (Net(spectrum, inp=nn.Linear(3, 5), out=nn.Linear(5, 2)), image(4, 3)), {"inp": 5},
    ),
    "distances to prototypes": (radial, {"inp": 4, "centres": 6}),
    "runs of positions by index": (
        lambda: (Net(picked, inp=nn.Linear(3, 7), out=nn.Linear(3, 2), other=nn.Linear(4, 2)), image(3)),
        {"inp.0": 3, "inp.1": 4},
    ),
    "losses": (
        lambda: (
            Net(losses, inp=nn.Linear(3, 5), out=nn.Linear(5, 2), value=nn.Linear(5, 1)), torch.randn(4, 3),
        ),
        {"inp": 5},
    ),
}  # fmt: skip

# What no test can see, because it changes no output: a bias that the normalisation or the softmax behind it removes.
INVISIBLE = {"3.bias", "k.bias", "1.bias"}


@pytest.mark.parametrize("case", CASES)
def test_groups(case):
    check_groups(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_groups_without_one_member_are_refused(case):
    check_members(CASES[case][0], INVISIBLE)


def test_members_of_channels_per_group():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 2, 1))
    groups = {group.name: set(group.members) for group in discover_neurons(model, image(3, 5, 5)).groups}
    made = ("0.weight", "0.bias", "1.weight", "1.bias")
    assert groups["0.groups"] == {*(Member(p, 0, inner=3) for p in made), Member("2.weight", 1, inner=3)}
    assert groups["0"] == {*(Member(p, 0, outer=2) for p in made), Member("2.weight", 1, outer=2)}


def test_members_of_attention_packed_by_heads():
    """Values are every third block of four, so there is one member a head."""
    model, example = qkv_net(neox_attention)
    groups = {group.name: set(group.members) for group in discover_neurons(model, example).groups}
    packed = ("qkv.weight", "qkv.bias")
    assert groups["heads"] == {*(Member(p, 0, inner=12) for p in packed), Member("out.weight", 1, inner=4)}
    first, last = ({Member(p, 0, offset=8 + 12 * h, size=4 if h == 0 else None) for p in packed} for h in range(2))
    assert groups["values"] == {*first, *last, Member("out.weight", 1, outer=2)}


def test_old_style_hooks_that_make_weights_are_kept():
    with pytest.warns(FutureWarning, match="weight_norm"):
        normed = nn.utils.weight_norm(nn.Linear(3, 4))
    model = nn.Sequential(normed, nn.ReLU(), nn.utils.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2))
    model(torch.randn(2, 3)).sum().backward()  # leaves weights that are no leaves
    groups = {group.name: {m.parameter for m in group.members} for group in discover_neurons(model, image(3)).groups}
    assert groups == {
        "0": {"0.weight_g", "0.weight_v", "0.bias", "2.weight_orig", "2.weight_v"},
        "2": {"2.weight_orig", "2.bias", "2.weight_u", "4.weight"},
    }
