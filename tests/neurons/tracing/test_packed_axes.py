"""Reshapes of packed axes: which axes they freeze, and what is told apart."""

import pytest

from lightning_topo.neurons.tracing.axes import Atom, Concat, Free, Product, atoms, product, resolve
from lightning_topo.neurons.tracing.packed_axes import Family, Index, narrowed, plain, reshape

REASON = "cut"


def reasons(*axes):
    return [{atom.reason for atom in atoms(axis)} for axis in axes]


def test_axes_beside_the_one_that_is_cut_stay_free():
    """(2, 3, 4, 5) as (2, 3, 5, 4): nothing is known of the last two, all of the first two."""
    axes = [Atom(2), Atom(3), Atom(4), Atom(5)]
    after = reshape(axes, (2, 3, 5, 4), {}, "here", REASON)
    assert reasons(*axes) == [{None}, {None}, {REASON}, {REASON}]
    assert after[:2] == axes[:2]
    assert [axis.size for axis in after] == [2, 3, 5, 4]


@pytest.mark.parametrize("shape", [(6, 4, 5), (2, 3, 20), (2, 1, 3, 4, 5, 1), (120,), (2, 12, 5)])
def test_neighbours_are_joined_in_order(shape):
    axes = [Atom(2), Atom(3), Atom(4), Atom(5)]
    after = reshape(axes, shape, {}, "here", REASON)
    assert [axis.size for axis in after] == list(shape)
    assert [atom for axis in after for atom in atoms(axis)] == axes


def test_an_axis_is_cut_where_it_is_used():
    """Four queries, one key, one value, of three channels each: channels of the three have nothing in common."""
    axis = Atom(18)
    index, family = reshape([axis], (6, 3), {("here", 0): frozenset({0, 4, 5, 6})}, "here", REASON)
    assert isinstance(index, Index)
    assert isinstance(family, Family)
    assert [part.size for part in index.parts] == [4, 1, 1]
    assert len({id(part) for part in family.parts}) == 3
    queries, channels = narrowed([index, family], 0, 0, 4)
    assert isinstance(queries, Atom)
    assert (queries.size, channels) == (4, family.parts[0])
    value, channels = narrowed([index, family], 0, 5, 6)
    assert (value.size, channels) == (1, family.parts[2])
    shorter, _ = narrowed([index, family], 0, 4, 6)
    assert isinstance(shorter, Index)
    assert narrowed([index, family], 0, 1, 3) is None
    assert isinstance(resolve(axis), Concat)
    first = resolve(axis).parts[0]
    assert isinstance(first, Product)
    assert first.parts == (queries, family.parts[0])


def test_packed_axes_come_together_again_behind_another():
    """(groups, queries and keys, channels) as one axis."""
    index = Index((Atom(3), Free(1)))
    family = Family(index, (Atom(4), Atom(4)))
    groups = Atom(2)
    (joined,) = reshape([groups, index, family], (32,), {}, "here", REASON)
    expected = product((groups, plain([joined])[0].parts[1]))
    assert [part.size for part in joined.parts] == [2, 16] == [part.size for part in expected.parts]
    assert reasons(joined) == [{None}]
    assert family.parts[0] in list(atoms(joined))
    assert family.parts[1] in list(atoms(joined))


def test_families_given_up_become_one():
    index = Index((Atom(3), Free(1)))
    family = Family(index, (Atom(4), Atom(4)))
    positions, channels = plain([index, family])
    assert [part.size for part in positions.parts] == [3, 1]
    assert reasons(positions.parts[1]) == [{"position in a packed axis"}]
    assert list(atoms(channels)) == list(atoms(family.parts[1])) == list(atoms(family.parts[0]))


def test_tensors_without_elements():
    axes = [Atom(2), Free(0)]
    assert [axis.size for axis in reshape(axes, (0, 5), {}, "here", REASON)] == [0, 5]
    assert reasons(axes[0]) == [{None}]
