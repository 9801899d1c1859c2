"""What the processes put together of their pieces: rows of units, and the sizes of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.sharding.pieces import Piece, spread_parameters
from lightning_topo.sharding.row_layout import RowLayout


def collected_rows(
    members: Sequence[tuple[RowLayout, Tensor, Piece | None]], indices: Tensor | Sequence[int] | None
) -> list[Tensor]:
    """The rows of some units, one block a member, of shape (n, -1) each; every process enters, and has them all.

    The first process's ``indices`` count. Where a process fails, all do.

    Args:
        members: Where the units lie on a parameter, the parameter, and the piece of it that is held here; None where
            the whole parameter is.
        indices: Units to gather, default all.

    Raises:
        RuntimeError: A process could not read its pieces.
    """
    spread = [piece for _, _, piece in members if piece is not None]
    groups, device = _all_groups(spread), spread[0].device
    if indices is not None:
        indices = _of_the_first(torch.as_tensor(indices, dtype=torch.long).to(device, copy=True), groups)
    blocks: list[Tensor] = []
    failure: Exception | None = None
    try:
        for layout, tensor, piece in members:
            blocks.append(layout.rows(tensor, indices) if piece is None else _held_rows(layout, piece, indices))
    except Exception as error:
        failure = error
    _fail_together(failure, groups, device)
    for alike, over in _alike(blocks, [piece for _, _, piece in members]):
        total = sum_over(over, torch.cat([blocks[i].flatten() for i in alike]))
        for i, values in zip(alike, total.split([blocks[i].numel() for i in alike]), strict=True):
            blocks[i] = values.view_as(blocks[i])
    return blocks


@dataclass(frozen=True, eq=False)
class Sketch:
    """What must be known of a sharded parameter to make up another one like it.

    Attributes:
        shape: Shape of the whole parameter.
        dtype: Precision of its numbers.
        device: On which its pieces communicate.
        size: Root mean square of its numbers.
        positive: Whether all of them are positive.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    size: float
    positive: bool


def sketches(model: nn.Module) -> dict[str, Sketch]:
    """Of each sharded parameter by canonical name, tied ones the same; every process enters."""
    spread = spread_parameters(model)
    pieces = list({id(piece): piece for piece in spread.values()}.values())
    made = {
        id(piece): Sketch(piece.shape, piece.local.dtype, piece.device, size, positive)
        for piece, (size, positive) in zip(pieces, _sizes(pieces), strict=True)
    }
    return {name: made[id(piece)] for name, piece in spread.items()}


def sum_over(groups: Iterable[Any], tensor: Tensor) -> Tensor:
    """The sum over all processes of the groups, in place."""
    for group in groups:
        torch.distributed.all_reduce(tensor, group=group)
    return tensor


def _held_rows(layout: RowLayout, piece: Piece, indices: Tensor | None) -> Tensor:
    """The rows of the whole parameter, with zeros for what other processes hold."""
    units = torch.arange(layout.size, device=piece.device) if indices is None else indices
    positions = layout.positions(units)
    shape = (*piece.shape[: layout.axis], len(positions), *piece.shape[layout.axis + 1 :])
    block = torch.zeros(shape, dtype=piece.local.dtype, device=piece.device)
    if piece.counts:
        piece.copy_to(block, layout.axis, positions)
    return layout.alone(len(units)).rows(block)


def _sizes(held: Sequence[Piece]) -> list[tuple[float, bool]]:
    """Root mean square of each parameter, and whether all of it is positive; every process enters."""
    table = torch.stack([_sums(piece) for piece in held]) if held else torch.empty(0, 3)
    for alike, over in _alike(list(table), held):
        table[alike] = sum_over(over, table[alike])
    return [(math.sqrt(squares / max(n, 1)), others == 0) for n, squares, others in table.tolist()]


def _sums(piece: Piece) -> Tensor:
    """Count, sum of squares, and count of numbers that are not positive."""
    local = piece.local.detach().float() if piece.counts else piece.local.new_empty(0)
    sums = torch.stack([torch.tensor(local.numel()).to(local), local.square().sum(), (local <= 0).sum()])
    return sums.to(piece.device, torch.float32)


def _alike(blocks: Sequence[Tensor], held: Sequence[Piece | None]) -> list[tuple[list[int], tuple[Any, ...]]]:
    """Which blocks can be added up in one go, and over which groups."""
    buckets: dict[tuple[torch.dtype, tuple[Any, ...]], list[int]] = {}
    for i, (block, piece) in enumerate(zip(blocks, held, strict=True)):
        if piece is not None:
            buckets.setdefault((block.dtype, piece.groups), []).append(i)
    return [(alike, over) for (_, over), alike in buckets.items()]


def _all_groups(spread: Sequence[Piece]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(group for piece in spread for group in piece.groups))


def _of_the_first(tensor: Tensor, groups: Iterable[Any]) -> Tensor:
    for group in groups:
        first = torch.distributed.get_global_rank(group, 0)
        torch.distributed.broadcast(tensor, src=first, group=group)
    return tensor


def _fail_together(failure: Exception | None, groups: Iterable[Any], device: torch.device) -> None:
    """Raise on all processes where one has failed, so that none waits for it."""
    failed = int(sum_over(groups, torch.tensor(int(failure is not None), device=device)))
    if failed:
        raise RuntimeError(
            "a process could not read its pieces of the neurons" + (f": {failure}" if failure else "")
        ) from failure
