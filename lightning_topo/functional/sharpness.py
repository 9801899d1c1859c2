"""Sharpness: the largest eigenvalue of the loss's Hessian, by Lanczos on Hessian-vector products."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ritz:
    """An approximate eigenvalue.

    Attributes:
        value: The largest Ritz value.
        iterations: Hessian-vector products that were spent.
        converged: Whether its residual is below the tolerance; otherwise it is a lower bound.
    """

    value: float
    iterations: int
    converged: bool


def sharpness(
    loss: Tensor | Callable[[], Tensor] | Iterable[Callable[[], Tensor]],
    params: Iterable[Tensor],
    *,
    max_iter: int = 100,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> float:
    r"""Compute the sharpness: the largest (algebraic) eigenvalue of the Hessian of a loss.

    $$\lambda_{\max} = \max_{|v| = 1} v^\top \nabla^2_\theta L(\theta)\, v$$

    The Lanczos recurrence needs one Hessian-vector product an iteration, each a second backward pass, and three vectors
    of the size of the parameters. No basis is kept: rounding then lets converged Ritz values come back as copies, but
    the largest Ritz value stays within rounding of the spectrum and still converges. It is never above
    $\lambda_{\max}$, and there is an eigenvalue as close to it as its residual (for an isolated one, as close as
    the residual's square over the gap).

    Gradients, the loss's graph and the global random state are left as they were: ``loss.backward()`` still works
    afterwards, and a callable draws the same dropout masks every time.

    Reference: C. C. Paige, "Accuracy and effectiveness of the Lanczos algorithm for the symmetric eigenproblem",
    Linear Algebra and its Applications 34 (1980), sections 2 and 3. As a proxy of the critical learning rate, 1/λmax
    is what the experiments of arXiv 2510.02670 plot.

    Args:
        loss: A scalar with its graph; or a function without arguments that computes one; or several such functions, one
            a mini-batch, whose mean is the loss. Several are called once an iteration, one at a time, so that memory is
            one batch's. Every call must compute the same loss; what else a forward pass changes (running statistics of
            BatchNorm in training mode) is the caller's to protect.
        params: The parameters, of any shapes, devices and real float dtypes. Those that need no gradient are left out.
        max_iter: The most Hessian-vector products to spend. When they do not suffice, a warning says so and the
            result is a lower bound.
        tolerance: Largest residual of the result as an eigenvalue, relative to it, at which the iteration stops. For a
            loss computed under autocast choose 1e-2: rounding hides smaller residuals.
        seed: Seed of the random start vector.

    Returns:
        The largest eigenvalue, in units of the loss over the square of the parameters. It is 0.0 for a loss linear in
        the parameters, negative for a strictly concave one, and NaN when the loss or a second derivative is not finite.

    Raises:
        ValueError: If no parameter needs a gradient, or one that does is complex or has a sparse gradient, or the loss
            is no scalar, has no graph, or depends on none of the parameters, or an option is out of range.
        RuntimeError: If an operation of the loss has no second derivative.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import sharpness
        >>> weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
        >>> loss = (torch.tensor([3.0, 1.0, -7.0]) * weight**2).sum()  # Hessian: diag(6, 2, -14)
        >>> sharpness(loss, [weight])
        6.0
    """
    ritz = largest_eigenvalue(loss, params, max_iter, tolerance, seed)
    if not ritz.converged:
        warnings.warn(
            "sharpness did not converge within max_iter iterations and is a lower bound; raise max_iter or tolerance",
            stacklevel=2,
        )
    return ritz.value


def largest_eigenvalue(
    loss: Tensor | Callable[[], Tensor] | Iterable[Callable[[], Tensor]],
    params: Iterable[Tensor],
    max_iter: int,
    tolerance: float,
    seed: int = 0,
) -> Ritz:
    """The same, with whether it has converged in the place of a warning: for whom a lower bound will do."""
    if max_iter < 1 or tolerance < 0:
        raise ValueError(f"expected max_iter >= 1 and tolerance >= 0, got max_iter={max_iter}, tolerance={tolerance}")
    trainable = _trainable(params)
    with torch.enable_grad():  # a monitor may ask from within torch.no_grad()
        return _lanczos(_mean_hessian(loss, trainable), _start(trainable, seed), max_iter, tolerance, _eps(trainable))


def _trainable(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
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


def _start(params: tuple[Tensor, ...], seed: int) -> Tensor:
    device = params[0].device
    # Half precision is too coarse for the recurrence, whatever the products are computed in.
    dtype = torch.float64 if any(param.dtype == torch.float64 for param in params) else torch.float32
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(sum(p.numel() for p in params), generator=generator, device=device, dtype=dtype)


def _eps(params: tuple[Tensor, ...]) -> float:
    return max(torch.finfo(param.dtype).eps for param in params)


def _lanczos(matvec: _Operator, start: Tensor, max_iter: int, tolerance: float, eps: float) -> Ritz:
    current, previous = start / start.norm(), torch.zeros_like(start)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    beta = 0.0
    for iteration in range(1, max_iter + 1):
        # This order of the subtractions is the one for which Paige proves the recurrence stable.
        following = matvec(current).sub_(previous, alpha=beta)
        alpha = torch.dot(following, current).item()
        following.sub_(current, alpha=alpha)
        beta = following.norm().item()
        if not math.isfinite(alpha + beta):
            return Ritz(math.nan, iteration, converged=True)
        diagonal.append(alpha)
        theta, residual = _largest_ritz_pair(diagonal, off_diagonal, beta)
        # Below the products' own rounding no residual means anything; it also ends the search for an eigenvalue of 0.
        rounding = eps * max(map(abs, (*diagonal, *off_diagonal, beta)))
        if residual <= max(tolerance * abs(theta), rounding):
            return Ritz(theta, iteration, converged=True)
        off_diagonal.append(beta)
        previous, current = current, following.div_(beta)
    return Ritz(theta, max_iter, converged=False)


def _largest_ritz_pair(diagonal: list[float], off_diagonal: list[float], beta: float) -> tuple[float, float]:
    from scipy.linalg import eigh_tridiagonal

    last = len(diagonal) - 1
    if last == 0:
        return diagonal[0], beta
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal, select="i", select_range=(last, last))
    return float(values[0]), beta * abs(float(vectors[-1, 0]))


def _mean_hessian(
    loss: Tensor | Callable[[], Tensor] | Iterable[Callable[[], Tensor]], params: tuple[Tensor, ...]
) -> _Operator:
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


def _hessian(loss: Tensor, params: tuple[Tensor, ...]) -> _Operator:
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


def _second_backward(gradients: list, params: tuple[Tensor, ...], vectors: list[Tensor]) -> tuple[Tensor, ...]:
    try:
        return torch.autograd.grad(gradients, params, vectors, retain_graph=True, materialize_grads=True)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(
            f"the second derivative of the loss cannot be computed ({error}). Where an operation has none, use one that"
            " does: compute the loss under torch.nn.attention.sdpa_kernel(SDPBackend.MATH) instead of flash attention,"
            " with the uncompiled module instead of torch.compile, under torch.backends.cudnn.flags(enabled=False)"
            " for recurrent layers."
        ) from error
