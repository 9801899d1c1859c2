"""Take points out of a graph without changing the homotopy type of its clique complex.

Graphs are boolean adjacency matrices with ones on the diagonal, so that row v is the closed neighbourhood N[v]. Products
of such matrices count common neighbours, exactly in float32 (below 2^24 points).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Entries of a batch of links: in the cache of a processor core, and enough to keep a GPU busy.
_LINK_ENTRIES_CPU = 2**18
_LINK_ENTRIES_GPU = 2**26


def strong_collapse(adjacency: Tensor) -> Tensor:
    """One round of removing each point v whose closed neighbourhood lies in that of a point w that stays.

    N[v] ⊆ N[w] iff (A·A)[v, w] = |N[v]|. Containment is transitive, and points with equal neighbourhoods give way to
    the first of them, so every removed point has a dominator that stays (arXiv 0907.2954, section 2).

    Args:
        adjacency: Graph, shape (n, n), bool.

    Returns:
        The graph of the points that stay.
    """
    counts = adjacency.float()
    contained = counts @ counts == counts.sum(1, keepdim=True)
    stays = ~_dominated(contained)
    return adjacency[stays][:, stays]


def link_collapse(adjacency: Tensor) -> Tensor:
    """One round of removing points whose link collapses to a cone.

    A point whose link (the complex of its neighbours) is contractible can be removed (arXiv 0809.1751, section 2).
    Half of the points stay in this round, whatever they are. Another point v goes when one round of strong collapse of
    its link, with dominators among the staying points, leaves points that are all adjacent to one staying point.
    Dominators and apex stay and removals only take points out of the link, so the test still holds after any
    others have gone, and all can go at once.

    Args:
        adjacency: Graph, shape (n, n), bool.

    Returns:
        The graph of the points that are left.
    """
    n = len(adjacency)
    n_staying = (n + 1) // 2
    # A seeded shuffle, for the staying points to be spread evenly whatever the order of the points.
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu").to(adjacency.device)
    adjacency = adjacency[order][:, order]
    links = adjacency.clone().fill_diagonal_(False)
    closed = adjacency.float()
    keep = torch.ones(n, dtype=torch.bool, device=adjacency.device)
    for batch in _batches(links, n_staying):
        keep[batch] = ~_collapsible(closed, links[batch], n_staying)
    return adjacency[keep][:, keep]


def _dominated(contained: Tensor) -> Tensor:
    """Rows of square ``contained`` (..., v, w) that lie strictly in another, or equal an earlier one."""
    return ((contained & ~contained.mT) | contained.tril(-1)).any(-1)


def _batches(links: Tensor, first: int) -> Iterator[Tensor]:
    """Points from ``first`` on that have neighbours, by degree, in batches of bounded (size · degree²)."""
    budget = _LINK_ENTRIES_CPU if links.device.type == "cpu" else _LINK_ENTRIES_GPU
    degree, points = links[first:].sum(1).sort()
    degrees: list[int] = degree.tolist()
    start = sum(d == 0 for d in degrees)
    for stop in range(start + 1, len(degrees) + 1):
        if stop == len(degrees) or (stop + 1 - start) * degrees[stop] ** 2 > budget:
            yield first + points[start:stop]
            start = stop


def _collapsible(closed: Tensor, links: Tensor, n_staying: int) -> Tensor:
    """Whether each link, a row of ``links`` (m, n), collapses to a cone, shape (m,)."""
    members, real = _members(links)
    staying = real & (members < n_staying)
    width = int(staying.sum(1).max())  # staying members come first

    inside = closed.take(members[:, :, None] * len(closed) + members[:, None, :])
    inside *= real[:, :, None]
    inside *= real[:, None, :]
    towards = inside[:, :, :width] * staying[:, None, :width]
    contained = torch.bmm(inside, towards) == inside.sum(2, keepdim=True)
    removed = contained.any(2)
    removed[:, :width] = _dominated(contained[:, :width])

    core = (real & ~removed).float()
    reached = torch.bmm(core[:, None], towards)[:, 0]
    return ((reached == core.sum(1, keepdim=True)) & staying[:, :width]).any(1)


def _members(links: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours of each row in ascending order, (m, d) padded with 0, and which entries are real."""
    row, neighbour = links.nonzero(as_tuple=True)
    slot = links.cumsum(1)[row, neighbour] - 1
    shape = (len(links), int(links.sum(1).max()))
    members = torch.zeros(shape, dtype=torch.long, device=links.device)
    members[row, slot] = neighbour
    real = torch.zeros(shape, dtype=torch.bool, device=links.device)
    real[row, slot] = True
    return members, real
