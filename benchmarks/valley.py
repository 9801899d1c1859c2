"""The learning-rate search of fastai, in plain torch: an exponential ramp, and the middle of the longest valley."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer


def valley(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Sequence[Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    start: float = 1e-7,
    end: float = 10.0,
) -> tuple[float | None, int]:
    """The suggested rate, and the steps spent: smoothed loss, stop at four times its minimum, then the valley."""
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    steps = len(batches)
    for step, (x, y) in enumerate(batches):
        rate = start * (end / start) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(model(x), y)
        average = 0.98 * average + 0.02 * value.item()
        rates.append(rate)
        losses.append(average / (1 - 0.98 ** (step + 1)))
        if not losses[-1] <= 4 * min(losses):
            break
        value.backward()
        optimizer.step()
    kept = losses[steps // 10 : -5]
    return (rates[steps // 10 : -5][_longest_valley(kept)] if kept else None), len(losses)


def _longest_valley(losses: list[float]) -> int:
    """Index half way through the longest decreasing subsequence."""
    lengths = [1] * len(losses)
    for i, loss in enumerate(losses):
        lengths[i] = 1 + max((lengths[j] for j in range(i) if losses[j] > loss), default=0)
    end = max(range(len(losses)), key=lambda i: lengths[i])
    third = (lengths[end]) / 3
    return end - lengths[end] + int(third) + int(third / 2)
