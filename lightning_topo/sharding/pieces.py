"""What one process holds of parameters that are spread over several."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_topo.sharding.wrappers import canonical_name


@dataclass(frozen=True, eq=False)
class Piece(ABC):
    """What this process holds of a parameter that is spread over several.

    Attributes:
        shape: Shape of the whole parameter.
        local: The numbers held here.
        groups: Process groups over which the pieces, added up one group after another, make the whole.
        device: On which the groups communicate.
        counts: Whether this piece enters the sum; of replicas only the first does.
    """

    shape: tuple[int, ...]
    local: Tensor
    groups: tuple[Any, ...]
    device: torch.device
    counts: bool

    @property
    def meta(self) -> Tensor:
        """A tensor of the whole parameter's shape that holds nothing."""
        return torch.empty(self.shape, dtype=self.local.dtype, device="meta")

    @abstractmethod
    def copy_to(self, block: Tensor, axis: int, positions: Tensor) -> None:
        """Write what is held here into ``block``: the whole parameter at ``positions`` of ``axis``."""


@dataclass(frozen=True, eq=False)
class _Box(Piece):
    """The piece of a DTensor: some positions along each axis, which torch keeps as rules."""

    rules: tuple[tuple[int, int, Any], ...]  # coordinate, size and placement for each axis of the mesh

    def copy_to(self, block: Tensor, axis: int, positions: Tensor) -> None:
        held = self._held()
        if not self.local.numel():
            return
        nearest = torch.searchsorted(held[axis], positions).clamp_max_(len(held[axis]) - 1)
        hit = held[axis][nearest] == positions
        held[axis] = hit.nonzero().squeeze(1)
        grid = [target.view(-1, *[1] * (len(held) - 1 - i)) for i, target in enumerate(held)]
        block[tuple(grid)] = self.local.index_select(axis, nearest[hit].to(self.local.device)).to(block)

    def _held(self) -> list[Tensor]:
        """Which positions of each axis are held here, ascending."""
        held = [torch.arange(size) for size in self.shape]
        for which, parts, placement in self.rules:
            axis = getattr(placement, "dim", None)
            if axis is not None:  # from left to right, a strided one in each of several stretches of the axis
                stretches = getattr(placement, "split_factor", 1)
                cut = [_chunk(held[axis], stretches, i) for i in range(stretches)]
                held[axis] = torch.cat([_chunk(stretch, parts, which) for stretch in cut])
        shape = tuple(map(len, held))
        if shape != tuple(self.local.shape):
            placements = tuple(placement for _, _, placement in self.rules)
            raise ValueError(
                f"expected a shard of shape {shape} of {self.shape} placed as {placements}, got "
                f"{tuple(self.local.shape)}; this way of sharding is not supported"
            )
        return [positions.to(self.device) for positions in held]


@dataclass(frozen=True, eq=False)
class _Interval(Piece):
    """The piece of a parameter of FSDP1: an interval of its flattened numbers."""

    start: int

    def copy_to(self, block: Tensor, axis: int, positions: Tensor) -> None:
        flat = torch.zeros((), dtype=torch.long, device=self.device)
        for i, size in enumerate(self.shape):
            along = positions if i == axis else torch.arange(size, device=self.device)
            flat = flat.unsqueeze(-1) * size + along
        held = (flat >= self.start) & (flat < self.start + self.local.numel())
        block[held] = self.local[(flat[held] - self.start).to(self.local.device)].to(block)


def piece_of(tensor: Tensor) -> Piece | None:
    """What this process holds of a DTensor; None for a plain tensor.

    Raises:
        ValueError: The tensor is spread in a way that is not known, or was flattened by an FSDP module out of sight.
    """
    if getattr(tensor, "_fsdp_flattened", False) and not hasattr(tensor, "placements"):
        raise ValueError(
            "expected the module that FSDP has wrapped as a whole, got a part of it; pass trainer.strategy.model"
        )
    return _box(tensor) if hasattr(tensor, "placements") else None


def held_here(parameters: Iterable[Any]) -> list[Tensor]:
    """What this process holds of each parameter, sharing its memory: the shard of a DTensor, a plain tensor itself."""
    return [p.detach().to_local() if hasattr(p, "placements") else p for p in parameters]


def flattened(model: nn.Module) -> dict[str, tuple[nn.Parameter, Piece]]:
    """What FSDP1 has flattened, by name: the parameter that the optimizer knows, and the piece of it held here.

    Raises:
        ValueError: FSDP was told not to keep the parameters' names.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {}  # FSDP needs a process group, and everybody else's models need not be walked through
    found: dict[str, tuple[nn.Parameter, Piece]] = {}
    for prefix, module in model.named_modules():
        handle = getattr(module, "_handle", None) if "_fsdp_wrapped_module" in module._modules else None
        if handle is None or not handle.uses_sharded_strategy:
            continue
        flat = handle.flat_param
        if flat._params is None:
            raise ValueError("expected FSDP with use_orig_params=True, which keeps the parameters' names, got False")
        device = _communication_device(handle.device.type)
        places: dict[tuple[int, str], tuple[nn.Parameter, Piece]] = {}
        for i, (name, owner, path) in enumerate(flat._param_infos):
            shard, shape = flat._shard_param_infos[i], tuple(flat._shapes[i])
            first, count, start = 0, 0, 0
            if shard.in_shard:
                first, count, start = shard.offset_in_shard, shard.numel_in_shard, shard.intra_param_start_idx
            held = getattr(flat, "_local_shard", flat)  # before the first forward pass it has no other name
            local = held.detach()[first : first + count]
            piece = _Interval(shape, local, (handle.process_group,), device, True, start)
            places[id(owner), name] = flat._params[i], piece
            found[f"{prefix}.{path}.{name}"] = places[id(owner), name]
        for name, _, path, first_name, first_owner, _ in flat._shared_param_infos:
            found[f"{prefix}.{path}.{name}"] = places[id(first_owner), first_name]
    return found


def spread_parameters(model: nn.Module) -> dict[str, Piece]:
    """What this process holds of the model's sharded parameters, by canonical name; tied ones share their piece."""
    found = {canonical_name(name): piece for name, (_, piece) in flattened(model).items()}
    known: dict[int, Piece | None] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if canonical_name(name) not in found:
            if id(parameter) not in known:
                known[id(parameter)] = piece_of(parameter)
            piece = known[id(parameter)]
            if piece is not None:
                found[canonical_name(name)] = piece
    return found


def _box(tensor: Any) -> _Box:
    mesh = tensor.device_mesh
    rules = tuple(zip(mesh.get_coordinate(), mesh.shape, tensor.placements, strict=True))
    for _, _, placement in rules:
        if placement.is_partial():
            raise ValueError(f"expected parameters that are sharded or replicated, got one placed as {placement}")
    return _Box(
        tuple(tensor.shape),
        tensor.detach().to_local(),
        tuple(mesh.get_group(i) for i in range(mesh.ndim)),
        _communication_device(mesh.device_type),
        all(which == 0 for which, _, placement in rules if placement.is_replicate()),
        rules,
    )


def _chunk(positions: Tensor, parts: int, which: int) -> Tensor:
    step = math.ceil(len(positions) / parts)
    return positions[which * step : (which + 1) * step]


def _communication_device(kind: str) -> torch.device:
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
