"""Double precision, also where a device has none."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Of these it is known, so that nothing is tried on them.
_HAVE_IT = ("cpu", "cuda", "meta")


@cache
def has_double(device: torch.device) -> bool:
    """Whether a device has float64: Apple's GPUs (MPS) and some of Intel's have none.

    Args:
        device: Any device of torch; one that is not known is asked once, for a single number.
    """
    if device.type in _HAVE_IT:
        return True
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def in_double(points: Tensor) -> Tensor:
    """The values in float64, detached; on the CPU where their device has no float64."""
    points = points.detach()
    return (points if has_double(points.device) else points.cpu()).double()
