"""Schedules that are looked ahead, against the rates at which a fit is made."""

import pytest
from torch.optim import SGD
from torch.optim import lr_scheduler as sched

from lightning_topo._lightning import Callback
from lightning_topo.finder import Schedule
from lightning_topo.finder._ahead import UnknownScheduleError, schedule_ahead
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder._run_schedules import RunSchedules


class Look(Callback):
    """Looks ahead at the first batch, and records the rates of each update after it."""

    def __init__(self, at=0):
        self.at, self.rates, self.schedule, self.remark, self.words = at, [], None, "", ""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.at:
            rates = BaseRates.of_run(trainer, None)
            self.base = rates.of(trainer.optimizers[0])
            before = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
            groups = [dict(group) for group in trainer.optimizers[0].param_groups]
            self.schedule, self.remark = schedule_ahead(trainer, pl_module, self.base)
            self.words = RunSchedules.of_run(trainer, pl_module, rates, True).words
            assert [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs] == before
            assert [dict(group) for group in trainer.optimizers[0].param_groups] == groups

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.schedule is not None:
            self.rates.append([group["lr"] for group in optimizer.param_groups])


def optimizer(model):
    first, *rest = model.parameters()
    return SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.01}], lr=0.1, momentum=0.9)


def chained(o):
    warm_up = sched.LinearLR(o, 0.1, total_iters=5)
    return sched.SequentialLR(o, [warm_up, sched.CosineAnnealingLR(o, 19)], milestones=[5])


SCHEDULERS = {
    "one cycle": lambda o: sched.OneCycleLR(o, [0.1, 0.01], total_steps=40),
    "cosine": lambda o: sched.CosineAnnealingLR(o, 24),
    "restarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 5),
    "warm-up": lambda o: sched.LambdaLR(o, lambda step: min(1.0, step / 8)),
    "step": lambda o: sched.StepLR(o, 3),
    "exponential": lambda o: sched.ExponentialLR(o, 0.8),
    "cyclic": lambda o: sched.CyclicLR(o, [0.02, 0.002], [0.1, 0.01], step_size_up=4),
    "sequence": chained,
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"interval": "step"}, {}),
        ({"interval": "epoch"}, {}),
        ({"interval": "step", "frequency": 2}, {"accumulate_grad_batches": 2}),
        ({"interval": "epoch", "frequency": 2}, {"accumulate_grad_batches": 5}),
    ],
)
def test_every_update_is_made_at_the_rate_that_was_foreseen(lab, name, config, options):
    def make(model):
        o = optimizer(model)
        return {"optimizer": o, "lr_scheduler": {"scheduler": SCHEDULERS[name](o), **config}}

    look = Look(at=3)
    lab.trainer(max_epochs=3, callbacks=[look], **options).fit(lab.model(optimizer=make), lab.loader())
    assert len(look.rates) > 3
    foreseen = [
        [base * f for base, f in zip(look.base, look.schedule.at(t), strict=True)] for t in range(len(look.rates))
    ]
    for rates, expected in zip(look.rates, foreseen, strict=True):
        assert rates == pytest.approx(expected, rel=1e-6)
    assert look.schedule.complete
    assert look.remark == ""


def test_one_cycle_that_is_too_short_is_said_and_held_at_its_last_rate(lab):
    def make(model):
        o = SGD(model.parameters(), lr=model.lr)
        return {
            "optimizer": o,
            "lr_scheduler": {"scheduler": sched.OneCycleLR(o, 0.1, total_steps=10), "interval": "step"},
        }

    look = Look()
    trainer = lab.trainer(max_epochs=3, callbacks=[look])
    with (
        pytest.warns(UserWarning, match="ends before the run does: after 11 updates"),
        pytest.raises(ValueError, match="Tried to step"),
    ):
        trainer.fit(lab.model(optimizer=make), lab.loader())
    assert look.schedule.at(10) == look.schedule.at(1000)
    assert look.schedule.at(9) == pytest.approx([look.rates[9][0] / 0.1])


def test_scheduler_that_cannot_be_copied(lab):
    class Locked(sched.LambdaLR):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle '_thread.lock' object")

    def make(model):
        o = SGD(model.parameters(), lr=model.lr)
        return {"optimizer": o, "lr_scheduler": Locked(o, lambda step: 0.5)}

    look = Look()
    with pytest.raises(UnknownScheduleError, match=r"Locked cannot be copied .*_thread.lock"):
        lab.trainer(max_steps=1, callbacks=[look]).fit(lab.model(optimizer=make), lab.loader())


def test_plateau_is_held_until_it_acts(lab):
    def make(model):
        o = SGD(model.parameters(), lr=model.lr)
        scheduler = {"scheduler": sched.ReduceLROnPlateau(o), "monitor": "train/loss"}
        return {"optimizer": o, "lr_scheduler": scheduler}

    class Logs(lab.Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss)
            return loss

    look = Look()
    lab.trainer(max_steps=1, callbacks=[look]).fit(lab.model(cls=Logs, optimizer=make), lab.loader())
    assert look.schedule == Schedule.constant(1)
    assert look.words == "constant, until ReduceLROnPlateau lowers it"


def test_run_without_end_is_looked_ahead_as_far_as_can_be_afforded(lab):
    def make(model):
        o = SGD(model.parameters(), lr=model.lr)
        scheduler = sched.LambdaLR(o, lambda step: min(1.0, (step + 1) / 100) * 0.99999**step)
        return {"optimizer": o, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    look = Look()
    lab.trainer(max_epochs=-1, callbacks=[look, Stop()]).fit(lab.model(optimizer=make), lab.loader())
    assert not look.schedule.complete
    assert look.schedule.decays
    assert look.schedule.warm_up == 99


def linear(warm_up, length, end=1.0):
    factors = [
        min(1.0, (t + 1) / warm_up) * (1 + (end - 1) * max(0, t - warm_up) / (length - warm_up)) for t in range(length)
    ]
    return Schedule(tuple(range(length)), tuple((factor,) for factor in factors))


def test_what_a_trial_follows():
    short, long = linear(10, 100, end=0.0), linear(1000, 10_000, end=0.0)
    assert short.followed(50) == [short.at(t) for t in range(50)]
    followed = [factor for (factor,) in long.followed(50)]
    assert followed[0] == pytest.approx(1e-3)
    assert followed[:30] == sorted(followed[:30])
    assert followed[30] == 1.0
    assert followed[30:] == [long.at(999 + t)[0] for t in range(20)]
    plateau = [factor for (factor,) in linear(1, 20, end=0.0).followed(25, 0.3, plateau=True)]
    assert plateau == [1.0] * 25


@pytest.mark.parametrize(
    ("schedule", "decays", "words"),
    [
        (Schedule.constant(2), False, "constant"),
        (linear(10, 100), False, "warm-up over 9 updates"),
        (linear(10, 100, end=0.6), False, "warm-up over 9 updates"),
        (linear(10, 100, end=0.4), True, "warm-up over 9 updates, then decay"),
        (linear(1, 100, end=0.0), True, "decay"),
        (Schedule((0,), ((0.5,),)), False, "constant at 0.5 of the base rate"),
    ],
)
def test_what_a_schedule_is_called(schedule, decays, words):
    assert (schedule.decays, str(schedule)) == (decays, words)
