"""Which axes of parameters make units and which read them, by what the forward pass does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_topo.neurons.discovery import find_neuron_groups, followed
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.group import locate
from lightning_topo.neurons.tracing.roles import Roles
from lightning_topo.neurons.tracing.trace import Recorder

from ..conftest import Net


def read(model, x, group=0):
    """The axes of the group's members that are read, and what totals there are."""
    roles = Roles(followed(open_sandbox(model, x, Recorder)))
    found = find_neuron_groups(model, x)[group]
    answers, totals = {}, set()
    for member, tensor, _ in locate(found, model)[1]:
        span = range(member.offset, member.offset + member.outer * member.n_units(tensor) * member.inner)
        axis = member.axis % tensor.ndim
        answers[member.parameter, axis] = roles.reads(member.parameter, axis, span, member.inner)
        totals.add(roles.total(member.parameter, axis, span, member.inner))
    return {place for place, how in answers.items() if how == {True}}, answers, totals - {None}


WAYS = {
    "linear": lambda net, h: functional.linear(h, net.out),
    "matmul": lambda net, h: h @ net.out.T,
    "einsum": lambda net, h: torch.einsum("bi,oi->bo", h, net.out),
    "transposed twice": lambda net, h: (net.out @ h.T).T,
    "convolution": lambda net, h: functional.conv1d(h[..., None], net.out[..., None])[..., 0],
    "bmm": lambda net, h: torch.bmm(h[None], net.out.mT[None])[0],
    "cast": lambda net, h: h.double() @ net.out.double().T,
    "addmm": lambda net, h: torch.addmm(torch.zeros(2, dtype=h.dtype), h, net.out.T),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_a_product_sums_over_is_read(way):
    model = Net(
        lambda net, x: WAYS[way](net, net.first(x).relu()), first=nn.Linear(3, 5), out=nn.Parameter(torch.randn(2, 5))
    )
    reads, answers, totals = read(model, torch.randn(4, 3))
    assert reads == {("out", 1)}
    assert answers["first.weight", 0] == answers["first.bias", 0] == {False}
    assert not totals


def test_a_square_matrix_in_a_stream_makes_the_stream_on_one_axis_and_reads_it_on_the_other():
    model = Net(
        lambda net, x: net.out((y := net.first(x)) + net.square(y).tanh()),
        first=nn.Linear(3, 5), square=nn.Linear(5, 5), out=nn.Linear(5, 2),
    )  # fmt: skip
    reads, answers, _ = read(model, torch.randn(4, 3))
    assert reads == {("square.weight", 1), ("out.weight", 1)}
    assert answers["square.weight", 0] == {False}


def test_tied_weights_do_both_along_one_axis():
    def forward(net, x):
        return net.embed(x) @ net.embed.weight.T

    _, answers, _ = read(Net(forward, embed=nn.Embedding(7, 4)), torch.randint(7, (2, 3)))
    assert answers["embed.weight", 1] == {True, False}


def test_a_depthwise_convolution_reads_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    reads, _, totals = read(model, torch.randn(2, 3, 8, 8))
    assert reads == {("2.weight", 1)}
    assert not totals


def test_a_transposed_depthwise_convolution_reads_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 2, 1))
    assert read(model, torch.randn(2, 3, 8, 8))[0] == {("2.weight", 0)}


def test_recurrent_layers_read_along_one_axis():
    model = Net(lambda net, x: net.out(net.rnn(x)[0][:, -1]), rnn=nn.LSTM(3, 5, batch_first=True), out=nn.Linear(5, 2))
    assert read(model, torch.randn(2, 4, 3))[0] == {("rnn.weight_hh_l0", 1), ("out.weight", 1)}


def mean_taken(net, h):
    return net.out(h * h.mean(-1, keepdim=True))


TOTALS = {
    "layer norm": (lambda net, h: net.out(functional.layer_norm(h, (6,))), "statistics"),
    "group norm": (lambda net, h: net.out(functional.group_norm(h, 1)), "statistics"),
    "mean": (mean_taken, "operation mean runs over"),
    "softmax": (lambda net, h: net.out(h.softmax(-1)), "operation softmax runs over"),
    "length": (lambda net, h: net.out(functional.normalize(h)), "runs over"),
    "product of units": (lambda net, h: net.out(h * (h @ h.T).sum()), "multiplies its units with each other"),
    "distances": (lambda net, h: torch.cdist(h, net.out.weight), "distances"),
}


@pytest.mark.parametrize("case", TOTALS)
def test_what_depends_on_the_number_of_units_is_named(case):
    after, expected = TOTALS[case]
    model = Net(lambda net, x: after(net, net.first(x).relu()), first=nn.Linear(3, 6), out=nn.Linear(6, 2))
    totals = read(model, torch.randn(4, 3))[2]
    assert any(expected in reason for reason in totals), totals


def test_the_largest_of_the_units_depends_on_no_number():
    model = Net(
        lambda net, x: net.out((h := net.first(x)) - h.amax(-1, keepdim=True)),
        first=nn.Linear(3, 6),
        out=nn.Linear(6, 2),
    )
    assert not read(model, torch.randn(4, 3))[2]
