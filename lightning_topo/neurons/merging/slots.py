"""The units of a group as positions on parameters, and what merging them does to one parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_topo.neurons.group import NeuronGroup, locate
from lightning_topo.neurons.member import Member
from lightning_topo.neurons.tracing.roles import Roles
from lightning_topo.sharding import canonical_name


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the units lie on one axis of one parameter or buffer.

    Attributes:
        tensor: Its name.
        axis: The axis.
        positions: Shape (n, k): the k positions of each unit, in one order for all units.
        outgoing: Whether the parameter reads the units, so that numbers of units that become one are added.
    """

    tensor: str
    axis: int
    positions: Tensor
    outgoing: bool


@dataclass(frozen=True, eq=False)
class PlacedUnits:
    """A group whose units lie in slots.

    Attributes:
        name: Of the group.
        n: Number of units.
        slots: One for each axis that holds units.
        refused: Why units cannot become one; None if they can.
    """

    name: str
    n: int
    slots: tuple[Slot, ...]
    refused: str | None = None

    def by_tensor(self) -> dict[str, list[Slot]]:
        """The slots of each parameter or buffer."""
        found: dict[str, list[Slot]] = {}
        for slot in self.slots:
            found.setdefault(slot.tensor, []).append(slot)
        return found

    def without(self, other: PlacedUnits, merged: Tensor) -> PlacedUnits:
        """The same units, wherever they lie after those of another group have become one.

        Args:
            other: That group.
            merged: Shape (other.n,): which unit stands for each, as ``merge_slots`` takes it.
        """
        gone = {(slot.tensor, slot.axis): removed(slot, merged) for slot in other.slots}
        slots = []
        for slot in self.slots:
            away = gone.get((slot.tensor, slot.axis))
            if away is None:
                slots.append(slot)
                continue
            kept = ~torch.isin(slot.positions, away)
            if not bool((kept.sum(1) == kept[0].sum()).all()):
                return replace(self, refused=f"units of {other.name} that became one lay in some of its units only")
            rest = slot.positions[kept].view(self.n, -1)
            if rest.numel():
                slots.append(replace(slot, positions=rest - (away < rest[..., None]).sum(-1)))
        return replace(self, slots=tuple(slots))


def placed(group: NeuronGroup, model: nn.Module, roles: Roles) -> PlacedUnits:
    """The units of a group of the model, with what the forward pass does with them."""
    n, located = locate(group, model)
    # Tied parameters go by the first of their names, in the trace and here.
    names = {id(tensor): canonical_name(name) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    laid: dict[tuple[str, int], list[tuple[Tensor, set[bool]]]] = {}
    refused = None
    for member, tensor, _ in located:
        name, axis = names[id(tensor)], member.axis % tensor.ndim
        positions = _positions(member, tensor.shape[axis])
        span = range(int(positions.min()), int(positions.max()) + 1)
        laid.setdefault((name, axis), []).append((positions, roles.reads(name, axis, span, member.inner)))
        refused = refused or roles.total(name, axis, span, member.inner)
    slots = []
    for (name, axis), parts in laid.items():
        reads = set().union(*(how for _, how in parts))
        if len(reads) > 1:
            refused = refused or f"{name} makes the units and reads them along one axis, as tied weights do"
        slots.append(Slot(name, axis, torch.cat([positions for positions, _ in parts], 1), True in reads))
    if refused is None and not any(slot.outgoing for slot in slots):
        refused = "no parameter reads its units as a product does, so there is nothing to add up"
    if refused is None and all(slot.outgoing for slot in slots):
        refused = "no parameter makes its units, so nothing tells which of them coincide"
    return PlacedUnits(group.name, n, tuple(slots), refused)


def _positions(member: Member, length: int) -> Tensor:
    along = replace(member, axis=0)
    return along.units(torch.arange(length)).flatten(1)


def removed(slot: Slot, merged: Tensor) -> Tensor:
    """The positions of the slot's axis that units take with them when others stand for them."""
    return slot.positions[merged != torch.arange(len(merged))].flatten()


def merge_slots(tensor: Tensor, slots: Iterable[Slot], merged: Tensor) -> Tensor:
    """A smaller tensor in which unit ``merged[u]`` stands for unit u.

    Along axes that make the units, what the others hold is left out; along axes that read them, it is added.

    Args:
        tensor: With all units.
        slots: The axes of this tensor that hold units of the group, all different.
        merged: Shape (n,): which unit stands for each; a unit that stays stands for itself.
    """
    gone = merged != torch.arange(len(merged))
    for slot in slots:
        if slot.outgoing:
            tensor = _added(tensor, slot.axis, slot.positions[gone], slot.positions[merged[gone]])
        kept = torch.ones(tensor.shape[slot.axis], dtype=torch.bool)
        kept[removed(slot, merged)] = False
        tensor = tensor.index_select(slot.axis, kept.nonzero().flatten().to(tensor.device))
    return tensor


def _added(tensor: Tensor, axis: int, sources: Tensor, targets: Tensor) -> Tensor:
    """Positions of an axis added to others; narrow types in double precision, so that it is rounded once."""
    wide = tensor.double() if tensor.is_floating_point() else tensor.clone()
    sources, targets = (positions.flatten().to(tensor.device) for positions in (sources, targets))
    return wide.index_add(axis, targets, wide.index_select(axis, sources)).to(tensor.dtype)


def tie_(tensor: Tensor, slots: Iterable[Slot], merged: Tensor) -> None:
    """Give units the incoming weights of those that stand for them, in place."""
    gone = merged != torch.arange(len(merged))
    for slot in slots:
        if not slot.outgoing:
            sources, targets = (
                slot.positions[units].flatten().to(tensor.device) for units in (merged[gone], gone.nonzero().flatten())
            )
            tensor.index_copy_(slot.axis, targets, tensor.index_select(slot.axis, sources))


def incoming(tensors: Sequence[tuple[Tensor, Sequence[Slot]]], merged: Tensor) -> Tensor:
    """Shape (n, D), float64, on the CPU: what makes each unit, if other units are merged as told.

    Where a tensor makes the units along one axis and holds them along another one too (a recurrent layer), the other
    one is merged first: it does not matter to a unit which of two units that are one it reads.
    """
    rows = []
    for tensor, slots in tensors:
        for slot in slots:
            if not slot.outgoing:
                others = [other for other in slots if other is not slot]
                values = merge_slots(tensor.detach().double(), others, merged) if others else tensor.detach()
                units = values.index_select(slot.axis, slot.positions.flatten().to(tensor.device))
                units = units.movedim(slot.axis, 0).reshape(len(slot.positions), -1)
                rows.append(units.double().cpu())
    return torch.cat(rows, 1) if rows else torch.zeros(len(merged), 0, dtype=torch.float64)
