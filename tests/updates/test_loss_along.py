"""The loss along an update, against the same loss computed by hand, and the run against one without."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo.functional import critical_multiple
from lightning_topo.updates import (
    ModuleState,
    NotRepeatableError,
    ParametersBefore,
    RecordedSteps,
    StepHooks,
    loss_along,
    module_kept,
)

MULTIPLES = (0.0, 0.5, 1.0, 3.0)


class Model(pl.LightningModule):
    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3))
        self.seen = []

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        loss = self.loss(batch)
        self.log("loss", loss)
        self.logger.log_metrics({"own": loss.item()}, step=batch_idx)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Logger(pl.loggers.logger.DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Measure(pl.Callback):
    """Takes the losses along each update, and what by hand they are."""

    def __init__(self):
        self.losses, self.critical, self.failures, self.by_hand = [], [], [], []
        self.recorded, self.hooks = RecordedSteps(), StepHooks(self.before, self.after)

    def on_train_start(self, trainer, pl_module):
        self.trainer, self.module = trainer, pl_module
        self.hooks.attach(trainer.optimizers)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.recorded.recording:
            self.recorded.next_batch()
        else:
            try:
                self.recorded.start(trainer, pl_module)
            except NotRepeatableError as error:
                self.failures.append(str(error))
        self.batch = batch

    def before(self, index, optimizer):
        self.kept = None
        if not self.recorded.recording:
            return
        self.kept = ParametersBefore([p for group in optimizer.param_groups for p in group["params"]])
        self.kept.take()
        self.random = torch.get_rng_state()
        self.start = copy.deepcopy(self.module.net)

    def after(self, index, optimizer):
        if self.kept is None:
            return
        try:
            with loss_along(self.trainer, self.module, self.recorded, self.kept) as loss:
                self.losses.append([loss(t) for t in MULTIPLES])
                self.critical.append(critical_multiple(loss).multiple)
        except NotRepeatableError as error:
            self.failures.append(str(error))
        self.recorded.stop()

    def on_train_end(self, trainer, pl_module):
        self.hooks.release()
        self.recorded.forget()


class ByHand(Measure):
    """The same by a copy of the network: of a single batch, in training mode, with the mask of the step."""

    def after(self, index, optimizer):
        super().after(index, optimizer)
        if self.kept is None:
            return
        state = torch.get_rng_state()
        rows = []
        for t in MULTIPLES:
            net = copy.deepcopy(self.start)
            with torch.no_grad():
                for p, a, b in zip(
                    net.parameters(), self.start.parameters(), self.module.net.parameters(), strict=True
                ):
                    p.copy_(a + t * (b - a))
                torch.set_rng_state(self.random)
                rows.append(nn.functional.cross_entropy(net(self.batch[0]), self.batch[1]).item())
        torch.set_rng_state(state)
        self.by_hand.append(rows)


def fit(module, callbacks, **options):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(48, 6, generator=generator), torch.randint(3, (48,), generator=generator)
    logger = Logger()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=logger, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    pl.seed_everything(3, verbose=False)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True))
    return trainer, logger


def outcome(trainer, logger, module):
    return {
        "weights": module.state_dict(),
        "gradients": [p.grad for p in module.parameters()],
        "optimizers": [optimizer.state_dict()["state"] for optimizer in trainer.optimizers],
        "random": torch.get_rng_state(),
        "seen": module.seen,
        "rows": logger.rows,
        "attributes": sorted(vars(module)),
        "strategy": sorted(vars(trainer.strategy)),
        "metrics": trainer.callback_metrics,
        "steps": trainer.global_step,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_untouched(make, measure=Measure, **options):
    plain, measuring, watch = make(), make(), measure()
    expected = outcome(*fit(plain, [], **options), plain)
    found = outcome(*fit(measuring, [watch], **options), measuring)
    for name, value in expected.items():
        assert same(value, found[name]), name
    return watch


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_is_the_loss_by_hand(dropout):
    watch = assert_untouched(lambda: Model(dropout), ByHand)
    assert len(watch.losses) == 12
    for found, expected in zip(watch.losses, watch.by_hand, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert all(multiple > 0 for multiple in watch.critical)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.1},
        {"detect_anomaly": True},
    ],
)
def test_modes(options):
    watch = assert_untouched(lambda: Model(0.3), **options)
    assert len(watch.losses) == 12 / options.get("accumulate_grad_batches", 1)
    assert not watch.failures


def test_with_accumulation_it_is_the_mean_of_the_batches():
    class Losses(Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            kept.append(loss.item())
            return loss

    kept, watch = [], Measure()

    class Mark(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            means.append(sum(kept[-3:]) / 3)

    means = []
    fit(Losses(), [watch, Mark()], accumulate_grad_batches=3)
    assert [losses[0] for losses in watch.losses] == pytest.approx(means, rel=1e-6)


def test_lbfgs():
    class Model2(Model):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    watch = assert_untouched(Model2)
    assert len(watch.losses) == 12
    assert all(losses[2] < losses[0] for losses in watch.losses[1:])


class Manual(Model):
    """Two optimizers in turn, gradients of the other's parameters off meanwhile."""

    def __init__(self, dropout=0.3):
        super().__init__(dropout)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.seen.append(batch_idx)
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = self.loss(batch)
            self.log("loss", loss)
            optimizer.zero_grad()
            self.go_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def go_backward(self, loss):
        try:
            self.manual_backward(loss)
        except Exception:  # what a user may write; the end of the repeated step must get past it
            self.seen.append("caught")

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[:3].parameters(), lr=0.1), torch.optim.Adam(self.net[3:].parameters(), lr=1e-2)


