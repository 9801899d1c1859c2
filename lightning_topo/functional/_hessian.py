"""Products of the Hessian of a loss with vectors, by second backward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
Losses = Tensor | Callable[[], Tensor] | Iterable[Callable[[], Tensor]]


def trainable(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Those parameters that need a gradient, each once, or a ValueError."""
    if isinstance(params, Tensor):  # iterating over it would give rows, which no loss depends on
        params = (params,)
    trainable = tuple(dict.fromkeys(param for param in params if param.requires_grad))  # a tied weight counts once
    if not trainable:
        raise ValueError("expected at least one parameter that requires grad, got none; pass e.g. model.parameters()")
    unreal = [param for param in trainable if param.is_complex()]
    if unreal:
        raise ValueError(
            f"expected real parameters, got one of {unreal[0].dtype} and shape {tuple(unreal[0].shape)}; keep it as a"
            " real one that the model joins by torch.view_as_complex, or leave it out for the sharpness of the others"
        )
    return trainable


def random_direction(params: tuple[Tensor, ...], seed: int) -> Tensor:
    """A random vector of the size of all parameters."""
    device = params[0].device
    # Half precision is too coarse for the recurrence, whatever the products are computed in.
    dtype = torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(sum(p.numel() for p in params), generator=generator, device=device, dtype=dtype)


def rounding(params: tuple[Tensor, ...]) -> float:
    """Relative rounding of products."""
    return max(torch.finfo(param.dtype).eps for param in params)


def mean_hessian(loss: Losses, params: tuple[Tensor, ...]) -> Operator:
    """Return the function v -> Hessian of the mean of the losses · v, on flat vectors."""
    if isinstance(loss, Tensor):
        return _hessian(loss, params)
    batches = (loss,) if callable(loss) else tuple(loss)
    if not batches:
        raise ValueError("expected a loss of at least one batch, got an empty iterable")
    if len(batches) == 1:  # its graph serves every product
        return _hessian(_evaluate(batches[0], params), params)

    def product(vector: Tensor) -> Tensor:
        mean = torch.zeros_like(vector)
        for batch in batches:
            mean += _hessian(_evaluate(batch, params), params)(vector) / len(batches)
        return mean

    return product


def _evaluate(batch: Callable[[], Tensor], params: tuple[Tensor, ...]) -> Tensor:
    # From the same random state each time, so that dropout makes one fixed loss and the caller's state stays.
    with torch.random.fork_rng(devices=sorted({p.get_device() for p in params if p.is_cuda})):
        return batch()


def _hessian(loss: Tensor, params: tuple[Tensor, ...]) -> Operator:
    """Return the function v -> Hessian · v, on flat vectors."""
    gradients = _gradients(loss, params)
    if not loss.isfinite():
        return lambda vector: torch.full_like(vector, math.nan)
    curved = [i for i, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad]
    if not curved:  # the loss is linear in the parameters
        return torch.zeros_like

    def product(vector: Tensor) -> Tensor:
        pieces = vector.split([param.numel() for param in params])
        directions = [pieces[i].view_as(params[i]).to(params[i]) for i in curved]
        products = _second_backward([gradients[i] for i in curved], params, directions)
        return torch.cat([p.reshape(-1).to(vector) for p in products])

    return product


def _gradients(loss: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"expected a scalar tensor as loss, got {got}; reduce it, e.g. by .mean()")
    if not loss.requires_grad:
        raise ValueError("expected a loss with a graph, got one without; compute it with gradients on, undetached")
    with _advice():
        gradients = torch.autograd.grad(loss.sum(), params, create_graph=True, allow_unused=True)
    if all(gradient is None for gradient in gradients):
        raise ValueError(f"the loss depends on none of the {len(params)} parameters; pass those it was computed from")
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise ValueError(
                f"expected dense gradients, got a {gradient.layout} one of the parameter of shape {tuple(param.shape)},"
                " which has no second derivative; make it dense, e.g. by torch.nn.Embedding(..., sparse=False), or"
                " leave that parameter out for the sharpness of the others"
            )
    return gradients


def _second_backward(gradients: Sequence[Any], params: tuple[Tensor, ...], vectors: list[Tensor]) -> tuple[Tensor, ...]:
    with _advice():
        return torch.autograd.grad(gradients, params, vectors, retain_graph=True, materialize_grads=True)


@contextmanager
def _advice() -> Iterator[None]:
    """What to do where an operation has no second derivative; some compiled graphs refuse already the first."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"the second derivative of the loss cannot be computed ({error}). Where an operation has none, use one that"
            " does: compute the loss under torch.nn.attention.sdpa_kernel(SDPBackend.MATH) instead of flash attention,"
            " with the uncompiled module instead of torch.compile, under torch.backends.cudnn.flags(enabled=False)"
            " for recurrent layers."
        ) from error
