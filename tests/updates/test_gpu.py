"""On a CUDA device: the same figures as on the CPU, and no step waits for the device."""

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.control import RateController, RateRule
from lightning_topo.updates import UpdateMeter

from .test_update_meter import blocks, move, sgd

pytestmark = pytest.mark.gpu


@pytest.fixture
def waits_are_errors():
    torch.cuda.set_sync_debug_mode("error")
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


def test_a_measured_step_waits_for_nothing(waits_are_errors):
    torch.cuda.set_sync_debug_mode("default")
    (_, model), groups = on_both()
    meter = UpdateMeter(sgd(model), model, groups, 16)
    meter.before(meter.sets)  # makes room for the copies
    meter.after()
    torch.cuda.set_sync_debug_mode("error")
    meter.before(meter.sets)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    measurement = meter.after()
    torch.cuda.set_sync_debug_mode("default")
    assert all(constants.criticality > 0 for _, constants in measurement.constants())


def test_a_fit_under_a_monitor_waits_for_nothing_in_its_steps(tmp_path):
    """Steps that are measured and not logged, after the groups are found."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = blocks(3)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Strict(pl.Callback):
        def on_before_optimizer_step(self, trainer, *args):
            if trainer.global_step > 2:
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, *args):
            torch.cuda.set_sync_debug_mode("default")

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer = pl.Trainer(
        max_steps=20, accelerator="gpu", devices=1, logger=False, callbacks=[monitor, Strict()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    try:
        trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,))), batch_size=8))
    finally:
        torch.cuda.set_sync_debug_mode("default")
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