def test_manual_optimization_measures_the_first_update_along_the_first_loss():
    watch = assert_untouched(lambda: Manual(0.0), ByHand)
    assert len(watch.losses) == 12
    for found, expected in zip(watch.losses, watch.by_hand, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert not assert_untouched(lambda: Manual(0.3)).failures


def test_manual_optimization_without_manual_backward_is_refused():
    class Plain(Manual):
        def go_backward(self, loss):
            loss.backward()

    watch = assert_untouched(Plain)
    assert not watch.losses
    assert all("call it in the place of loss.backward()" in failure for failure in watch.failures)
    assert watch.failures


def test_a_step_that_steps_by_itself_is_refused():
    class Stepping(Model):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.own = torch.optim.SGD([self.bias], lr=0.1)

        def training_step(self, batch, batch_idx):
            (self.bias - 1).square().sum().backward()
            self.own.step()
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    watch = assert_untouched(Stepping)
    assert not watch.losses
    assert all("changes no parameters itself" in failure for failure in watch.failures)
    assert len(watch.failures) == 12


@pytest.mark.parametrize("past_autograd", [True, False])
def test_a_step_that_moves_frozen_parameters_is_refused(past_autograd):
    class Teacher(Model):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)

        @torch.no_grad()
        def training_step(self, batch, batch_idx):
            for p, q in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                (p.data if past_autograd else p).lerp_(q, 1e-3)
            with torch.enable_grad():
                pull = (self.net(batch[0]) - self.teacher(batch[0]).detach()).square().mean()
                return super().training_step(batch, batch_idx) + pull

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.1)

    watch = assert_untouched(Teacher)
    # At the first step the teacher is the student, and its values move only once the step is made again elsewhere.
    assert len(watch.losses) == past_autograd
    assert len(watch.losses) + len(watch.failures) == 12


class SideEffects(Model):
    """A loss that depends on what it leaves behind: a counter, a buffer, a list of tensors, a generator, its input."""

    def __init__(self):
        super().__init__()
        self.calls, self.queue, self.memory = 0, [], torch.zeros(3)
        self.register_buffer("mean", torch.zeros(3))
        self.generator = torch.Generator().manual_seed(5)

    def loss(self, batch):
        x, y = batch
        x.mul_(1 + 0.01 * torch.rand(1, generator=self.generator))
        out = self.net(x)
        with torch.no_grad():
            self.mean.lerp_(out.mean(0), 0.1)
            self.memory += out.std(0)
        self.queue.append(out.detach().mean(0))
        self.calls += 1
        pull = sum(self.queue[-3:]) + self.mean + self.memory / self.calls
        return nn.functional.cross_entropy(out + pull / self.calls, y)


def test_side_effects_within_the_module_are_put_back():
    watch = assert_untouched(SideEffects)
    assert len(watch.losses) == 12
    assert not watch.failures


def test_a_loss_that_depends_on_what_cannot_be_put_back_is_refused():
    calls = []

    class Outside(Model):
        def loss(self, batch):
            calls.append(1)
            return super().loss(batch) * len(calls)

    watch = Measure()
    fit(Outside(), [watch])
    assert not watch.losses
    assert all("expected the training step to give its loss" in failure for failure in watch.failures)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_step_that_draws_its_batches_is_refused():
    class Drawing(Model):
        def training_step(self, dataloader_iter):
            batch, *_ = next(dataloader_iter)
            return self.loss(batch)

    watch = Measure()
    fit(Drawing(), [watch])
    assert not watch.losses
    assert all("dataloader_iter" in failure for failure in watch.failures)
    assert len(watch.failures) == 12


def test_two_that_listen_do_not_disturb_each_other():
    first, second = Measure(), Measure()
    trainer, _ = fit(Model(0.3), [first, second])
    assert first.losses == second.losses
    assert len(first.losses) == 12
    assert not {"training_step", "backward"} & vars(trainer.strategy).keys()


def test_a_step_that_raises_where_the_loss_is_large_is_not_lower_there():
    class Strict(Model):
        def loss(self, batch):
            loss = super().loss(batch)
            if loss > 3:
                raise FloatingPointError("too large")
            return loss

    watch = assert_untouched(Strict)
    assert len(watch.losses) == 12


def test_metrics_are_put_back():
    torchmetrics = pytest.importorskip("torchmetrics")

    class Measured(Model):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes=3)
            self.loss_mean = torchmetrics.CatMetric()

        def training_step(self, batch, batch_idx):
            self.accuracy(self.net(batch[0]), batch[1])
            self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
            loss = super().training_step(batch, batch_idx)
            self.loss_mean.update(loss.detach())
            return loss

    watch = assert_untouched(Measured)
    assert len(watch.losses) == 12


def test_module_state_is_put_back_as_often_as_asked():
    module = SideEffects()
    state, batch = ModuleState(module, [module.generator]), (torch.randn(8, 6), torch.randint(3, (8,)))
    losses = []
    for _ in range(3):
        losses.append(module.loss((batch[0].clone(), batch[1])).item())
        state.restore()
    assert losses[0] == losses[1] == losses[2]
    assert (module.calls, module.queue) == (0, [])
    with module_kept(module):
        module.eval()
        module.new = 1
        module.net[0].weight.requires_grad_(False)
        module._buffers["mean"] = torch.ones(3)
    assert module.net.training
    assert not hasattr(module, "new")
    assert module.net[0].weight.requires_grad
    assert not module.mean.any()
