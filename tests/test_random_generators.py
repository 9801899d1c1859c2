"""Generators of the user's own."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lightning_topo.neurons import find_neuron_groups
from lightning_topo.random_generators import generators_kept, reachable_generators

TORCH, NUMPY, LEGACY, PYTHON = (
    torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0),
)  # fmt: skip
BOX = {"deep": [{"down": torch.Generator()}]}
UNUSED = torch.Generator()
DRAWS = {
    "torch": lambda: torch.rand((), generator=TORCH),
    "numpy": lambda: NUMPY.random(),
    "legacy": lambda: LEGACY.rand(),
    "python": lambda: PYTHON.random(),
    "in a box": lambda: torch.rand((), generator=BOX["deep"][0]["down"]),
    "by a helper": lambda: helper(),
}


def helper():
    return torch.rand((), generator=TORCH) + NUMPY.random()


def states():
    return (
        TORCH.get_state().tolist(), NUMPY.bit_generator.state, LEGACY.get_state()[1].tolist(),
        PYTHON.getstate(), BOX["deep"][0]["down"].get_state().tolist(),
    )  # fmt: skip


class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.fc1, self.fc2, self.draw = nn.Linear(3, 4), nn.Linear(4, 2), draw

    def forward(self, x):
        return self.fc2((self.fc1(x) + float(self.draw())).tanh())


@pytest.mark.parametrize("name", DRAWS)
def test_discovery_draws_in_vain(name):
    model, before = Noisy(DRAWS[name]), states()
    assert [group.name for group in find_neuron_groups(model, torch.ones(2, 3))] == ["fc1"]
    assert states() == before
    DRAWS[name]()
    assert states() != before


class Holds(nn.Module):
    """Draws from generators that it holds, one of them twice."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)
        self.rng, self.generator = np.random.default_rng(1), torch.Generator()
        self.again = [self.generator]

    def forward(self, x):
        return self.fc2((self.fc1(x) + self.rng.random() + torch.rand((), generator=self.generator)).tanh())


def test_generators_that_a_module_holds():
    model = Holds()
    before = model.rng.bit_generator.state, model.generator.get_state()
    assert [group.name for group in find_neuron_groups(model, torch.ones(2, 3))] == ["fc1"]
    assert model.rng.bit_generator.state == before[0]
    assert torch.equal(model.generator.get_state(), before[1])


def test_each_is_found_once_and_those_out_of_reach_are_not():
    model = Holds()
    assert {id(found) for found in reachable_generators(model)} == {id(model.rng), id(model.generator)}
    assert len(reachable_generators(model, model, helper)) == 4
    assert not any(found is UNUSED for found in reachable_generators(model, helper, DRAWS["in a box"]))


def test_closures_methods_and_partials():
    own = torch.Generator()

    def draw(scale=NUMPY):
        return torch.rand((), generator=own)

    for owner in (draw, partial(draw, 1), Noisy(draw).forward, {"a": (draw,)}):
        assert {id(found) for found in reachable_generators(owner)} >= {id(own), id(NUMPY)}


def test_states_come_back_after_an_error():
    own = np.random.default_rng(3)
    before = own.bit_generator.state
    with pytest.raises(ZeroDivisionError), generators_kept([own]):
        own.random(int(1 / (own.random() * 0)))
    assert own.bit_generator.state == before
    expected = own.random()
    own.bit_generator.state = before
    with generators_kept([own]):
        own.random(5)
    assert own.random() == expected


def test_circles_and_large_data_end():
    loop = [torch.Generator()]
    loop += [loop, list(range(10**6))]
    assert reachable_generators(loop) == [loop[0]]


class Lazy(dict):
    """Would import a library for each of its values."""

    def values(self):
        raise AssertionError("asked for its values")

    __getitem__ = __iter__ = values


class Reluctant:
    """Answers no question."""

    def __getattribute__(self, name):
        raise AssertionError(f"asked for {name}")


def test_objects_are_looked_at_and_not_asked():
    own = torch.Generator()
    assert reachable_generators([Lazy(a=own), Reluctant()]) == [own]
