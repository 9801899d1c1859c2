"""What one pass over a trace has found out about the axes of its tensors, and what the rules need of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_topo.neurons.tracing.alignment import unify
from lightning_topo.neurons.tracing.axes import Atom, Axis, Free, product, resolve
from lightning_topo.neurons.tracing.packed_axes import AnyAxis, Cuts, Family, Index, plain
from lightning_topo.neurons.tracing.trace import Operation, Trace, Value

_FROZEN = {"input": "model input", "quantised": "not a floating-point parameter"}


@dataclass(frozen=True)
class Made:
    """A parameter has an axis on the output side of an operation.

    Attributes:
        strong: By a contraction or lookup, not merely by broadcasting (a bias, a scale).
        time: Position of the operation in the trace.
        parameter: Its name.
        axis: The axis of the operation's result.
    """

    strong: bool
    time: int
    parameter: str
    axis: Axis


@dataclass(frozen=True)
class Named:
    """An axis whose positions a tensor of integers names.

    Attributes:
        axis: The axis.
        reason: Why its units cannot be exchanged, should the integers be used for anything but to look up, or to place,
            what lies along the same axis.
    """

    axis: Axis
    reason: str


@dataclass(frozen=True)
class Use:
    """An operation brings a parameter together with what depends on the input.

    Attributes:
        parameter: Its name.
        axis: One axis of it, as the operation finds it.
        read: What of the axis is summed over, so that the parameter's numbers there are weights of the units; None if
            nothing is.
    """

    parameter: str
    axis: AnyAxis
    read: Axis | None


class Flow:
    """State of one pass over a trace, and what the rules need of it.

    Args:
        trace: The recorded forward pass.
        cuts: Of the reshapes that make packed axes, at which positions these are cut, known from an earlier pass.
    """

    def __init__(self, trace: Trace, cuts: Cuts) -> None:
        self.trace = trace
        self.cuts = cuts
        self.found_cuts: dict[object, frozenset[int]] = dict(cuts)
        self.made: list[Made] = []
        self.uses: list[Use] = []
        self.totals: list[tuple[Axis, str]] = []
        self.roles: list[tuple[str, Axis, int]] = []
        self.scores: dict[int, tuple[Axis, Axis]] = {}
        self.softmaxed: set[int] = set()
        self.time = 0
        self._axes: dict[Value, list[AnyAxis]] = {}
        self._sources: dict[Value, str] = {}
        self._origins: dict[Value, int] = {}
        self._named: dict[Value, Named] = {}
        self._originates = False
        self._reading: dict[tuple[Value, int], Axis] = {}

    def begin(self, time: int) -> None:
        """Note that the operation at this position of the trace comes next."""
        self.time = time
        self._originates = False
        self._reading = {}

    def end(self, operation: Operation, results: Sequence[Sequence[AnyAxis]]) -> None:
        """Note the axes of what the operation returned, and where it comes from."""
        for value, axes in zip(operation.outputs, results, strict=True):
            self._axes[value] = list(axes)
        live = [value for value in operation.inputs if self.trace.is_live(value)]
        sources = [self.source(value) for value in live]
        origins = {self.origin(value) for value, source in zip(live, sources, strict=True) if source is None}
        origin = self.time if self._originates or len(origins) > 1 else max(origins, default=-1)
        mixed = None in sources
        if mixed:
            self._note_uses(live)
        for value in operation.outputs:
            self._origins[value] = origin
            if mixed:
                self._sources.pop(value, None)  # an operation in place has added to a parameter what is none
            elif sources[0] is not None:
                self._sources.setdefault(value, sources[0])

    def known(self, value: Value) -> list[AnyAxis]:
        """Axes of a value that depends on parameters or inputs, with families."""
        if value not in self._axes:
            reason = _FROZEN.get(value.kind)
            self._axes[value] = [Atom(size, reason) if size > 1 else Free(size) for size in value.shape]
        return self._axes[value]

    def raw(self, operation: Operation, value: Value) -> list[AnyAxis]:
        """Axes of an input, with families."""
        if self.trace.is_live(value):
            return self.known(value)
        uniform = operation.uniform.get(value, (False,) * len(value.shape))
        axes: list[AnyAxis] = [
            Free(size) if free or size < 2 else Atom(size, "fixed values")
            for size, free in zip(value.shape, uniform, strict=True)
        ]
        for one, other in operation.twins.get(value, ()):
            if one != other:
                axes[one] = axes[other] = Atom(value.shape[one])
            else:
                side = Atom(math.isqrt(value.shape[one]))
                axes[one] = product((side, side))
        return axes

    def axes(self, operation: Operation, value: Value) -> list[Axis]:
        """Axes of an input."""
        return plain(self.raw(operation, value))

    def broadcast(self, operation: Operation, values: Sequence[Value], shape: Sequence[int]) -> list[Axis]:
        """Common axes of values that are broadcast to ``shape``."""
        result: list[Axis] = [Free(size) for size in shape]
        for value in values:
            axes = self.axes(operation, value)
            for position, axis in enumerate(axes, start=len(shape) - len(axes)):
                if axis.size == shape[position]:
                    result[position] = unify(result[position], axis)
        return result

    def source(self, value: Value) -> str | None:
        """Name of the parameter that the value is (up to its layout), if it is one."""
        return value.name if value.kind == "parameter" else self._sources.get(value)

    def makes(self, value: Value, axis: Axis, strong: bool = True) -> None:
        """Note that ``value``, if it is a parameter, has ``axis`` on the output side."""
        parameter = self.source(value)
        if parameter is not None and axis.size > 1:
            self.made.append(Made(strong, self.time, parameter, axis))
            self._originates |= strong

    def origin(self, value: Value) -> int:
        """Time of the contraction that the value comes from, or of what joined several."""
        return self._origins.get(value, -1)

    def contracts(self, op: Operation, axis: Axis, *operands: tuple[Value, int]) -> None:
        """Note that the operation sums over ``axis``, which is this axis of each of the operands."""
        weights = [operand for operand in operands if self.source(operand[0]) is not None]
        if len(weights) == 1:
            self._reading[weights[0]] = axis
        else:
            self.totals_over(axis, f"operation {op.name} multiplies its units with each other and adds the products up")

    def totals_over(self, axis: Axis, reason: str) -> None:
        """Note that a result depends on how many units of the axis there are, as a sum or a mean over them does."""
        if axis.size > 1:
            self.totals.append((axis, reason))

    def originates(self) -> None:
        """Note that the result of the current operation is something new."""
        self._originates = True

    def plays(self, role: str, axis: Axis, place: int = -1) -> None:
        """Note a use of the axis that its name should tell, and which attention it is part of."""
        self.roles.append((role, axis, place))

    def names(self, value: Value, named: Named) -> None:
        """Note that the integers of ``value`` are positions of an axis, chosen in the forward pass."""
        self._named[value] = named

    def named_by(self, value: Value) -> Named | None:
        """The axis whose positions the integers of ``value`` name, if that is all that they are."""
        return self._named.get(value)

    def tells_apart(self, axis: AnyAxis, start: int, stop: int) -> None:
        """Note that positions ``start`` to ``stop`` of the axis are used separately."""
        axis = axis if isinstance(axis, (Index, Family)) else resolve(axis)
        sites: set[object] = set()
        if isinstance(axis, Index):
            sites, start, stop = {axis.site} - {None}, start + axis.offset, stop + axis.offset
        elif isinstance(axis, Atom) and axis.reason is None:
            sites = axis.sites
        for site in sites:
            self.found_cuts[site] = self.found_cuts.get(site, frozenset()) | {start, stop}

    def owned(self, name: str) -> list[Axis] | None:
        """Axes of a parameter or state after the pass; None if no operation used it."""
        value = self.trace.owned[name]
        return plain(self.known(value)) if value in self._axes else None

    def _note_uses(self, values: Sequence[Value]) -> None:
        """Of the parameters among the operands of the current operation, what it does with each axis."""
        for value in values:
            parameter = self.source(value)
            if parameter is not None:
                for dim, axis in enumerate(self.known(value)):
                    self.uses.append(Use(parameter, axis, self._reading.get((value, dim))))

    def unused(self) -> list[str]:
        """Parameters that no operation used."""
        parameters = (name for name, value in self.trace.owned.items() if value.kind == "parameter")
        return [name for name in parameters if self.owned(name) is None]
