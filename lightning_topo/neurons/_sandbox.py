"""A copy of a model on which anything may be tried, while the original stays as it was."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lightning_topo.neurons._sharded import Piece, sizes, spread_parameters
from lightning_topo.neurons._stand_in import StandIn
from lightning_topo.neurons.example import ExampleCall, example_calls, fewer_items

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOW_TO_PASS = (
    "pass example_input as a tensor (one argument), a tuple (positional) or a dict (keyword arguments), or set "
    "model.example_input_array"
)


class NoTrialRunError(ValueError):
    """A model cannot be tried: there is no example input that runs, or no copy of it."""


Watch = Callable[[nn.Module, ExampleCall], AbstractContextManager[Any]]


@dataclass
class Sandbox:
    """A copy of a model in eval mode, with a call that is known to run on it.

    Attributes:
        model: The copy: in double precision where that runs, uncompiled, without the user's hooks.
        call: Arguments in the precision of the copy.
        in_double: Whether everything is computed in float64.
        output: What the first run returned.
        watcher: What watched the first run.
    """

    model: nn.Module
    call: ExampleCall
    in_double: bool
    output: Any = None
    watcher: Any = None

    def run(self, watch: Watch | None = None) -> Any:
        """Call the copy; every run starts from the same random state and leaves it as it was."""
        with ExitStack() as stack:
            _enter_plain_computation(stack, self.model)
            call = self.call.copy()  # a forward pass may write to its input
            if self.in_double:
                stack.enter_context(_InDouble())
            self.watcher = stack.enter_context(watch(self.model, call) if watch else nullcontext())
            self.output = call.on(self.model)
        return self.output


@torch.inference_mode(False)  # whose tensors could not be changed in place
def open_sandbox(model: nn.Module, example_input: Any = None, watch: Watch | None = None) -> Sandbox:
    """Copy ``model`` and run the first call for ``example_input`` that works, in double precision if it can.

    Raises:
        TypeError: No module.
        ValueError: Lazy, compiled, without values or without floating-point parameters, no example input, or none that
            runs.
    """
    _check_parameters(model)
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    pieces = spread_parameters(model)
    spread = list(zip(pieces, pieces.values(), sizes(pieces.values()), strict=True))
    model = _bare(model)
    calls = example_calls(model, example_input)
    if not calls:
        raise NoTrialRunError(f"no input can be made up for {type(model).__name__}; {_HOW_TO_PASS}")
    for in_double in (True, False):
        failures: list[tuple[str, Exception]] = []
        try:
            isolated = _isolated_copy(model, in_double)
            _take_places(isolated, spread, in_double)
        except (TypeError, NotImplementedError, RuntimeError) as failure:
            if not in_double:
                raise NoTrialRunError(
                    f"{type(model).__name__} cannot be copied for a trial run: {failure}"
                ) from failure
            continue
        for call, whole in _fitted(calls, isolated, in_double):
            sandbox = Sandbox(isolated, call, in_double)
            try:
                if next(floating_tensors(sandbox.run(watch)), None) is None:
                    raise ValueError("it returns no floating-point tensor")
            except Exception as failure:  # whatever a forward pass may raise
                failures += [(call.method, failure)] if whole else []
            else:
                return sandbox
    method, first = failures[0]
    missing = "" if method == "forward" else "define forward, "
    raise NoTrialRunError(
        f"the example input does not run through {type(model).__name__}.{method} ({type(first).__name__}: "
        f"{first}); {missing}{_HOW_TO_PASS}"
    ) from first


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in nested tuples, lists, mappings and dataclasses, in order.

    Of a mapping with a finite ``loss`` only that: it is the function that training sees, and what many models return
    beside it (the encoder's last hidden state, attention maps) is no part of it.
    """
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from floating_tensors(item)
    elif isinstance(value, Mapping):
        loss = value.get("loss")
        alone = isinstance(loss, Tensor) and loss.numel() == 1 and bool(loss.isfinite())
        yield from floating_tensors([loss] if alone else list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from floating_tensors([getattr(value, item.name) for item in fields(value)])


def _check_parameters(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    name = type(model).__name__
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError(f"{name} is compiled by torch.jit, so its units cannot be followed; pass it uncompiled")
    without_values = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    if without_values:
        raise ValueError(f"{without_values[0]!r} is on the meta device and has no values; pass the model materialised")
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(f"{lazy[0]!r} is lazy and has no shape yet; run one batch through the model first")
    if not any(parameter.is_floating_point() for parameter in model.parameters()):
        raise ValueError(
            f"{name} has no floating-point parameter, so no neurons (quantised weights cannot be "
            "exchanged); pass the model before quantisation"
        )


def _isolated_copy(model: nn.Module, in_double: bool) -> nn.Module:
    """Deep copy in eval mode, with nothing compiled and no hooks but those that make weights."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if hasattr(parameter, "placements") or getattr(parameter, "_fsdp_flattened", False):
            memo[id(parameter)] = nn.Parameter(torch.empty(0, dtype=parameter.dtype), requires_grad=False)
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value).__name__ == "DeviceMesh":
                memo[id(value)] = value
            if name.endswith("hooks") and isinstance(value, dict):
                memo[id(value)] = type(value)((k, h) for k, h in value.items() if _makes_weights(h))
            tensors = value.values() if name == "_buffers" else (value,)
            for tensor in tensors:
                if isinstance(tensor, Tensor) and not (tensor.is_leaf and tensor.layout is torch.strided):
                    memo[id(tensor)] = tensor.detach().clone()  # which deepcopy refuses
    isolated = _deep_copy(model, memo)
    for module in list(isolated.modules()):
        module._compiled_call_impl = None
        for name, value in list(vars(module).items()):
            if (plain := _uncompiled(value)) is not value:
                # Compiled in place, as Lightning does it with every step: deepcopy takes functions as they are, so that
                # this one belongs to the original still, while a copy of the method that it was belongs to the copy.
                vars(module)[name] = copy.deepcopy(plain, memo)
        for name, child in module._modules.items():
            module._modules[name] = _bare(child)
    isolated = _bare(isolated).eval()
    return isolated.double() if in_double else isolated


def _makes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith("torch.nn.utils")


def _deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """As ``copy.deepcopy``, also of what FSDP has taken hold of, and which refuses to be copied."""
    held = [module for module in model.modules() if _fsdp2(module) or "_fsdp_wrapped_module" in module._modules]
    for module in held:  # all of them before any is filled: they may refer to each other
        memo[id(module)] = object.__new__(_plain_class(module)) if _fsdp2(module) else nn.Module()
    for module in held:
        if _fsdp2(module):
            attributes: Any = module.__reduce_ex__(2)[2]
            state = {key: value for key, value in attributes.items() if not key.startswith("__composable_api_state")}
            memo[id(module)].__setstate__(copy.deepcopy(state, memo))
        else:
            memo[id(module)].add_module("_fsdp_wrapped_module", copy.deepcopy(module._fsdp_wrapped_module, memo))
    return copy.deepcopy(model, memo)


def _plain_class(module: nn.Module) -> type:
    """The class of which ``fully_shard`` has made one of its own."""
    return next(base for base in type(module).__bases__ if base.__name__ != "FSDPModule")


def _fsdp2(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__bases__)


def _take_places(model: nn.Module, spread: list[tuple[str, Piece, tuple[float, bool]]], in_double: bool) -> None:
    """Put a stand-in in the place of each parameter that is sharded over processes; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for name, piece, (size, positive) in spread:
        if id(piece) not in made:
            dtype = _WIDER.get(piece.local.dtype, piece.local.dtype) if in_double else piece.local.dtype
            stand_in = StandIn(piece.shape, dtype, piece.device, len(made), size, positive)
            made[id(piece)] = nn.Parameter(stand_in, requires_grad=False)
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, made[id(piece)])


def _bare(module: Any) -> Any:
    """Without the wrappers of torch.compile and FSDP."""
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module"):
        while module is not None and wrapper in module._modules:
            module = module._modules[wrapper]
    return module


def _uncompiled(value: Any) -> Any:
    """The function or method that torch.compile was given, of any other value itself."""
    function = value
    while isinstance(function, FunctionType) and hasattr(function, "_torchdynamo_orig_callable"):
        function = function._torchdynamo_orig_callable
        # A method of torch's own modules is compiled within a function of this module.
        if getattr(function, "__globals__", {}).get("__name__") == "torch._dynamo.external_utils":
            function = function.__wrapped__
    return function


def _fitted(calls: tuple[ExampleCall, ...], model: nn.Module, in_double: bool) -> Iterator[tuple[ExampleCall, bool]]:
    """The calls on few items, then (True) on all, on the model's device and in its precision."""
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    precisions = [torch.float64] if in_double else list(dict.fromkeys([None, parameter.dtype]))
    for call in calls:
        fewer = fewer_items(call)
        for items in (fewer,) if fewer is call else (fewer, call):
            for dtype in precisions:
                yield items.map(partial(_moved, device=parameter.device, dtype=dtype)), items is call


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)


def _enter_plain_computation(stack: ExitStack, model: nn.Module) -> None:
    """No gradients, fused kernels, compilation, warnings or lasting use of random numbers."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    cuda = [device.index for device in devices if device.type == "cuda"]
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.no_grad())
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    stack.enter_context(torch.random.fork_rng(devices=cuda))
    stack.callback(random.setstate, random.getstate())
    stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 (what models may use)
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    if cuda:
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
    if hasattr(torch.compiler, "set_stance"):
        stack.enter_context(torch.compiler.set_stance("force_eager"))


class _InDouble(TorchDispatchMode):
    """Carries out in double precision what a model asks for in a narrower one (norms that cast to float32)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _WIDER:
            kwargs["dtype"] = _WIDER[kwargs["dtype"]]
        if func._schema.is_mutable:  # must write to the tensor that it was given
            return func(*args, **kwargs)
        return tree_map(_widened, func(*tree_map(_widened, args), **kwargs))


def _widened(value: Any) -> Any:
    return value.to(_WIDER[value.dtype]) if isinstance(value, Tensor) and value.dtype in _WIDER else value
