"""The neuron cloud in a plane, coloured by where each neuron started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_topo.plots._style import GREY, cyclic_colours, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Up to this ratio of height and width a cloud is drawn in its true shape; a flatter one would be a line.
_MAX_ASPECT = 4.0


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    r"""Find the plane in which a cloud varies most: its mean and first two principal axes.

    $$
    \bar p = \tfrac1n \textstyle\sum_i p_i, \qquad
    \text{basis} = \text{the two leading eigenvectors of } \textstyle\sum_i (p_i - \bar p)(p_i - \bar p)^\top
    $$

    ``(points - mean) @ basis`` are the coordinates in it. Kept from one time, it shows later clouds in the same plane.

    Args:
        points: Neurons, shape (n, D) with n >= 1 and D >= 1, on any device, floating point. Rows that are not finite
            are left out.

    Returns:
        The mean, shape (D,), and the basis, shape (D, 2), with orthonormal columns. The largest entry of each column is
        positive, so that the same cloud gives the same picture. With D = 1 the second column is zero.

    Raises:
        ValueError: If ``points`` is not of that shape or has no finite row.

    Example:
        >>> import torch
        >>> from lightning_topo.plots import principal_plane
        >>> t = torch.linspace(0, 6.2, 40)
        >>> mean, basis = principal_plane(torch.stack([0.1 * t.cos(), 0 * t, 2 * t.sin()], dim=1))
        >>> basis.abs().round(decimals=2)  # the third coordinate varies most, then the first
        tensor([[0., 1.],
                [0., 0.],
                [1., 0.]])
    """
    return principal_axes(points, 2)


def principal_axes(points: Tensor, n_axes: int) -> tuple[Tensor, Tensor]:
    """Find the mean of a cloud and the axes along which it varies most; see ``principal_plane``.

    Args:
        points: Neurons, shape (n, D). Rows that are not finite are left out.
        n_axes: How many axes.

    Returns:
        The mean, shape (D,), and the axes, shape (D, n_axes), orthonormal; with D < n_axes the last ones are zero.

    Raises:
        ValueError: If ``points`` is not of that shape or has no finite row.
    """
    points = _finite(points)
    mean = points.mean(0)
    centred = points - mean
    n, dimension = points.shape
    wanted = min(n_axes, dimension)
    if dimension <= n:
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -wanted:].flip(1)
    else:  # the same axes from the smaller matrix
        weights = torch.linalg.eigh(centred @ centred.T).eigenvectors[:, -wanted:].flip(1)
        axes = centred.T @ torch.nn.functional.pad(weights, (0, wanted - weights.shape[1]))
    basis = torch.linalg.qr(axes).Q  # orthonormal also where the cloud has fewer directions
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return mean, torch.nn.functional.pad(basis * torch.where(largest < 0, -1.0, 1.0), (0, n_axes - wanted))


def plot_neuron_cloud(
    points: Tensor,
    start: Tensor | None = None,
    plane: tuple[Tensor, Tensor] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot a neuron cloud in its first principal plane, coloured by where each neuron started.

    The colour is the direction in which a neuron lay, seen from the centre of the start cloud in the start cloud's own
    principal plane (scaled to equal spread in both axes). Neighbours of the start have neighbouring colours, so a cloud
    that has been folded shows colours side by side that were apart; the inset, the start cloud, is the key to them.
    Neurons of two coordinates are drawn as they are, without rotation.

    Args:
        points: Neurons now, shape (n, D). Rows that are not finite are left out, and the title counts them.
        start: The same neurons at the start, shape (n, D'); by default the colours are those of ``points`` itself.
        plane: Mean and basis as ``principal_plane`` gives them, to draw clouds of several times in one plane, on fixed
            axes; by default that of ``points``. The labels say how much of the variance it shows.
        ax: Axes to draw on; by default those of a new figure of 640x480 pixels, which is ``ax.figure``.

    Returns:
        The axes.

    Raises:
        ValueError: If ``points`` has not the shape (n, D), or ``start`` has not as many rows.

    Example:
        >>> import torch
        >>> from lightning_topo.plots import plot_neuron_cloud, principal_plane
        >>> start = torch.randn(100, 20, generator=torch.Generator().manual_seed(0))
        >>> ax = plot_neuron_cloud(1.5 * start, start=start, plane=principal_plane(start))
        >>> ax.get_title()
        'Neuron cloud: 100 neurons, coloured by start'
    """
    start = points if start is None else start
    if points.ndim != 2 or start.ndim != 2 or len(points) != len(start):
        raise ValueError(f"expected clouds (n, D) of equal n, got {tuple(points.shape)} and {tuple(start.shape)}")
    ax = new_axes(right=0.97 if start is points else 0.78) if ax is None else ax
    shown = points.isfinite().all(1) & start.isfinite().all(1).to(points.device)
    ax.set_title(_title(len(points), int(shown.sum()), start is not points))
    if not shown.any():
        return ax
    colours = start_colours(start[shown.to(start.device)])
    _scatter(ax, points[shown], plane, colours, size=14)
    if start is not points:
        inset = ax.inset_axes((1.01, 0.72, 0.27, 0.28))
        _scatter(inset, start[shown.to(start.device)], None, colours, size=3)
        inset.set(xticks=[], yticks=[], xlabel="", ylabel="")
        inset.set_title("start", fontsize="small", color=GREY)
    return ax


