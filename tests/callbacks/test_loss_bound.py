"""max_loss_step of step clipping: where all neurons move together, which κ does not see."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt

from .test_sharpness_monitor import PastLightning
from .test_untouched import manual


class Regression(pl.LightningModule):
    """Neurons that are far apart and learn a constant together: gradient descent explodes, and κ stays small."""

    def __init__(self, lr):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = nn.Sequential(nn.Linear(1, 64, bias=False), nn.Sigmoid(), nn.Linear(64, 1, bias=False))
        self.lr, self.losses, self.made = lr, [], []
        with torch.no_grad():
            self.net[0].weight.copy_(4 * torch.randn(64, 1, generator=generator))
            self.net[2].weight.copy_(4 * torch.randn(1, 64, generator=generator))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Displacements(pl.Callback):
    """The rate at which each update of gradient descent was made, from the gradient and the parameters outside."""

    def __init__(self):
        self.rates, self.before = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moved = torch.cat(
            [(p.detach() - b).flatten() for p, b in zip(pl_module.parameters(), self.before, strict=True)]
        )
        gradient = torch.cat([p.grad.flatten() for p in pl_module.parameters()])
        self.rates.append(float(moved.norm() / gradient.norm()))


def one_batch(steps=60):
    x = torch.linspace(-2, 2, 32)[:, None]
    return DataLoader(TensorDataset(x.repeat(steps, 1), torch.full((32 * steps, 1), 5.0)), batch_size=32)


def fit(trainer, lr, *callbacks, **options):
    module = Regression(lr)
    trainer(callbacks, max_epochs=1, **options).fit(module, one_batch())
    return module


def test_a_collective_explosion_is_stopped(trainer):
    free, bounded = lt.TopologicalStepClipping(1.0), lt.TopologicalStepClipping(1.0, max_loss_step=0.5)
    wild = fit(trainer, 0.2, free)
    assert not max(wild.losses[30:]) < wild.losses[0]
    tame = fit(trainer, 0.2, bounded)
    assert max(tame.losses[30:]) < 0.5 * tame.losses[0]
    assert bounded.clipped_updates > 30


def test_updates_are_made_at_a_share_of_the_critical_rate(trainer, recorder):
    """The critical rate of each update is that of SharpnessMonitor beside it; the next ones are made at half of it."""
    clipping = lt.TopologicalStepClipping(1.0, max_loss_step=0.5, loss_every_n_train_steps=1)
    displacements = Displacements()
    fit(trainer, 0.2, clipping, displacements, logger=[recorder])
    found = [value for _, value in recorder.series("clipping.loss_critical_lr")]
    assert len(found) == 60
    bound = math.inf
    for step, rate in enumerate(displacements.rates):
        assert rate <= 1.01 * min(0.2, 0.5 * bound)
        if rate < 0.19 and step > 5:
            assert rate == pytest.approx(0.5 * bound, rel=0.01)
        bound = min(found[step], 2 * bound) if found[step] > 0 else bound


def test_the_critical_rate_is_the_monitors(trainer, recorder):
    clipping = lt.TopologicalStepClipping(1.0, max_loss_step=1e3, loss_every_n_train_steps=1)
    monitor = lt.SharpnessMonitor(every_n_train_steps=1, max_overhead=None, method="critical")
    fit(trainer, 1e-3, clipping, monitor, logger=[recorder])
    assert clipping.clipped_updates == 0
    ours, theirs = (dict(recorder.series(key)) for key in ("clipping.loss_critical_lr", "sharpness.critical_lr"))
    assert len(theirs) > 50
    for step, value in theirs.items():
        assert ours[step] == pytest.approx(value, rel=1e-3)


# Momentum may go up the loss of a batch: it does in one of these batches with torch 2.4.
@pytest.mark.filterwarnings("ignore:TopologicalStepClipping. the loss of a batch did not fall")
def test_training_is_as_without_where_the_bound_is_never_reached(classifier, trainer, data):
    def run(*callbacks):
        pl.seed_everything(1, verbose=False)
        module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9), dropout=0.2)
        trainer(callbacks).fit(module, data())
        return module

    plain, bounded = run(), run(lt.TopologicalStepClipping(1.0, max_loss_step=1e6, loss_every_n_train_steps=3))
    assert plain.seen == bounded.seen
    for a, b in zip(plain.state_dict().values(), bounded.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1"])
def test_bounds_that_bound_nothing(value):
    with pytest.raises(ValueError, match="expected max_loss_step to be a number above 0"):
        lt.TopologicalStepClipping(max_loss_step=value)


def test_several_optimizers_are_refused(classifier, trainer, data):
    torch.manual_seed(0)
    module = manual(type(classifier()))()
    with pytest.raises(ValueError, match="expected one optimizer with max_loss_step, got 2"):
        trainer([lt.TopologicalStepClipping(max_loss_step=0.5)]).fit(module, data())


def test_a_step_that_cannot_be_made_again_is_said_once_and_training_goes_on(classifier, trainer, data):
    base = type(classifier())

    class Draws(base):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.loss(batch)

        def on_train_batch_start(self, batch, batch_idx):
            pass

    torch.manual_seed(0)
    groups = [
        lt.NeuronGroup("net.4", (lt.Member("net.4.weight"), lt.Member("net.4.bias"), lt.Member("net.6.weight", 1)))
    ]
    clipping = lt.TopologicalStepClipping(groups=groups, max_loss_step=0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([clipping], max_epochs=1).fit(Draws(), data())
    said = [str(w.message) for w in caught if "could not measure the critical rate of the loss" in str(w.message)]
    assert len(said) == 1
    assert clipping.updates == 12


def test_a_loss_that_does_not_fall_along_the_update_is_said(classifier, trainer, data, recorder):
    """An optimizer that goes uphill."""
    clipping = lt.TopologicalStepClipping(1.0, max_loss_step=0.5, loss_every_n_train_steps=1)
    uphill = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, maximize=True))
    with pytest.warns(UserWarning, match="did not fall along its update, however short"):
        trainer([clipping], max_epochs=1, logger=[recorder]).fit(uphill, data())
    assert {value for _, value in recorder.series("clipping.loss_critical_lr")} == {0.0}
    assert clipping.clipped_updates == 0


def test_an_update_of_zero_tells_nothing(classifier, trainer, data, recorder):
    clipping = lt.TopologicalStepClipping(1.0, max_loss_step=0.5, loss_every_n_train_steps=1)
    still = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    trainer([clipping], max_epochs=1, logger=[recorder]).fit(still, data())
    assert not recorder.series("clipping.loss_critical_lr")
    assert clipping.clipped_updates == 0


def test_a_loss_that_nobody_sees_warns_once_and_bounds_nothing(trainer, data):
    rows = lt.NeuronGroup("rows", members=(lt.Member("net.weight", axis=0), lt.Member("net.bias", axis=0)))
    clipping = lt.TopologicalStepClipping(1.0, groups=[rows], max_loss_step=0.5, loss_every_n_train_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([clipping]).fit(PastLightning(), data())
    (said,) = (str(w.message) for w in caught if "could not measure" in str(w.message))
    assert "call it in the place of loss.backward()" in said
    assert (clipping.updates, clipping.clipped_updates) == (24, 0)


def test_with_accumulation_the_batches_of_an_update_are_measured_together(classifier, trainer, data, recorder):
    clipping = lt.TopologicalStepClipping(1.0, max_loss_step=0.5, loss_every_n_train_steps=1)
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.5))
    trainer([clipping], max_epochs=1, accumulate_grad_batches=3, logger=[recorder]).fit(module, data())
    assert len(recorder.series("clipping.loss_critical_lr")) == clipping.updates == 4
