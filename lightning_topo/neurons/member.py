"""Where the units of a group lie on one parameter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_topo.sharding import RowLayout


@dataclass(frozen=True)
class Member:
    r"""Where the units of a group lie on one axis of one parameter or buffer.

    Unit $u$ owns the positions $\text{offset} + (o \cdot \text{size} + u) \cdot \text{inner} + i$ of the axis, for all
    $o < \text{outer}$ and $i < \text{inner}$: from ``offset`` on, the axis is read as a tensor of shape
    (outer, size, inner) with the units in the middle.

    Args:
        parameter: Dotted name, as in ``model.named_parameters()`` or ``model.named_buffers()``. A buffer (the running
            statistics of BatchNorm) is exchanged with the unit, but is no coordinate of its point.
        axis: Axis of the tensor that holds the units; may be negative.
        outer: How often the block of all units is repeated (the 4 gates of an LSTM).
        inner: Consecutive positions of one unit (pixels of a flattened channel, channels of an attention head).
        offset: First position of the axis that belongs to the group (the keys in a packed query-key-value projection).
        size: Number of units; default all that fit behind ``offset``.

    Example:
        >>> Member("fc1.weight", axis=0)
        Member(parameter='fc1.weight', axis=0, outer=1, inner=1, offset=0, size=None)
    """

    parameter: str
    axis: int = 0
    outer: int = 1
    inner: int = 1
    offset: int = 0
    size: int | None = None

    def __post_init__(self) -> None:
        if self.outer < 1 or self.inner < 1 or self.offset < 0 or (self.size is not None and self.size < 1):
            raise ValueError(f"expected outer, inner, size >= 1 and offset >= 0, got {self}")

    def n_units(self, tensor: Tensor) -> int:
        """Number of units that this member has on ``tensor``.

        Raises:
            ValueError: The tensor has no such axis, or the layout does not fit it.
        """
        if not -tensor.ndim <= self.axis < tensor.ndim:
            raise ValueError(f"{self} names axis {self.axis} of a tensor of shape {tuple(tensor.shape)}")
        length = tensor.shape[self.axis] - self.offset
        block = self.outer * self.inner
        size = length // block if self.size is None else self.size
        if size < 1 or size * block > length or (self.size is None and length % block):
            raise ValueError(
                f"{self} does not fit an axis of {tensor.shape[self.axis]} (shape {tuple(tensor.shape)}): expected "
                f"offset + outer * size * inner within the axis, and all of it when size is None"
            )
        return size

    def layout(self, tensor: Tensor) -> RowLayout:
        """Where the units lie on ``tensor``, every number known.

        Raises:
            ValueError: As ``n_units``.
        """
        return RowLayout(self.axis % max(tensor.ndim, 1), self.outer, self.n_units(tensor), self.inner, self.offset)

    def units(self, tensor: Tensor) -> Tensor:
        """View of ``tensor`` with the units first, shape (size, ...)."""
        return self.layout(tensor).units(tensor)


def exchange_units_(member: Member, order: Tensor, tensor: Tensor) -> Tensor:
    """Put unit ``order[i]`` of a member in the place of its unit i, in place."""
    units = member.units(tensor)
    units.copy_(units.index_select(0, order.to(tensor.device)))
    return tensor
