"""On a CUDA device: the same figures as on the CPU, and no step waits for the device."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt
from lightning_topo.control import RateController, RateRule
from lightning_topo.updates import UpdateMeter, recorded_work
from lightning_topo.updates.recorded_work import RecordedWork

from .. import small
from .test_update_meter import blocks, move, sgd

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")]


@pytest.fixture(autouse=True)
def waits_are_allowed_again():
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_both(depth=4):
    models = blocks(depth), blocks(depth).cuda()
    groups = lt.find_neuron_groups(models[0], torch.randn(2, 6))
    return models, groups


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("size", [None, 16])
def test_the_figures_are_those_of_the_cpu(precision, size):
    (host, device), groups = on_both()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = []
        for model in (host, device):
            meter = UpdateMeter(sgd(model), model, groups, size)
            meter.before(meter.sets)
            with torch.no_grad():
                move(host, 0) if model is host else device.load_state_dict(host.state_dict())
            found.append({group.name: constants for group, constants in meter.after().constants()})
    finally:
        torch.set_float32_matmul_precision(before)
    for name, constants in found[0].items():
        other = found[1][name]
        assert other.criticality == pytest.approx(constants.criticality, rel=1e-6)
        assert (other.lower, other.upper) == pytest.approx((constants.lower, constants.upper), rel=1e-6)


@pytest.mark.parametrize("estimates", [False, True])
def test_a_measured_step_waits_for_nothing(estimates):
    (_, model), groups = on_both()
    meter = UpdateMeter(sgd(model), model, groups, 16, estimates=estimates)
    for strict in (False, True, True, True):  # the first makes room for the copies, the second records
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        meter.before(meter.sets)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        measurement = meter.after()
        torch.cuda.set_sync_debug_mode("default")
        assert all(kappa > 0 for kappa, _ in measurement.criticalities())


@pytest.mark.parametrize("estimates", [False, True])
def test_recorded_measurements_are_the_same_bit_for_bit(estimates, monkeypatch):
    """Read late, after parameters have found other memory, and in other precisions of products."""
    results = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(recorded_work, "_fits", lambda one: False)
        (_, model), groups = on_both()
        meter = UpdateMeter(sgd(model), model, groups, 16, estimates=estimates)
        generator = torch.Generator("cuda").manual_seed(0)
        measurements = []
        for update in range(12):
            if update == 4:
                for parameter in model.parameters():
                    parameter.data = parameter.data.clone()
            if update == 8:
                torch.set_float32_matmul_precision("high")
            meter.before(meter.sets)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator, device="cuda"), alpha=0.01)
            measurements.append(meter.after())
            replayed = [one._graph is not None for one in meter._recordings._of.values()]
            assert (update, replayed) == (update, [update not in (0, 4, 8)] * recorded)
        torch.set_float32_matmul_precision("highest")
        rows = [list(measurement.rows()) for measurement in measurements]
        constants = [] if estimates else [measurement.constants() for measurement in measurements]
        results.append((torch.tensor(rows).nan_to_num(7.0), constants))
    assert torch.equal(results[0][0], results[1][0])
    assert repr(results[0][1]) == repr(results[1][1])


def test_what_cannot_be_recorded_is_done_as_it_is():
    """Here: work that reads a number. Random numbers, memory and later recordings are as before."""
    x, device = torch.arange(4.0, device="cuda"), torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    state = torch.cuda.get_rng_state()
    recorded = RecordedWork(device, torch.cuda.graph_pool_handle())
    with pytest.warns(UserWarning, match="could not be recorded"):
        found = [recorded([lambda: (x * float(x.sum()),)])[0][0] for _ in range(3)]
    assert all(torch.equal(one, 6 * x) for one in found)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    drawn = torch.rand(3, device="cuda")
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
    other = RecordedWork(device, torch.cuda.graph_pool_handle())
    for _ in range(3):
        ((result,),) = other([lambda: (2 * x,)])
        x.add_(1)
    assert torch.equal(result, 2 * (x - 1))
    assert other._graph is not None


def test_a_monitored_run_is_the_plain_one_bit_for_bit(tmp_path):
    """With dropout, whose random numbers a recording must not touch."""

    def run(callbacks):
        pl.seed_everything(0, verbose=False)
        module = Module(dropout=0.3)
        fit(module, callbacks, tmp_path)
        return [parameter.detach().cpu() for parameter in module.parameters()]

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    plain, monitored = run([]), run([monitor, lt.SharpnessMonitor(max_overhead=None)])
    assert all(map(torch.equal, plain, monitored))
    assert len({record.step for record in monitor.history}) == 20


class Module(pl.LightningModule):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(blocks(3), nn.Dropout(dropout))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module, callbacks, folder):
    """Twenty steps on the GPU."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 6, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    options = {"accelerator": "gpu", "devices": 1, "max_epochs": None, "max_steps": 20, "callbacks": callbacks}
    small.trainer(folder, **options).fit(module, DataLoader(TensorDataset(x, y), batch_size=8))


def test_a_fit_under_a_monitor_waits_for_nothing_in_its_steps(tmp_path):
    """Steps that are measured and not logged, after the groups are found."""

    class Strict(pl.Callback):
        def on_before_optimizer_step(self, trainer, *args):
            if trainer.global_step > 2:
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, *args):
            torch.cuda.set_sync_debug_mode("default")

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    fit(Module(), [monitor, Strict()], tmp_path)
    assert {record.step for record in monitor.history} == set(range(20))


def test_a_controlled_run_repeats_itself():
    def run():
        model = blocks(2).cuda()
        groups = lt.find_neuron_groups(model, torch.randn(2, 6).cuda())
        optimizer = sgd(model)
        controller = RateController(optimizer, model, groups, RateRule(0.2), every=4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            x = torch.randn(16, 6, generator=generator).cuda()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            controller.before()
            optimizer.step()
            controller.after()
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, run(), run()))
