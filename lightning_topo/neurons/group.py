"""What a neuron is: the slices of parameters that move together when two units are exchanged."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_topo.neurons.member import Member, exchange_units_
from lightning_topo.sharding import WRAPPED, Piece, canonical_name, collected_rows, flattened, piece_of


@dataclass(frozen=True)
class NeuronGroup:
    r"""Units that can be exchanged without changing the network's function, one point a unit.

    Unit $i$ is the point $p_i \in \mathbb{R}^D$ of all parameters that move with it: incoming weights, bias,
    normalisation scale and shift, outgoing weights. For ``fc1 -> act -> fc2``: $p_i = [W_1[i, :], b_1[i], W_2[:, i]]$.

    Reference:
        arXiv:2510.02670, section 3 (neurons as exchangeable sets of parameters).

    Args:
        name: Name under which the group is selected and logged.
        members: Every axis of every parameter that the exchange touches.

    Raises:
        ValueError: No member.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> group = NeuronGroup("0", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))
        >>> group.n_units(model), tuple(group.points(model).shape)
        (4, (4, 6))
        >>> x, before = torch.ones(1, 3), model(torch.ones(1, 3))
        >>> group.permute_(model, [3, 1, 0, 2])
        >>> torch.allclose(model(x), before)
        True
    """

    name: str
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members:
            raise ValueError(f"group {self.name!r} has no members; expected at least one Member")

    def n_units(self, model: nn.Module) -> int:
        """Number of units $n$ of the group in ``model``.

        Args:
            model: Module whose parameters the members name.

        Returns:
            The size that all members agree on.

        Raises:
            ValueError: A member names nothing in the model or does not fit, or members disagree.
        """
        return locate(self, model)[0]

    def points(self, model: nn.Module, indices: Tensor | Sequence[int] | None = None) -> Tensor:
        """Neuron cloud: row $i$ holds all parameters of unit $i$, buffers left out.

        Where parameters are sharded over processes (FSDP, tensor parallelism), all of them have to call this, and all
        get the rows; nothing else is sent. The first process's ``indices`` count.

        Args:
            model: Module whose parameters the members name. Under FSDP1 the wrapped root, ``trainer.strategy.model``.
            indices: Units to gather, default all $n$; nothing else is copied.

        Returns:
            Detached copy, shape (n, D), on the device of the first member, in the members' promoted dtype.

        Raises:
            ValueError: As ``n_units``, or the group holds buffers only.
            RuntimeError: Another process could not gather its share.
        """
        located = [part for part in locate(self, model)[1] if isinstance(part[1], nn.Parameter)]
        if not located:
            raise ValueError(f"group {self.name!r} holds buffers only; a point needs at least one parameter")
        laid = [
            (member.layout(tensor if piece is None else piece.meta), tensor, piece) for member, tensor, piece in located
        ]
        if any(piece is not None for _, _, piece in located):
            blocks = collected_rows(laid, indices)
        else:
            blocks = [layout.rows(tensor, indices) for layout, tensor, _ in laid]
        return torch.cat([block.to(blocks[0].device) for block in blocks], dim=1)

    def dimension(self, model: nn.Module) -> int:
        """Number of coordinates $D$ of a point; nothing is read.

        Args:
            model: Module whose parameters the members name.

        Raises:
            ValueError: As ``n_units``.
        """
        shapes = [
            (member, tensor.shape if piece is None else piece.shape)
            for member, tensor, piece in locate(self, model)[1]
            if isinstance(tensor, nn.Parameter)
        ]
        return sum(math.prod(shape) // shape[m.axis] * m.outer * m.inner for m, shape in shapes)

    def slices(self, model: nn.Module) -> list[tuple[Member, nn.Parameter]]:
        """The members that hold the coordinates of a point, in order, each with its parameter; tied ones come once.

        Raises:
            ValueError: As ``n_units``.
        """
        located = locate(self, model)[1]
        return [(member, tensor) for member, tensor, _ in located if isinstance(tensor, nn.Parameter)]

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of ``model`` that hold the group's points, each once; buffers left out.

        Raises:
            ValueError: As ``n_units``.
        """
        return list({id(parameter): parameter for _, parameter in self.slices(model)}.values())

    @torch.no_grad()
    def permute_(self, model: nn.Module, permutation: Tensor | Sequence[int]) -> None:
        """Exchange the units in place through all members: unit $i$ becomes the old unit ``permutation[i]``.

        Args:
            model: Module whose parameters and buffers are changed.
            permutation: A permutation of 0 ... n - 1.

        Raises:
            ValueError: As ``n_units``, or not a permutation, or the parameters are sharded over processes.
        """
        n, located = locate(self, model)
        order = torch.as_tensor(permutation, dtype=torch.long, device="cpu")
        if order.shape != (n,) or not torch.equal(order.sort().values, torch.arange(n)):
            raise ValueError(f"expected a permutation of 0 ... {n - 1} for group {self.name!r}, got {permutation}")
        if any(piece is not None for _, _, piece in located):
            raise ValueError(
                f"parameters of group {self.name!r} are sharded over processes; exchange units before that"
            )
        for member, tensor, _ in located:
            exchange_units_(member, order, tensor.detach())


