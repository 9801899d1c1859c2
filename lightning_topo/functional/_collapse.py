"""Take points out of a graph without changing the homotopy type of its clique complex.

Graphs are boolean adjacency matrices with ones on the diagonal, so that row v is the closed neighbourhood N[v].
Products of such matrices count common neighbours, exactly in float32 (below 2^24 points).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Entries of a batch of links: in the cache of a processor core, and enough to keep a GPU busy.
_LINK_ENTRIES_CPU = 2**18
_LINK_ENTRIES_GPU = 2**26


def strong_collapse(adjacency: Tensor) -> Tensor:
    """One round of removing points whose closed neighbourhood lies in that of a point that stays.

    N[v] ⊆ N[w] iff (A·A)[v, w] = |N[v]| (arXiv 0907.2954, section 2). A quarter of the points stay in this round,
    whatever they are, and dominate the others: that takes a fifth of the full product, and no rule for ties.

    Args:
        adjacency: Graph, shape (n, n), bool.

    Returns:
        The graph of the points that are left.
    """
    adjacency = _shuffled(adjacency)
    n_staying = -(-len(adjacency) // 4)
    counts = adjacency.float()
    others = counts[n_staying:]
    keep = torch.ones(len(adjacency), dtype=torch.bool, device=adjacency.device)
    keep[n_staying:] = ~(others @ counts[:, :n_staying] == others.sum(1, keepdim=True)).any(1)
    return adjacency[keep][:, keep]


def strongly_collapsible(adjacency: Tensor) -> float:
    """Share of the points that a round of ``strong_collapse`` would remove, estimated from one point in sixteen."""
    counts = _shuffled(adjacency).float()
    n_staying = -(-len(counts) // 4)
    others = counts[n_staying::12]
    return float((others @ counts[:, :n_staying] == others.sum(1, keepdim=True)).any(1).float().mean())


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
    adjacency = _shuffled(adjacency)
    n_staying = -(-len(adjacency) // 2)
    links = adjacency.clone().fill_diagonal_(False)
    closed = adjacency.float()
    keep = torch.ones(len(adjacency), dtype=torch.bool, device=adjacency.device)
    for batch in _batches(links, n_staying):
        keep[batch] = ~_collapsible(closed, links[batch], n_staying)
    return adjacency[keep][:, keep]


def _shuffled(adjacency: Tensor) -> Tensor:
    """The graph in a fixed random order, so that its first points are spread evenly."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(adjacency), generator=generator, device="cpu").to(adjacency.device)
    # Rows are copied whole, and the graph is symmetric.
    return adjacency.index_select(0, order).T.contiguous().index_select(0, order)


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

    where = members[:, :, None] * len(closed) + members[:, None, :]
    inside = closed.view(-1).index_select(0, where.view(-1)).view(where.shape)
    inside *= real[:, None, :]
    towards = inside[:, :, :width] * staying[:, None, :width]
    contained = torch.bmm(inside, towards) == inside.sum(2, keepdim=True)
    # Staying members give way only to strictly larger ones: one of the largest always remains.
    contained[:, :width] &= ~contained[:, :width].mT

    core = (real & ~contained.any(2)).float()
    reached = torch.bmm(core[:, None], towards)[:, 0]
    return (reached == core.sum(1, keepdim=True)).any(1)


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
