"""The share of η* that is chosen by short trials of a run."""

import copy
import math
from itertools import islice

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as sched

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import ShareSearch, topological_lr_find

HOLD, STEPS = 6, 10


def shape(t):
    """Highest at update 3."""
    return min(1.0, (t + 1) / 4) * 0.5 * (1 + math.cos(math.pi * t / 24))


def warm_up_and_cosine(model):
    optimizer = Adam(model.parameters(), lr=model.lr)
    scheduler = sched.LambdaLR(optimizer, shape)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plain(model):
    return SGD(model.parameters(), lr=model.lr, momentum=0.9)


def decaying(model):
    optimizer = plain(model)
    return [optimizer], [sched.CosineAnnealingLR(optimizer, 2)]


def first_decides(model):
    optimizer = Adam(model.parameters(), lr=model.lr)
    return [optimizer], [sched.CosineAnnealingLR(optimizer, 2)]


def find(lab, model, loader=None, max_epochs=2, **options):
    loader = lab.loader(shuffle=False) if loader is None else loader
    options = {"hold_steps": HOLD, "trial_steps": STEPS, **options}
    return topological_lr_find(lab.trainer(max_epochs=max_epochs), model, loader, **options)


@pytest.mark.parametrize(("make", "warm_up"), [(warm_up_and_cosine, 3), (plain, 0)], ids=["schedule", "constant"])
def test_losses_are_those_of_training_by_hand(lab, make, warm_up):
    """Each short trial is so many steps from the start at its rate, at the schedule's peak once that is reached."""
    model, loader = lab.model(optimizer=make), lab.loader(shuffle=False)
    fresh = copy.deepcopy(model)
    result = find(lab, model, loader)
    factors = [shape(min(t, warm_up)) if warm_up else 1.0 for t in range(STEPS)]
    for trial in result.share_trials:
        network = copy.deepcopy(fresh)
        optimizer = (Adam if warm_up else lambda p, lr: SGD(p, lr, momentum=0.9))(network.parameters(), lr=1.0)
        losses = []
        for factor, batch in zip(factors, islice(loader, STEPS), strict=True):
            optimizer.param_groups[0]["lr"] = trial.lr * factor
            optimizer.zero_grad()
            loss = network.loss(batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert trial.losses == pytest.approx(losses[: len(trial.losses)], rel=1e-4)
        assert trial.steps == len(trial.losses)
    assert len(result.share_trials) >= 3
    by_share = {round(-math.log2(t.lr / result.critical_lr)): t for t in result.share_trials}
    assert result.safety == ShareSearch(STEPS).share(by_share, decays=bool(warm_up))
    assert model.lr == result.suggestion() == result.safety * result.critical_lr
    assert result.total_steps == sum(t.steps for t in (*result.trials, *result.share_trials))
    assert ("half of it for a run without decay" in repr(result)) is not bool(warm_up)


def test_first_trials_are_where_a_first_update_at_the_peak_would_be_one_to_one(lab):
    """With Adam the first update decides: a warm-up lifts η* far above the rate that its peak allows."""
    found = find(lab, lab.model(optimizer=warm_up_and_cosine))
    held = find(lab, lab.model(optimizer=warm_up_and_cosine), schedule=False)
    assert found.critical_lr > 2 * held.critical_lr
    assert found.share_trials[0].lr <= 1.1 * held.critical_lr
    assert "warm-up over 3 updates, then decay" in found.schedule
    assert "schedule=False" in held.schedule


@pytest.mark.parametrize(
    ("make", "largest"),
    [(plain, 1.0), (decaying, 0.5), (first_decides, 1.0)],
    ids=["constant", "decay", "first update"],
)
def test_no_more_than_a_half_is_suggested_unless_the_first_update_decides(lab, make, largest):
    """Losses that fall the faster the higher the rate, with no end: the largest share that is tried is the best."""

    class Greedy(lab.Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            return loss + (10 - math.log(rate) - loss).detach()

    result = find(lab, lab.model(cls=Greedy, optimizer=make))
    top = next(trial for trial in result.trials if trial.lr == result.bracket[1])
    assert (top.broke_at_step == 0) is (make is first_decides)
    assert max(trial.lr for trial in result.share_trials) == pytest.approx(largest * result.critical_lr)
    assert result.safety == pytest.approx(0.5 if make is plain else largest)


def test_number_asks_for_no_trials(lab):
    result = find(lab, lab.model(optimizer=plain), safety=0.3)
    assert (result.share_trials, result.safety) == ((), 0.3)


class Gan:
    """Two optimizers that step in turn."""

    def __new__(cls, lab):
        class Gan(lab.Classifier):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch, batch_idx):
                for optimizer in self.optimizers():
                    optimizer.zero_grad()
                    loss = self.loss(batch)
                    self.manual_backward(loss)
                    optimizer.step()
                return loss

            def configure_optimizers(self):
                return [SGD(self.net[0].parameters(), lr=self.lr), SGD(self.net[-1].parameters(), lr=self.lr)]

        return Gan


def returning(lab, value):
    class Returning(lab.Classifier):
        def __init__(self, **options):
            super().__init__(**options)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            optimizer.step()
            return value(loss)

    return Returning


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (Gan, "several optimizers"),
        (lambda lab: returning(lab, lambda loss: None), "returns no loss"),
        (lambda lab: returning(lab, lambda loss: {"loss": torch.stack([loss, loss])}), "returns several losses"),
        (lambda lab: returning(lab, lambda loss: loss.detach() * 0 + 3.0), "the loss was the same"),
    ],
    ids=["several optimizers", "no loss", "several losses", "constant loss"],
)
def test_share_of_a_quarter_where_losses_cannot_tell(lab, make, why):
    options = {} if make is Gan else {"optimizer": plain}
    result = find(lab, lab.model(cls=make(lab), **options))
    assert result.status == "found"
    assert result.safety == 0.25
    assert result.chosen.startswith("as ")
    assert why in repr(result)


