"""Merging: units that coincide become one, and the network stays what it was."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.neurons.discovery import followed
from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.merging.clones import coinciding, distances
from lightning_topo.neurons.merging.report import MergedGroup, MergeReport
from lightning_topo.neurons.merging.slots import PlacedUnits, incoming, placed
from lightning_topo.neurons.merging.surgery import Surgery
from lightning_topo.neurons.merging.trial import MergeTrial
from lightning_topo.neurons.merging.unfit import check_fit
from lightning_topo.neurons.select import Groups, select_groups
from lightning_topo.neurons.tracing.roles import Roles
from lightning_topo.neurons.tracing.trace import Recorder


@torch.inference_mode(False)  # whose tensors could not become parameters
def merge_neurons(
    model: nn.Module, groups: Groups = None, example_input: Any = None, tolerance: float = 0.0
) -> MergeReport:
    r"""Let units of ``model`` that coincide become one, in place: layers get smaller, and the function stays.

    Unit $i$ has incoming weights $a_i$ (with bias, normalisation scale, shift and statistics) and outgoing ones $b_i$.
    Units with the same $a_i$ compute the same, so that one of them can stand for all:

    $$\sum_{i \in c} b_i\, \sigma(a_i x) = \Big(\sum_{i \in c} b_i\Big)\, \sigma(a_c x)$$

    Which weights are outgoing is read off the forward pass: those that a product sums over the units. A group is
    refused, with the reason, where something else depends on how many units there are (LayerNorm or a mean over them,
    the scores of an attention), or where the model does not run with fewer. Every merge is tried first on a copy with
    perturbed weights, on which it has to leave the output as it is.

    Reference:
        arXiv:2510.02670, section 3 (neurons that have merged stay together); arXiv:2510.00304 (cloned units).

    Args:
        model: A plain module, not wrapped, sharded, compiled or quantised. Parameters that get smaller are new objects:
            optimizers that were made before hold the old ones, so make them anew.
        groups: None (all that are found), a glob or a list of globs on their names, or a list of NeuronGroup.
        example_input: As in ``find_neuron_groups``.
        tolerance: Largest distance $|a_i - a_c|$ of a unit from the one that stands for it, as a share of the root
            mean square of all $|a_i|$ of the group. With 0 only exact clones become one.

    Returns:
        What became of each group, parameters before and after, and the largest change of the output for the example.

    Raises:
        TypeError: No module, or ``groups`` is none of the above.
        ValueError: A model that cannot be merged, a negative tolerance or one that would make a whole group one unit,
            a group that does not fit, or an example input that does not run. The model is as it was.
        RuntimeError: Exact clones became one, and yet the output for the example changed. The model is as it was.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     for made in (model[0].weight, model[0].bias):
        ...         made[3] = made[1]
        >>> report = merge_neurons(model, example_input=torch.ones(1, 3))
        >>> model[0].out_features, tuple(model[2].weight.shape), report.groups[0].units_after
        (3, (2, 3), 3)
    """
    check_fit(model)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0.0 <= tolerance < math.inf:
        raise ValueError(f"expected a tolerance of 0 or more, got {tolerance!r}; 0 merges exact clones only")
    chosen = select_groups(model, groups, example_input)
    sandbox = open_sandbox(model, example_input, Recorder)
    roles = Roles(followed(sandbox))
    waiting = [placed(group, model, roles) for group in chosen]
    n_before = _n_parameters(model)
    merger = _Merger(model, example_input, tolerance, MergeTrial(sandbox))
    try:
        while waiting:
            units = waiting.pop(0)
            merged = merger.merge(units)
            waiting = [other.without(units, merged) for other in waiting]
        change, largest = merger.change()
    except BaseException:
        merger.surgery.undo()
        raise
    return MergeReport(tuple(merger.done), n_before, _n_parameters(model), change, largest)


class _Merger:
    """Merges one group after the other, as each is when those before it have been merged."""

    def __init__(self, model: nn.Module, example_input: Any, tolerance: float, trial: MergeTrial) -> None:
        self.surgery = Surgery(model)
        self.done: list[MergedGroup] = []
        self._model = model
        self._example_input = example_input
        self._tolerance = tolerance
        self._trial = trial
        self._before: list[Tensor] = []

    def merge(self, units: PlacedUnits) -> Tensor:
        """Merge the units of a group that coincide; returns which unit stands for each."""
        itself = torch.arange(units.n)
        if units.refused is not None:
            self.done.append(MergedGroup(units.name, units.n, units.n, 0.0, units.refused))
            return itself
        merged, distance = self._coinciding(units)
        if torch.equal(merged, itself):
            self.done.append(MergedGroup(units.name, units.n, units.n, 0.0))
            return itself
        sizes = self._trial.sizes(units, merged)
        if isinstance(sizes, str):
            self.done.append(MergedGroup(units.name, units.n, units.n, 0.0, sizes))
            return itself
        if not self._before:
            self._before = self._outputs()
        self.surgery.merge(units, merged)
        self.surgery.resize(sizes)
        self.done.append(MergedGroup(units.name, units.n, len(merged.unique()), distance))
        return merged

    def change(self) -> tuple[float, float]:
        """Largest change of the output for the example, and its largest number before.

        Raises:
            RuntimeError: Clones became one, and the change is more than rounding explains.
        """
        if not self._before:
            return 0.0, _largest(self._outputs())
        change = _largest([after - before for before, after in zip(self._before, self._outputs(), strict=True)])
        largest = _largest(self._before)
        rounding = max(torch.finfo(parameter.dtype).eps for parameter in self._model.parameters()) ** 0.5 * largest
        if self._tolerance == 0.0 and not change <= rounding:
            raise RuntimeError(
                f"expected the output to stay when clones become one, got a change of {change:.3g} in numbers up to "
                f"{largest:.3g}; the model is as it was, and the groups can be merged one by one to see which it is"
            )
        return change, largest

    def _coinciding(self, units: PlacedUnits) -> tuple[Tensor, float]:
        tensors = self.surgery.tensors()
        made = [(tensors[name], slots) for name, slots in units.by_tensor().items()]
        points = incoming(made, torch.arange(units.n))
        # Not of the median: where most units have died and shrink, that says nothing about those that work.
        limit = self._tolerance * float(points.square().sum(1).nanmean().sqrt())
        merged = coinciding(lambda classes: incoming(made, classes), units.n, limit)
        largest = float(distances(incoming(made, merged), merged).nan_to_num(0.0).max())
        if units.n > 1 and len(merged.unique()) == 1 and largest > 0.0:
            raise ValueError(
                f"expected a tolerance that leaves different units apart, got {self._tolerance:g}, with which all "
                f"{units.n} units of {units.name!r} would become one; choose a smaller one, or leave the group out"
            )
        return merged, largest

    def _outputs(self) -> list[Tensor]:
        """Of the model as it is now, for the whole example, computed in double precision if that runs."""
        sandbox = open_sandbox(self._model, self._example_input, whole=True)
        return [output.clone() for output in floating_tensors(sandbox.output)]


def _n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _largest(outputs: list[Tensor]) -> float:
    """The largest finite number by absolute value."""
    return max(
        (float(output.nan_to_num(0.0, 0.0, 0.0).abs().max()) for output in outputs if output.numel()), default=0.0
    )
