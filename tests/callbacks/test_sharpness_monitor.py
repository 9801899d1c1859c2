"""SharpnessMonitor against the Hessian that torch.func computes."""

import copy
import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.func import functional_call, hessian

import lightning_topo as lt
from lightning_topo.callbacks._admission import Admission
from lightning_topo.callbacks._critical_probe import CriticalProbe
from lightning_topo.callbacks._processes import Processes


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


class OwnSteps(pl.LightningModule):
    """Manual optimization; whoever inherits says how it steps."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Linear(6, 3)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PastLightning(OwnSteps):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.loss(batch).backward()
        optimizer.step()


def test_updates_of_a_loss_that_nobody_sees_warn_once(trainer, data):
    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None, method="critical")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([monitor]).fit(PastLightning(), data())
    (said,) = (str(w.message) for w in caught if "SharpnessMonitor" in str(w.message))
    assert "call it in the place of loss.backward()" in said
    assert monitor.history == []


def test_a_closure_that_goes_backward_within_the_step(trainer, data):
    class Closure(OwnSteps):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None, method="critical")
    trainer([monitor], max_epochs=1).fit(Closure(), data())
    assert [record.critical_lr > 0.1 for record in monitor.history] == [True] * 12


def refused_once(make, trainer, data):
    """A whole fit, of which nothing can be measured: what is said of it, once."""
    torch.manual_seed(0)
    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None, method="hessian")
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
    monitor = lt.SharpnessMonitor(method="hessian")
    with pytest.warns(UserWarning, match="SharpnessMonitor measured nothing.* 20 training.*max_overhead=0.05"):
        trainer([monitor, Slow(monitor)]).fit(smooth(), data())
    assert monitor.history == []


@pytest.mark.parametrize("method", ["auto", "critical"])
def test_so_does_one_too_short_for_the_critical_rate(method, smooth, trainer, data, monkeypatch):
    monkeypatch.setattr(CriticalProbe, "seconds", 10.0)
    monitor = lt.SharpnessMonitor(method=method)
    with pytest.warns(UserWarning, match="SharpnessMonitor measured nothing.* 2 training.*max_overhead=0.05"):
        trainer([monitor]).fit(smooth(), data())
    assert monitor.history == []


def test_a_second_fit_too_short_to_pay_says_so_too(smooth, trainer, data):
    monitor = lt.SharpnessMonitor(max_overhead=1.0, method="hessian")
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
    monitor, asked = lt.SharpnessMonitor(every_n_train_steps=12, method="hessian"), []
    monkeypatch.setattr(Admission, "admits", lambda self, kind, guess, run_time: asked.append(20 * run_time / guess))
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


class AlongByHand(pl.Callback):
    """The critical rate of each update, scanned in double precision on copies of the network, batch by batch."""

    def __init__(self):
        self.rates, self.batches = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.batches:
            self.before = copy.deepcopy(pl_module.net)
        self.batches.append(batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        net, batches, self.batches = copy.deepcopy(self.before).double(), self.batches, []
        starts = [p.detach().double() for p in self.before.parameters()]
        ends = [p.detach().double() for p in pl_module.net.parameters()]

        def loss(t):
            with torch.no_grad():
                for p, a, b in zip(net.parameters(), starts, ends, strict=True):
                    p.copy_(a + t * (b - a))
                losses = [nn.functional.cross_entropy(net(x.double()), y).item() for x, y in batches]
            return sum(losses) / len(losses)

        scan = (1.02**k for k in range(-500, 1500))
        self.rates.append(0.1 * next((t for t in scan if loss(t) >= loss(0)), float("inf")))


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}, {"gradient_clip_val": 0.05}])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_critical_rate_is_where_the_loss_comes_back(optimizer, options, smooth, trainer, data, recorder):
    kinds = {
        "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.1),
        "momentum": lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        "adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.1),
    }
    by_hand, monitor = AlongByHand(), lt.SharpnessMonitor(1, None, method="critical")
    made = trainer([by_hand, monitor], logger=[recorder], **options)
    made.fit(smooth(kinds[optimizer]), data())
    found = [record.critical_lr for record in monitor.history]
    assert len(found) == 24 / options.get("accumulate_grad_batches", 1)
    # Of losses that come back more than once, another place may be found.
    close = [value == pytest.approx(expected, rel=0.05) for value, expected in zip(found, by_hand.rates, strict=True)]
    assert sum(close) >= 0.9 * len(close)
    assert recorder.series("sharpness.critical_lr")[0][1] == pytest.approx(found[0])
    assert {value for _, value in recorder.series("sharpness.learning_rate")} == {0.1}
    assert "sharpness/critical_lr" in made.callback_metrics
    assert not recorder.series("sharpness.lambda_max")


class Quadratic(pl.LightningModule):
    """Half of θᵀHθ, of which everything is known."""

    def __init__(self, start, lr, optimizer=torch.optim.SGD):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start))
        self.hessian = torch.diag(torch.tensor([4.0, 1.0]))
        self.lr, self.optimizer = lr, optimizer

    def training_step(self, batch, batch_idx):
        return self.theta @ self.hessian @ self.theta / 2

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


@pytest.mark.parametrize("lr", [0.01, 0.3, 0.6])
def test_gradient_descent_along_the_leading_eigenvector_has_two_over_lambda(lr, trainer, data):
    monitor = lt.SharpnessMonitor(1, None)
    trainer([monitor], max_steps=3).fit(Quadratic([3.0, 0.0], lr), data())
    for record in monitor.history:
        assert record.critical_lr == pytest.approx(2 / record.lambda_max, rel=1e-4)
        assert record.learning_rate == lr
    assert len(monitor.history) == 3


def test_elsewhere_it_is_between_those_of_the_eigenvectors(trainer, data):
    monitor = lt.SharpnessMonitor(1, None, method="critical")
    trainer([monitor], max_steps=1).fit(Quadratic([1.0, 2.0], 0.1), data())
    gradient, hessian = torch.tensor([4.0, 2.0]), torch.diag(torch.tensor([4.0, 1.0]))
    exact = 2 * (gradient @ gradient / (gradient @ hessian @ gradient)).item()
    assert monitor.history[0].critical_lr == pytest.approx(exact, rel=1e-4)


class Uphill(torch.optim.SGD):
    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p += group["lr"] * p.grad
        return loss


def test_an_update_along_which_the_loss_rises_is_told_as_zero(trainer, data, recorder):
    monitor = lt.SharpnessMonitor(1, None, method="critical")
    trainer([monitor], max_steps=2, logger=[recorder]).fit(Quadratic([3.0, 1.0], 0.1, Uphill), data())
    assert [record.critical_lr for record in monitor.history] == [0.0, 0.0]
    assert recorder.series("sharpness.critical_lr") == [(0, 0.0), (1, 0.0)]


def test_an_update_of_zero_is_passed_over_for_the_next(trainer, data):
    class Warm(Quadratic):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, max(0, step - 1) / 4))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    monitor = lt.SharpnessMonitor(100, None, method="critical")
    trainer([monitor], max_steps=6).fit(Warm([3.0, 0.0], 0.1), data())
    assert [record.step for record in monitor.history] == [2]
    assert monitor.history[0].learning_rate == pytest.approx(0.1 / 4)
    assert monitor.history[0].critical_lr == pytest.approx(0.5, rel=1e-3)


def test_a_fit_that_moves_nothing_says_so(trainer, data):
    monitor = lt.SharpnessMonitor(1, None, method="critical")
    with pytest.warns(UserWarning, match="moved no parameter"):
        trainer([monitor], max_steps=2).fit(Quadratic([3.0, 1.0], 0.0), data())
    assert monitor.history == []


def test_auto_goes_on_with_the_critical_rate_where_second_derivatives_are_missing(smooth, trainer, data):
    class Model(type(smooth())):
        def forward(self, x):
            h = self.net(x)[None, None]
            return nn.functional.scaled_dot_product_attention(h, h, h)[0, 0]

    torch.manual_seed(0)
    monitor = lt.SharpnessMonitor(1, None)
    trainer([monitor]).fit(Model(), data())  # warnings are errors
    assert len(monitor.history) == 24
    assert all(math.isnan(record.lambda_max) and record.critical_lr > 0 for record in monitor.history)


def test_auto_measures_both_of_one_step_in_one_record(smooth, trainer, data, recorder):
    monitor = lt.SharpnessMonitor(4, None)
    trainer([monitor], logger=[recorder]).fit(smooth(), data())
    assert [record.step for record in monitor.history] == [0, 4, 8, 12, 16, 20]
    assert all(record.lambda_max > 0 and record.critical_lr > 0 for record in monitor.history)
    for key in ("lambda_max", "critical_lr"):
        assert [step for step, _ in recorder.series(f"sharpness.{key}")] == [0, 4, 8, 12, 16, 20]


def test_a_limited_budget_measures_the_cheaper_first(smooth, trainer, data):
    monitor = lt.SharpnessMonitor(4, 1.0)
    trainer([monitor], max_epochs=20).fit(smooth(), data())
    first = monitor.history[0]
    assert math.isnan(first.lambda_max)
    assert first.critical_lr > 0
    assert any(record.lambda_max > 0 for record in monitor.history)


def test_slow_steps_are_measured_by_the_clock(smooth, trainer, data, monkeypatch):
    class Clock(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            monitor._due_at -= 8.0  # each step takes eight seconds longer than it does

    monkeypatch.setattr(Admission, "admits", lambda *args, **times: True)
    for max_overhead, steps in ((0.05, [0, 3, 6, 9]), (None, [0])):
        monitor = lt.SharpnessMonitor(1000, max_overhead, method="critical")
        trainer([Clock(), monitor], max_epochs=1).fit(smooth(), data())
        assert [record.step for record in monitor.history] == steps


def test_several_processes_have_a_clock_each():
    monitor = lt.SharpnessMonitor()
    assert monitor._slow(1e9)
    monitor._due_at, monitor._processes = 0.0, Processes(strategy=object())
    assert not monitor._slow(1e9)


def test_what_cannot_be_repeated_warns_once(smooth, trainer, data):
    class Steps(type(smooth())):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.net[0].bias.mul_(0.9)
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    monitor = lt.SharpnessMonitor(1, None, method="critical")
    with pytest.warns(UserWarning, match="could not measure the critical rate.*changes no parameters itself") as said:
        trainer([monitor]).fit(Steps(), data())
    assert len([w for w in said if "SharpnessMonitor" in str(w.message)]) == 1
    assert monitor.history == []


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_is_near_single(precision, smooth, trainer, data):
    def fit(**options):
        pl.seed_everything(5, verbose=False)
        monitor = lt.SharpnessMonitor(1, None, method="critical")
        trainer([monitor], max_steps=6, **options).fit(smooth(), data())
        return [record.critical_lr for record in monitor.history]

    single, half = fit(), fit(precision=precision)
    assert sum(a == pytest.approx(b, rel=0.15) for a, b in zip(single, half, strict=True)) >= 5


def test_the_strategy_is_as_it_was_after_a_run_that_fails(smooth, trainer, data):
    class Fails(type(smooth())):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    monitor, made = lt.SharpnessMonitor(1, None), trainer([])
    made.callbacks.append(monitor)
    with pytest.raises(ZeroDivisionError):
        made.fit(Fails(), data())
    assert not {"training_step", "backward"} & vars(made.strategy).keys()


@pytest.mark.parametrize("sharpness_first", [True, False])
def test_beside_others_that_listen_to_the_same_steps(sharpness_first, smooth, trainer, data):
    monitors = [lt.SharpnessMonitor(2, None, method="critical"), lt.BiLipschitzMonitor(max_overhead=None)]
    alone = lt.SharpnessMonitor(2, None, method="critical")
    for callbacks in ([alone], monitors if sharpness_first else monitors[::-1]):
        pl.seed_everything(2, verbose=False)
        trainer(callbacks).fit(smooth(), data())
    assert [record.critical_lr for record in monitors[0].history] == [r.critical_lr for r in alone.history]
    assert len(monitors[1].history) == 24  # tanh units alone are a group


def test_scaled_back_updates_are_measured_as_they_were_made(smooth, trainer, data):
    monitor = lt.SharpnessMonitor(1, None, method="critical")
    clipping = lt.TopologicalStepClipping(1e-4)
    trainer([monitor, clipping], max_steps=3).fit(smooth(), data())
    assert clipping.clipped_updates == 3
    made = lt.SharpnessMonitor(1, None, method="critical")
    trainer([made], max_steps=3).fit(smooth(), data())
    # The same direction, some hundred times shorter.
    assert monitor.history[0].critical_lr > 10 * made.history[0].critical_lr


def test_options_of_the_method():
    with pytest.raises(ValueError, match="expected method to be one of auto, critical, hessian, got 'lanczos'"):
        lt.SharpnessMonitor(method="lanczos")
    assert lt.SharpnessMonitor().state_key == "SharpnessMonitor{'every_n_train_steps': 100, 'max_overhead': 0.05}"
    assert "'method': 'hessian'" in lt.SharpnessMonitor(method="hessian").state_key
