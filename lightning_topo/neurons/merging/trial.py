"""A merge tried on a perturbed copy: whether it is exact whatever the weights are, and which sizes it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

from lightning_topo.neurons.exchange.perturbed import PerturbedCopy
from lightning_topo.neurons.exchange.sandbox import Sandbox
from lightning_topo.neurons.merging.sizes import known_sizes, possible_sizes
from lightning_topo.neurons.merging.slots import PlacedUnits, tie_
from lightning_topo.neurons.merging.surgery import Sized, Surgery

# Sizes that a forward pass reads are looked for among attributes that hold an old size: all of them, then one or two
# at a time, those of the nearest modules first. Attention of one's own needs two at most (heads, width of all heads).
_MOST_TRIES = 40


class MergeTrial:
    """Merges units on a copy of the model with other numbers in it.

    There, units of one class are made alike, so that merging them must leave the output as it is, up to rounding. This
    depends neither on how close the model's own units are nor on whether they are silent for the example.

    Args:
        sandbox: Will be perturbed.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._model = sandbox.model
        self._generator = torch.Generator().manual_seed(0)
        self._copy = PerturbedCopy(sandbox, self._generator)
        self._surgery = Surgery(sandbox.model)
        if self._copy.blind:
            raise ValueError(
                f"{type(sandbox.model).__name__} returned no finite number, so there is no output to compare; pass an "
                "example_input, and weights, for which it does"
            )

    def sizes(self, units: PlacedUnits, merged: Tensor) -> tuple[Sized, ...] | str:
        """Attributes to set when the units become one, which they then are in the copy; or why they cannot."""
        sizes: tuple[Sized, ...] | str = ()
        mark = self._surgery.mark()
        for assignment in (self._elsewhere(merged), merged):
            self._surgery.undo(mark)
            sizes = self._tried(units, assignment)
            if isinstance(sizes, str):
                self._surgery.undo(mark)
                return sizes
        return sizes

    def _elsewhere(self, merged: Tensor) -> Tensor:
        """Classes of the same sizes, but of other units."""
        order = torch.randperm(len(merged), generator=self._generator)
        classes = merged[order]
        first: dict[int, int] = {}
        return torch.tensor([first.setdefault(c, unit) for unit, c in enumerate(classes.tolist())])

    @torch.no_grad()
    def _tried(self, units: PlacedUnits, merged: Tensor) -> tuple[Sized, ...] | str:
        tensors = self._surgery.tensors()
        for name, slots in units.by_tensor().items():
            tie_(tensors[name], slots, merged)
        before = self._copy.outputs()
        changes = self._surgery.merge(units, merged)
        n_after = len(merged.unique())
        known = tuple(dict.fromkeys(known_sizes(self._model, changes, units, n_after)))
        self._surgery.resize(known)
        first = problem = self._problem(before)
        if problem is None:
            return known
        mark = self._surgery.mark()
        for tried, further in enumerate(_choices(possible_sizes(self._model, changes, units, n_after, known))):
            if tried == _MOST_TRIES:
                break
            self._surgery.resize(further)
            if self._problem(before) is None:
                return (*known, *further)
            self._surgery.undo(mark)
        assert first is not None
        return first

    def _problem(self, before: Sequence[Tensor]) -> str | None:
        """What is wrong with the output now; None if nothing is."""
        try:
            after = self._copy.outputs()
        except Exception as failure:  # whatever a forward pass may object to in sizes that it does not expect
            message = str(failure).strip().partition("\n")[0]
            return f"the forward pass does not run with fewer units ({type(failure).__name__}: {message})"
        return None if self._copy.same(before, after) else "the output is another one with fewer units"


def _choices(sizes: Sequence[Sized]) -> Iterator[tuple[Sized, ...]]:
    if len(sizes) > 2:
        yield tuple(sizes)
    for count in (1, 2):
        yield from combinations(sizes, count)
