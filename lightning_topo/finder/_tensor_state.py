"""Parameters and buffers, put back bit for bit into the memory in which they were."""

from __future__ import annotations

import torch
from torch import Tensor


class TensorState:
    """A parameter or buffer with its gradient.

    Strategies and precisions may give a tensor other memory, on another device or of another type: it gets its own
    back, with the views that others hold of it.

    Args:
        tensor: The tensor, not lazy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._memory = tensor.detach()
        # A sparse tensor that is written gets other values, which one that it was detached from does not see.
        self._flat = writable(self._memory) if tensor.layout is torch.strided else tensor
        self._value = self._flat.detach().clone()
        self._requires_grad = tensor.requires_grad
        self._grad = tensor.grad
        self._grad_value = None if tensor.grad is None else tensor.grad.detach().clone()

    def moved(self) -> bool:
        """Whether the value is another than it was."""
        dense = self.tensor.layout is torch.strided
        return dense and not torch.equal(writable(self.tensor.detach()), self._value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put value, gradient and memory back."""
        tensor = self.tensor
        self._flat.copy_(self._value)
        if not _same_memory(tensor, self._memory):
            tensor.grad = None  # which has to be of the tensor's type and device at any time
            tensor.data = self._memory
        if tensor.is_leaf:
            tensor.requires_grad_(self._requires_grad)
            tensor.grad = self._grad
        if self._grad is not None and self._grad_value is not None:
            self._grad.copy_(self._grad_value)


def writable(tensor: Tensor) -> Tensor:
    """The tensor, or all memory between its first and last element where elements share memory (``expand``)."""
    if tensor.layout is not torch.strided or tensor.numel() == 0 or type(tensor) is not Tensor:
        return tensor
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride < reach:
            last = sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
            return tensor.as_strided((last + 1,), (1,), tensor.storage_offset())
        reach += stride * (size - 1)
    return tensor


def _same_memory(tensor: Tensor, memory: Tensor) -> bool:
    if (tensor.dtype, tensor.device, tensor.shape) != (memory.dtype, memory.device, memory.shape):
        return False
    if tensor.layout is not torch.strided or type(memory) is not Tensor:
        return True  # no address to compare
    return tensor.data_ptr() == memory.data_ptr() and tensor.stride() == memory.stride()
