"""Record of a real forward pass, operation by operation, as data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_topo.neurons.exchange.constants import equal_slices, same_everywhere, twin_axes
from lightning_topo.neurons.exchange.example import ExampleCall
from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.sharding import canonical_name

# Operations that take a tensor for its shape alone.
_LIKE = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "empty_like", "full_like", "ones_like")
SHAPE_ONLY = frozenset((*_LIKE, "rand_like", "randint_like", "randn_like", "zeros_like"))

# Operations whose result Python can branch on: a number, or a tensor whose shape depends on values.
_SEEN_BY_PYTHON = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")

# Operations that read or write at positions which a tensor of integers names.
_PUTS = ("index_put", "index_put_", "_index_put_impl_", "index_add", "index_add_", "index_copy", "index_copy_")
_LOOKUPS = ("index", "_unsafe_index", "index_select", "gather", *_PUTS)
_MOST_INTEGERS = 2**20

# Buffers that training updates unit by unit: running statistics, and the vectors of spectral normalisation. Others that
# hold one number everywhere may be of that kind too, and go with the units. All others are constants, which tell units
# apart unless they treat them alike (the frequencies of rotary embeddings).
_STATE = re.compile(r"(^|\.)(running_mean|running_var|weight_u|weight_v|_u|_v)$")


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the forward pass.

    Attributes:
        shape: Its shape.
        kind: "parameter", "quantised" (a parameter that is not of floating point), "state" (a buffer that belongs to
            units), "input", "computed" (from any of these), or "constant".
        name: Of a parameter or state.
        memory: Token of the storage that views share.
        mask: Whether it holds booleans.
    """

    shape: tuple[int, ...]
    kind: str
    name: str = ""
    memory: int = -1
    mask: bool = False

    @property
    def fixed(self) -> bool:
        """Whether it depends on neither parameters nor inputs."""
        return self.kind == "constant"


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation: arguments by the names of its schema, with values in the place of tensors.

    Attributes:
        name: As in ``torch.ops.aten``.
        arguments: By name, defaults included.
        inputs: All values among the arguments.
        outputs: Values that it returned.
        pointwise: Whether each output position comes from the same (broadcast) position of the inputs.
        uniform: Of each fixed input, along which axes all its slices are equal.
        twins: Of each fixed input, pairs of axes along which it stays if they are exchanged alike, as an identity does.
        integers: Of each fixed input of a lookup that holds integers, these.
    """

    name: str
    arguments: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    pointwise: bool
    uniform: Mapping[Value, tuple[bool, ...]]
    twins: Mapping[Value, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    integers: Mapping[Value, Tensor] = field(default_factory=dict)


@dataclass
class Trace:
    """What happened in a forward pass.

    Attributes:
        operations: In the order in which they ran.
        owned: Value of each parameter and state by name, those that were not used included.
        written: Memory tokens of constants that were filled with computed values later.
        results: Values that the model returned.
    """

    operations: list[Operation] = field(default_factory=list)
    owned: dict[str, Value] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    results: tuple[Value, ...] = ()

    def is_live(self, value: Value) -> bool:
        """Whether the value depends on parameters or inputs."""
        return not value.fixed or value.memory in self.written

    def branches(self) -> bool:
        """Whether Python has seen values that depend on parameters or inputs, and may have chosen what to run."""
        return any(
            operation.name in _SEEN_BY_PYTHON and any(map(self.is_live, operation.inputs))
            for operation in self.operations
        )


class Recorder(TorchDispatchMode):
    """Records every operation that runs while it is entered.

    Args:
        model: Names the parameters and buffers.
        call: Its tensors are the inputs.
    """

    def __init__(self, model: nn.Module, call: ExampleCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self._values = WeakTensorKeyDictionary()
        self._flags: dict[Value, tuple[int, tuple[bool, ...], tuple[tuple[int, int], ...]]] = {}
        self._next_memory = 0
        for name, parameter in model.named_parameters():
            kind = "parameter" if parameter.is_floating_point() else "quantised"
            name = canonical_name(name)
            self.trace.owned[name] = self._register(parameter, kind, name)
        for name, buffer in model.named_buffers():
            if _STATE.search(name) or same_everywhere(buffer):
                name = canonical_name(name)
                self.trace.owned[name] = self._register(buffer, "state", name)
        self.reads(call)

    def reads(self, call: ExampleCall) -> Recorder:
        """The recorder itself, for which the tensors of a further call are inputs too."""
        call.map(lambda tensor: (self._register(tensor, "input"), tensor)[1])
        return self

    def finish(self, output: Any) -> Trace:
        """The trace, once the model has returned ``output``; after several runs that of all."""
        self.trace.results += tuple(self._value(tensor) for tensor in floating_tensors(output))
        return self.trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        bound = _bound(func._schema, args, kwargs)
        arguments = {name: self._replaced(item, tensors) for name, item in bound.items()}
        result = func(*args, **kwargs)
        self._record(func, arguments, tensors, list(_tensors(result)))
        return result

    def _record(self, func: Any, arguments: Mapping[str, Any], tensors: list[Tensor], results: list[Tensor]) -> None:
        name, schema = func.overloadpacket.__name__, func._schema
        inputs = tuple(self._value(tensor) for tensor in tensors)
        live = [self.trace.is_live(value) for value in inputs]
        computed = any(live) and name not in SHAPE_ONLY
        fixed = {v: t for v, t, alive in zip(inputs, tensors, live, strict=True) if computed and not alive}
        invariant = {value: self._invariant(value, tensor) for value, tensor in fixed.items()}
        uniform = {value: flags for value, (flags, _) in invariant.items()}
        twins = {value: pairs for value, (_, pairs) in invariant.items() if pairs}
        integers = {
            value: tensor.detach().cpu() for value, tensor in fixed.items() if name in _LOOKUPS and _small(tensor)
        }
        if name == "as_strided":
            own = {"self_stride": tensors[0].stride(), "self_offset": tensors[0].storage_offset()}
            arguments = {**arguments, **own}
        if computed and schema.is_mutable:
            self.trace.written |= {value.memory for value in _written(schema, arguments)}
        memory = inputs[0].memory if inputs and _is_view(schema) else None
        if torch.Tag.inplace_view in func.tags:  # the same tensor, but with other axes than before
            del self._values[tensors[0]]
        outputs = tuple(self._output(tensor, "computed" if computed else "constant", memory) for tensor in results)
        pointwise = torch.Tag.pointwise in func.tags
        self.trace.operations.append(Operation(name, arguments, inputs, outputs, pointwise, uniform, twins, integers))

    def _replaced(self, item: Any, seen: list[Tensor]) -> Any:
        if isinstance(item, (tuple, list)):
            return type(item)([self._replaced(one, seen) for one in item])
        if not isinstance(item, Tensor):
            return item
        seen.append(item)
        return self._value(item)

    def _value(self, tensor: Tensor) -> Value:
        """Of a tensor never seen before: it was made outside the forward pass, so it is constant."""
        return self._values.get(tensor) or self._register(tensor, "constant")

    def _output(self, tensor: Tensor, kind: str, memory: int | None) -> Value:
        """Of a result; an operation in place returns a tensor that has its value already."""
        return self._values.get(tensor) or self._register(tensor, kind, memory=memory)

    def _register(self, tensor: Tensor, kind: str, name: str = "", memory: int | None = None) -> Value:
        if memory is None:
            memory, self._next_memory = self._next_memory, self._next_memory + 1
        value = self._values[tensor] = Value(tuple(tensor.shape), kind, name, memory, tensor.dtype == torch.bool)
        return value

    def _invariant(self, value: Value, tensor: Tensor) -> tuple[tuple[bool, ...], tuple[tuple[int, int], ...]]:
        version, flags, pairs = self._flags.get(value, (-1, (), ()))
        if version != tensor._version:
            flags = tuple(equal_slices(tensor, axis) for axis in range(tensor.ndim))
            pairs = () if all(flags) else twin_axes(tensor)
            self._flags[value] = (tensor._version, flags, pairs)
        return flags, pairs


def _bound(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, defaults included."""
    bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    bound.update(zip((argument.name for argument in schema.arguments), args, strict=False))
    return {**bound, **kwargs}


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for item in result:
            yield from _tensors(item)


def _is_view(schema: Any) -> bool:
    return any(item.alias_info is not None for item in schema.returns)


def _written(schema: Any, arguments: Mapping[str, Any]) -> Iterator[Value]:
    for argument in schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments.get(argument.name)
            yield from (value,) if isinstance(value, Value) else ()


def _small(tensor: Tensor) -> bool:
    """Whether the tensor holds integers, few enough that a pattern in them is worth looking for."""
    integers = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return integers and tensor.numel() <= _MOST_INTEGERS
