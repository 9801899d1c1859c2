import random

import pytest

from lightning_topo.neurons.tracing.alignment import Misaligned, cut, factor, segment, unify
from lightning_topo.neurons.tracing.axes import (
    Atom,
    Concat,
    Free,
    Product,
    concat,
    frozen,
    occurrences,
    product,
    resolve,
)


def places(axis):
    """Which unit of which atom every position of an axis is, by plain enumeration; independent of the algebra."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return [((id(axis), unit),) for unit in range(axis.size)]
    if isinstance(axis, Free):
        return [()] * axis.size
    if isinstance(axis, Concat):
        return [place for part in axis.parts for place in places(part)]
    head, *tail = axis.parts
    return [one + other for one in places(head) for other in places(product(tail))]


def same_structure(first, second):
    return places(first) == places(second)


def test_aligned_atoms_become_one():
    a, b, c = Atom(3), Atom(3), Atom(3)
    unify(a, b)
    unify(b, c)
    assert resolve(a) is resolve(b) is resolve(c)


def test_atom_takes_the_structure_of_what_it_meets():
    flat, channels, pixels = Atom(12), Atom(3), Atom(4)
    unify(flat, product([channels, pixels]))
    assert list(occurrences(flat)) == [(channels, 0, 4), *((pixels, 4 * i, 1) for i in range(3))]


def test_different_factorisations_are_refined():
    first, second = product([Atom(4), Atom(6)]), product([Atom(2), Atom(12)])
    unify(first, second)
    assert same_structure(first, second)
    assert [part.size for part in resolve(first).parts] == [2, 2, 6]


def test_concatenation_meets_product():
    gates = concat([Atom(5), Atom(5), Atom(5)])
    packed = product([Atom(3), Atom(5)])
    unify(gates, packed)
    assert same_structure(gates, packed)
    (unit,) = {atom for atom, _, _ in occurrences(gates) if atom.size == 5}
    assert [offset for atom, offset, _ in occurrences(gates) if atom is unit] == [0, 5, 10]


def test_incompatible_layouts_are_frozen():
    first, second = product([Atom(2), Atom(3)]), product([Atom(3), Atom(2)])
    unify(first, second)
    assert frozen(first)
    assert frozen(second)


def test_frozen_meets_anything():
    axis = product([Atom(2), Atom(3)])
    unify(axis, Atom(6, "reason"))
    assert {part.reason for part in axis.parts} == {"reason"}


def test_free_positions_constrain_nothing():
    heads = product([Atom(2), Free(3)])
    queries = Atom(6)
    unify(heads, queries)
    shared, own = resolve(queries).parts
    assert shared is resolve(heads.parts[0])
    assert isinstance(own, Atom)
    assert isinstance(heads.parts[1], Free)


def test_factor_and_cut_of_an_atom():
    atom = Atom(12)
    front, back = factor(atom, 3)
    assert (front.size, back.size) == (3, 4)
    assert isinstance(resolve(atom), Product)
    atom = Atom(12)
    left, right = cut(atom, 5)
    assert (left.size, right.size) == (5, 7)
    assert isinstance(resolve(atom), Concat)


def test_segment_keeps_units():
    a, b, c = Atom(2), Atom(3), Atom(4)
    axis = concat([a, b, c])
    assert segment(axis, 2, 5) is b
    assert places(segment(axis, 2, 9)) == places(concat([b, c]))


def test_cut_through_a_unit_is_misaligned():
    with pytest.raises(Misaligned):
        cut(product([Atom(2), Atom(3)]), 2)
    with pytest.raises(Misaligned):
        factor(Atom(6), 4)


def test_frozen_atoms_are_not_refined():
    atom = Atom(12, "reason")
    front, back = factor(atom, 3)
    assert (front.reason, back.reason) == ("reason", "reason")
    assert resolve(atom) is atom


def random_axis(rng, atoms, size):
    """An axis of the given size, built of new atoms and of those made before."""
    known = [atom for atom in atoms if atom.size == size]
    if known and rng.random() < 0.4:
        return rng.choice(known)
    divisors = [d for d in range(2, size) if size % d == 0]
    choice = rng.random()
    if divisors and choice < 0.35:
        head = rng.choice(divisors)
        return product([random_axis(rng, atoms, head), random_axis(rng, atoms, size // head)])
    if size > 3 and choice < 0.55:
        head = rng.randrange(1, size)
        return concat([random_axis(rng, atoms, head), random_axis(rng, atoms, size - head)])
    atoms.append(Atom(size))
    return atoms[-1]


@pytest.mark.parametrize("seed", range(60))
def test_unified_axes_are_the_same_positions(seed):
    rng, atoms, pairs = random.Random(seed), [], []
    for _ in range(6):
        size = rng.choice([4, 6, 8, 12, 24])
        pairs.append((random_axis(rng, atoms, size), random_axis(rng, atoms, size)))
    for first, second in pairs:
        assert unify(first, second).size == first.size
    for first, second in pairs:
        if not frozen(first) and not frozen(second):
            exchangeable = [
                sorted((atom.size, offset, inner, id(atom)) for atom, offset, inner in occurrences(axis))
                for axis in (first, second)
            ]
            assert exchangeable[0] == exchangeable[1]
