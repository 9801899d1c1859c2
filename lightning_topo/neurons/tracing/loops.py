"""Loops over the pieces of an axis: the same operations on each of them, as one operation on all.

Python code may run attention head by head, or a grouped convolution group by group, and join what comes out. Lifted,
the pieces lie along a leading axis, every operation has one more axis, and the units are those of code without a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_topo.neurons.tracing.trace import Operation, Value

# Bodies of loops are short (attention takes twenty operations); two passes through a network are no loop over pieces.
_DEEPEST = 60
# What draws random numbers gives another result each time.
_RANDOM = (
    "native_dropout",
    "bernoulli",
    "bernoulli_",
    "rand",
    "randn",
    "rand_like",
    "randn_like",
    "normal_",
    "uniform_",
)
_ALONG = ("slice", "select", "_softmax", "_log_softmax", "_safe_softmax", "cumsum")
_COPIES = ("clone", "detach", "alias", "_to_copy", "lift_fresh")
_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "expand")


class NoLoop(Exception):  # noqa: N818 (a signal, not an error of the user)
    """The values are not made by the same operations."""


@dataclass(frozen=True, eq=False)
class _Lifted:
    """What stands for one value of each turn: all along a leading axis, or a single one that they share."""

    value: Value
    shared: bool = False


class Loop:
    """Operations that stand for those of all turns.

    Args:
        made_by: Of each computed value, the operation that made it, and as which of its outputs.
        stacked: The pieces of one axis as one value with them along a leading axis, and what makes it; None if the
            values are no such pieces.
        is_live: Whether a value depends on parameters or inputs.
        n: Number of turns.

    Attributes:
        operations: Those made so far, in order.
        replaced: Operations of single turns that nobody may need any more.
    """

    def __init__(
        self,
        made_by: Mapping[Value, tuple[Operation, int]],
        stacked: Callable[[Sequence[Value]], tuple[list[Operation], Value] | None],
        is_live: Callable[[Value], bool],
        n: int,
    ) -> None:
        self.operations: list[Operation] = []
        self.replaced: set[Operation] = set()
        self._made_by = made_by
        self._stacked = stacked
        self._is_live = is_live
        self._n = n
        self._known: dict[tuple[Value, ...], _Lifted] = {}
        self._depth = 0

    def lifted(self, values: Sequence[Value]) -> Value:
        """The values of all turns along a leading axis.

        Raises:
            NoLoop: Not all of them are made in the same way, or by an operation that cannot be lifted.
        """
        found = self._lift(tuple(values))
        if found.shared:
            raise NoLoop
        return found.value

    def _lift(self, values: tuple[Value, ...]) -> _Lifted:
        if all(value is values[0] for value in values):
            return _Lifted(values[0], shared=True)
        if values not in self._known:
            if self._depth == _DEEPEST:
                raise NoLoop
            self._depth += 1
            self._known[values] = self._made(values)
            self._depth -= 1
        return self._known[values]

    def _made(self, values: tuple[Value, ...]) -> _Lifted:
        if not any(map(self._is_live, values)):
            return self._fixed(values)
        stacked = self._stacked(values)
        if stacked is not None:
            self.operations += stacked[0]
            return _Lifted(stacked[1])
        turns = self._turns(values)
        first = turns[0]
        if first.name in _RANDOM or first.name.endswith("_") or len(first.outputs) != 1:
            raise NoLoop
        given = {key: self._argument([turn.arguments[key] for turn in turns], first) for key in first.arguments}
        result = self._operation(first, given)
        self.replaced.update(turns)
        return _Lifted(result)

    def _turns(self, values: tuple[Value, ...]) -> list[Operation]:
        """The operations that made the values, which do the same."""
        made = [self._made_by.get(value) for value in values]
        turns = [entry[0] for entry in made if entry is not None]
        if len(turns) < len(values) or len({entry[1] for entry in made if entry is not None}) > 1:
            raise NoLoop
        if len({turn.name for turn in turns}) > 1 or any(
            turns[0].arguments.keys() != t.arguments.keys() for t in turns
        ):
            raise NoLoop
        return turns

    def _fixed(self, values: tuple[Value, ...]) -> _Lifted:
        """Constants: one that all turns share if each makes it in the same way, otherwise one for each turn."""
        try:
            turns = self._turns(values)
            given = [self._argument([turn.arguments[key] for turn in turns], None) for key in turns[0].arguments]
            shared = turns[0].name not in _RANDOM and all(item.shared for item in _operands(given))
        except NoLoop:
            shared = False
        if shared:
            return _Lifted(values[0], shared=True)
        if len({value.shape for value in values}) > 1:
            raise NoLoop
        return _Lifted(Value((self._n, *values[0].shape), "constant"))

    def _argument(self, given: list[Any], op: Operation | None) -> Any:
        """An argument of all turns: lifted values, lists of them, or what is the same in each turn."""
        if all(isinstance(item, Value) for item in given):
            return self._lift(tuple(given))
        if all(isinstance(item, (list, tuple)) and any(isinstance(one, Value) for one in item) for item in given):
            if len({len(item) for item in given}) > 1:
                raise NoLoop
            return [self._argument(list(column), op) for column in zip(*given, strict=True)]
        if any(isinstance(item, Value) for item in given):
            raise NoLoop
        if all(item == given[0] for item in given):
            return given[0]
        if op is not None and op.pointwise and all(isinstance(item, (int, float)) for item in given):
            return _Lifted(Value((self._n,), "constant"))  # the slope of each head
        raise NoLoop

    def _operation(self, first: Operation, given: Mapping[str, Any]) -> Value:
        """One operation for that of all turns, by what it does to axes."""
        out, name = first.outputs[0], first.name
        if first.pointwise:
            aligned = {key: self._aligned(item, len(out.shape)) for key, item in given.items()}
            return self._add(first, name, aligned, out.shape)
        if name in _COPIES:
            return self._add(first, name, _plain(given), out.shape)
        if name in _VIEWS:
            aligned = {"self": self._aligned(given["self"], len(out.shape))} if name == "expand" else _plain(given)
            shape = (self._n, *out.shape)
            return self._add(
                first, "expand" if name == "expand" else "view", {**aligned, "size": list(shape)}, out.shape
            )
        if name in _ALONG:
            dim = given["dim"] % len(first.inputs[0].shape) + 1
            return self._add(first, name, {**_plain(given), "dim": dim}, out.shape)
        if name in ("t", "transpose", "permute"):
            dims = [0, *(dim + 1 for dim in _order(first))]
            return self._add(first, "permute", {"self": given["self"].value, "dims": dims}, out.shape)
        if name == "unsqueeze":
            dim = given["dim"] % len(out.shape) + 1
            return self._add(first, name, {"self": given["self"].value, "dim": dim}, out.shape)
        if name == "cat":
            dim = given["dim"] % len(out.shape) + 1
            return self._add(
                first, name, {"tensors": [self._whole(x) for x in given["tensors"]], "dim": dim}, out.shape
            )
        if name in ("mm", "addmm", "bmm"):
            return self._product(first, given)
        if name == "convolution" and not given["transposed"]:
            return self._convolution(first, given)
        raise NoLoop

    def _product(self, first: Operation, given: Mapping[str, Any]) -> Value:
        """A product of matrices in every turn: one of as many, or times as many, in a batch."""
        out = first.outputs[0]
        one, other = (
            self._whole(given[key]) for key in (("mat1", "mat2") if first.name == "addmm" else ("self", "mat2"))
        )
        if first.name == "bmm":
            one, other = (self._view(value, (-1, *value.shape[2:])) for value in (one, other))
        flat = (one.shape[0], one.shape[1], other.shape[2])
        made = self._emit("bmm", {"self": one, "mat2": other}, flat, first)
        if first.name == "bmm":
            return self._view(made, (self._n, *out.shape))
        if first.name == "addmm":
            if given["beta"] != 1 or given["alpha"] != 1:
                raise NoLoop
            summand = self._aligned(given["self"], len(out.shape))
            return self._emit("add", {"self": made, "other": summand, "alpha": 1}, flat, first, pointwise=True)
        return made

    def _convolution(self, first: Operation, given: Mapping[str, Any]) -> Value:
        """A convolution in every turn: one in as many groups."""
        out, n = first.outputs[0], self._n
        image, weight = self._whole(given["input"]), self._whole(given["weight"])
        ndim = len(image.shape)
        channels = self._permuted(image, [1, 0, *range(2, ndim)])
        channels = self._view(channels, (channels.shape[0], n * channels.shape[2], *channels.shape[3:]))
        bias = given["bias"] and self._view(self._whole(given["bias"]), (-1,))
        kernels = self._view(weight, (n * weight.shape[1], *weight.shape[2:]))
        arguments = {**_plain(given), "input": channels, "weight": kernels, "bias": bias, "groups": n * given["groups"]}
        joined = self._emit("convolution", arguments, (out.shape[0], n * out.shape[1], *out.shape[2:]), first)
        apart = self._view(joined, (out.shape[0], n, *out.shape[1:]))
        return self._permuted(apart, [1, 0, *range(2, ndim)])

    def _aligned(self, item: Any, ndim: int) -> Any:
        """A lifted operand with axes of size 1 behind the leading one, so that it is broadcast as each turn's is."""
        if not isinstance(item, _Lifted):
            return item
        shape = item.value.shape
        if item.shared or len(shape) == ndim + 1:
            return item.value
        return self._view(item.value, (self._n, *[1] * (ndim + 1 - len(shape)), *shape[1:]))

    def _whole(self, item: _Lifted) -> Value:
        """With a leading axis also where all turns share one value."""
        if not item.shared:
            return item.value
        shape = (self._n, *item.value.shape)
        single = self._emit("unsqueeze", {"self": item.value, "dim": 0}, (1, *shape[1:]), None)
        return self._emit("expand", {"self": single, "size": list(shape)}, shape, None)

    def _permuted(self, value: Value, dims: list[int]) -> Value:
        return self._emit("permute", {"self": value, "dims": dims}, tuple(value.shape[dim] for dim in dims), None)

    def _view(self, value: Value, shape: tuple[int, ...]) -> Value:
        known = 1
        for size in shape:
            known *= size if size > 0 else 1
        total = 1
        for size in value.shape:
            total *= size
        shape = tuple(size if size >= 0 else total // known for size in shape)
        return self._emit("view", {"self": value, "size": list(shape)}, shape, None)

    def _add(self, first: Operation, name: str, arguments: Mapping[str, Any], shape: Sequence[int]) -> Value:
        return self._emit(name, arguments, (self._n, *shape), first, first.pointwise)

    def _emit(
        self, name: str, arguments: Mapping[str, Any], shape: tuple[int, ...], like: Operation | None,
        pointwise: bool = False,
    ) -> Value:  # fmt: skip
        items = [one for item in arguments.values() for one in (item if isinstance(item, list) else [item])]
        inputs = tuple(item for item in items if isinstance(item, Value))
        kind = "computed" if any(map(self._is_live, inputs)) else "constant"
        out = Value(shape, kind, mask=like is not None and like.outputs[0].mask)
        uniform = {} if like is None else like.uniform
        self.operations.append(Operation(name, arguments, inputs, (out,), pointwise, uniform))
        return out


def _operands(given: Sequence[Any]) -> list[_Lifted]:
    items = [one for item in given for one in (item if isinstance(item, list) else [item])]
    return [item for item in items if isinstance(item, _Lifted)]


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item.value if isinstance(item, _Lifted) else item for key, item in given.items()}


def _order(op: Operation) -> list[int]:
    """The order of axes that a transposition makes."""
    ndim = len(op.inputs[0].shape)
    if op.name == "permute":
        return [dim % ndim for dim in op.arguments["dims"]]
    order = list(range(ndim))
    if ndim > 1:
        one, other = (op.arguments.get(name, default) % ndim for name, default in (("dim0", 0), ("dim1", 1)))
        order[one], order[other] = order[other], order[one]
    return order