def test_share_whose_trial_is_not_finite_is_left(lab):
    """Where the rate of a trial is high its loss becomes NaN, though no neuron is lost before."""

    class Fragile(lab.Classifier):
        def loss(self, batch):
            loss = super().loss(batch)
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            return loss * math.nan if self.stepped and rate > self.limit else loss

        stepped = False
        limit = math.inf

        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            self.stepped = True

    usual = find(lab, lab.model(cls=Fragile, optimizer=plain), update_attr=False)
    model = lab.model(cls=Fragile, optimizer=plain)
    model.limit = 0.4 * usual.critical_lr
    result = find(lab, model, safety=1.0)
    assert result.critical_lr < 0.5 * usual.critical_lr  # a trial that is not finite has broken
    chosen = find(lab, model)
    assert chosen.suggestion() <= model.limit
    assert all(trial.loss == math.inf for trial in chosen.share_trials if trial.lr > model.limit)


def test_loader_of_fewer_batches_than_a_trial_goes_on_with_its_next_epoch(lab):
    result = find(lab, lab.model(optimizer=plain), lab.loader(n=24, shuffle=False), max_epochs=20)
    assert {len(trial.losses) for trial in result.share_trials} <= set(range(STEPS // 2, STEPS + 1))
    assert max(len(trial.losses) for trial in result.share_trials) == STEPS


def test_schedule_that_cannot_be_copied_is_said_and_the_rate_held(lab):
    class Locked(sched.LambdaLR):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    def make(model):
        optimizer = plain(model)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": Locked(optimizer, lambda t: (t + 1) / 9), "interval": "step"},
        }

    with pytest.warns(UserWarning, match=r"cannot follow the run's schedule: Locked cannot be copied .* hold the rate"):
        locked = find(lab, lab.model(optimizer=make))
    assert locked.critical_lr == find(lab, lab.model(optimizer=plain)).critical_lr
    assert "cannot be known" in locked.schedule


def test_checkpoint_keeps_the_trials_of_shares(lab):
    finder = TopologicalLearningRateFinder(hold_steps=HOLD, trial_steps=STEPS)
    lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(optimizer=plain), lab.loader())
    other = TopologicalLearningRateFinder()
    other.load_state_dict(finder.state_dict())
    assert other.result == finder.result
    assert other.optimal_lr == finder.optimal_lr
    assert other.result.share_trials


def test_accumulated_batches_are_one_step(lab):
    trainer = lab.trainer(max_epochs=20, accumulate_grad_batches=2)
    result = topological_lr_find(trainer, lab.model(optimizer=plain), lab.loader(), hold_steps=HOLD, trial_steps=STEPS)
    assert (STEPS, 2 * STEPS) in {(trial.steps, len(trial.losses)) for trial in result.share_trials}
    assert all(len(trial.losses) - 2 * trial.steps in (0, 1) for trial in result.share_trials)


def test_run_with_a_cosine_learns_at_the_suggestion(lab):
    def cosine(model):
        optimizer = plain(model)
        return [optimizer], [sched.CosineAnnealingLR(optimizer, 8)]

    model = lab.model(optimizer=cosine)
    finder = TopologicalLearningRateFinder()
    lab.trainer(max_epochs=8, callbacks=[finder]).fit(model, lab.loader())
    assert finder.result.schedule == "decay"
    with torch.no_grad():
        loss = sum(float(model.loss(batch)) for batch in lab.loader()) / 12
    assert loss < 0.5 * math.log(3)
    assert isinstance(model.net[0], nn.Linear)
