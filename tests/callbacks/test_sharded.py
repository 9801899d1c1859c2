"""Real fits of several processes: the metrics are those of one process, whatever holds the parameters."""

import copy
import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lightning_topo as lt
from lightning_topo.callbacks._options import OptionedCallback
from lightning_topo.updates import update_meter

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("needs torch.distributed.fsdp.fully_shard", allow_module_level=True)

GLOBAL_BATCH = 16


class Net(pl.LightningModule):
    def __init__(self, shard=False, fail_at=None):
        super().__init__()
        self.shard, self.fail_at = shard, fail_at
        self.net = nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.LayerNorm(13), nn.Linear(13, 7), nn.Tanh())
        self.head = nn.Linear(7, 3)

    def configure_model(self):
        if self.shard and not isinstance(self.head.weight, torch.distributed.tensor.DTensor):
            mesh = self.device_mesh["data_parallel"]
            for part in (self.net[0], self.head, self):
                fsdp.fully_shard(part, mesh=mesh)

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at and self.global_rank == 1:
            raise OSError("the data of this process are gone")
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


def loader(rank=0, count=1):
    """The same global batches in any number of processes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 6, generator=generator)
    data = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    sampler = DistributedSampler(data, count, rank, shuffle=False)
    return DataLoader(data, GLOBAL_BATCH // count, sampler=sampler)


class OnCPU(FSDPStrategy):
    """Lightning takes FSDP1 for CUDA alone, and asks for the very class."""

    def _setup_model(self, model):
        return fsdp.FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


def strategy(name):
    return {
        "one": "auto",
        "ddp": "ddp",
        "fsdp1": OnCPU(auto_wrap_policy={nn.Linear}),
        "fsdp2": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    }[name]


def three(**options):
    groups = {"groups": "*"} | options  # also the small ones
    return [
        lt.BiLipschitzMonitor(max_overhead=None, **options),
        lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=3, figures=False, **groups),
        lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=2),
    ]


def fit(rank, name, folder, recorder, monitors, fail_at=None, ckpt_path=None, **options):
    """What a process ends with: its weights, its metrics, what it logged and measured, what it warned of."""
    torch.manual_seed(0)
    model = Net(shard=name == "fsdp2", fail_at=fail_at)
    count = 1 if name == "one" else 2
    settings = {
        "accelerator": "cpu", "devices": count, "strategy": strategy(name), "max_epochs": 2, "logger": recorder,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder, "log_every_n_steps": 1, "use_distributed_sampler": False,
        "callbacks": list(monitors),
    }  # fmt: skip
    trainer = pl.Trainer(**(settings | options))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.fit(model, loader(rank, count), loader(rank, count), ckpt_path=ckpt_path)
    parameters = list(model.parameters())
    return {
        "weights": [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in parameters],
        "random": torch.get_rng_state(),
        "steps": trainer.global_step,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "rows": recorder.rows,
        "measured": [len(monitor.history) for monitor in monitors if isinstance(monitor, OptionedCallback)],
        "warnings": [str(w.message) for w in seen if "Monitor" in str(w.message)],
    }


def series(outcome, *names):
    """Logged values by step and key, of the monitors named."""
    return {
        (step, key): value for step, row in outcome["rows"] for key, value in row.items() if key.split(".")[0] in names
    }


def told(rows, name):
    values = [value for _, row in rows for key, value in row.items() if key.endswith(f".{name}")]
    assert values
    return values


def of_weights(values):
    """Without what is of the activations."""
    return {key: value for key, value in values.items() if not key[1].endswith((".dormant", ".effective_rank"))}


def same(seen, expected):
    assert seen.keys() == expected.keys()
    assert len(seen) > 50
    for key, value in expected.items():
        assert seen[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key


@pytest.mark.parametrize("name", ["ddp", "fsdp1", "fsdp2"])
def test_metrics_are_those_of_one_process(name, processes, tmp_path, recorder):
    [one] = processes(1, fit, "one", tmp_path, copy.deepcopy(recorder), three())
    first, second = processes(2, fit, name, tmp_path, copy.deepcopy(recorder), three())
    for kind in ("bilipschitz", "topology"):
        same(of_weights(series(first, kind)), of_weights(series(one, kind)))
    # Sharpness and activations are those of the first process's half of the batch.
    activations = [outcome["rows"] for outcome in (first, one)]
    assert len({len(told(rows, "dormant")) for rows in activations}) == 1
    assert all(0 <= value <= 1 for value in told(first["rows"], "dormant"))
    ranks = told(first["rows"], "effective_rank")
    assert 1 <= min(ranks) <= max(ranks) <= GLOBAL_BATCH / 2 + 1e-6
    assert len(series(first, "sharpness")) == (len(series(one, "sharpness")) if name == "ddp" else 0)
    if name == "ddp":  # the critical rate is of the loss over all processes
        critical = [{k: v for k, v in series(o, "sharpness").items() if "critical" in k[1]} for o in (first, one)]
        assert critical[0] == pytest.approx(critical[1], rel=2e-2)
        assert len(critical[0]) == 6
    assert first["measured"][:2] == one["measured"][:2] == [24, 10]
    assert second["rows"] == []
    assert second["measured"] == [0, 0, 0]
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["bilipschitz/criticality"] > 0
    refusals = [] if name == "ddp" else ["SharpnessMonitor does not measure under"]
    assert [message[: len(refusals[0])] for message in first["warnings"]] == refusals
    assert second["warnings"] == []


@pytest.mark.parametrize("name", ["fsdp1", "fsdp2"])
def test_training_is_bit_equal_with_and_without(name, processes, tmp_path, recorder):
    plain = processes(2, fit, name, tmp_path, copy.deepcopy(recorder), [])
    watched = processes(2, fit, name, tmp_path, copy.deepcopy(recorder), three())
    for without, with_monitors in zip(plain, watched, strict=True):
        assert all(map(torch.equal, without["weights"], with_monitors["weights"]))
        assert torch.equal(without["random"], with_monitors["random"])


class Clock(pl.Callback):
    """A batch takes one second and each look at the clock a third of one, in the second process ten times that."""

    def __init__(self, rank):
        self.now, self.pace = 0.0, 1 + 9 * rank

    def on_train_batch_start(self, *args):
        self.now += self.pace

    def __call__(self):
        self.now += self.pace / 3
        return self.now


def budgeted(rank, name, folder, recorder):
    monitors = [lt.BiLipschitzMonitor(max_overhead=0.3), lt.PersistenceMonitor(every_n_train_steps=1)]
    clock = Clock(rank)
    for monitor in monitors:
        monitor._budget._clock = clock
    return fit(rank, name, folder, recorder, [clock, *monitors], max_epochs=20)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_first_process_decides_what_is_affordable(name, processes, tmp_path, recorder):
    first, second = processes(2, budgeted, name, tmp_path, copy.deepcopy(recorder))
    assert 10 < first["measured"][0] < 200
    assert 0 < first["metrics"]["bilipschitz/coverage"] < 1
    assert first["metrics"] == second["metrics"]


def broken(rank, name, folder, recorder):
    """Comparing clouds fails in the first process, and reading them in the second, each some of the time."""
    monitors = three()
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr(update_meter, "compare", sometimes(update_meter.compare))
        else:
            from lightning_topo.sharding import collective

            patch.setattr(collective, "_held_rows", sometimes(collective._held_rows))
        return fit(rank, name, folder, recorder, monitors)


def sometimes(function):
    calls = [0]

    def fails(*args, **kwargs):
        calls[0] += 1
        if calls[0] % 5 == 0:
            raise MemoryError("no room")
        return function(*args, **kwargs)

    return fails


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_measurement_that_fails_keeps_nobody_waiting(name, processes, tmp_path, recorder):
    plain, _ = processes(2, fit, name, tmp_path, copy.deepcopy(recorder), [])
    first, second = processes(2, broken, name, tmp_path, copy.deepcopy(recorder))
    assert all(map(torch.equal, plain["weights"], first["weights"]))
    assert any("no room" in message or "could not read" in message for message in first["warnings"])
    assert first["steps"] == second["steps"] == 12


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_fit_ends_when_one_process_fails(name, processes, tmp_path, recorder):
    processes.timeout = 30
    _, failures = processes.outcomes(2, fit, name, tmp_path, copy.deepcopy(recorder), three(), 3)
    assert "the data of this process are gone" in failures[1]
    assert failures[0] is not None


def resumed(rank, name, folder, recorder):
    """The same callbacks see a second fit, of a fresh model, and new ones continue from a checkpoint."""
    monitors = three()
    fit(rank, name, folder, recorder, monitors)
    fit(rank, name, folder, recorder, monitors)
    keep = pl.callbacks.ModelCheckpoint(folder / "checkpoints", save_last=True)
    fit(rank, name, folder, recorder, [*three(), keep], enable_checkpointing=True)
    torch.distributed.barrier()
    again = three()
    fit(rank, name, folder, recorder, again, ckpt_path=str(folder / "checkpoints" / "last.ckpt"), max_epochs=3)
    return [len(monitor.history) for monitor in (*monitors, *again)]


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_a_second_fit_and_a_resumed_one(name, processes, tmp_path, recorder):
    first, second = processes(2, resumed, name, tmp_path, copy.deepcopy(recorder))
    assert second == [0] * 6
    twice_and_resumed = [48, 20, 12, 12, 4, 3] if name == "ddp" else [48, 20, 0, 12, 4, 0]
    assert first == twice_and_resumed


def stopping(rank, folder, recorder):
    stop = EarlyStopping("bilipschitz/criticality", patience=1, mode="min", min_delta=1e9)
    return fit(rank, "ddp", folder, recorder, [lt.BiLipschitzMonitor(max_overhead=None), stop], max_epochs=8)


def test_every_process_knows_the_metrics(processes, tmp_path, recorder):
    first, second = processes(2, stopping, tmp_path, copy.deepcopy(recorder))
    assert first["steps"] == second["steps"] == 12


def wrong_name(rank, folder, recorder):
    with pytest.raises(ValueError, match="no group matches 'nothing'"):
        fit(rank, "fsdp2", folder, recorder, [lt.BiLipschitzMonitor(groups="nothing")])


def test_a_wrong_name_ends_all_processes(processes, tmp_path, recorder):
    processes(2, wrong_name, tmp_path, copy.deepcopy(recorder))


def search(rank, folder, recorder):
    finder = lt.TopologicalLearningRateFinder()
    with pytest.raises(TypeError, match=r"keeps the whole model on each process .* got ModelParallelStrategy"):
        fit(rank, "fsdp2", folder, recorder, [finder])
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy("fsdp1"), logger=False)
    with pytest.raises(TypeError, match="got OnCPU"):
        lt.topological_lr_find(trainer, Net(), loader())


def test_the_finder_refuses_at_the_start(processes, tmp_path, recorder):
    processes(2, search, tmp_path, copy.deepcopy(recorder))


class NotOfTorch:
    """An optimizer that is none of torch's, as DeepSpeed's, and calls no hooks."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def step(self, closure):
        return self.optimizer.step(closure)

    def zero_grad(self):
        self.optimizer.zero_grad()


