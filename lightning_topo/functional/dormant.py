"""Units of a layer that have fallen silent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_topo.functional.double_precision import in_double


def dormant_share(activations: Tensor, threshold: float = 0.025, centred: bool = True) -> float:
    r"""Share of a layer's units whose activations hardly differ from input to input.

    $$
    s_i = \frac{\mathbb{E}_x |h_i(x) - \bar h_i|}{\frac1n \sum_k \mathbb{E}_x |h_k(x) - \bar h_k|}, \qquad
    \text{dormant: } s_i \le \text{threshold}
    $$

    with h_i(x) the activation of unit i for input x and h̄_i its mean over the inputs. The mean is taken off because a
    unit that is stuck at another value than 0, as a saturated sigmoid is, says as little as one at 0. With
    ``centred=False`` it stays, h̄_i = 0: the score of Sokar et al., definition 3.1 of arXiv 2302.12902, which is for
    ReLU. A ReLU that is 0 for every input is dormant by both. A layer in which all activations are constant is dormant
    as a whole.

    Args:
        activations: One row an input (or position of one), shape (m, n), after the nonlinearity.
        threshold: Share of the layer's mean score up to which a unit is dormant, at least 0; default 0.025, a usual
            choice with that score.
        centred: Whether the score is of the differences from the mean.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: When the activations are not a finite (m, n) matrix, or the threshold is negative or not finite.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import dormant_share
        >>> h = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).relu()
        >>> h[:, 0], h[:, 1] = 0.0, 3.0  # one that is silent, one that is stuck
        >>> dormant_share(h), dormant_share(h, centred=False)
        (0.2, 0.1)
    """
    if not 0.0 <= threshold < math.inf:
        raise ValueError(f"dormant_share expects a finite threshold >= 0, but got {threshold}.")
    h = as_activations(activations, "dormant_share")
    scores = (h - h.mean(0) if centred else h).abs().mean(0)
    # A mean is rounded: what is constant up to that is constant.
    scores[scores <= torch.finfo(torch.float64).eps * h.abs().amax(0)] = 0.0
    return float((scores <= threshold * scores.mean()).double().mean())


def as_activations(activations: Tensor, caller: str) -> Tensor:
    """Check that these are finite activations (m, n), and return them in float64, detached.

    Raises:
        TypeError: When it is no tensor.
        ValueError: When the shape is not (m, n) with m, n >= 1, the type is not floating point, or a value is not
            finite.
    """
    if not isinstance(activations, Tensor):
        raise TypeError(f"{caller} expects a tensor of shape (m, n), but got a {type(activations).__name__}.")
    if activations.ndim != 2 or 0 in activations.shape or not activations.is_floating_point():
        raise ValueError(
            f"{caller} expects floating-point activations of shape (m, n), a row an input and a column a unit, but got "
            f"{tuple(activations.shape)} of {activations.dtype}: flatten batch and positions to rows first."
        )
    h = in_double(activations)
    if not bool(h.isfinite().all()):
        raise ValueError(f"{caller} expects finite activations, but some are NaN or infinite: leave those rows out.")
    return h
