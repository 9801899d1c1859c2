"""Trials through Lightning's loops against the same training written out by hand."""

import copy
from itertools import count, islice

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import CriticalRateSearch, Trial
from lightning_topo.functional.bi_lipschitz import bi_lipschitz
from lightning_topo.neurons import find_neuron_groups

HOLD = 12
SEED = 11


def seeded(lab):
    """Shuffled by epoch, so that the search and a second reader see the same batches."""
    sampler = torch.utils.data.DistributedSampler(lab.data(), num_replicas=1, rank=0, seed=SEED)
    return lab.loader(shuffle=False, sampler=sampler)


def epochs(loader):
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def plain_search(model, loader, make_optimizer, accumulate=1, clip=None, hold=HOLD, **options):
    """The search with a training loop of ten lines."""
    groups = find_neuron_groups(model)
    batches = list(islice(epochs(loader), hold * accumulate))

    def hold_rate(lr):
        network = copy.deepcopy(model)
        optimizer = make_optimizer(network, lr)
        largest = 0.0
        for step in range(hold):
            optimizer.zero_grad()
            for batch in batches[step * accumulate : (step + 1) * accumulate]:
                (network.loss(batch) / accumulate).backward()
            if clip:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            before = [group.points(network) for group in groups]
            optimizer.step()
            pairs = zip(before, (group.points(network) for group in groups), strict=True)
            largest = max(largest, *(bi_lipschitz(p, q).criticality for p, q in pairs))
            if largest >= 1:
                return Trial(lr, False, step, largest, steps=step + 1)
        return Trial(lr, True, None, largest, steps=hold)

    search = CriticalRateSearch(**options)
    state = search.init()
    while not search.terminate(state):
        state = search.step(state, hold_rate(state.next_lr))
    return search.result(state)


def summary(result):
    # Sums of single precision depend on where the allocator puts their terms: a few digits are left.
    return [(float(f"{t.lr:.4g}"), t.held, t.broke_at_step, t.steps) for t in result.trials]


OPTIMIZERS = {
    "sgd": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
    "nesterov": lambda model, lr: torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adamw": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr),
    "groups": lambda model, lr: torch.optim.SGD(
        [{"params": model.net[:4].parameters()}, {"params": model.net[4:].parameters(), "lr": lr / 4}], lr=lr
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trainer_options", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 3}])
def test_agrees_with_a_hand_written_loop(lab, optimizer, trainer_options):
    make = OPTIMIZERS[optimizer]
    model = lab.model(optimizer=lambda m: make(m, m.lr))
    expected = plain_search(
        copy.deepcopy(model),
        seeded(lab),
        make,
        trainer_options.get("accumulate_grad_batches", 1),
        trainer_options.get("gradient_clip_val"),
    )
    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    lab.trainer(max_steps=1, callbacks=[finder], **trainer_options).fit(model, seeded(lab))
    assert expected.status == "found"
    assert summary(finder.result) == summary(expected)
    seen = [trial.max_criticality for trial in finder.result.trials]
    assert seen == pytest.approx([trial.max_criticality for trial in expected.trials], rel=1e-3)


def test_schedule_that_is_not_followed_does_not_move_a_held_rate(lab):
    """A warm-up from zero: the rate that is held, and found, is the one it warms up to."""

    def warm_up(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=model.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    results = []
    for make in (warm_up, None):
        finder = TopologicalLearningRateFinder(hold_steps=HOLD, schedule=False)
        lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(optimizer=make), seeded(lab))
        results.append(finder.result)
    assert summary(results[0]) == summary(results[1])


def test_manual_optimization_is_held_at_the_same_rates(lab):
    class Manual(lab.Classifier):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    results = []
    for cls in (Manual, lab.Classifier):
        finder = TopologicalLearningRateFinder(hold_steps=HOLD)
        lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(cls=cls), seeded(lab))
        results.append(finder.result)
    assert summary(results[0]) == summary(results[1])


def test_several_optimizers_each_move_their_part(lab):
    """Two optimizers with rates 1 : 4 are one optimizer with two such groups, stepped one after the other."""

    class Two(lab.Classifier):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            self.zero_grad()
            self.manual_backward(self.loss(batch))
            first.step()
            second.step()

        def configure_optimizers(self):
            head, tail = self.net[:4].parameters(), self.net[4:].parameters()
            return torch.optim.SGD(head, lr=self.lr), torch.optim.SGD(tail, lr=self.lr / 4)

    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    model = lab.model(cls=Two)
    trainer = lab.trainer(max_steps=2, callbacks=[finder])
    trainer.fit(model, seeded(lab))
    assert finder.result.status == "found"
    assert all(trial.steps == (HOLD if trial.held else trial.broke_at_step + 1) for trial in finder.result.trials)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([finder.optimal_lr, finder.optimal_lr / 4])
    # Both halves of an update are measured on their own, so that the rate may be above that of the joint update, but
    # each half moves no more than the joint update of a single optimizer.
    joint = plain_search(lab.model(), seeded(lab), OPTIMIZERS["groups"])
    assert finder.result.critical_lr > 0.5 * joint.critical_lr


def test_more_orders_hold_in_each(lab):
    one, three = (
        TopologicalLearningRateFinder(hold_steps=HOLD, orders=orders, tolerance=0.02, update_attr=False)
        for orders in (1, 3)
    )
    for finder in (one, three):
        lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(), seeded(lab))
    assert three.result.bracket[0] <= one.result.bracket[1]
    assert max(trial.steps for trial in three.result.trials if trial.held) == 3 * HOLD
    assert all(trial.broke_at_step < HOLD for trial in three.result.trials if not trial.held)


