"""Loops that are read as code without one, and those that are left as they are."""

import pytest
import torch
from torch import nn

from lightning_topo.neurons import discover_neurons
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.tracing.simplify import simplified
from lightning_topo.neurons.tracing.trace import Recorder

from ..conftest import Net


def operations(model, x):
    sandbox = open_sandbox(model, x, Recorder)
    return simplified(sandbox.watcher.finish(sandbox.output)).operations


def sizes(model, x):
    return sorted(group.n_units(model) for group in discover_neurons(model, x).groups)


def net(forward, width=6, **parts):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(3, width), "out": nn.Linear(width, 2)}
    return Net(forward, **{**layers, **parts}), torch.randn(4, 5, 3)


def each(turn, join):
    """Three pieces of two channels each, treated by ``turn`` and joined."""
    return lambda net, x: net.out(join([turn(net, part) for part in net.first(x).chunk(3, -1)]))


def cat(parts):
    return torch.cat(parts, -1)


TURNS = {
    "pointwise": lambda net, part: part.tanh() * 2.0,
    "softmax": lambda net, part: part.softmax(-1),
    "softmax over time": lambda net, part: part.softmax(1),
    "product with itself": lambda net, part: (part @ part.mT) @ part,
    "one matrix for all": lambda net, part: part @ net.shared,
    "one bias for all": lambda net, part: part + net.bias,
    "transposed": lambda net, part: part.transpose(0, 1).relu().permute(1, 0, 2),
    "views": lambda net, part: part.reshape(-1, 2).relu().unflatten(0, (4, 5)),
    "slices and a join": lambda net, part: torch.cat([part[..., 1:], part[..., :1].relu()], -1),
    "a mask made anew": lambda net, part: part.masked_fill(torch.zeros(5, 1, dtype=torch.bool), 0.0),
    "convolution": lambda net, part: torch.nn.functional.conv1d(part.mT, net.kernel, net.bias, padding=1).mT,
}  # fmt: skip


@pytest.mark.parametrize("name", TURNS)
def test_the_pieces_of_a_loop_can_be_exchanged(name):
    """Whatever each of three pieces goes through, they are three units, with what lies in them beside."""
    parameters = {"shared": nn.Parameter(torch.randn(2, 2)), "bias": nn.Parameter(torch.randn(2)),
                  "kernel": nn.Parameter(torch.randn(2, 2, 3))}  # fmt: skip
    model, x = net(each(TURNS[name], cat), **parameters)
    names = [op.name for op in operations(model, x)]
    assert names.count("cat") <= 1
    assert 3 in sizes(model, x)


def test_stacked_behind():
    model, x = net(each(lambda net, part: part.tanh(), lambda parts: torch.stack(parts, -2).flatten(-2)))
    assert sizes(model, x) == [2, 3]


def test_joined_in_the_batch_the_pieces_are_told_apart_by_the_output():
    model, x = net(each(lambda net, part: part.tanh(), lambda parts: torch.cat(parts, 0)), out=nn.Linear(2, 2))
    assert sizes(model, x) == [2]


def test_turns_that_differ_are_told_apart():
    def forward(net, x):
        a, b, c = net.first(x).chunk(3, -1)
        return net.out(torch.cat([a.tanh(), b.tanh(), c.sigmoid()], -1))

    model, x = net(forward)
    assert sizes(model, x) == [2, 2, 2]


def test_turns_with_another_constant_each_are_told_apart():
    def forward(net, x):
        return net.out(torch.cat([part.tanh() * i for i, part in enumerate(net.first(x).chunk(3, -1), start=1)], -1))

    model, x = net(forward)
    assert sizes(model, x) == [2]


def test_pieces_in_another_order_are_no_loop():
    """Each piece goes to another place, which an exchange of units may not know."""

    def forward(net, x):
        a, b, c = net.first(x).chunk(3, -1)
        return net.out(torch.cat([c.tanh(), a.tanh(), b.tanh()], -1))

    model, x = net(forward)
    assert sizes(model, x) == [2, 2, 2]


def test_heads_with_parameters_of_their_own_are_no_loop():
    model, x = net(
        lambda net, x: net.out(torch.cat([head(net.first(x)).tanh() for head in net.heads], -1)),
        heads=nn.ModuleList(nn.Linear(6, 2) for _ in range(3)),
    )
    assert sizes(model, x) == [2, 2, 2, 6]


def test_steps_in_time_are_no_loop():
    def forward(net, x):
        states = [net.first(x[:, 0]).tanh()]
        for t in range(1, x.shape[1]):
            states.append((states[-1] @ net.again + net.first(x[:, t])).tanh())
        return net.out(torch.stack(states, 1))

    model, x = net(forward, again=nn.Parameter(torch.randn(6, 6)))
    assert sizes(model, x) == [6]


def test_two_long_passes_through_one_network():
    """Deeper than a loop is followed."""
    body = nn.Sequential(*[layer for _ in range(300) for layer in (nn.Linear(6, 6), nn.Tanh())])

    def forward(net, x):
        one, other = net.first(x).chunk(2, 0)
        return net.out(torch.cat([net.body(one), net.body(other)], 0))

    model, x = net(forward, body=body)
    assert sizes(model, x) == [6] * 301


def test_what_a_turn_shows_besides_keeps_the_turns():
    def forward(net, x):
        parts = [part.tanh() for part in net.first(x).chunk(3, -1)]
        return net.out(torch.cat(parts, -1)).sum(-1) + parts[0].sum(-1)

    model, x = net(forward)
    found = discover_neurons(model, x)
    assert 3 not in {group.n_units(model) for group in found.groups}
