"""Fused kernels taken apart, for one thread only: the operations that they stand for can be followed, they cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten

# Attention as one kernel, whichever backend has been chosen for it.
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


class UnfusedLayers(TorchFunctionMode):
    """Keeps transformer layers of PyTorch's off their fast path, and recurrent layers off cuDNN.

    The former take the fast path only where no mode of this kind is active.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _RECURRENT and not kwargs and is_accelerated(args[0]):
            return step_by_step(name, *args)
        return func(*args, **(kwargs or {}))


class UnfusedAttention(TorchDispatchMode):
    """Carries out attention as matrix products and a softmax, which the modes below this one see."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ not in _ATTENTION:
            return func(*args, **kwargs)
        with _Composed():
            output, _ = attention(func, args, kwargs)
        # What follows the output is kept for the backward pass, and nobody reads it.
        return output, *(0 if "Int" in str(item.type) else None for item in func._schema.returns[1:])


class _Composed(TorchDispatchMode):
    """Takes apart what is composed of other operations.

    PyTorch has done so before it comes to a mode, but not with what the mode itself calls.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attention(func: Any, args: Any, kwargs: Any) -> Any:
    """The output and the weights of a fused attention kernel, computed by plain operations."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    query, key, value = (given[name] for name in ("query", "key", "value"))
    shared: dict[str, Any] = {} if query.shape[-3] == key.shape[-3] else {"enable_gqa": True}
    return _aten._scaled_dot_product_attention_math.default.decompose(
        query,
        key,
        value,
        given.get("attn_mask", given.get("attn_bias")),
        given.get("dropout_p", 0.0),
        given.get("is_causal", False),
        scale=given.get("scale"),
        **shared,
    )


def is_accelerated(tensor: Any) -> bool:
    """Whether recurrent layers run as one kernel on the tensor's device."""
    return isinstance(tensor, torch.Tensor) and tensor.is_cuda


def step_by_step(name: str, *args: Any) -> Any:
    """What ``torch.lstm`` and its kin return for these arguments, computed one step after another."""
    packed = isinstance(args[1], torch.Tensor) and args[1].dtype == torch.long  # sizes of batches, not a state
    operation = getattr(_aten, name)
    return (operation.data if packed else operation.input).decompose(*args)