def test_loader_shorter_than_the_hold_goes_on(lab):
    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    lab.trainer(max_epochs=1, callbacks=[finder]).fit(lab.model(), lab.loader(n=32, batch_size=8))
    held = [trial for trial in finder.result.trials if trial.held]
    assert held[0].steps == len(held[0].losses) == HOLD


def test_losses_are_the_training_losses(lab):
    finder = TopologicalLearningRateFinder(hold_steps=HOLD, update_attr=False)
    model = lab.model()
    first = next(iter(seeded(lab)))
    expected = copy.deepcopy(model).loss(first).item()
    lab.trainer(max_steps=1, callbacks=[finder]).fit(model, seeded(lab))
    assert all(trial.losses[0] == pytest.approx(expected) for trial in finder.result.trials)
    assert all(len(trial.losses) == trial.steps for trial in finder.result.trials)


class Losses:
    """Manual optimization whose step returns something other than one loss."""

    def __new__(cls, lab, returned):
        class Losses(lab.Classifier):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.automatic_optimization = False

            def training_step(self, batch, batch_idx):
                optimizer, loss = self.optimizers(), self.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                return returned(loss.detach())

        return Losses


RETURNED = {
    "two losses": lambda loss: torch.stack([loss - 1, loss + 1]),
    "a matrix": lambda loss: loss.expand(2, 3),
    "half precision": lambda loss: loss.bfloat16(),
    "in a dictionary": lambda loss: {"loss": loss[None]},
}


@pytest.mark.parametrize("returned", RETURNED)
def test_losses_that_are_no_scalars_are_told_by_their_mean(lab, returned):
    results = []
    for each in (RETURNED[returned], lambda loss: loss):
        finder = TopologicalLearningRateFinder(hold_steps=HOLD)
        lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(cls=Losses(lab, each)), seeded(lab))
        results.append(finder.result)
    assert summary(results[0]) == summary(results[1])
    for trial, plain in zip(results[0].trials, results[1].trials, strict=True):
        assert trial.losses == pytest.approx(plain.losses, rel=1e-2)


@pytest.mark.parametrize("returned", [lambda loss: None, lambda loss: loss[None][:0]])
def test_step_without_a_loss_has_trials_without_losses(lab, returned):
    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    lab.trainer(max_steps=1, callbacks=[finder]).fit(lab.model(cls=Losses(lab, returned)), seeded(lab))
    assert finder.result.status == "found"
    assert {trial.losses for trial in finder.result.trials} == {()}