def locate(group: NeuronGroup, model: nn.Module) -> tuple[int, list[tuple[Member, Tensor, Piece | None]]]:
    """Number of units of a group, and each member with its tensor and, where that is sharded, the piece held here.

    Slices that tied names repeat come once.

    Raises:
        ValueError: As ``NeuronGroup.n_units``.
    """
    located: dict[tuple[int, ...], tuple[int, tuple[Member, Tensor, Piece | None]]] = {}
    flat = {canonical_name(name): part for name, part in flattened(model).items()}
    for member in group.members:
        tensor: Tensor
        piece: Piece | None
        name = canonical_name(member.parameter)
        if name in flat:
            tensor, piece = flat[name]
        else:
            tensor = find_tensor(model, member.parameter)
            piece = piece_of(tensor)
        whole = tensor if piece is None else piece.meta
        n = member.n_units(whole)
        key = (id(tensor), member.axis % whole.ndim, member.outer, member.inner, member.offset)
        located.setdefault(key, (n, (member, tensor, piece)))
    sizes = {n for n, _ in located.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{part[0].parameter} axis {part[0].axis}: {n}" for n, part in located.values())
        raise ValueError(f"members of group {group.name!r} disagree on the number of units ({listed})")
    return sizes.pop(), [part for _, part in located.values()]


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """Parameter or buffer by dotted name, looking through the wrappers of torch.compile, DDP and FSDP.

    Raises:
        ValueError: Nothing of that name, a lazy parameter, or one that is quantised or integer.
    """
    found: nn.Module | Tensor | None = model
    for key in name.split("."):
        found = _descend(found, key)
    if not isinstance(found, Tensor):
        known = [canonical_name(key) for key, _ in (*model.named_parameters(), *model.named_buffers())]
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or known[:5]
        raise ValueError(f"the model has no parameter or buffer {name!r}; near names: {', '.join(near) or 'none'}")
    if is_lazy(found):
        raise ValueError(f"{name!r} is lazy and has no shape yet; run one batch through the model first")
    if not found.is_floating_point():
        raise ValueError(f"{name!r} is of type {found.dtype}; neurons need floating-point parameters")
    return found


def _descend(owner: nn.Module | Tensor | None, key: str) -> nn.Module | Tensor | None:
    while isinstance(owner, nn.Module):
        for children in (owner._modules, owner._parameters, owner._buffers):
            if children.get(key) is not None:
                return children[key]
        owner = next((owner._modules[wrapper] for wrapper in WRAPPED if wrapper in owner._modules), None)
    return None
