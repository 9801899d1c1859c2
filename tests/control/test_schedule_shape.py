"""The shapes of schedules against torch's own schedulers and closed forms."""

import math

import pytest
import torch

from lightning_topo.control import PlannedSchedule, schedule_shape


def scheduled(make, n):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, rates = make(optimizer), []
    for _ in range(n):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_after_the_warm_up_it_is_torchs_schedule(name):
    n = 60
    make = {
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, n),
        "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, n),
    }[name]
    rates, shape = scheduled(make, n), schedule_shape(name, n)
    for update in range(6, n):
        assert shape(update) == pytest.approx(rates[update], abs=1e-9)
    for update in range(6):
        assert shape(update) == pytest.approx(rates[update] * (update + 1) / 6)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_beyond_the_end_it_is_zero(name):
    shape = schedule_shape(name, 10)
    assert shape(10) == pytest.approx(0, abs=1e-12)
    assert shape(1000) == pytest.approx(0, abs=1e-12)


def test_constant():
    assert [schedule_shape("constant", math.inf)(t) for t in (0, 5, 10**9)] == [1, 1, 1]


@pytest.mark.parametrize("total", [math.inf, 0, math.nan])
def test_a_decay_needs_a_length(total):
    with pytest.raises(ValueError, match="max_epochs where the data have a length"):
        schedule_shape("cosine", total)


def test_unknown_names():
    with pytest.raises(ValueError, match="auto, cosine, linear, constant, got 'step'"):
        schedule_shape("step", 10)


@pytest.mark.parametrize(
    ("asked", "total", "scheduled", "name", "share"),
    [
        ("auto", 100, False, "cosine", 0.2),
        ("auto", math.inf, False, "constant", 0.025),
        ("auto", math.inf, True, "own", 0.2),
        ("linear", 100, True, "linear", 0.2),
        ("constant", 100, True, "constant", 0.025),
    ],
)
def test_the_schedule_of_a_run_and_the_share_that_suits_it(asked, total, scheduled, name, share):
    schedule = PlannedSchedule.of_run(asked, total, scheduled)
    assert (schedule.name, schedule.share) == (name, share)
    if name == "own":
        assert schedule.shape is None
    else:
        expected = schedule_shape(name, total)
        assert [schedule.shape(t) for t in (0, 7, 50)] == [expected(t) for t in (0, 7, 50)]
