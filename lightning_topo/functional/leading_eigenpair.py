"""The largest eigenvalue of a loss's Hessian with its eigenvector, from which a later search of it can start."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional._hessian import Losses, Operator, mean_hessian, random_direction, rounding, trainable

# A direction that is so short beside those before it is left out: rounding is all that it has.
_NOTHING_NEW = 1e-5


@dataclass(frozen=True)
class EigenPair:
    """An approximate eigenpair.

    Attributes:
        value: The Rayleigh quotient of the vector: never above the largest eigenvalue, but for rounding.
        vector: Of length 1, over all parameters that need a gradient, flat.
        products: Hessian-vector products that were spent.
        converged: Whether the residual is within the tolerance.
    """

    value: float
    vector: Tensor
    products: int
    converged: bool


def leading_eigenpair(
    loss: Losses,
    params: Iterable[Tensor],
    *,
    start: Tensor | None = None,
    max_iter: int = 100,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> EigenPair:
    r"""Find the largest (algebraic) eigenvalue of the Hessian of a loss and its eigenvector.

    $$\lambda_{\max} = \max_{|v| = 1} v^\top \nabla^2_\theta L(\theta)\, v$$

    In each iteration the best vector is chosen from the span of the present one, its residual and the direction that
    led to it: the Lanczos recurrence restarted at every step, at one Hessian-vector product and six vectors of the size
    of the parameters. It takes as many products as Lanczos from a random start, and keeps the vector: from that of a
    similar loss it takes two where the loss is the same function (a whole table, between updates), and five to eight in
    the place of seven to ten where it is of another mini-batch.

    Reference: A. V. Knyazev, "Toward the optimal preconditioned eigensolver", SIAM Journal on Scientific Computing 23
    (2001), algorithm 5.1, without a preconditioner and for one vector.

    Args:
        loss: As of ``sharpness``.
        params: The parameters, real ones. Those that need no gradient are left out.
        start: A vector near the eigenvector, such as an earlier result; default a random one.
        max_iter: The most products to spend.
        tolerance: Largest residual, relative to the eigenvalue, at which the iteration stops.
        seed: Seed of the random start.

    Returns:
        The pair; its value is NaN when the loss or a second derivative is not finite.

    Raises:
        ValueError: As ``sharpness``, and when the start is of another size than the parameters.
        RuntimeError: If an operation of the loss has no second derivative.

    Example:
        >>> import torch
        >>> from lightning_topo.functional.leading_eigenpair import leading_eigenpair
        >>> weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
        >>> loss = (torch.tensor([3.0, 1.0, -7.0]) * weight**2).sum()  # Hessian: diag(6, 2, -14)
        >>> round(leading_eigenpair(loss, [weight], tolerance=1e-4).value, 3)
        6.0
    """
    if max_iter < 1 or tolerance < 0:
        raise ValueError(f"expected max_iter >= 1 and tolerance >= 0, got max_iter={max_iter}, tolerance={tolerance}")
    parameters = trainable(params)
    anew = random_direction(parameters, seed)
    if start is not None and start.shape != anew.shape:
        raise ValueError(f"expected a start of shape {tuple(anew.shape)}, one number a parameter, got {start.shape}")
    with torch.enable_grad():  # a monitor may ask from within torch.no_grad()
        product = mean_hessian(loss, parameters)
        return _climb(product, anew if start is None else start.to(anew), max_iter, tolerance, rounding(parameters))


def _climb(product: Operator, start: Tensor, max_iter: int, tolerance: float, eps: float) -> EigenPair:
    vector = start / start.norm()
    image = product(vector)
    step: tuple[Tensor, Tensor] | None = None
    for products in range(1, max_iter + 1):
        value = torch.dot(vector, image).item()
        residual = image - value * vector
        size = residual.norm().item()
        if not math.isfinite(value + size):
            return EigenPair(math.nan, vector, products, converged=True)
        # Below the products' own rounding no residual means anything; it also ends the search for an eigenvalue of 0.
        if size <= max(tolerance * abs(value), eps * image.norm().item()):
            return EigenPair(value, vector, products, converged=True)
        if products == max_iter:
            break
        residual /= size
        # In the order of rising rounding: the step before has been through most combinations.
        basis = _extended([(vector, image)], (residual, product(residual)))
        if step is not None:
            basis = _extended(basis, step)
        weights = _best(basis)
        step = _combined(basis[1:], weights[1:])
        vector, image = weights[0] * vector + step[0], weights[0] * image + step[1]
        length = vector.norm()
        vector, image = vector / length, image / length
    return EigenPair(value, vector, max_iter, converged=False)


_Pair = tuple[Tensor, Tensor]  # a vector, and the Hessian's product with it


def _extended(basis: list[_Pair], pair: _Pair) -> list[_Pair]:
    """An orthonormal basis with one direction more, where there is anything new in it."""
    vector, image = pair
    first = vector.norm()
    for known, known_image in basis:
        share = torch.dot(known, vector)
        vector, image = vector - share * known, image - share * known_image
    length = vector.norm()
    return [*basis, (vector / length, image / length)] if length > _NOTHING_NEW * first else basis


def _best(basis: list[_Pair]) -> Tensor:
    """Weights of the vector of the largest Rayleigh quotient in the span of an orthonormal basis."""
    quotients = torch.stack([torch.stack([torch.dot(vector, image) for _, image in basis]) for vector, _ in basis])
    small = quotients.cpu().double()
    return torch.linalg.eigh((small + small.T) / 2).eigenvectors[:, -1].to(quotients)


def _combined(basis: list[_Pair], weights: Tensor) -> _Pair:
    vector, image = (sum(w * pair[i] for w, pair in zip(weights, basis, strict=True)) for i in (0, 1))
    return vector, image
