"""How many directions the activations of a layer make use of."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_topo.functional.dormant import as_activations


def effective_rank(activations: Tensor) -> float:
    r"""Effective rank of a matrix of activations: the exponential of the entropy of its singular values.

    $$\operatorname{erank}(H) = \exp\Bigl(-\sum_k p_k \log p_k\Bigr), \qquad p_k = \frac{\sigma_k}{\sum_l \sigma_l}$$

    It is at most the rank, and so at most the number of rows and that of units, and equals it when all non-zero
    singular values are equal; a few large ones make it small. The activations are taken as they are, not centred, as
    where the measure is used for lost plasticity (Dohare et al., Nature 632, 2024).

    Reference: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        activations: One row an input (or position of one), shape (m, n), floating point, on any device.

    Returns:
        A number from 1 to min(m, n); 0.0 when all activations are 0.

    Raises:
        ValueError: When the activations are not a finite (m, n) matrix.

    Example:
        >>> import torch
        >>> from lightning_topo.functional import effective_rank
        >>> effective_rank(torch.eye(6)), effective_rank(torch.ones(6, 4))
        (6.0, 1.0)
        >>> effective_rank(torch.diag(torch.tensor([1.0, 1.0, 0.01])))  # two directions and a faint one
        2.0566
    """
    sigma = torch.linalg.svdvals(as_activations(activations, "effective_rank"))
    total = sigma.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(sigma / total).sum().exp())
