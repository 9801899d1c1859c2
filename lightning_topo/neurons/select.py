"""Selection of groups by name, or of groups given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from lightning_topo.neurons.discovery import find_neuron_groups
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.exchange.symmetry import asymmetric
from lightning_topo.neurons.group import NeuronGroup

_EXPECTED = "groups must be None, a glob, a list of globs or a list of NeuronGroup"

Groups = str | Sequence[str] | Sequence[NeuronGroup] | None


def select_groups(model: nn.Module, groups: Groups = None, example_input: Any = None) -> tuple[NeuronGroup, ...]:
    """The groups of ``model`` that somebody asks for.

    Args:
        model: Module; it is left as it is.
        groups: None (all that are found), a glob or a list of globs on their names (``"encoder.*"``), or a list of
            NeuronGroup, which are used as they are.
        example_input: As in ``find_neuron_groups``. Groups given by hand pass the exchange test too when there is an
            example input here or in ``model.example_input_array``.

    Returns:
        At least one group, names unique.

    Raises:
        ValueError: No group is found, a glob matches none, or a group given by hand does not fit the model or fails
            the exchange test.
        TypeError: ``groups`` is none of the above.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> [group.name for group in select_groups(model, "2*", torch.ones(1, 3))]
        ['2']
    """
    asked = [groups] if isinstance(groups, (str, NeuronGroup)) else groups
    if asked is not None and not isinstance(asked, Sequence):
        raise TypeError(f"{_EXPECTED}, got {groups!r}")
    globs = [group for group in asked or () if isinstance(group, str)]
    given = [group for group in asked or () if isinstance(group, NeuronGroup)]
    if asked is not None and max(len(globs), len(given)) < len(asked):
        raise TypeError(f"{_EXPECTED}, got {groups!r}")
    if given:
        return _by_hand(model, tuple(given), example_input)
    return _by_name(find_neuron_groups(model, example_input), None if asked is None else globs, model)


def _by_name(found: tuple[NeuronGroup, ...], globs: Sequence[str] | None, model: nn.Module) -> tuple[NeuronGroup, ...]:
    known = ", ".join(group.name for group in found)
    if not found:
        raise ValueError(
            f"no exchangeable units were found in {type(model).__name__}; pass groups=[NeuronGroup(...)], or an "
            "example_input that runs through the layers that have them"
        )
    for glob in globs or ():
        if not any(fnmatchcase(group.name, glob) for group in found):
            raise ValueError(f"no group matches {glob!r}; known groups: {known}")
    if globs is not None and not globs:
        raise ValueError(f"groups is an empty list; pass None for all of: {known}")
    return tuple(group for group in found if globs is None or any(fnmatchcase(group.name, glob) for glob in globs))


def _by_hand(model: nn.Module, groups: tuple[NeuronGroup, ...], example_input: Any) -> tuple[NeuronGroup, ...]:
    names = [group.name for group in groups]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"names of groups must be unique; repeated: {', '.join(repeated)}")
    for group in groups:
        group.n_units(model)
    if example_input is not None or getattr(model, "example_input_array", None) is not None:
        wrong = asymmetric(open_sandbox(model, example_input), groups)
        if wrong:
            listed = "; ".join(f"{group.name} ({', '.join(map(str, group.members))})" for group in wrong)
            raise ValueError(
                f"exchanging the units of these groups changes the output, so a member is missing or wrong: {listed}"
            )
    return groups
