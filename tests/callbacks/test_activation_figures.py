"""Dormant share and effective rank as PersistenceMonitor tells them, against activations that the test takes itself."""

import copy
import io

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.callbacks._activations import MOST_ROWS, BatchActivations
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.functional import dormant_share, effective_rank


class Fit(pl.LightningModule):
    """Any network, regressed on zeros."""

    def __init__(self, net, calls=1):
        super().__init__()
        self.net, self.calls = net, calls

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return sum(self(batch[0]).square().mean() for _ in range(self.calls))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(*shape, n=3, size=16):
    x = torch.randn(n * size, *shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), batch_size=size)


def fit(trainer, net, *shape, monitor=None, calls=1, size=16, **options):
    monitor = monitor or lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    module = Fit(net, calls)
    trainer([monitor], max_epochs=1, **options).fit(module, batches(*shape, size=size))
    return monitor.history, module


def mlp(n=20):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 12), nn.Tanh(), nn.Linear(12, 2))


def test_figures_are_those_of_the_batch_just_trained_on(trainer):
    net = mlp()
    replay = copy.deepcopy(net)
    history, _ = fit(trainer, net, 6)
    optimizer = torch.optim.SGD(replay.parameters(), lr=0.01)
    expected = []
    for (x,) in batches(6):
        h = [replay[:2](x), replay[:4](x)]
        expected.append({f"net.{2 * i}": (dormant_share(one), effective_rank(one)) for i, one in enumerate(h)})
        optimizer.zero_grad()
        replay(x).square().mean().backward()
        optimizer.step()
    for record in history:
        # The start has the activations of the first batch, which the start's own weights make.
        index = 0 if record is history[0] or record is history[1] else max(0, (history.index(record) - 2) // 2)
        dormant, rank = expected[min(index, 2)][record.group]
        assert record.dormant == pytest.approx(dormant)
        assert record.effective_rank == pytest.approx(rank)
    assert len(history) == 8


def test_dead_and_stuck_units_are_counted(trainer):
    net = mlp()
    with torch.no_grad():
        net[0].weight[:5], net[0].bias[:5] = 0.0, -1.0  # never fire
        net[2].weight[:3], net[2].bias[:3] = 0.0, 9.0  # saturated
    history, _ = fit(trainer, net, 6)
    assert {record.dormant for record in history if record.group == "net.0"} == {5 / 20}
    assert {record.dormant for record in history if record.group == "net.2"} == {3 / 12}


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 10, 3, groups=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(10 * 9, 11), nn.ReLU(), nn.Linear(11, 2),
    )  # fmt: skip


def test_convolutions_and_flattened_channels(trainer):
    net = convolutional()
    with torch.no_grad():
        net[1].weight[:4], net[1].bias[:4] = 0.0, -1.0
        net[3].weight[:2], net[3].bias[:2] = 0.0, -1.0
    h = {}
    for (x,) in list(batches(3, 8, 8, size=2))[:1]:
        first = copy.deepcopy(net)[:3](x)
        second = copy.deepcopy(net)[:6](x)
        h["net.0"] = first.movedim(1, 0).flatten(1).T
        h["net.3"] = second.movedim(1, 0).flatten(1).T
    history, _ = fit(trainer, net, 3, 8, 8, size=2)
    start = {record.group: record for record in history[:3]}
    assert set(start) == {"net.0", "net.3", "net.7"}
    for name, activations in h.items():  # few enough to be taken whole
        assert len(activations) <= MOST_ROWS
        assert start[name].dormant == pytest.approx(dormant_share(activations))
        assert start[name].effective_rank == pytest.approx(effective_rank(activations), rel=1e-5)
    assert start["net.0"].dormant >= 4 / 16
    assert start["net.3"].dormant >= 2 / 10