class DeepSpeedStrategy(pl.strategies.SingleDeviceStrategy):
    """In the place of Lightning's, which is known by its name."""

    def __init__(self, stage):
        super().__init__("cpu")
        self.zero_stage_3 = stage == 3

    def setup_optimizers(self, trainer):
        super().setup_optimizers(trainer)
        self.optimizers = [NotOfTorch(optimizer) for optimizer in self.optimizers]


class OfOnesOwn(DeepSpeedStrategy):
    pass


@pytest.fixture
def deepspeed(tmp_path):
    def make(stage, callbacks=(), kind=DeepSpeedStrategy):
        return pl.Trainer(
            callbacks=list(callbacks), strategy=kind(stage), default_root_dir=tmp_path, max_epochs=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
        )  # fmt: skip

    return make


def test_deepspeed_stage_3_is_refused_in_words(deepspeed):
    monitors = three()
    trainer = deepspeed(3, monitors)
    with pytest.warns(UserWarning, match="does not measure under") as seen:
        trainer.fit(Net(), loader())
    said = [str(w.message) for w in seen if "does not measure under" in str(w.message)]
    assert len(said) == 3
    assert "does not measure under DeepSpeed stage 3, which spreads the parameters" in said[0]
    assert [monitor.history for monitor in monitors] == [[], [], []]
    assert not math.isnan(trainer.global_step)
    with pytest.raises(TypeError, match="got DeepSpeedStrategy, which shards the parameters"):
        lt.topological_lr_find(deepspeed(3), Net(), loader())


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, OfOnesOwn])
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_stages_1_and_2_show_no_updates(stage, kind, deepspeed):
    monitors = three()
    trainer = deepspeed(stage, monitors, kind)
    with pytest.warns(UserWarning, match="BiLipschitzMonitor does not measure under DeepSpeed, whose optim") as seen:
        trainer.fit(Net(), loader())
    assert len([w for w in seen if "does not measure under" in str(w.message)]) == 1
    assert [len(monitor.history) for monitor in monitors] == [0, 6, 3]
    assert trainer.global_step == 6
    with pytest.raises(TypeError, match=rf"call hooks before and after a step .* got {kind.__name__}, .*train without"):
        deepspeed(stage, [lt.TopologicalStepClipping()], kind).fit(Net(), loader())
    with pytest.raises(TypeError, match=rf"call hooks before and after a step .* got {kind.__name__}, .*under another"):
        lt.topological_lr_find(deepspeed(stage, [], kind), Net(), loader())


def controlled(rank, name, folder, recorder):
    return fit(rank, name, folder, recorder, [lt.TopologicalRateControl()])


@pytest.mark.parametrize("name", ["ddp", "fsdp1", "fsdp2"])
def test_rates_are_controlled_alike_in_all_processes(name, processes, tmp_path, recorder):
    first, second = processes(2, controlled, name, tmp_path, copy.deepcopy(recorder))
    assert first["metrics"] == second["metrics"]
    assert 0 < first["metrics"]["control/learning_rate"] < first["metrics"]["control/critical_lr"]
    assert name == "fsdp1" or all(map(torch.equal, first["weights"], second["weights"]))  # there each has its own part
    rates = [row["control.learning_rate"] for _, row in first["rows"] if "control.learning_rate" in row]
    assert len(set(rates)) > 5
