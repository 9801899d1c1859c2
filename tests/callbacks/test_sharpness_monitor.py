"""SharpnessMonitor against the Hessian that torch.func computes."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.func import functional_call, hessian

import lightning_topo as lt
from lightning_topo.callbacks._admission import Admission


class KeepLosses(pl.Callback):
    """The largest Hessian eigenvalue of each batch's loss, from scratch, on a copy of the weights."""

    def __init__(self):
        self.eigenvalues = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        names = [name for name, _ in pl_module.net.named_parameters()]
        sizes = [p.numel() for p in pl_module.net.parameters()]
        shapes = [p.shape for p in pl_module.net.parameters()]
        flat = torch.cat([p.detach().flatten() for p in pl_module.net.parameters()]).double()
        buffers = {name: b.double() if b.is_floating_point() else b for name, b in pl_module.net.named_buffers()}
        x, y = batch

        def loss(vector):
            parts = [v.view(shape) for v, shape in zip(vector.split(sizes), shapes, strict=True)]
            state = dict(zip(names, parts, strict=True)) | {k: v.clone() for k, v in buffers.items()}
            return nn.functional.cross_entropy(functional_call(pl_module.net, state, (x.double(),)), y)

        self.eigenvalues.append(torch.linalg.eigvalsh(hessian(loss)(flat)).max().item())


@pytest.fixture
def smooth(classifier):
    def make(*args):
        module = classifier(*args)
        torch.manual_seed(0)
        module.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        return module

    return make


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}])
def test_agrees_with_the_dense_hessian(options, smooth, trainer, data, recorder):
    keep, monitor = KeepLosses(), lt.SharpnessMonitor(every_n_train_steps=2, max_overhead=None)
    made = trainer([keep, monitor], logger=[recorder], **options)
    made.fit(smooth(), data())
    per_step = options.get("accumulate_grad_batches", 1)
    expected = keep.eigenvalues[:: 2 * per_step]
    assert [record.lambda_max for record in monitor.history] == pytest.approx(expected, rel=2e-2)
    assert [value for _, value in recorder.series("sharpness.lambda_max")] == pytest.approx(expected, rel=2e-2)
    assert recorder.series("sharpness.inverse")[0][1] == pytest.approx(1 / expected[0], rel=2e-2)
    assert recorder.series("sharpness.coverage")[-1][1] == 1.0
    assert "sharpness/lambda_max" in made.callback_metrics


def test_half_precision_scale_is_taken_out(smooth, trainer, data):
    class Scaled:
        def get_scale(self):
            return 8.0

    keep, monitor = KeepLosses(), lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None)
    made = trainer([keep, monitor], max_steps=1)
    made.precision_plugin.scaler = Scaled()
    made.fit(smooth(), data())
    assert monitor.history[0].lambda_max == pytest.approx(keep.eigenvalues[0] / 8.0, rel=2e-2)


def test_manual_optimization(smooth, trainer, data):
    class Manual(type(smooth())):
        def __init__(self, *args):
            super().__init__(*args)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    torch.manual_seed(0)
    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None)
    trainer([monitor], max_epochs=1).fit(Manual(), data())
    assert len(monitor.history) == 12


def refused_once(make, trainer, data):
    """A whole fit, of which nothing can be measured: what is said of it, once."""
    torch.manual_seed(0)
    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None)
    made = trainer([monitor])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(make(), data())
    (said,) = (str(w.message) for w in caught if "SharpnessMonitor could not measure" in str(w.message))
    assert made.global_step == 24
    assert monitor.history == []
    return said


def test_a_loss_without_second_derivatives_warns_once(smooth, trainer, data):
    class Model(type(smooth())):
        def forward(self, x):
            h = self.net(x)[None, None]
            return nn.functional.scaled_dot_product_attention(h, h, h)[0, 0]

    refused_once(Model, trainer, data)


def test_complex_parameters_warn_once(smooth, trainer, data):
    class Model(type(smooth())):
        def __init__(self):
            super().__init__()
            self.filters = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, x):
            return self.net(torch.fft.irfft(torch.fft.rfft(x) * self.filters, n=6))

    assert "expected real parameters" in refused_once(Model, trainer, data)


@pytest.mark.parametrize("options", [{"every_n_train_steps": 0}, {"max_overhead": 0.0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        lt.SharpnessMonitor(**options)


class Slow(pl.Callback):
    """Makes the time before the backward pass look long."""

    def __init__(self, monitor):
        self.monitor = monitor

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.monitor._batch_began -= 10.0


def test_a_run_too_short_to_pay_for_a_measurement_says_so(smooth, trainer, data):
    monitor = lt.SharpnessMonitor()
    with pytest.warns(UserWarning, match="SharpnessMonitor measured nothing.*max_overhead=0.05"):
        trainer([monitor, Slow(monitor)]).fit(smooth(), data())
    assert monitor.history == []


def test_a_second_fit_too_short_to_pay_says_so_too(smooth, trainer, data):
    monitor = lt.SharpnessMonitor(max_overhead=1.0)
    trainer([monitor], max_epochs=20).fit(smooth(), data())
    assert (len(monitor.history), monitor.state_dict()["made"]) == (3, 3)
    for _ in range(2):
        with pytest.warns(UserWarning, match="SharpnessMonitor measured nothing"):
            trainer([monitor, Slow(monitor)]).fit(smooth(), data())
    assert len(monitor.history) == 3
    assert monitor.state_dict()["due"] == 1


def test_a_fresh_fit_after_one_of_a_single_step_is_measured(smooth, trainer, data):
    monitor = lt.SharpnessMonitor(max_overhead=None)
    for _ in range(2):
        trainer([monitor], max_steps=1).fit(smooth(), data())
    assert [record.step for record in monitor.history] == [0, 0]


def test_a_fit_that_goes_on_borrows_from_its_own_batches(smooth, trainer, data, monkeypatch):
    monitor, asked = lt.SharpnessMonitor(every_n_train_steps=12), []
    monkeypatch.setattr(Admission, "admits", lambda self, guess, run_time: asked.append(20 * run_time / guess))
    made, module = trainer([monitor], max_epochs=2), smooth()
    made.fit(module, data())
    made.fit_loop.max_epochs = 3
    made.fit(module, data())
    assert asked == pytest.approx([24, 24, 12])


@pytest.mark.parametrize("limits", [{"max_epochs": 1000}, {"max_epochs": -1, "max_steps": 1000}])
def test_a_long_run_pays_for_its_first_measurement(limits, smooth, trainer, data):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    monitor = lt.SharpnessMonitor()
    trainer([monitor, Slow(monitor), Stop()], **limits).fit(smooth(), data())
    assert len(monitor.history) == 1
