"""A copy of a model on which anything may be tried, while the original stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo.neurons.exchange.example import ExampleCall, example_calls, fewer_items
from lightning_topo.neurons.exchange.isolated_copy import isolated_copy, put_placeholders
from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.neurons.exchange.plain_computation import InDouble, plain_computation
from lightning_topo.neurons.exchange.unfused import UnfusedAttention
from lightning_topo.random_generators import reachable_generators
from lightning_topo.sharding import sketches, unwrapped

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
        generators: Generators of the user's own that a forward pass may draw from.
    """

    model: nn.Module
    call: ExampleCall
    in_double: bool
    output: Any = None
    watcher: Any = None
    generators: Sequence[Any] = ()

    def run(self, watch: Watch | None = None) -> Any:
        """Call the copy; every run starts from the same random state and leaves it as it was."""
        with plain_computation(self.model, self.generators):
            call = self.call.copy()  # a forward pass may write to its input
            watching = watch(self.model, call) if watch else nullcontext()
            # Each mode sees what the one behind it asks for.
            with InDouble() if self.in_double else nullcontext(), watching as self.watcher, UnfusedAttention():
                self.output = call.on(self.model)
        return self.output


@torch.inference_mode(False)  # whose tensors could not be changed in place
def open_sandbox(
    model: nn.Module, example_input: Any = None, watch: Watch | None = None, whole: bool = False
) -> Sandbox:
    """Copy ``model`` and run the first call for ``example_input`` that works, in double precision if it can.

    Of a batch it takes the first few items where that runs, unless the whole is asked for.

    Raises:
        TypeError: No module.
        ValueError: Lazy, compiled, without values or without floating-point parameters, no example input, or none that
            runs.
    """
    _check_parameters(model)
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    spread = sketches(model)
    model = unwrapped(model)
    calls = example_calls(model, example_input)
    if not calls:
        raise NoTrialRunError(f"no input can be made up for {type(model).__name__}; {_HOW_TO_PASS}")
    for in_double in (True, False):
        failures: list[tuple[str, Exception]] = []
        try:
            isolated = isolated_copy(model, in_double)
            put_placeholders(isolated, spread, in_double)
        except (TypeError, NotImplementedError, RuntimeError) as failure:
            if not in_double:
                raise NoTrialRunError(
                    f"{type(model).__name__} cannot be copied for a trial run: {failure}"
                ) from failure
            continue
        generators = reachable_generators(isolated)
        for call, fitted, complete in _attempts(calls, isolated, in_double, whole):
            try:
                sandbox = Sandbox(isolated, call.map(fitted), in_double, generators=generators)
                if next(floating_tensors(sandbox.run(watch)), None) is None:
                    raise ValueError("it returns no floating-point tensor")
            except Exception as failure:  # noqa: PERF203 (whatever a forward pass may raise)
                failures += [(call.method, failure)] if complete else []
            else:
                return sandbox
    method, first = failures[0]
    missing = "" if method == "forward" else "define forward, "
    raise NoTrialRunError(
        f"the example input does not run through {type(model).__name__}.{method} ({type(first).__name__}: "
        f"{first}); {missing}{_HOW_TO_PASS}"
    ) from first


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


def _attempts(
    calls: tuple[ExampleCall, ...], model: nn.Module, in_double: bool, whole: bool
) -> Iterator[tuple[ExampleCall, Callable[[Tensor], Tensor], bool]]:
    """The calls on few items, then (True) on all, each with what moves its tensors to the model and its precision."""
    parameter = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    precisions = [torch.float64] if in_double else list(dict.fromkeys([None, parameter.dtype]))
    for call in calls:
        fewer = call if whole else fewer_items(call)
        for items in (fewer,) if fewer is call else (fewer, call):
            for dtype in precisions:
                yield items, partial(_moved, device=parameter.device, dtype=dtype), items is call


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)
