"""What a model returns, as far as it can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


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