def test_of_many_positions_some_are_taken_evenly(trainer):
    """A unit that fires in one column only is not missed, nor taken for more than it is."""
    x = torch.zeros(8, 4, 32, 32)
    x[:, 0, :, 5] = 1.0
    x[:, 1] = torch.rand(8, 32, 32, generator=torch.Generator().manual_seed(0))
    reader = nn.Conv2d(4, 1, 1)
    taken = heard(nn.Sequential(nn.Conv2d(4, 4, 1), reader), reader, x)
    assert len(taken) == MOST_ROWS
    assert float(taken[:, 0].mean()) == pytest.approx(1 / 32, rel=0.4)
    assert float(taken[:, 1].mean()) == pytest.approx(0.5, rel=0.1)


def heard(net, reader, *inputs, group=None, n=4):
    """Rows of a group of the first layer that are heard when the reader is called."""
    name = next(name for name, module in net.named_modules() if module is reader)
    group = group or lt.NeuronGroup("units", (lt.Member("0.weight", 0), lt.Member(f"{name}.weight", 1)))
    listener = BatchActivations(Announcer("test").never_fatal)
    listener.attach(net, [group])
    for x in inputs:
        reader(x)
    assert listener.end() == []
    assert not reader._forward_pre_hooks
    rows = listener.rows("units")
    assert rows.shape[1] == n
    return rows


def test_a_layer_that_is_called_often_is_heard_evenly():
    reader = nn.Linear(4, 1)
    net = nn.Sequential(nn.Linear(2, 4), reader)
    few = heard(net, reader, *(torch.full((16, 4), float(i)) for i in range(3)))
    assert few[:, 0].unique(return_counts=True)[1].tolist() == [16, 16, 16]
    many = heard(net, reader, *(torch.full((64, 4), float(i)) for i in range(40)))
    counts = many[:, 0].unique(return_counts=True)[1]
    assert len(many) <= MOST_ROWS
    assert len(counts) == 40
    assert counts.max() <= 2 * counts.min()


def test_several_calls_in_a_step(trainer):
    once, _ = fit(trainer, mlp(), 6)
    twice, _ = fit(trainer, mlp(), 6, calls=2)
    assert twice[0].dormant == pytest.approx(once[0].dormant)
    assert twice[0].effective_rank == pytest.approx(once[0].effective_rank)


def test_steps_that_another_monitor_makes_again_are_not_heard(trainer):
    alone, _ = fit(trainer, mlp(), 6)
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    sharpness = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None)
    trainer([sharpness, monitor], max_epochs=1).fit(Fit(mlp()), batches(6))
    assert any(record.critical_lr is not None for record in sharpness.history)  # for which it made steps again
    assert monitor.history == alone


def test_nothing_is_left_on_the_layers(trainer):
    class Fails(Fit):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            assert any(module._forward_pre_hooks for module in self.modules())
            if batch_idx == 1:
                raise RuntimeError("as planned")
            return loss

    _, module = fit(trainer, mlp(), 6)
    assert not any(one._forward_pre_hooks or one._forward_pre_hooks_with_kwargs for one in module.modules())
    module = Fails(mlp())
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="as planned"):
        trainer([monitor], max_epochs=1).fit(module, batches(6))
    assert not any(one._forward_pre_hooks or one._forward_pre_hooks_with_kwargs for one in module.modules())


def test_layers_are_listened_to_in_due_batches_only(trainer):
    class Notes(Fit):
        listened = ()

        def training_step(self, batch, batch_idx):
            if any(module._forward_pre_hooks for module in self.modules()):
                self.listened = (*self.listened, batch_idx)
            return super().training_step(batch, batch_idx)

    module = Notes(mlp())
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4)
    trainer([monitor], max_epochs=1).fit(module, batches(6, n=11))
    assert module.listened == (0, 3, 7, 10)  # the start, every fourth update, and the last
    assert all(record.dormant is not None for record in monitor.history)
    assert [record.step for record in monitor.history][::2] == [0, 3, 7, 11]


def test_every_batch_of_an_epoch_of_one_batch(trainer):
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=2)
    trainer([monitor], max_epochs=3).fit(Fit(mlp()), batches(6, n=1))
    assert [record.step for record in monitor.history][::2] == [0, 1, 3]
    assert all(record.dormant is not None for record in monitor.history)


