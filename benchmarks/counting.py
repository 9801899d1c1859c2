"""Operations that reach the device, and places where the host waits for it, counted without a device at hand.

    with Counts() as counts:
        optimizer.step()
    counts.kernels, counts.operations, counts.reads

A kernel is an operation other than a view or an allocation; one over a list of tensors (``_foreach_``) counts once. A
read is whatever would make the host wait for an accelerator: a number that is read, ``nonzero``, ``unique``, ``equal``,
an index of booleans, a copy to the host.
"""

from __future__ import annotations

import collections
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "item",
}  # fmt: skip
# Seen before they are taken apart, for on the processor they are no operations at all.
_READING_METHODS = {"tolist", "numpy", "cpu", "__array__"}
_NO_KERNELS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
    "_unsafe_view",
}


class Counts:
    """Counts while its block runs.

    Attributes:
        by_name: How often each operation was dispatched.
        kernels: Operations that are no views and no allocations.
        operations: All of them.
        reads: How often the host would wait for the device.
    """

    def __init__(self) -> None:
        self.by_name: collections.Counter[str] = collections.Counter()
        self.kernels = self.operations = self.reads = 0
        self._modes = (_Functions(self), _Operations(self))
        self.within_a_read = False

    def __enter__(self) -> Counts:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts = self._counts
        if getattr(func, "__name__", "") not in _READING_METHODS or counts.within_a_read:
            return func(*args, **(kwargs or {}))
        counts.reads += 1
        counts.within_a_read = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            counts.within_a_read = False


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts, kwargs = self._counts, kwargs or {}
        name = func._schema.name.partition("::")[2]
        counts.by_name[name] += 1
        counts.operations += 1
        counts.kernels += not (_is_view(func) or name in _NO_KERNELS)
        counts.reads += not counts.within_a_read and _waits(name, args, kwargs)
        return func(*args, **kwargs)


def _is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _waits(name: str, args: Any, kwargs: Any) -> bool:
    if name in _READS:
        return True
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    if name == "repeat_interleave":  # of a tensor of counts, unless the number of results is given
        return kwargs.get("output_size") is None
    if name == "_to_copy":
        device = kwargs.get("device")
        return device is not None and device.type == "cpu" and args[0].device.type != "cpu"
    return False
