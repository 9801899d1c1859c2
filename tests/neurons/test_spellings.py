"""One network written in many ways: whichever operations spell a step, the groups are the same."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from .conftest import members_and_output

HEADS, KEY_HEADS, CHANNELS, WIDTH, HIDDEN = 4, 2, 3, 12, 10
TIMES = HEADS // KEY_HEADS


def at(*positions):
    return torch.tensor(positions)


def stepped(size):
    return torch.arange(0, size, 2), torch.arange(1, size, 2)


def written(parts):
    """Joined by writing into a tensor that is there already."""
    whole = torch.zeros(*parts[0].shape[:-1], sum(part.shape[-1] for part in parts), dtype=parts[0].dtype)
    start = 0
    for part in parts:
        whole[..., start : start + part.shape[-1]] = part
        start += part.shape[-1]
    return whole


def copied(parts):
    one, other = parts
    whole = torch.zeros(*one.shape[:-1], 2 * one.shape[-1], dtype=one.dtype)
    return whole.index_copy(-1, torch.arange(one.shape[-1]), one).index_copy(
        -1, torch.arange(one.shape[-1], 2 * one.shape[-1]), other
    )


def looked_up(x, *sizes):
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [x.index_select(-1, torch.arange(stop - size, stop)) for size, stop in zip(sizes, stops, strict=True)]


def sliced(x, *sizes):
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [x[..., stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def gathered(x, *sizes):
    index = torch.arange(x.shape[-1]).expand_as(x)
    return [x.gather(-1, part) for part in index.split(list(sizes), -1)]


def manual_attention(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


def einsum_attention(q, k, v):
    weights = (torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def batched_attention(q, k, v):
    folded = [part.reshape(-1, *part.shape[2:]) for part in (q, k, v)]
    weights = torch.baddbmm(torch.zeros(1, 1, 1, dtype=q.dtype), folded[0], folded[1].mT, beta=0, alpha=CHANNELS**-0.5)
    return torch.bmm(weights.softmax(-1), folded[2]).view(q.shape)


def looped_attention(q, k, v):
    """Head by head, stacked again."""
    return torch.stack([manual_attention(q[:, i], k[:, i], v[:, i]) for i in range(HEADS)], 1)


def looped_over_chunks(q, k, v):
    parts = zip(q.chunk(HEADS, 1), k.chunk(HEADS, 1), v.chunk(HEADS, 1), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*part) for part in parts], 1)


def summed_attention(q, k, v):
    weights = ((q[:, :, :, None] * k[:, :, None]).sum(-1) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights[..., None] * v[:, :, None]).sum(3)


SPELLINGS = {
    "linear": {
        "linear": functional.linear,
        "matmul": lambda x, w, b: x @ w.T + b,
        "einsum": lambda x, w, b: torch.einsum("bti,oi->bto", x, w) + b,
        "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w.T).unflatten(0, x.shape[:2]),
        "bmm": lambda x, w, b: torch.bmm(x, w.T.expand(len(x), -1, -1)) + b,
        "baddbmm": lambda x, w, b: torch.baddbmm(b, x, w.T.expand(len(x), -1, -1)),
        "tensordot": lambda x, w, b: torch.tensordot(x, w, dims=([2], [1])) + b,
        "convolution": lambda x, w, b: functional.conv1d(x.mT, w[..., None], b).mT,
        "convolution in two dimensions": lambda x, w, b: (
            functional.conv2d(x.mT[..., None], w[..., None, None], b)[..., 0].mT
        ),
        "sum of products": lambda x, w, b: (x[:, :, None] * w).sum(-1) + b,
        "inner": lambda x, w, b: torch.inner(x, w).add(b),
    },
    "split": {
        "split": lambda x, *sizes: x.split(list(sizes), -1),
        "slices": sliced,
        "narrow": lambda x, a, b, c: (x.narrow(-1, 0, a), x.narrow(-1, a, b), x.narrow(-1, a + b, c)),
        "tensor_split": lambda x, a, b, c: x.tensor_split((a, a + b), -1),
        "index_select": looked_up,
        "gather": gathered,
        "heads, then slices": lambda x, a, b, c: [part.flatten(-2) for part in sliced_heads(x)],
        "heads, then lists": lambda x, a, b, c: [
            x.unflatten(-1, (-1, CHANNELS))[..., list(where), :].flatten(-2) for where in (range(4), (4, 5), (6, 7))
        ],
        "chunks": lambda x, a, b, c: (torch.cat(x.chunk(4, -1)[:2], -1), *x.chunk(4, -1)[2:]),
    },
    "heads": {
        "view": lambda x, n: x.contiguous().view(*x.shape[:2], n, -1).transpose(1, 2),
        "reshape": lambda x, n: x.reshape(*x.shape[:2], n, CHANNELS).permute(0, 2, 1, 3),
        "unflatten": lambda x, n: x.unflatten(-1, (n, -1)).movedim(2, 1),
        "stacked chunks": lambda x, n: torch.stack(x.chunk(n, -1), 1),
        "stacked slices": lambda x, n: torch.stack([x[..., i * CHANNELS : (i + 1) * CHANNELS] for i in range(n)], 1),
        "transposed before": lambda x, n: x.mT.reshape(len(x), n, CHANNELS, -1).mT,
    },
    "repeat": {
        "repeat_interleave": lambda x: x.repeat_interleave(TIMES, 1),
        "repeat_interleave by counts": lambda x: x.repeat_interleave(torch.full((KEY_HEADS,), TIMES), 1),
        "expand": lambda x: x[:, :, None].expand(-1, -1, TIMES, -1, -1).flatten(1, 2),
        "repeat": lambda x: x[:, :, None].repeat(1, 1, TIMES, 1, 1).reshape(len(x), HEADS, *x.shape[2:]),
        "stack": lambda x: torch.stack([x] * TIMES, 2).flatten(1, 2),
        "index": lambda x: x[:, at(0, 0, 1, 1)],
        "index_select": lambda x: x.index_select(1, at(0, 0, 1, 1)),
        "gather": lambda x: x.gather(1, at(0, 0, 1, 1)[None, :, None, None].expand(len(x), -1, *x.shape[2:])),
        "index of two axes": lambda x: x[:, at(0, 0, 1, 1).view(2, 2)].flatten(1, 2),
        "take_along_dim": lambda x: torch.take_along_dim(x, at(0, 0, 1, 1)[None, :, None, None], 1),
        "broadcast_to": lambda x: (
            x[:, :, None].broadcast_to(len(x), KEY_HEADS, TIMES, *x.shape[2:]).reshape(len(x), HEADS, *x.shape[2:])
        ),
        "cat": lambda x: torch.cat([x[:, :, None]] * TIMES, 2).flatten(1, 2),
    },
    "attention": {
        "fused": functional.scaled_dot_product_attention,
        "matmul": manual_attention,
        "einsum": einsum_attention,
        "bmm": batched_attention,
        "sum of products": summed_attention,
        "loop": looped_attention,
        "loop over chunks": looped_over_chunks,
    },
    "merge": {
        "flatten": lambda x: x.transpose(1, 2).flatten(2),
        "reshape": lambda x: x.permute(0, 2, 1, 3).reshape(len(x), -1, HEADS * CHANNELS),
        "contiguous view": lambda x: x.transpose(1, 2).contiguous().view(len(x), -1, HEADS * CHANNELS),
        "cat": lambda x: torch.cat(x.unbind(1), -1),
        "cat of slices": lambda x: torch.cat([x[:, i] for i in range(HEADS)], -1),
        "clone": lambda x: x.movedim(1, 2).clone(memory_format=torch.contiguous_format).flatten(-2),
    },
    "gate": {
        "strides": lambda x: (x[..., ::2], x[..., 1::2]),
        "unflatten": lambda x: x.unflatten(-1, (-1, 2)).unbind(-1),
        "view": lambda x: (x.view(*x.shape[:2], -1, 2)[..., 0], x.view(*x.shape[:2], -1, 2)[..., 1]),
        "select": lambda x: (x.unflatten(-1, (-1, 2)).select(-1, 0), x.unflatten(-1, (-1, 2)).select(-1, 1)),
        "chunk": lambda x: [part.squeeze(-1) for part in x.unflatten(-1, (-1, 2)).chunk(2, -1)],
        "index_select": lambda x: [x.index_select(-1, where) for where in stepped(x.shape[-1])],
        "index": lambda x: [x[..., where] for where in stepped(x.shape[-1])],
        "gather": lambda x: [x.gather(-1, where.expand(*x.shape[:2], -1)) for where in stepped(x.shape[-1])],
        "transposed": lambda x: x.unflatten(-1, (-1, 2)).mT.flatten(-2).chunk(2, -1),
        "strides of a slice": lambda x: (x[..., 0:-1:2], x[..., 1:][..., ::2]),
    },
    "join": {
        "cat": lambda a, b: torch.cat([a, b], -1),
        "concat of a dim from the front": lambda a, b: torch.cat([a, b], 2),
        "stack": lambda a, b: torch.stack([a, b], 2).flatten(2),
        "pad": lambda a, b: functional.pad(a, (0, WIDTH)) + functional.pad(b, (WIDTH, 0)),
        "slices written": lambda a, b: written([a, b]),
        "hstack": lambda a, b: torch.hstack([a.mT, b.mT]).mT,
        "index_copy": lambda a, b: copied([a, b]),
    },
}  # fmt: skip
PLAIN = {step: next(iter(ways)) for step, ways in SPELLINGS.items()}


def sliced_heads(x):
    heads = x.unflatten(-1, (-1, CHANNELS))
    return heads[..., :HEADS, :], heads[..., HEADS:-KEY_HEADS, :], heads[..., -KEY_HEADS:, :]


class Block(nn.Module):
    """Attention with two queries a key, packed; a gate that lies between the units; both joined.

    Args:
        names: The spelling of each step.
    """

    def __init__(self, names):
        super().__init__()
        self.stem, self.qkv, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 8 * CHANNELS), nn.Linear(WIDTH, WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(2 * WIDTH, 3)
        self.names = names

    def step(self, name, *args):
        return SPELLINGS[name][self.names[name]](*args)

    def linear(self, layer, x):
        return self.step("linear", x, layer.weight, layer.bias)

    def forward(self, x):
        x = self.linear(self.stem, x)
        parts = self.step(
            "split", self.linear(self.qkv, x), HEADS * CHANNELS, KEY_HEADS * CHANNELS, KEY_HEADS * CHANNELS
        )
        q, k, v = (self.step("heads", part, n) for part, n in zip(parts, (HEADS, KEY_HEADS, KEY_HEADS), strict=True))
        mixed = self.step("attention", q, self.step("repeat", k), self.step("repeat", v))
        y = self.linear(self.out, self.step("merge", mixed))
        gate, up = self.step("gate", self.linear(self.up, x + y))
        z = self.linear(self.down, functional.gelu(gate) * up)
        return self.linear(self.head, self.step("join", y, z)).mean(1)


def groups(**names):
    """Members of each group, and the output, of one spelling."""
    torch.manual_seed(0)
    return members_and_output(Block({**PLAIN, **names}), torch.randn(2, 5, 4))


@pytest.fixture(scope="module")
def plain():
    return groups()


def test_the_plain_spelling(plain):
    """Stream; heads of keys and of the queries of each; values, and keys with queries; the gated units; what joins."""
    sizes = sorted(size for members in plain[0] for size in {member[-1] for member in members})
    assert sizes == sorted([KEY_HEADS, TIMES, CHANNELS, CHANNELS, HIDDEN, WIDTH, WIDTH])


@pytest.mark.parametrize(("step", "way"), [(step, way) for step, ways in SPELLINGS.items() for way in ways])
def test_another_spelling_of_one_step(step, way, plain):
    found, output = groups(**{step: way})
    torch.testing.assert_close(output, plain[1])
    assert found == plain[0]


@pytest.mark.parametrize("seed", range(40))
def test_other_spellings_of_all_steps(seed, plain):
    draw = random.Random(seed)
    found, output = groups(**{step: draw.choice(list(ways)) for step, ways in SPELLINGS.items()})
    torch.testing.assert_close(output, plain[1])
    assert found == plain[0]
