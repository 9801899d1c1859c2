"""What the forward pass does with the units of a parameter: makes them, or reads them and adds up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from lightning_topo.neurons.tracing.axes import Atom, Axis, atoms, occurrences
from lightning_topo.neurons.tracing.flow import Flow, Use
from lightning_topo.neurons.tracing.packed_axes import plain


class Roles:
    """Of every position of every parameter axis, how the forward pass uses the unit there.

    A parameter *reads* the units of an axis that a product sums over: its numbers there are outgoing weights. Along all
    other axes it *makes* the units, or changes each of them by itself: incoming weights, biases, scales.

    Args:
        flow: What is known after the last pass over the trace.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._reads: dict[tuple[str, int], dict[Atom, set[bool]]] = defaultdict(lambda: defaultdict(set))
        for use in flow.uses:
            read = set(atoms(use.read)) if use.read is not None else set()
            for dim, units in _places(flow, use):
                for atom in units:
                    self._reads[use.parameter, dim][atom].add(atom in read)
        self._totals: dict[Atom, str] = {}
        for axis, reason in flow.totals:
            for atom in atoms(axis):
                self._totals.setdefault(atom, reason)

    def reads(self, parameter: str, axis: int, positions: range, inner: int) -> set[bool]:
        """Whether the parameter reads the units at these positions of its axis; both where it does both.

        A buffer, and a parameter that is used together with other parameters alone, makes them.

        Args:
            parameter: Its name.
            axis: Its axis.
            positions: From the first to the last that belongs to a unit.
            inner: How many positions in a row belong to one unit, which tells units from others that lie within them.
        """
        known = self._reads.get((parameter, axis), {})
        found = {how for atom in self._atoms(parameter, axis, positions, inner) for how in known.get(atom, {False})}
        return found or {False}

    def total(self, parameter: str, axis: int, positions: range, inner: int) -> str | None:
        """What in the forward pass depends on how many of these units there are, if anything; arguments as above."""
        reasons = (self._totals.get(atom) for atom in self._atoms(parameter, axis, positions, inner))
        return next((reason for reason in reasons if reason), None)

    def _atoms(self, parameter: str, axis: int, positions: range, inner: int) -> set[Atom]:
        structure = (self._flow.owned(parameter) or ())[axis : axis + 1]
        found = {
            (atom, each)
            for atom, offset, each in (occurrences(structure[0]) if structure else ())
            if offset < positions.stop and positions.start < offset + atom.size * each
        }
        alike = {atom for atom, each in found if each == inner}
        return alike or {atom for atom, _ in found}


def _places(flow: Flow, use: Use) -> Iterator[tuple[int, set[Atom]]]:
    """Which axis of the parameter an operation has used, with the units on it.

    The axis that an operation finds is an axis of the parameter itself unless a reshape lies between them. Then it is
    known by its units, which may be those of several axes.
    """
    own = flow.known(flow.trace.owned[use.parameter])
    found = set(_atoms_of(use.axis))
    same = [dim for dim, axis in enumerate(own) if axis is use.axis]
    for dim in same or range(len(own)):
        shared = found & set(_atoms_of(own[dim]))
        if shared:
            yield dim, shared


def _atoms_of(axis: object) -> Iterator[Atom]:
    (known,) = plain([axis])  # type: ignore[list-item]
    whole: Axis = known
    yield from atoms(whole)
