"""Neurons whose parameters lie on several processes: the same as those of the whole model."""

import copy
import weakref

import pytest
import torch
from torch import nn

from lightning_topo.neurons import (
    Member,
    NeuronGroup,
    discover_neurons,
    find_neuron_groups,
    is_permutation_symmetric,
)
from lightning_topo.neurons.exchange.placeholder import Placeholder
from lightning_topo.sharding import collective

distributed = pytest.importorskip("torch.distributed")
fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("needs torch.distributed.fsdp.fully_shard", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard  # noqa: E402
from torch.distributed.tensor import Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: E402

WIDTH = 7  # divisible by neither 2 nor 4


class Net(nn.Module):
    """Convolution, normalisation, a flattened channel, attention, a tied weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(WIDTH * 4, 12)
        self.attention = nn.TransformerEncoderLayer(12, 2, 9, batch_first=True, dropout=0.0)
        self.code = nn.Linear(12, 5, bias=False)
        self.decode = nn.Linear(12, 5, bias=False)
        self.decode.weight = self.code.weight

    def forward(self, x):
        x = self.fc(self.norm(self.conv(x)).relu().flatten(1))
        x = self.attention(x[:, None])[:, 0]
        return self.code(x) + self.decode(x.tanh())


def net():
    torch.manual_seed(0)
    return Net()


def example():
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def start(rank, count):
    distributed.init_process_group("gloo", rank=rank, world_size=count)


def compare(model, whole):
    """Groups and points of a sharded model are those of the whole one."""
    state = torch.get_rng_state()
    seen = discover_neurons(model, example())
    assert torch.equal(state, torch.get_rng_state())
    expected = discover_neurons(whole, example())
    assert seen == expected
    assert len(seen.groups) >= 5
    for group in seen.groups:
        assert group.n_units(model) == group.n_units(whole)
        assert torch.equal(group.points(model), group.points(whole))
        chosen = torch.tensor([group.n_units(whole) - 1, 0])
        assert torch.equal(group.points(model, chosen), group.points(whole, chosen))
    return seen.groups


def second_axis(parameter):
    """Where FSDP can: other axes than the first have to be even."""
    return Shard(1) if parameter.ndim > 1 and parameter.shape[1] % 2 == 0 else None


def fsdp2(rank, count, shape, placement):
    start(rank, count)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    whole, model = net(), net()
    options = {"shard_placement_fn": second_axis} if placement == "second axis" else {}
    for part in (model.conv, model.attention):
        fully_shard(part, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    groups = compare(model, whole)
    model(example()).sum().backward()  # and once the parameters have been together
    compare(model, whole_after(whole))
    wrong = NeuronGroup("wrong", groups[0].members[:1])
    assert is_permutation_symmetric(model, groups[0], example())
    assert not is_permutation_symmetric(model, wrong, example())
    with pytest.raises(ValueError, match="sharded over processes"):
        groups[0].permute_(model, list(range(groups[0].n_units(model))))


def whole_after(whole):
    whole(example())  # running statistics
    return whole


@pytest.mark.parametrize(
    ("count", "shape", "placement"), [(2, (2,), "rows"), (2, (2,), "second axis"), (4, (2, 2), "replicated rows")]
)
def test_fsdp2(processes, count, shape, placement):
    processes(count, fsdp2, count, shape, placement)


def fsdp1(rank):
    start(rank, 2)
    options = {"use_orig_params": True, "device_id": torch.device("cpu")}
    whole, model = net(), net()
    model.conv = FullyShardedDataParallel(model.conv, **options)
    model.attention = FullyShardedDataParallel(model.attention, **options)
    model = FullyShardedDataParallel(model, **options)
    compare(model, whole)
    model(example()).sum().backward()
    compare(model, whole_after(whole))
    with torch.no_grad():
        model(example())  # after which the root's parameters stay together
    groups = compare(model, whole_after(whole))
    with pytest.raises(ValueError, match=r"trainer\.strategy\.model"):
        groups[0].points(model._fsdp_wrapped_module)


def test_fsdp1(processes):
    processes(2, fsdp1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(6), nn.Linear(8, 6)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


def tensor_parallel(rank):
    start(rank, 4)
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(3, 6), Block(), nn.Linear(6, 2))
    model = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model[1], mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    for part in (model[1], model):
        fully_shard(part, mesh=mesh["data"])
    placed = {name: len(parameter.placements) for name, parameter in model.named_parameters()}
    assert set(placed.values()) == {1, 2}  # a group with pieces on meshes of different shapes
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    groups = find_neuron_groups(model, x)
    assert [group.name for group in groups] == [group.name for group in find_neuron_groups(whole, x)]
    for group in groups:
        assert torch.equal(group.points(model), group.points(whole))


def test_fsdp2_with_tensor_parallelism(processes):
    processes(4, tensor_parallel)


LAYOUTS = [
    Member("w"), Member("w", inner=2), Member("w", outer=5), Member("w", outer=2, inner=5), Member("w", offset=7),
    Member("w", offset=3, size=2, inner=2), Member("w", axis=1), Member("w", axis=-1, outer=3),
]  # fmt: skip
PLACEMENTS = [
    (Shard(0), Shard(0)), (Shard(1), Shard(0)), (Replicate(), Shard(0)), (Shard(1), Replicate()),
    (Shard(2), Shard(1)), (Replicate(), Replicate()),
]  # fmt: skip


def layouts(rank):
    start(rank, 4)
    mesh = init_device_mesh("cpu", (2, 2))
    whole, spread = nn.Module(), nn.Module()
    whole.w = nn.Parameter(torch.arange(10 * 6 * 3.0).view(10, 6, 3))
    for placements in PLACEMENTS:
        spread.w = nn.Parameter(distribute_tensor(whole.w.detach(), mesh, placements))
        for member in LAYOUTS:
            group = NeuronGroup("g", (member,))
            assert torch.equal(group.points(spread), group.points(whole)), (member, placements)
            some = [group.n_units(whole) - 1, 0, 0]
            assert torch.equal(group.points(spread, some), group.points(whole, some)), (member, placements)


def test_every_layout_on_every_placement(processes):
    processes(4, layouts)


def disagreement(rank):
    """The processes ask for different neurons; one of them has no room for its share."""
    start(rank, 2)
    model, whole = nn.Module(), nn.Module()
    whole.w = nn.Parameter(torch.arange(12.0).view(6, 2))
    model.w = nn.Parameter(distribute_tensor(whole.w.detach(), init_device_mesh("cpu", (2,)), [Shard(0)]))
    group = NeuronGroup("g", (Member("w"),))
    assert torch.equal(group.points(model, [rank, 3 + rank]), group.points(whole, [0, 3]))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(collective, "_held_rows", no_room)
        with pytest.raises(RuntimeError, match="could not read its pieces"):
            group.points(model)
    assert torch.equal(group.points(model), group.points(whole))


def no_room(*args):
    raise MemoryError("no room")


def test_the_first_process_chooses_and_all_fail_together(processes):
    processes(2, disagreement)


def traffic(rank):
    """Numbers that go into sums over the processes, for 5 of 64 units."""
    start(rank, 2)
    model = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 100))
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    [group] = find_neuron_groups(model, torch.ones(1, 100))
    sent = []
    with pytest.MonkeyPatch.context() as patch:
        summed = distributed.all_reduce
        patch.setattr(distributed, "all_reduce", lambda t, **kwargs: (sent.append(t.numel()), summed(t, **kwargs)))
        for name in ("all_gather", "all_gather_into_tensor", "all_to_all", "gather"):
            patch.delattr(distributed, name)
        points = group.points(model, range(5))
    return tuple(points.shape), group.dimension(model), sum(sent)


def test_only_the_rows_asked_for_are_sent(processes):
    for shape, dimension, sent in processes(2, traffic):
        assert shape == (5, 201)
        assert dimension == 201
        assert sent <= 5 * 201 + 1  # one number to say that nobody failed


def small(rank):
    """The largest tensor that discovery keeps, in numbers, beside activations."""
    start(rank, 2)
    layers = [part for _ in range(20) for part in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(*layers)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    held = []
    values = Placeholder.values

    def counted(placeholder):
        made = values(placeholder)
        held.append(weakref.ref(made))
        alive.append(sum((ref() is not None and ref().numel()) or 0 for ref in held))
        return made

    alive = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Placeholder, "values", counted)
        groups = find_neuron_groups(model, torch.ones(1, 64))
    return len(groups), max(alive), sum(parameter.numel() for parameter in model.parameters())


def test_discovery_holds_a_parameter_at_a_time(processes):
    for n_groups, most, total in processes(2, small):
        assert n_groups == 19
        assert most < total / 5
