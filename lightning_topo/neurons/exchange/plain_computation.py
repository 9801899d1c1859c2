"""Forward passes without gradients, fused kernels, compilation, warnings and lasting use of random numbers."""

from __future__ import annotations

import random
import warnings
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def enter_plain_computation(stack: ExitStack, model: nn.Module) -> None:
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


class InDouble(TorchDispatchMode):
    """Carries out in double precision what a model asks for in a narrower one (norms that cast to float32)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in WIDER:
            kwargs["dtype"] = WIDER[kwargs["dtype"]]
        if func._schema.is_mutable:  # must write to the tensor that it was given
            return func(*args, **kwargs)
        return tree_map(_widened, func(*tree_map(_widened, args), **kwargs))


def _widened(value: Any) -> Any:
    return value.to(WIDER[value.dtype]) if isinstance(value, Tensor) and value.dtype in WIDER else value