def test_a_copy_of_the_model_in_a_step_takes_no_listener_along(trainer):
    copies = []

    class Copies(Fit):
        def training_step(self, batch, batch_idx):
            copies.append(copy.deepcopy(self.net))
            torch.save(self.net, io.BytesIO())
            return super().training_step(batch, batch_idx)

    module = Copies(mlp())
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    trainer([monitor], max_epochs=1).fit(module, batches(6))
    assert len(copies) == 3
    for one in copies:
        one(torch.zeros(2, 6))
    assert monitor.history[0].dormant is not None


def test_passes_without_gradients_are_not_heard():
    reader = nn.Linear(4, 1)
    net = nn.Sequential(nn.Linear(2, 4), reader)
    listener = BatchActivations(Announcer("test").never_fatal)
    group = lt.NeuronGroup("units", (lt.Member("0.weight", 0), lt.Member("1.weight", 1)))
    listener.attach(net, [group])
    with torch.no_grad():
        reader(torch.ones(3, 4))
    torch.func.vmap(reader)(torch.ones(3, 4))
    assert listener.end() == ["units"]
    assert listener.rows("units") is None


@pytest.mark.parametrize(
    ("reader", "x", "member"),
    [
        (nn.Linear(8, 3), torch.randn(5, 8), lt.Member("1.weight", 1)),
        (nn.Linear(8, 3), torch.randn(5, 7, 8), lt.Member("1.weight", -1)),
        (nn.Linear(24, 3), torch.randn(5, 24), lt.Member("1.weight", 1, inner=3)),
        (nn.Linear(24, 3), torch.randn(5, 24), lt.Member("1.weight", 1, outer=3)),
        (nn.Linear(20, 3), torch.randn(5, 20), lt.Member("1.weight", 1, offset=12)),
        (nn.Conv1d(8, 3, 2), torch.randn(5, 8, 4), lt.Member("1.weight", 1)),
        (nn.Conv3d(8, 3, 2), torch.randn(8, 4, 4, 4), lt.Member("1.weight", 1)),
        (nn.ConvTranspose2d(8, 3, 2), torch.randn(2, 8, 4, 4), lt.Member("1.weight", 0)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), torch.randn(5, 8), lt.Member(
            "1.parametrizations.weight.original1", 1)),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)), torch.randn(5, 8), lt.Member(
            "1.parametrizations.weight.original", 1)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_units_lie_on_the_input(reader, x, member, dtype):
    """Exchanging two units of the input exchanges two columns, and nothing else."""
    net = nn.Sequential(nn.Linear(2, 8), reader).to(dtype)
    x = x.to(dtype)
    group = lt.NeuronGroup("units", (lt.Member("0.weight", 0), member))
    rows = heard(net, reader, x, group=group, n=8)
    assert rows.dtype == dtype
    axis = -1 if isinstance(reader, nn.Linear) else -1 - len(reader.kernel_size)
    order = torch.arange(8)
    order[2], order[6] = 6, 2
    first, count = member.offset, 8 * member.inner * member.outer
    block = x.narrow(axis, first, count).movedim(axis, 0).unflatten(0, (member.outer, 8, member.inner))[:, order]
    swapped = x.clone()
    swapped.narrow(axis, first, count).copy_(block.flatten(0, 2).movedim(0, axis))
    assert torch.equal(heard(net, reader, swapped, group=group, n=8), rows[:, order])
    assert not torch.equal(rows, rows[:, order])


