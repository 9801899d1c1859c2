"""A copy of a model that shares nothing with it: uncompiled, unwrapped, without the user's hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons.exchange.placeholder import Placeholder
from lightning_topo.neurons.exchange.plain_computation import WIDER
from lightning_topo.sharding import Sketch, deep_copy, unwrapped


def isolated_copy(model: nn.Module, in_double: bool) -> nn.Module:
    """Deep copy in eval mode, with nothing compiled and no hooks but those that make weights."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith("hooks") and isinstance(value, dict):
                memo[id(value)] = type(value)((k, h) for k, h in value.items() if _makes_weights(h))
            for tensor in _held(value):
                if isinstance(tensor, Tensor) and not (tensor.is_leaf and tensor.layout is torch.strided):
                    memo[id(tensor)] = tensor.detach().clone()  # which deepcopy refuses
    isolated = deep_copy(model, memo)
    for module in list(isolated.modules()):
        module._compiled_call_impl = None
        for name, value in list(vars(module).items()):
            if (plain := uncompiled(value)) is not value:
                # Compiled in place, as Lightning does it with every step: deepcopy takes functions as they are, so that
                # this one belongs to the original still, while a copy of the method that it was belongs to the copy.
                vars(module)[name] = copy.deepcopy(plain, memo)
        for name, child in module._modules.items():
            module._modules[name] = unwrapped(child)
    isolated = unwrapped(isolated).eval()
    return isolated.double() if in_double else isolated


def put_placeholders(model: nn.Module, sketches: Mapping[str, Sketch], in_double: bool) -> None:
    """Put a placeholder in the place of each parameter that is sharded over processes; tied ones stay tied."""
    made: dict[Sketch, nn.Parameter] = {}
    for name, sketch in sketches.items():
        if sketch not in made:
            dtype = WIDER.get(sketch.dtype, sketch.dtype) if in_double else sketch.dtype
            placeholder = Placeholder(sketch.shape, dtype, sketch.device, len(made), sketch.size, sketch.positive)
            made[sketch] = nn.Parameter(placeholder, requires_grad=False)
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, made[sketch])


def _held(value: Any) -> Iterable[Any]:
    """What an attribute holds, of those containers in which modules keep buffers and what they have computed."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else (value,)


def _makes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def uncompiled(value: Any) -> Any:
    """The function or method that torch.compile was given, of any other value itself."""
    function = value
    while isinstance(function, FunctionType) and hasattr(function, "_torchdynamo_orig_callable"):
        function = function._torchdynamo_orig_callable
        # A method of torch's own modules is compiled within a function of this module.
        if getattr(function, "__globals__", {}).get("__name__") == "torch._dynamo.external_utils":
            function = function.__wrapped__
    return function
