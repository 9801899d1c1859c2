"""A merge tried on a perturbed copy: whether it is exact whatever the weights are, and which sizes it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons.exchange.perturbed import PerturbedCopy
from lightning_topo.neurons.exchange.sandbox import Sandbox
from lightning_topo.neurons.merging.sizes import known_sizes, possible_sizes
from lightning_topo.neurons.merging.slots import PlacedUnits, tie_
from lightning_topo.neurons.merging.surgery import Change, SizeAttribute, Surgery

# Sizes that a forward pass reads are looked for among attributes that hold an old size: all of them, then one or two
# at a time, those of the nearest modules first. Attention of one's own needs two at most (heads, width of all heads).
_MOST_TRIES = 40
# Which axis of their input holds the channels.
_WITHOUT_PARAMETERS = {nn.InstanceNorm1d: -2, nn.InstanceNorm2d: -3, nn.InstanceNorm3d: -4}


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

    def sizes(self, units: PlacedUnits, merged: Tensor) -> tuple[SizeAttribute, ...] | str:
        """Attributes to set when the units become one, which they then are in the copy; or why they cannot."""
        sizes: tuple[SizeAttribute, ...] | str = ()
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
    def _tried(self, units: PlacedUnits, merged: Tensor) -> tuple[SizeAttribute, ...] | str:
        tensors = self._surgery.tensors()
        for name, slots in units.by_tensor().items():
            tie_(tensors[name], slots, merged)
        before = self._copy.outputs()
        changes = self._surgery.merge(units, merged)
        sizes = self._sizes_that_run(units, changes, len(merged.unique()), before)
        if isinstance(sizes, str):
            return sizes
        seen = self._channels_seen()
        self._surgery.resize(seen)
        return (*sizes, *seen)

    def _sizes_that_run(
        self, units: PlacedUnits, changes: Sequence[Change], n_after: int, before: Sequence[Tensor]
    ) -> tuple[SizeAttribute, ...] | str:
        known = tuple(dict.fromkeys(known_sizes(self._model, changes, units, n_after)))
        self._surgery.resize(known)
        problem = self._problem(before)
        if problem is None:
            return known
        mark = self._surgery.mark()
        further = possible_sizes(self._model, changes, units, n_after, known)
        for choice in islice(_choices(further), _MOST_TRIES):
            self._surgery.resize(choice)
            if self._problem(before) is None:
                return (*known, *choice)
            self._surgery.undo(mark)
        return problem

    def _channels_seen(self) -> list[SizeAttribute]:
        """Sizes of norms without parameters, which only compare them with what comes in."""
        seen: dict[str, int] = {}
        hooks = []
        for path, module in self._model.named_modules():
            for kind, channels in _WITHOUT_PARAMETERS.items():
                if isinstance(module, kind) and not module.affine and not module.track_running_stats:
                    note = partial(_note_size, seen, path, channels)
                    hooks.append(module.register_forward_pre_hook(note))
        if hooks:
            self._copy.outputs()
        for hook in hooks:
            hook.remove()
        sizes = [SizeAttribute(path, "num_features", size) for path, size in seen.items()]
        return [size for size in sizes if self._model.get_submodule(size.module).num_features != size.value]

    def _problem(self, before: Sequence[Tensor]) -> str | None:
        """What is wrong with the output now; None if nothing is."""
        try:
            after = self._copy.outputs()
        except Exception as failure:  # whatever a forward pass may object to in sizes that it does not expect
            message = str(failure).strip().partition("\n")[0]
            return f"the forward pass does not run with fewer units ({type(failure).__name__}: {message})"
        return None if self._copy.same(before, after) else "the output is another one with fewer units"


def _choices(sizes: Sequence[SizeAttribute]) -> Iterator[tuple[SizeAttribute, ...]]:
    if len(sizes) > 2:
        yield tuple(sizes)
    for count in (1, 2):
        yield from combinations(sizes, count)


def _note_size(seen: dict[str, int], path: str, axis: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    seen[path] = args[0].shape[axis]
