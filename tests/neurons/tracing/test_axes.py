from lightning_topo.neurons.tracing.axes import Atom, Concat, concat, freeze, product, resolve


def test_neighbouring_frozen_atoms_are_one():
    assert resolve(product([Atom(2, "a"), Atom(3, "b")])).size == 6
    assert isinstance(product([Atom(2, "a"), Atom(3, "b")]), Atom)
    assert isinstance(concat([Atom(2, "a"), Atom(3, "b")]), Atom)


def test_leading_concatenation_is_distributed():
    a, b, pixels = Atom(2), Atom(3), Atom(4)
    axis = product([concat([a, b]), pixels])
    assert isinstance(axis, Concat)
    assert [list(segment.parts) for segment in axis.parts] == [[a, pixels], [b, pixels]]


def test_freeze_keeps_the_first_reason():
    atom = Atom(3)
    freeze(atom, "first")
    freeze(atom, "second")
    assert atom.reason == "first"