def test_groups_that_no_layer_reads_are_said_once(trainer, caplog):
    class Bare(nn.Module):
        """Multiplies by itself."""

        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(10, 6))
            self.second = nn.Parameter(torch.randn(2, 10))

        def forward(self, x):
            return torch.tanh(x @ self.first.T) @ self.second.T

    group = lt.NeuronGroup("bare", (lt.Member("net.first", 0), lt.Member("net.second", 1)))
    monitor = lt.PersistenceMonitor([group], max_overhead=None, every_n_train_steps=1)
    with caplog.at_level("INFO"):
        history, _ = fit(trainer, Bare(), 6, monitor=monitor)
    assert all(record.dormant is None and record.effective_rank is None for record in history)
    assert all(record.distinct == 10 for record in history)
    said = [
        r.getMessage() for r in caplog.records if "no dormant share and no effective rank of bare" in r.getMessage()
    ]
    assert len(said) == 1


def test_attention_in_one_call_and_recurrent_layers(trainer):
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
            self.lstm = nn.LSTM(16, 9, batch_first=True)
            self.head = nn.Linear(9, 2)

        def forward(self, x):
            return self.head(self.lstm(self.block(x))[0])

    torch.manual_seed(0)
    history, _ = fit(trainer, Sequence(), 5, 16, precision="bf16-mixed")
    told = {record.group: record.dormant is not None for record in history}
    assert told["net.block.linear1"]
    assert told["net.lstm"]
    assert not told["net.block.self_attn.keys"]
    assert "net.block.self_attn.heads" not in told  # two units


def test_compiled_modules_are_not_listened_to(trainer):
    net = mlp()
    history, module = fit(trainer, torch.compile(net, backend="eager"), 6)
    assert history
    assert all(record.dormant is None and record.distinct is not None for record in history)
    assert not any(one._forward_pre_hooks for one in module.modules())
    in_place = mlp()
    in_place.compile(backend="eager")
    history, _ = fit(trainer, in_place, 6)
    assert all(record.dormant is None for record in history)


def test_a_compiled_function_is_not_compiled_over_and_over(trainer):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    class Compiled(Fit):
        def __init__(self, net):
            super().__init__(net)
            self.loss = torch.compile(lambda x: self.net(x).square().mean(), backend=backend, fullgraph=True)

        def training_step(self, batch, batch_idx):
            return self.loss(batch[0])

    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    trainer([monitor], max_epochs=4).fit(Compiled(mlp()), batches(6))
    assert len(graphs) <= 2
    assert all(record.dormant is None for record in monitor.history)


def test_activations_that_are_not_finite_are_said_and_the_rest_is_measured(trainer):
    class Ignores(nn.Linear):
        def forward(self, x):
            return super().forward(torch.ones_like(x))

    net = nn.Sequential(nn.Linear(6, 10), Ignores(10, 2))
    net[0].register_forward_hook(lambda module, args, out: out.detach() / 0.0)
    group = lt.NeuronGroup("hidden", (lt.Member("net.0.weight", 0), lt.Member("net.1.weight", 1)))
    monitor = lt.PersistenceMonitor([group], max_overhead=None, every_n_train_steps=1)
    with pytest.warns(UserWarning, match="could not sum up activations.*finite activations"):
        history, _ = fit(trainer, net, 6, monitor=monitor)
    assert history
    assert all(record.dormant is None and record.distinct == 10 for record in history)


def test_identical_units_and_a_single_one(trainer):
    net = mlp()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
    history, _ = fit(trainer, net, 6)
    assert all(record.distinct == 1 and record.dormant == 0 for record in history)
    assert all(record.effective_rank == pytest.approx(1) for record in history)
    one = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 2))
    group = lt.NeuronGroup("one", (lt.Member("net.0.weight", 0), lt.Member("net.2.weight", 1)))
    monitor = lt.PersistenceMonitor([group], max_overhead=None, every_n_train_steps=1)
    history, _ = fit(trainer, one, 6, monitor=monitor)
    assert all((r.distinct, r.dormant) == (1, 0.0) and r.effective_rank == pytest.approx(1) for r in history)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "bf16-mixed", "64-true"])
def test_precisions(trainer, precision):
    history, _ = fit(trainer, mlp(), 6, precision=precision)  # warnings are errors
    assert all(0 <= r.dormant <= 1 and 1 <= r.effective_rank <= 16 and r.distinct > 1 for r in history)
