"""Constant positions, against indexing of the positions themselves."""

import pytest
import torch

from lightning_topo.neurons.tracing.axes import Atom, Concat, Free, Product, atoms, occurrences, resolve
from lightning_topo.neurons.tracing.positions import loops_of, taken_at

N = torch.arange(24)
PATTERNS = {
    "all": N, "a slice": N[4:10], "every second": N[::2], "every third from the second": N[1::3], "one": N[5:6],
    "the same twice": N[5:6].repeat(2), "each twice": N.repeat_interleave(2), "all twice": N.repeat(2),
    "some of each": N[::4].repeat_interleave(3), "shuffled": N.view(4, 6).T.flatten(),
    "shuffled in blocks": N.view(4, 3, 2).transpose(0, 1).flatten(), "a block of each": N.view(4, 6)[:, 2:4].flatten(),
    "two blocks exchanged": torch.cat([N[12:], N[:12]]), "rolled": N.roll(5),
    "expanded in between": N.view(4, 6)[:, None].expand(4, 3, 6).flatten(),
}  # fmt: skip
LOST = {
    "backwards": N.flip(0), "windows": N.unfold(0, 4, 2).flatten(),
    "any order": torch.randperm(24, generator=torch.Generator().manual_seed(0)),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_every_unit_keeps_its_positions(name):
    """What is taken holds, at the places of a unit, numbers of that unit alone: permuting units permutes these."""
    positions = PATTERNS[name].tolist()
    axis = Atom(24)
    taken = taken_at(axis, positions, "lost")
    assert taken.size == len(positions)
    assert not any(atom.reason for atom in atoms(taken))
    owner = owners(axis, 24)
    assert [owner.get(position) for position in positions] == [
        owners(taken, len(positions)).get(i) for i in range(len(positions))
    ]


def owners(axis, length):
    """Unit, as (atom, number), and its position within the unit, of every position of an axis."""
    found = {}
    for atom, offset, inner in occurrences(axis):
        for unit in range(atom.size):
            for i in range(inner):
                found.setdefault(offset + unit * inner + i, set()).add((id(atom), unit))
    assert all(position < length for position in found)
    return {position: frozenset(units) for position, units in found.items()}


@pytest.mark.parametrize("name", ["each twice", "all twice", "every second", "shuffled", "shuffled in blocks"])
def test_units_stay_exchangeable(name):
    axis = Atom(24)
    taken = taken_at(axis, PATTERNS[name].tolist(), "lost")
    assert {atom.size for atom in atoms(taken)} & {24, 12, 6, 4, 3}


@pytest.mark.parametrize("name", LOST)
def test_positions_without_a_pattern_freeze_the_axis(name):
    axis = Atom(24)
    taken_at(axis, LOST[name].tolist(), "lost")
    assert {atom.reason for atom in atoms(axis)} == {"lost"}


def test_repeats_are_free():
    axis = Atom(3)
    assert isinstance(taken_at(axis, [1, 1, 1, 1], "lost"), Free)
    each, whole = taken_at(Atom(3), [0, 0, 1, 1, 2, 2], "lost"), taken_at(Atom(3), [0, 1, 2, 0, 1, 2], "lost")
    assert isinstance(each, Product)
    assert [type(part) for part in each.parts] == [Atom, Free]
    assert [type(part) for part in whole.parts] == [Free, Atom]


def test_a_block_in_front_of_another():
    axis = Atom(5)
    taken = taken_at(axis, [2, 3, 4, 0, 1], "lost")
    assert isinstance(taken, Concat)
    assert [part.size for part in taken.parts] == [3, 2]
    assert list(resolve(axis).parts) == list(reversed(taken.parts))


@pytest.mark.parametrize("loops", [[(3, 4), (2, 0)], [(2, 0), (3, 1)], [(2, 12), (3, 4), (4, 1)], [(4, 1), (6, 4)]])
def test_loops_are_found_again(loops):
    positions = torch.zeros((), dtype=torch.long)
    for length, stride in loops:
        positions = positions[..., None] + torch.arange(length) * stride
    again = torch.zeros((), dtype=torch.long)
    for length, stride in loops_of(positions.flatten().tolist()):
        again = again[..., None] + torch.arange(length) * stride
    assert again.flatten().tolist() == positions.flatten().tolist()


def test_no_loops():
    assert loops_of([0, 1, 3]) is None
    assert loops_of([0, 1, 0, 1, 0]) is None
    assert loops_of([7]) == []
