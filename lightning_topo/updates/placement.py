"""Where the coordinates of neuron groups lie, found once, and the clouds of groups that are alike put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_topo.neurons import Member, NeuronGroup
from lightning_topo.updates.parameter_places import ParameterPlaces

# Groups are put together up to this many coordinates (512 MiB in single precision); more make another set.
_MOST_COORDINATES = 2**27


@dataclass(frozen=True)
class Layout:
    """How the units of a group lie on one parameter; parameters of one layout can be stacked.

    Attributes:
        shape: Shape of the parameter.
        dtype: Its precision.
        device: Where it lies.
        member: Where the units are on it; without the parameter's name.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    member: Member

    @classmethod
    def of(cls, member: Member, parameter: Tensor) -> Layout:
        """That of a member on its parameter."""
        nameless = replace(member, parameter="", axis=member.axis % parameter.ndim, size=member.n_units(parameter))
        return cls(tuple(parameter.shape), parameter.dtype, parameter.device, nameless)

    @property
    def dimension(self) -> int:
        """Coordinates that a unit has on it."""
        member = self.member
        others = 1
        for axis, size in enumerate(self.shape):
            others *= 1 if axis == member.axis else size
        return others * member.outer * member.inner

    def units(self, stacked: Tensor, rows: Tensor | None = None) -> Tensor:
        """The units of parameters, shape (T, *shape), or some of each, shape (T, k), as rows, shape (T, n, d)."""
        units, axis = self._by_unit(stacked), self.member.axis + 2
        if rows is not None and len(units) == 1:  # of one cloud, whole stretches of memory are copied
            return units.index_select(axis, rows[0]).movedim(axis, 1).flatten(2)
        units = units.movedim(axis, 1)
        if rows is not None:
            units = units[torch.arange(len(units), device=units.device)[:, None], rows]
        return units.flatten(2)

    def sums(self, stacked: Tensor) -> Tensor:
        """The sum of each unit's numbers on parameters, shape (T, *shape), as shape (T, n); nothing is copied."""
        units = self._by_unit(stacked)
        return units.sum(self._other_axes(units))

    def squares_about_mean(self, stacked: Tensor) -> Tensor:
        """The squared length of each unit's numbers on parameters less the mean of all units, shape (T, n)."""
        units = self._by_unit(stacked)
        units = units - units.mean(self.member.axis + 2, keepdim=True)
        return torch.linalg.vector_norm(units, dim=self._other_axes(units)).square_()

    def _by_unit(self, stacked: Tensor) -> Tensor:
        """A view of the member's part, shape (T, ..., outer, n, inner, ...)."""
        member = self.member
        assert member.size is not None
        block = stacked.narrow(member.axis + 1, member.offset, member.outer * member.size * member.inner)
        return block.unflatten(member.axis + 1, (member.outer, member.size, member.inner))

    def _other_axes(self, units: Tensor) -> list[int]:
        return [axis for axis in range(1, units.ndim) if axis != self.member.axis + 2]


