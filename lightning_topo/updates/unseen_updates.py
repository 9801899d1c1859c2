"""Noticing parameters that move although no optimizer step was seen."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

# Every batch is looked at up to this one, and from then on two of so many in a row.
_FIRST = 8
_EVERY = 64


class UnseenUpdates:
    """Compares how often parameters have been written to with the steps that were seen.

    torch counts the writes to each tensor. Where they were written to from one batch to the next and no step was seen,
    twice in a row, an optimizer steps in a way that calls no hooks: within the backward pass, by a method of another
    name (SAM's ``first_step``), or one that the Trainer does not know.

    Args:
        parameters: The parameters that are watched.
        every_batch: Whether to look at every batch, not only at the first and at some.

    Attributes:
        seen: Whether a step has been seen since the last look; set by whoever sees one.
    """

    def __init__(self, parameters: Iterable[Tensor], every_batch: bool = False) -> None:
        self._parameters = list({id(parameter): parameter for parameter in parameters}.values())
        self._every_batch = every_batch
        self._versions: int | None = None
        self._batches = self._in_a_row = 0
        self.seen = False

    def noticed(self) -> bool:
        """Whether updates go unseen; to be called at the start of each batch."""
        self._batches += 1
        if not self._every_batch and self._batches > _FIRST and self._batches % _EVERY > 2:
            self._versions = None
            return False
        versions = sum(parameter._version for parameter in self._parameters)
        moved = self._versions is not None and versions != self._versions
        self._in_a_row = self._in_a_row + 1 if moved and not self.seen else 0
        self._versions, self.seen = versions, False
        return self._in_a_row >= 2