class Stream(torch.utils.data.IterableDataset):
    """Some batches of which the first are empty."""

    def __init__(self, data, empty):
        self.data, self.empty = data, empty

    def __iter__(self):
        for i in range(30):
            yield self.data[8 * i % 80 : 8 * i % 80 + (0 if i < self.empty else 8)]


class Summed:
    """The classifier with a loss that an empty batch has, too."""

    def __new__(cls, lab):
        class Summed(lab.Classifier):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

            def loss(self, batch):
                return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="sum")

        return Summed


def test_neurons_are_found_with_the_first_batch_that_is_not_empty(lab):
    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    model, data = lab.model(cls=Summed(lab)), lab.data()
    lab.trainer(max_steps=3, callbacks=[finder]).fit(model, torch.utils.data.DataLoader(Stream(data, 2), None))
    assert finder.result.status == "found"
    assert finder.result.trials[0].group == "net.0"
    assert model.seen[:2] == [0.0, 0.0]


def test_nothing_but_empty_batches_is_said(lab):
    trainer = lab.trainer(callbacks=[TopologicalLearningRateFinder(hold_steps=HOLD)])
    with pytest.raises(ValueError, match=r"first 10.*all are empty.*example_input_array"):
        trainer.fit(lab.model(cls=Summed(lab)), torch.utils.data.DataLoader(Stream(lab.data(), 30), None))


def unseen(lab, kind):
    """Models whose updates no optimizer of the Trainer makes by its step()."""

    class Unseen(lab.Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))
            if kind == "by another method":
                self.optimizers().optimizer.first_step()

        def on_train_start(self):
            if kind == "within backward":
                self.own = {p: torch.optim.SGD([p], lr=self.lr) for p in self.parameters()}
                for parameter in self.parameters():
                    parameter.register_post_accumulate_grad_hook(self.step_now)

        def step_now(self, parameter):
            self.own[parameter].step()
            self.own[parameter].zero_grad()

        def configure_optimizers(self):
            if kind == "within backward":
                return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.lr)
            return Perturbing(self.parameters(), lr=self.lr)

    return lab.model(cls=Unseen)


class Perturbing(torch.optim.SGD):
    @torch.no_grad()
    def first_step(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(0.01 * parameter.grad)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("within backward", r"hold parameters of the neurons.*but they hold none.*step within backward"),
        ("by another method", r"none of configure_optimizers'.*although parameters moved.*first_step"),
        ("never", r"none of configure_optimizers'.*no parameter moved.*step()"),
    ],
)
def test_updates_that_the_trial_cannot_see_are_said_as_they_are(lab, kind, message):
    trainer = lab.trainer(callbacks=[TopologicalLearningRateFinder(hold_steps=HOLD)])
    with pytest.raises((ValueError, RuntimeError), match=message):
        trainer.fit(unseen(lab, kind), seeded(lab))


class Renewing(pl.Callback):
    """Gives the Trainer new optimizers before its first batch."""

    def on_train_epoch_start(self, trainer, pl_module):
        trainer.strategy.setup_optimizers(trainer)


def test_optimizers_that_were_renewed_in_the_fit_are_those_that_are_held(lab):
    finder, model = TopologicalLearningRateFinder(hold_steps=HOLD), lab.model()
    trainer = lab.trainer(max_epochs=1, callbacks=[Renewing(), finder])
    trainer.fit(model, seeded(lab))
    assert finder.result.status == "found"
    assert trainer.optimizers[0].param_groups[0]["lr"] == finder.optimal_lr


def test_optimizers_that_are_renewed_within_a_trial_are_said(lab):
    class Restarting(lab.Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                self.trainer.strategy.setup_optimizers(self.trainer)

    trainer = lab.trainer(callbacks=[TopologicalLearningRateFinder(hold_steps=HOLD)])
    with pytest.raises(RuntimeError, match="keep its optimizers during a trial"):
        trainer.fit(lab.model(cls=Restarting), seeded(lab))
