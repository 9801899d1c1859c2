"""Discovery: all sets of exchangeable units of a network, proved on the network itself."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_topo.neurons.exchange.perturbed import perturb
from lightning_topo.neurons.exchange.sandbox import Sandbox, open_sandbox
from lightning_topo.neurons.exchange.symmetry import asymmetric
from lightning_topo.neurons.group import NeuronGroup
from lightning_topo.neurons.member import Member
from lightning_topo.neurons.tracing.axes import Atom, atoms, occurrences
from lightning_topo.neurons.tracing.flow import Flow
from lightning_topo.neurons.tracing.naming import Story, base_name, stories, unique_names
from lightning_topo.neurons.tracing.passes import propagate
from lightning_topo.neurons.tracing.trace import Recorder

# Experts that are chosen by few tokens may be missed by the first run, and by the next.
_MORE_RUNS = 7
_REFUTED = "refuted by the exchange test"


@dataclass(frozen=True)
class UncoveredAxis:
    """An axis of a parameter whose positions cannot be exchanged.

    Args:
        parameter: Its name.
        axis: Position of the axis.
        reason: Why it is in no group.
    """

    parameter: str
    axis: int
    reason: str


@dataclass(frozen=True)
class Discovery:
    """What ``discover_neurons`` found.

    Args:
        groups: Verified groups, in forward order.
        uncovered: Every parameter axis longer than 1 that is in no group.
    """

    groups: tuple[NeuronGroup, ...]
    uncovered: tuple[UncoveredAxis, ...]


def find_neuron_groups(model: nn.Module, example_input: Any = None) -> tuple[NeuronGroup, ...]:
    """Groups of exchangeable units of ``model``; see ``discover_neurons``.

    Args:
        model: Module to search; it is left as it is.
        example_input: Tensor (only argument), tuple or list (positional arguments), dict (keyword arguments) or what
            ``example_inputs_from_batch`` returns; default ``model.example_input_array``, or an input made up for the
            first layer.

    Returns:
        Verified groups, in forward order; empty if there are none.

    Raises:
        ValueError: No input can be made up, or the example input does not run.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [(group.name, group.n_units(model)) for group in find_neuron_groups(model, torch.ones(1, 3))]
        [('0', 4)]
    """
    return discover_neurons(model, example_input).groups


def discover_neurons(model: nn.Module, example_input: Any = None) -> Discovery:
    r"""Find the exchangeable units of ``model``, and say of every other parameter axis why it has none.

    A forward pass is recorded operation by operation on a copy. Every axis of every tensor is followed through it:
    operations that align two axes make their units one, those that tell positions apart end the search for them. What
    remains is a group, and each group has to pass the exchange test on the copy:

    $$f(x; \Pi\theta) = f(x; \theta)$$

    Reference:
        arXiv:2510.02670, section 3 (permutation symmetry of neurons).

    Args:
        model: Module to search; it is left as it is.
        example_input: As in ``find_neuron_groups``.

    Returns:
        Groups and uncovered axes. Where the forward pass branches on the values of its input, they hold for the path
        that this input takes; a warning names the parameters that it does not use.

    Raises:
        ValueError: No input can be made up, or the example input does not run.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> for axis in discover_neurons(model, torch.ones(1, 3)).uncovered:
        ...     print(axis.parameter, axis.axis, axis.reason)
        0.weight 1 model input
        2.weight 0 model output
        2.bias 0 model output
    """
    sandbox = open_sandbox(model, example_input, Recorder)
    flow = followed(sandbox)
    unused = flow.unused()
    if unused and flow.trace.branches():
        listed = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        warnings.warn(
            f"the forward pass of {type(sandbox.model).__name__} depends on the values of its input, and this one did "
            f"not use {listed}: the groups hold for the path that it took; pass an example_input that takes the other "
            "ones too",
            stacklevel=2,
        )
    candidates = _candidates(flow)
    refuted = asymmetric(sandbox, candidates, trials=1)
    if refuted:
        names = ", ".join(group.name for group in refuted)
        warnings.warn(f"dropped, because exchanging their units changes the output: {names}", stacklevel=2)
    groups = tuple(group for group in candidates if group not in refuted)
    return Discovery(groups, tuple(_uncovered(flow, groups, refuted)))


def followed(sandbox: Sandbox) -> Flow:
    """The flow of the first run; of more runs, on perturbed copies, while some parameters wait for their branch."""
    recorder: Recorder = sandbox.watcher
    flow = propagate(recorder.finish(sandbox.output))
    generator = torch.Generator().manual_seed(0)
    for _ in range(_MORE_RUNS):
        if not (flow.unused() and flow.trace.branches()):
            break
        perturb(sandbox.model, generator)
        try:
            output = sandbox.run(lambda _, call: recorder.reads(call))
        except Exception:  # whatever a forward pass may object to in parameters that it never saw
            break
        flow = propagate(recorder.finish(output))
    return flow


def _candidates(flow: Flow) -> list[NeuronGroup]:
    """One group for every set of units that parameters carry and nothing tells apart."""
    members: dict[Atom, list[Member]] = {}
    for name in flow.trace.owned:
        for axis, structure in enumerate(flow.owned(name) or ()):
            places: dict[Atom, list[tuple[int, int]]] = {}
            for atom, offset, inner in occurrences(structure):
                places.setdefault(atom, []).append((offset, inner))
            for atom, found in places.items():
                members.setdefault(atom, []).extend(_members(name, axis, atom.size, found, structure.size))
    told = defaultdict(Story, stories(flow))
    states = {name for name, value in flow.trace.owned.items() if value.kind == "state"}
    units = [atom for atom in members if any(member.parameter not in states for member in members[atom])]
    units.sort(key=lambda atom: told[atom].time)
    attentions: dict[int, list[Member]] = {}
    for atom in units:
        attentions.setdefault(told[atom].place, []).extend(members[atom])
    attentions[-1] = []
    names = unique_names(
        [base_name(told[atom], members[atom], attentions[told[atom].place]) for atom in units],
        [(told[atom].makers or [members[atom][0].parameter])[0] for atom in units],
    )
    return [NeuronGroup(name, tuple(members[atom])) for name, atom in zip(names, units, strict=True)]


def _members(parameter: str, axis: int, size: int, places: Sequence[tuple[int, int]], length: int) -> Iterator[Member]:
    """Members for units that lie at (offset, inner), blocks that follow one another taken together."""
    runs: list[list[int]] = []  # offset, inner, outer
    # Rows and columns of a flattened square overlap: each whole, as two members, they are exchanged in any order.
    for offset, inner in sorted(places, key=lambda place: (place[1], place[0])):
        if runs and runs[-1][1] == inner and offset == runs[-1][0] + runs[-1][2] * size * inner:
            runs[-1][2] += 1
        else:
            runs.append([offset, inner, 1])
    for offset, inner, outer in runs:
        fills_axis = offset + outer * size * inner == length
        yield Member(parameter, axis, outer, inner, offset, None if fills_axis else size)


def _uncovered(flow: Flow, groups: Sequence[NeuronGroup], refuted: Sequence[NeuronGroup]) -> Iterator[UncoveredAxis]:
    covered = {(member.parameter, member.axis) for group in groups for member in group.members}
    wrong = {(member.parameter, member.axis) for group in refuted for member in group.members}
    for name, value in flow.trace.owned.items():
        structures = flow.owned(name)
        for axis, size in enumerate(value.shape):
            if size > 1 and value.kind != "state" and (name, axis) not in covered:
                reasons = [atom.reason for atom in atoms(structures[axis]) if atom.reason] if structures else []
                default = "its positions are used one by one" if structures else "not used in the forward pass"
                reason = _REFUTED if (name, axis) in wrong else (reasons or [default])[0]
                yield UncoveredAxis(name, axis, reason)
