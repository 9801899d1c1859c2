"""Sharpness: the largest eigenvalue of the loss's Hessian, by Lanczos on Hessian-vector products."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._hessian import Losses, Operator, mean_hessian, random_direction, rounding, trainable


@dataclass(frozen=True)
class _Ritz:
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
    loss: Losses,
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
    if max_iter < 1 or tolerance < 0:
        raise ValueError(f"expected max_iter >= 1 and tolerance >= 0, got max_iter={max_iter}, tolerance={tolerance}")
    parameters = trainable(params)
    with torch.enable_grad():  # a monitor may ask from within torch.no_grad()
        product, start = mean_hessian(loss, parameters), random_direction(parameters, seed)
        ritz = _lanczos(product, start, max_iter, tolerance, rounding(parameters))
    if not ritz.converged:
        warnings.warn(
            "sharpness did not converge within max_iter iterations and is a lower bound; raise max_iter or tolerance",
            stacklevel=2,
        )
    return ritz.value


def _lanczos(matvec: Operator, start: Tensor, max_iter: int, tolerance: float, eps: float) -> _Ritz:
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
            return _Ritz(math.nan, iteration, converged=True)
        diagonal.append(alpha)
        theta, residual = _largest_ritz_pair(diagonal, off_diagonal, beta)
        # Below the products' own rounding no residual means anything; it also ends the search for an eigenvalue of 0.
        rounding = eps * max(map(abs, (*diagonal, *off_diagonal, beta)))
        if residual <= max(tolerance * abs(theta), rounding):
            return _Ritz(theta, iteration, converged=True)
        off_diagonal.append(beta)
        previous, current = current, following.div_(beta)
    return _Ritz(theta, max_iter, converged=False)


def _largest_ritz_pair(diagonal: list[float], off_diagonal: list[float], beta: float) -> tuple[float, float]:
    from scipy.linalg import eigh_tridiagonal

    last = len(diagonal) - 1
    if last == 0:
        return diagonal[0], beta
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal, select="i", select_range=(last, last))
    return float(values[0]), beta * abs(float(vectors[-1, 0]))
