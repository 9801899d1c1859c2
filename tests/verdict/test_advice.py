"""The sentence of advice, for courses of κ that are written down by hand."""

import math
from types import SimpleNamespace

import pytest

from lightning_topo.verdict import Findings
from lightning_topo.verdict.advice import advice


def test_a_rate_far_below_may_be_raised(course, findings):
    """0.15 / 0.0125 = 12: rounded down to one digit."""
    said = advice(findings(course(*[0.01] * 9, 0.0125)))
    assert said.startswith("κ stayed below 0.02: the rate could be about 10 times higher and keep κ within 0.15")


def test_far_more_than_a_hundred_times_is_not_counted(course, findings):
    assert "more than 100 times higher" in advice(findings(course(*[1e-6] * 9)))


def test_a_rate_that_is_neither_low_nor_high_is_left_alone(course, findings):
    said = advice(findings(course(*[0.15] * 9)))
    assert said.startswith("κ stayed below 0.2: no update that was measured could merge neurons")
    assert "need not be changed" in said


def test_near_the_edge_the_rate_is_not_to_be_raised(course, findings):
    assert "do not raise the rate" in advice(findings(course(*[0.1] * 9, 0.8)))


def test_the_rate_is_too_high_where_most_updates_break(course, findings):
    """The median is 1.2, eight times 0.15."""
    said = advice(findings(course(*[1.2] * 9, 0.5)))
    assert said.startswith("9 of 10 measured updates could merge neurons, all in fc1: divide the learning rate")
    assert "by about 8, or" in said


def test_broken_updates_while_the_rate_rises(course, findings):
    rates = [0.01, 0.02, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    said = advice(findings(course(1.1, 1.5, 0.9, *[0.1] * 7, rates=rates)))
    assert said.startswith("2 of 10 measured updates could merge neurons, all in fc1 during warm-up: give the rate a")


def test_broken_updates_at_the_start_of_a_constant_rate(course, findings):
    said = advice(findings(course(3.0, *[0.1] * 29)))
    assert "all in fc1 in the first tenth of the run" in said


def test_single_broken_updates_are_for_clipping(course, findings):
    records = course(*[0.1] * 20, 1.4, *[0.1] * 19) + course(*[0.1] * 30, 2.0, *[0.1] * 9, group="fc2")
    said = advice(findings(records))
    assert said.startswith("2 of 40 measured updates could merge neurons, in fc1 and fc2: they are exceptions")
    assert "TopologicalStepClipping(max_criticality=0.3)" in said


def test_many_groups_are_not_all_named(findings, record):
    records = [record(step, 2.0, group=f"layer{g}") for g in range(7) for step in range(10)]
    assert "in layer0, layer1 and 5 more groups" in advice(findings(records))


def test_broken_updates_before_a_resume(course, findings):
    assert "all before this fit was resumed" in advice(findings(course(*[0.1] * 9), broken=3, measured=12))


def test_a_diverged_run(course, findings):
    said = advice(findings(course(*[0.1] * 9), diverged=("fc2",)))
    assert said.startswith("Neurons of fc2 became NaN or infinite, so the run has diverged: lower the learning rate")


def test_too_few_updates_give_no_advice_on_the_rate(course, findings):
    said = advice(findings(course(0.001, 0.001), made=500))
    assert said.startswith("Too few updates were measured to judge the learning rate by, 2 of 500")


def test_updates_that_were_not_measured_may_have_had_higher_rates(course, findings):
    """η* = 1; the run's highest rate was 0.02, the measured ones 0.001: 2% of η*, and not 0.1%."""
    records = course(*[0.001] * 8, rates=[0.001] * 8)
    said = advice(findings(records, made=1000, top_rate=0.02))
    assert said.startswith(
        "At its highest, 0.02, the learning rate was 2% of the smallest η*, as far as 8 updates tell"
    )
    assert "about 7 times higher" in said


def test_rates_that_were_controlled_are_not_criticised(course, findings):
    assert "nothing to change" in advice(findings(course(*[0.01] * 9), controlled=True))


def test_nothing_measured():
    assert advice(Findings(nothing_because="No update was measured: why.")) == "No update was measured: why."


@pytest.mark.parametrize("kappa", [0.0, math.nan])
def test_no_movement_and_no_resolution(course, findings, kappa):
    said = advice(findings(course(*[kappa] * 9)))
    assert said.startswith("The neurons did not move" if kappa == 0 else "No two neurons could be told apart")


@pytest.mark.parametrize(
    ("critical_lr", "expected"),
    [
        (0.6, "about 3 times higher and keep η within half of η_c"),
        (0.2, "the loss would not: η is 50% of η_c in the"),
        (0.0, "the loss would not: η_c is 0 in the median"),
    ],
)
def test_the_loss_may_leave_less_room_than_the_neurons(course, findings, critical_lr, expected):
    """κ would allow 12 times the rate 0.1, the loss half of critical_lr / 0.1 times."""
    sharpness = [SimpleNamespace(step=0, learning_rate=0.1, critical_lr=critical_lr)]
    said = advice(findings(course(*[0.0125] * 10), sharpness=sharpness))
    assert said.startswith("κ stayed below 0.02: ")
    assert expected in said
