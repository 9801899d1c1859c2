"""Models that are refused: those whose parameters somebody else holds on to, or that are not what they seem."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo.neurons.exchange.isolated_copy import uncompiled
from lightning_topo.sharding import is_engine, is_sharded


def check_fit(model: nn.Module) -> None:
    """Refuse models of which a smaller layer would not be used, or not be right.

    Raises:
        TypeError: No module.
        ValueError: Wrapped for several processes, sharded, compiled or quantised, parameters that have no shape yet, or
            that overlap in memory.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {model!r}; pass the model itself")
    name = type(model).__name__
    reason = next(_reasons(model), None)
    if reason is not None:
        raise ValueError(f"expected a plain model to merge units of, got {name}, {reason}")


def _reasons(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        where = f"whose {path} is" if path else "which is"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or is_engine(module):
            yield f"{where} wrapped in {type(module).__name__}, which holds the old parameters; merge before that"
        if any(map(is_lazy, module.parameters(recurse=False))):
            yield f"{where} lazy and has no shape yet; run one batch through the model first"
        if is_sharded(module):
            yield f"{where} sharded over processes; merge before that, or a model loaded from a whole checkpoint"
        if _is_compiled(module):
            yield f"{where} compiled, and would go on with the old sizes; merge before torch.compile"
        if _is_quantised(module):
            yield f"{where} quantised, and its weights cannot be added; merge before quantisation"
    overlapping = _overlapping(model)
    if overlapping:
        yield (
            f"whose parameters {overlapping[0]} and {overlapping[1]} share memory without being one; make them one "
            "parameter, or two"
        )


def _is_compiled(module: nn.Module) -> bool:
    functions = any(uncompiled(value) is not value for value in vars(module).values())
    compiled = "_orig_mod" in module._modules or module._compiled_call_impl is not None
    return compiled or functions or isinstance(module, torch.jit.ScriptModule)


def _is_quantised(module: nn.Module) -> bool:
    own = (*module._parameters.values(), *module._buffers.values())
    classes = any(".quantized." in f"{base.__module__}." for base in type(module).__mro__)
    return classes or any(_is_narrow(tensor) for tensor in own if tensor is not None)


def _is_narrow(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are quantised, or kept in a type of somebody's own that stands for a plain one."""
    integer = isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex())
    eight_bits = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.is_quantized or integer or eight_bits or hasattr(tensor, "__tensor_flatten__")


def _overlapping(model: nn.Module) -> tuple[str, str] | None:
    """Two parameters that are different views of the same memory."""
    spans = []
    for name, parameter in model.named_parameters():
        if parameter.layout is torch.strided and parameter.numel() and not parameter.is_meta:
            extent = sum((size - 1) * abs(step) for size, step in zip(parameter.shape, parameter.stride(), strict=True))
            start = parameter.data_ptr()
            spans.append((parameter.device, start, start + (extent + 1) * parameter.element_size(), name))
    spans.sort(key=lambda span: (str(span[0]), span[1]))
    for one, other in pairwise(spans):
        if one[0] == other[0] and other[1] < one[2]:
            return one[3], other[3]
    return None
