"""A network on images written in many ways, as ``test_spellings`` does it for sequences."""

import importlib.util
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from .conftest import members_and_output

CHANNELS, GROUPS = 4, 2
EINOPS = importlib.util.find_spec("einops") is not None


def rearranged(x, pattern, **sizes):
    import einops

    return einops.rearrange(x, pattern, **sizes)


def parts_convolved(x, w, b, join):
    parts = zip(x.chunk(GROUPS, 1), w.chunk(GROUPS), b.chunk(GROUPS), strict=True)
    return join([functional.conv2d(*part, padding=1) for part in parts])


def unfolded(x, w, b):
    """Patches of every group, multiplied with its kernels."""
    n, _, height, width = x.shape
    patches = functional.unfold(x, 3, padding=1).view(n, GROUPS, -1, height * width)
    kernels = w.view(GROUPS, w.shape[0] // GROUPS, -1)
    return torch.einsum("ngkp,gok->ngop", patches, kernels).reshape(n, -1, height, width) + b[:, None, None]


def shuffled_by_views(x):
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def shuffled_by_writing(x):
    n, c, h, w = x.shape
    whole = torch.zeros(n, c // 4, 2 * h, 2 * w, dtype=x.dtype)
    parts = x.view(n, c // 4, 4, h, w)
    for place in range(4):
        whole[:, :, place // 2 :: 2, place % 2 :: 2] = parts[:, :, place]
    return whole


def unshuffled_by_views(x):
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


def unshuffled_by_slices(x):
    return torch.stack([x[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], 2).flatten(1, 2)


def kept(step, ways):
    return {name: way for name, way in ways.items() if EINOPS or not name.startswith("einops")}


SPELLINGS = {
    "grouped": {
        "convolution": lambda x, w, b: functional.conv2d(x, w, b, padding=1, groups=GROUPS),
        "parts joined": lambda x, w, b: parts_convolved(x, w, b, lambda parts: torch.cat(parts, 1)),
        "parts stacked": lambda x, w, b: parts_convolved(x, w, b, lambda parts: torch.stack(parts, 1).flatten(1, 2)),
        "padded before": lambda x, w, b: functional.conv2d(functional.pad(x, (1, 1, 1, 1)), w, b, groups=GROUPS),
        "patches": unfolded,
    },
    "up": {
        "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
        "views": shuffled_by_views,
        "written": shuffled_by_writing,
        "einops": lambda x: rearranged(x, "n (c a b) h w -> n c (h a) (w b)", a=2, b=2),
    },
    "down": {
        "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x, 2),
        "views": unshuffled_by_views,
        "slices": unshuffled_by_slices,
        "einops": lambda x: rearranged(x, "n c (h a) (w b) -> n (c a b) h w", a=2, b=2),
    },
    "flip": {
        "flip": lambda x: x.flip(-1),
        "index": lambda x: x[..., torch.arange(x.shape[-1] - 1, -1, -1)],
        "index_select": lambda x: x.index_select(-1, torch.arange(x.shape[-1] - 1, -1, -1)),
        "gather": lambda x: x.gather(-1, torch.arange(x.shape[-1] - 1, -1, -1).expand_as(x)),
        "cat": lambda x: torch.cat([x[..., i : i + 1] for i in range(x.shape[-1] - 1, -1, -1)], -1),
    },
    "roll": {
        "roll": lambda x: x.roll(1, -2),
        "cat": lambda x: torch.cat([x[:, :, -1:], x[:, :, :-1]], 2),
        "index": lambda x: x[:, :, torch.arange(x.shape[2]).roll(1)],
        "pad": lambda x: functional.pad(x, (0, 0, 1, 0), mode="circular")[:, :, :-1],
    },
}  # fmt: skip
SPELLINGS = {step: kept(step, ways) for step, ways in SPELLINGS.items()}
PLAIN = {step: next(iter(ways)) for step, ways in SPELLINGS.items()}


class ImageNet(nn.Module):
    """A stem, a convolution in two groups, twice as many pixels, mirrored and moved, and half as many again.

    Args:
        names: The spelling of each step.
    """

    def __init__(self, names):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, CHANNELS, 1), nn.Conv2d(CHANNELS, 6, 3, padding=1, groups=GROUPS)
        self.wide, self.narrow = nn.Conv2d(6, 4 * 5, 1), nn.Conv2d(4 * 5, 3, 1)
        self.names = names

    def step(self, name, *args):
        return SPELLINGS[name][self.names[name]](*args)

    def forward(self, x):
        x = self.step("grouped", self.stem(x).relu(), self.grouped.weight, self.grouped.bias).tanh()
        x = self.step("up", self.wide(x)).relu()
        x = self.step("roll", self.step("flip", x))
        return self.narrow(self.step("down", x)).mean((2, 3))


def groups(**names):
    torch.manual_seed(0)
    return members_and_output(ImageNet({**PLAIN, **names}), torch.randn(2, 3, 4, 6))


@pytest.fixture(scope="module")
def plain():
    return groups()


def test_the_plain_spelling(plain):
    """Two groups, with two channels that each reads and three that it makes; the channels of the larger image."""
    sizes = sorted(size for members in plain[0] for size in {member[-1] for member in members})
    assert sizes == sorted([GROUPS, CHANNELS // GROUPS, 6 // GROUPS, 5])


@pytest.mark.parametrize(("step", "way"), [(step, way) for step, ways in SPELLINGS.items() for way in ways])
def test_another_spelling_of_one_step(step, way, plain):
    found, output = groups(**{step: way})
    torch.testing.assert_close(output, plain[1])
    assert found == plain[0]


@pytest.mark.parametrize("seed", range(20))
def test_other_spellings_of_all_steps(seed, plain):
    draw = random.Random(seed)
    found, output = groups(**{step: draw.choice(list(ways)) for step, ways in SPELLINGS.items()})
    torch.testing.assert_close(output, plain[1])
    assert found == plain[0]