def _finite(points: Tensor) -> Tensor:
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"expected neurons of shape (n, D) with n >= 1 and D >= 1, got {tuple(points.shape)}")
    points = points.detach()
    points = points.to(torch.promote_types(points.dtype, torch.float32))[points.isfinite().all(1)]
    if len(points) == 0:
        raise ValueError("expected at least one neuron with finite coordinates, got none")
    return points


def _title(n: int, n_shown: int, has_start: bool) -> str:
    left_out = f" ({n - n_shown} not finite, not shown)" if n_shown < n else ""
    return f"Neuron cloud: {n} neurons{left_out}" + (", coloured by start" if has_start else "")


def _shares(points: Tensor, flat: Tensor) -> list[str]:
    """How much of the cloud's variance each axis of a plane shows."""
    variance = points.var(0, correction=0).sum()
    if variance.sqrt() <= torch.finfo(points.dtype).eps * points.abs().max():
        return ["all neurons coincide"] * flat.shape[1]
    shares = (flat.var(0, correction=0) / variance).tolist()
    return [f"{share:.0%} of the variance" if share >= 0.01 else "under 1% of the variance" for share in shares]


def start_colours(start: Tensor) -> np.ndarray:
    """Colours of neurons by where they lay in the plane of their start, RGB in [0, 1], shape (n, 3)."""
    mean, basis = principal_plane(start)
    across = (_finite(start) - mean) @ basis
    x, y = (across / across.std(0, correction=0).clamp_min(torch.finfo(across.dtype).tiny)).cpu().numpy().T
    return cyclic_colours(np.arctan2(y, x) / (2 * np.pi))


def _scatter(ax: Axes, points: Tensor, plane: tuple[Tensor, Tensor] | None, colours: np.ndarray, size: float) -> None:
    points = _finite(points)
    if points.shape[1] == 2 and plane is None:
        flat, labels = points, ["coordinate 1", "coordinate 2"]
    else:
        mean, basis = principal_plane(points) if plane is None else (part.to(points) for part in plane)
        flat = (points - mean) @ basis
        axis = "principal axis" if plane is None else "fixed axis"
        labels = [f"{axis} {k + 1} ({share})" for k, share in enumerate(_shares(points, flat))]
    x, y = flat.cpu().numpy().T
    ax.scatter(x, y, s=size, c=colours, lw=0)
    width, height = np.ptp(x), np.ptp(y)
    if max(width, height) <= _MAX_ASPECT * min(width, height):
        ax.set_aspect("equal", adjustable="datalim")
    ax.locator_params(nbins=5)  # also with the large letters of a card
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.spines[["top", "right"]].set_visible(False)
