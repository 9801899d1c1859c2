"""What an optimizer step has the device do: operations counted, and no waiting."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from counting import Counts
from overhead import COUNTED, GUARDS, counts_of, gpt, resnet18

ALIKE = ("kernels", "operations", "reads")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(
    ("read", "number"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu().numpy(), 2),
        (lambda x: x[x > 0], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x[torch.tensor([0, 2])].mul(2).sum(), 0),
        (lambda x: torch.where(x > 0, x, 0).amax(), 0),
    ],
)
def test_reads(read, number):
    x = torch.arange(-2.0, 3.0)
    with Counts() as counts:
        read(x)
    assert counts.reads == number


def test_views_and_allocations_are_no_kernels():
    x = torch.zeros(4, 4)
    with Counts() as counts:
        x.t().reshape(2, 8)[0].unsqueeze(0).add_(1.0)
        torch.empty(3)
    assert counts.kernels == 2  # the reshape of a transposed matrix copies
    assert counts.operations > 5


@pytest.fixture
def added(monkeypatch):
    """What a guard adds to an optimizer step of a network."""

    def added(network, guard):
        plain, counts = counts_of("it", None, 6), None
        counts = counts_of("it", GUARDS[guard](), 6)
        return {what: getattr(counts, what) - getattr(plain, what) for what in ALIKE}

    def of(make, guard):
        monkeypatch.setitem(COUNTED, "it", make)
        return added(make, guard)

    return of


@pytest.mark.parametrize("make", [lambda: gpt(2), resnet18], ids=["gpt", "resnet"])
def test_monitors_have_a_step_wait_for_nothing(make, added):
    measured = added(make, "BiLipschitzMonitor, measured")
    assert measured["kernels"] > 0
    assert measured["reads"] == 0
    nothing = dict.fromkeys(ALIKE, 0)
    assert added(make, "BiLipschitzMonitor, not measured") == nothing
    assert added(make, "PersistenceMonitor, measured") == nothing
    assert added(make, "step clipping, not clipped")["reads"] == 1


@pytest.mark.parametrize("guard", ["BiLipschitzMonitor, measured", "step clipping, not clipped"])
def test_more_equal_blocks_take_no_more_operations(guard, added):
    assert added(lambda: gpt(2), guard) == added(lambda: gpt(5), guard)


def test_clipping_reads_as_often_for_more_equal_blocks(added):
    few, many = (added(lambda n=n: gpt(n), "step clipping, clipped")["reads"] for n in (2, 5))
    assert 1 < few == many
