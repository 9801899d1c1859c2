"""Names of groups: the module that makes the units, or what they are in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, product

from lightning_topo.neurons.member import Member
from lightning_topo.neurons.tracing.axes import Atom, Axis, Concat, Product, atoms, resolve
from lightning_topo.neurons.tracing.flow import Flow


@dataclass
class Story:
    """How one set of units is used in the forward pass.

    Attributes:
        makers: Parameters that have the units on their output side: contractions first, in forward order.
        time: When they are first made.
        contractions: How many of the makers are contractions or lookups.
        roles: Uses that the name tells.
        place: Which attention the units are keys or values of; -1 if none.
    """

    makers: list[str] = field(default_factory=list)
    time: int = 1 << 62
    contractions: int = 0
    roles: set[str] = field(default_factory=set)
    place: int = -1


def stories(flow: Flow) -> dict[Atom, Story]:
    """What happened to every set of units."""
    told: dict[Atom, Story] = {}
    for made in sorted(flow.made, key=lambda made: (not made.strong, made.time)):
        for atom in atoms(made.axis):
            story = told.setdefault(atom, Story())
            if made.parameter not in story.makers:
                story.makers.append(made.parameter)
                story.contractions += made.strong
            story.time = min(story.time, made.time)
        for outer, _ in _nested(made.axis):
            if made.parameter == told[outer].makers[0]:
                told[outer].roles.add("groups")
    for role, axis, place in flow.roles:
        for atom in atoms(axis):
            story = told.setdefault(atom, Story())
            story.roles.add(role)
            story.place = place if role in ("keys", "values") else story.place
    for made in flow.made:
        for outer, inner in _nested(made.axis):
            if "heads" in told[outer].roles and "heads" in told[inner].roles:
                told[inner].roles.add("query_heads")  # queries that share a key in grouped-query attention
    return told


def base_name(story: Story, members: Sequence[Member], neighbours: Sequence[Member]) -> str:
    """Name of a group, not yet unique.

    Args:
        story: How its units are used.
        members: Where they are.
        neighbours: Members of all groups in the same attention.
    """
    for role in ("query_heads", "heads", "values", "keys"):
        if role in story.roles:
            return _join(_common_module(_attention(member.parameter) for member in neighbours or members), role)
    makers = story.makers or [members[0].parameter]
    modules = list(dict.fromkeys(map(_module, makers[: story.contractions])))
    if "residual" in story.roles and len(modules) > 1:
        name = _join(_stream(modules), "residual")
    else:
        name = _module(makers[0]) or makers[0]
    return _join(name, "groups") if "groups" in story.roles else name


def unique_names(names: Sequence[str], makers: Sequence[str]) -> list[str]:
    """Tell equal names apart: by the parameter that makes the units (layers of a recurrent net), or by number."""
    longer = [_join(name, _suffix(maker)) for name, maker in zip(names, makers, strict=True)]
    told = [
        with_maker if names.count(name) > 1 and longer.count(with_maker) == 1 else name
        for name, with_maker in zip(names, longer, strict=True)
    ]
    seen: Counter[str] = Counter()
    unique = []
    for name in told:
        unique.append(f"{name}.{seen[name]}" if told.count(name) > 1 else name)
        seen[name] += 1
    return unique


def _nested(axis: Axis) -> Iterator[tuple[Atom, Atom]]:
    """Pairs of exchangeable atoms of which the first is a block of the second."""
    axis = resolve(axis)
    if isinstance(axis, Concat):
        for part in axis.parts:
            yield from _nested(part)
    elif isinstance(axis, Product):
        factors = [[atom for atom in atoms(part) if atom.reason is None] for part in axis.parts]
        for position, outer in enumerate(factors):
            yield from product(outer, chain.from_iterable(factors[position + 1 :]))


def _stream(modules: Sequence[str]) -> str:
    """Where a residual stream lives: what its writers have in common, without the stem that starts it."""
    parents = [module.rpartition(".")[0] for module in modules]
    behind = _common_module(parents[1:])
    starts_outside = len(parents) > 2 and (behind + ".").startswith(parents[0] + "." if parents[0] else "")
    return behind if starts_outside else _common_module(parents)


def _common_module(modules: Iterable[str]) -> str:
    common: list[str] = []
    for names in zip(*(module.split(".") for module in modules), strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)


def _module(parameter: str) -> str:
    module, parametrized, _ = parameter.partition(".parametrizations.")
    return module if parametrized else module.rpartition(".")[0]


def _attention(parameter: str) -> str:
    """The module of a parameter, or what that module is part of if it is a plain layer."""
    module = _module(parameter)
    return module.rpartition(".")[0] if parameter.endswith((".weight", ".bias")) else module


def _suffix(parameter: str) -> str:
    return parameter.rpartition(".")[2].removeprefix("weight_ih_").removeprefix("weight_hh_")


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)
