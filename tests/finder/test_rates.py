import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as sched

from lightning_topo.finder._rates import BaseRates


def weights():
    return [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]


def groups(lr):
    first, second = weights()
    return SGD([{"params": [first], "lr": lr}, {"params": [second], "lr": lr / 10}], lr=lr, momentum=0.9)


def course(make, lr, steps=12, moved_from=None, at=0):
    """Rates of both groups over a run at base rate ``lr``, or one that is moved to it at a step."""
    start = lr if moved_from is None else moved_from
    optimizer = groups(start)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        if moved_from is not None and step == at:
            BaseRates([optimizer], [scheduler], start).move_to(lr)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(1.0) if isinstance(scheduler, sched.ReduceLROnPlateau) else scheduler.step()
    return rates


SCHEDULERS = {
    "one cycle": lambda o: sched.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=20),
    "cosine": lambda o: sched.CosineAnnealingLR(o, 20),
    "restarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 5),
    "warm-up": lambda o: sched.LambdaLR(o, lambda step: min(1.0, (step + 1) / 8)),
    "step": lambda o: sched.StepLR(o, 3),
    "multi step": lambda o: sched.MultiStepLR(o, [2, 5]),
    "exponential": lambda o: sched.ExponentialLR(o, 0.8),
    "polynomial": lambda o: sched.PolynomialLR(o, 20),
    "cyclic": lambda o: sched.CyclicLR(
        o, [g["lr"] / 10 for g in o.param_groups], [g["lr"] for g in o.param_groups], step_size_up=4
    ),
    "sequential": lambda o: sched.SequentialLR(
        o, [sched.LinearLR(o, 0.1, total_iters=4), sched.CosineAnnealingLR(o, 16)], [4]
    ),
    "chained": lambda o: sched.ChainedScheduler([sched.ConstantLR(o, 0.5, 3), sched.ExponentialLR(o, 0.9)]),
    "plateau": lambda o: sched.ReduceLROnPlateau(o, patience=2),
}


# torch 2.4 steps the second scheduler of a sequence in the way that it warns of.
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step..`")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("at", [0, 6])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_moved_rates_run_as_if_built_at_that_rate(name, at):
    moved = course(SCHEDULERS[name], 0.3, moved_from=0.01, at=at)
    built = course(SCHEDULERS[name], 0.3)
    for seen, expected in zip(moved[at:], built[at:], strict=True):
        assert seen == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_held_rate_is_the_peak_of_the_schedule(name):
    optimizer = groups(0.01)
    rates = BaseRates([optimizer], [SCHEDULERS[name](optimizer)], 0.01)
    rates.hold(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])


def test_several_optimizers_keep_their_ratio():
    first, second = groups(0.01), groups(0.02)
    rates = BaseRates([first, second], [])
    assert rates.base_lr == 0.01
    rates.move_to(0.1)
    assert first.param_groups[0]["lr"] == pytest.approx(0.1)
    assert second.param_groups[1]["lr"] == pytest.approx(0.02)


def test_rate_in_a_tensor_is_written_in_place():
    rate = torch.tensor(0.01)
    optimizer = Adam(weights(), lr=rate, capturable=False, foreach=False)
    BaseRates([optimizer], [], 0.01).move_to(0.04)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.04)


def test_frozen_group_stays_frozen():
    optimizer = groups(0.01)
    optimizer.param_groups[1]["lr"] = 0.0
    BaseRates([optimizer], []).move_to(1.0)
    assert optimizer.param_groups[1]["lr"] == 0.0


@pytest.mark.parametrize("rate", [None, "auto", float("nan")])
def test_rate_that_cannot_be_set(rate):
    optimizer = groups(0.01)
    optimizer.param_groups[1]["lr"] = rate
    with pytest.raises(ValueError, match="can be set"):
        BaseRates([optimizer], [])


def test_no_rate_above_zero():
    with pytest.raises(ValueError, match="every group's is 0"):
        BaseRates([SGD(weights(), lr=0.0)], [])
