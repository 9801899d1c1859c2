"""Forward passes without gradients, fused kernels, compilation, warnings and lasting use of random numbers."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo.neurons.exchange.silence import silence
from lightning_topo.neurons.exchange.unfused import UnfusedLayers
from lightning_topo.random_generators import generators_kept

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


# Random states belong to the process. So does what PyTorch notes of dispatch modes (whether there is one) and of
# compilation (whether it is on). So trials take turns.
_TURN = threading.RLock()


@contextmanager
def plain_computation(model: nn.Module, generators: Sequence[Any]) -> Iterator[None]:
    """No gradients, fused layers, compilation, warnings or lasting use of random numbers, in this thread.

    Every trial starts from one random state, whatever has been drawn elsewhere since the last; the user's own
    ``generators`` are put back.
    """
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    cuda = [device.index for device in devices if device.type == "cuda"]
    with ExitStack() as stack:
        stack.enter_context(_TURN)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(silence())
        stack.enter_context(torch.random.fork_rng(devices=cuda))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 (what models may use)
        stack.enter_context(generators_kept(generators))
        _seed(cuda)
        stack.enter_context(UnfusedLayers())
        if "torch._dynamo.eval_frame" in sys.modules and hasattr(
            torch.compiler, "set_stance"
        ):  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _seed(cuda: list[int]) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)):
        generator.manual_seed(0)  # one by one, because torch.manual_seed would reach every device there is


class InDouble(TorchDispatchMode):
    """Carries out in double precision what a model asks for in a narrower one (norms that cast to float32)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in WIDER:
            kwargs["dtype"] = WIDER[kwargs["dtype"]]
        if func._schema.is_mutable:  # must write to the tensor that it was given
            return func(*args, **kwargs)
        return _widened(func(*_widened(args), **kwargs))


def _widened(value: Any) -> Any:
    """In double precision, in lists too; not by way of a tree, because recurrent nets run thousands of operations."""
    if isinstance(value, Tensor):
        return value.to(WIDER[value.dtype]) if value.dtype in WIDER else value
    if isinstance(value, (tuple, list)):
        return type(value)([_widened(item) for item in value])
    return value