@dataclass(frozen=True, eq=False)
class AlikeGroups:
    """Neuron groups whose clouds have one shape and come about in the same way: one tensor holds them all.

    A group of two hundred parameters takes no more operations than one of two, where they are of few layouts, and
    forty groups no more than one. The order of a cloud's coordinates is that of the layouts, which no distance feels.

    Attributes:
        groups: The groups, G of them.
        parts: For each layout, where its parameters are in the placement's list: those of the first group, then those
            of the next.
        shape: Number n of units and D of coordinates of each group.
        eps: Relative spacing of the coarsest numbers that they are stored in.
        device: Where the clouds are put together.
    """

    groups: tuple[NeuronGroup, ...]
    parts: tuple[tuple[Layout, tuple[int, ...]], ...]
    shape: tuple[int, int]
    eps: float
    device: torch.device

    @property
    def slots(self) -> list[int]:
        """Where their parameters are in the placement's list, each once."""
        return list(dict.fromkeys(slot for _, slots in self.parts for slot in slots))

    @property
    def slots_of_groups(self) -> list[list[int]]:
        """The same of each group, as often as a parameter holds coordinates of it."""
        slots: list[list[int]] = [[] for _ in self.groups]
        for _, places in self.parts:
            count = len(places) // len(slots)
            for number, own in enumerate(slots):
                own += places[number * count : (number + 1) * count]
        return slots

    def clouds(self, values: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
        """The neurons as points, shape (G, n, D), in the promoted precision.

        Args:
            values: Tensors in the order of the placement's list: the parameters, or copies of them.
            rows: Which neurons of each group, shape (G, k), default all.
        """
        blocks = [self._block(layout, [values[slot] for slot in slots], rows) for layout, slots in self.parts]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)

    def _block(self, layout: Layout, values: Sequence[Tensor], rows: Tensor | None) -> Tensor:
        stacked = _stacked(values)
        count = len(values) // len(self.groups)
        if rows is not None:
            rows = rows.to(stacked.device).repeat_interleave(count, 0) if count > 1 else rows.to(stacked.device)
        units = layout.units(stacked, rows)
        if count > 1:
            units = units.unflatten(0, (-1, count)).transpose(1, 2).flatten(2)
        return units if units.device == self.device else units.to(self.device, non_blocking=True)

    def sums(self, values: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """The sum of each neuron's coordinates, shape (G, n)."""
        return self._over_parts(values, Layout.sums)

    def lengths_about_mean(self, values: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """The length of each neuron's coordinates less the mean of its group's, shape (G, n), without clouds."""
        return self._over_parts(values, Layout.squares_about_mean).sqrt_()

    def _over_parts(
        self, values: Sequence[Tensor] | Mapping[int, Tensor], of_units: Callable[[Layout, Tensor], Tensor]
    ) -> Tensor:
        """The sum over parameters of a number for each unit, shape (G, n)."""
        parts = []
        for layout, slots in self.parts:
            each = of_units(layout, _stacked([values[slot] for slot in slots]))
            parts.append(each.unflatten(0, (len(self.groups), -1)).sum(1).to(self.device))
        return torch.stack(parts).sum(0)

    def split(self, count: int) -> list[AlikeGroups]:
        """The same in sets of at most ``count`` groups."""
        return [self._some(start, start + count) for start in range(0, len(self.groups), count)]

    def _some(self, start: int, stop: int) -> AlikeGroups:
        total = len(self.groups)
        if start == 0 and stop >= total:
            return self
        parts = []
        for layout, slots in self.parts:
            count = len(slots) // total
            parts.append((layout, slots[start * count : stop * count]))
        return replace(self, groups=self.groups[start:stop], parts=tuple(parts))


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape as one; a single one is not copied."""
    return values[0].unsqueeze(0) if len(values) == 1 else torch.stack(list(values))


class Placement:
    """Where the coordinates of some neuron groups lie in a model, found once.

    Args:
        model: The module that holds the parameters, whole on this process.
        groups: The groups.

    Attributes:
        parameters: Every parameter that holds a coordinate, once.
        alike: The groups, those that are alike together.
    """

    def __init__(self, model: nn.Module, groups: Iterable[NeuronGroup]) -> None:
        self._slots: dict[int, int] = {}
        self.parameters: list[nn.Parameter] = []
        self._parameters_of: dict[str, tuple[int, ...]] = {}
        found: dict[tuple[tuple[Layout, int], ...], list[tuple[NeuronGroup, dict[Layout, list[int]]]]] = {}
        for group in groups:
            by_layout: dict[Layout, list[int]] = {}
            for member, parameter in group.slices(model):
                by_layout.setdefault(Layout.of(member, parameter), []).append(self._slot(parameter))
            kind = tuple(sorted(Counter({k: len(v) for k, v in by_layout.items()}).items(), key=repr))
            found.setdefault(kind, []).append((group, by_layout))
            self._parameters_of[group.name] = tuple(dict.fromkeys(s for slots in by_layout.values() for s in slots))
        self.alike = [
            part
            for kind, members in found.items()
            for part in _bounded(_alike([layout for layout, _ in kind], members))
        ]
        self._places = ParameterPlaces(model, self.parameters)
        self._kinds = [(p.device, p.dtype, p.shape) for p in self.parameters]

    def _slot(self, parameter: nn.Parameter) -> int:
        if id(parameter) not in self._slots:
            self._slots[id(parameter)] = len(self.parameters)
            self.parameters.append(parameter)
        return self._slots[id(parameter)]

    def slots_of(self, name: str) -> list[int]:
        """Where the parameters that hold the coordinates of a group are in the list."""
        return list(self._parameters_of[name])

    def parameters_of(self, group: NeuronGroup) -> list[nn.Parameter]:
        """The parameters that hold a group's coordinates, each once."""
        return [self.parameters[slot] for slot in self._parameters_of[group.name]]

    @property
    def holds(self) -> bool:
        """Whether the model's parameters are still the same objects, of the same shape and in the same place."""
        return self._places.hold and all(
            parameter.shape == shape and parameter.device == device and parameter.dtype == dtype
            for parameter, (device, dtype, shape) in zip(self.parameters, self._kinds, strict=True)
        )


def _alike(layouts: Sequence[Layout], members: list[tuple[NeuronGroup, dict[Layout, list[int]]]]) -> AlikeGroups:
    parts = tuple((layout, tuple(slot for _, places in members for slot in places[layout])) for layout in layouts)
    counts = [len(slots) // len(members) for _, slots in parts]
    dimension = sum(count * layout.dimension for count, layout in zip(counts, layouts, strict=True))
    n = layouts[0].member.size
    assert n is not None
    eps = max(torch.finfo(layout.dtype).eps for layout in layouts)
    return AlikeGroups(tuple(group for group, _ in members), parts, (n, dimension), eps, layouts[0].device)


def _bounded(alike: AlikeGroups) -> list[AlikeGroups]:
    n, dimension = alike.shape
    return alike.split(max(1, _MOST_COORDINATES // max(1, n * dimension)))
