"""Networks written as a function, what every case of a table of groups must show, and the benchmark's architectures."""

import importlib.util
import pathlib
import sys
from dataclasses import replace

import torch
from torch import nn

from lightning_topo.neurons import NeuronGroup, discover_neurons, is_permutation_symmetric


class Net(nn.Module):
    """Modules and parameters by name, and a forward pass given as a function of them and the input."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self._forward(self, x)


def check_groups(make, expected):
    """Exactly these groups are found, and nothing is left out because of an operation that is not understood."""
    torch.manual_seed(0)
    model, example = make()
    found = discover_neurons(model, example)
    assert {group.name: group.n_units(model) for group in found.groups} == expected
    reasons = {axis.reason for axis in found.uncovered if not axis.reason.endswith("depends on positions")}
    assert not any(reason.startswith(("operation", "refuted")) for reason in reasons)


def check_members(make, invisible):
    """Without any one of its members a group is none, but for those whose exchange no output shows."""
    torch.manual_seed(0)
    model, example = make()
    for group in discover_neurons(model, example).groups:
        assert is_permutation_symmetric(model, group, example)
        for missing in group.members if len(group.members) > 1 else ():
            wrong = NeuronGroup(group.name, tuple(member for member in group.members if member != missing))
            if missing.parameter not in invisible:
                assert not is_permutation_symmetric(model, wrong, example), missing


def members_and_output(model, x):
    """Of each group, which unit each position of a parameter belongs to, however its members say so; and the output."""
    found = discover_neurons(model, x).groups
    return {frozenset(_positions(model, group)) for group in found}, model(x).detach()


def _positions(model, group):
    size = group.n_units(model)
    for member in group.members:
        tensor = model.get_parameter(member.parameter)
        where = torch.arange(tensor.shape[member.axis])
        along = replace(member, axis=0)
        for unit, row in enumerate(along.units(where).flatten(1).tolist()):
            for position in row:
                yield member.parameter, member.axis % tensor.ndim, position, unit, size


def architectures():
    """The benchmark's module with the table of architectures."""
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / "architectures.py"
    spec = importlib.util.spec_from_file_location("architectures", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # where the script finds its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
