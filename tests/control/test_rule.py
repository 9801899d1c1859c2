"""The rule of the rate control against what its formula says."""

import math

import pytest

from lightning_topo.control import RateRule, RateState


def followed(rule, smoothness, updates=1, first=0):
    state, rates = RateState(), []
    for number, k in enumerate(smoothness):
        state = rule.step(state, k, updates, first + number * updates)
        rates.append(rule.rate(state))
    return rates


@pytest.mark.parametrize("k", [1e-6, 0.5, 3e4])
def test_a_constant_critical_rate_is_followed_exactly(k):
    for rate in followed(RateRule(0.2, half_life=10), [k] * 20):
        assert rate == pytest.approx(0.2 / k, rel=1e-12)


def test_it_falls_at_once_by_the_geometric_mean():
    first, second, third = followed(RateRule(0.1), [1.0, 16.0, 16.0])
    assert (first, second, third) == pytest.approx((0.1, 0.1 / 4, 0.1 / 8))


@pytest.mark.parametrize("half_life", [1.0, 7.0, 50.0])
@pytest.mark.parametrize("updates", [1, 10])
def test_it_recovers_with_its_half_life(half_life, updates):
    rates = followed(RateRule(0.1, half_life), [1.0, *[1e-30] * 4], updates)
    for number, rate in enumerate(rates):
        assert rate == pytest.approx(0.1 * 2 ** (number * updates / half_life))


def test_without_a_half_life_it_never_recovers():
    assert followed(RateRule(0.1, math.inf), [1.0, *[1e-9] * 50])[-1] == pytest.approx(0.1)


def test_first_updates_are_forgotten_faster():
    rule = RateRule.of_run(0.2, None, 1000)
    assert (rule.half_life, rule.warm_up, rule.warm_half_life) == (500, 100, 150)
    early, late = (followed(rule, [1.0, 1e-9], 50, first)[-1] for first in (0, 200))
    assert early == pytest.approx(0.2 * 2 ** (50 / 150))
    assert late == pytest.approx(0.2 * 2 ** (50 / 500))


def test_a_run_of_unknown_length_never_forgets():
    assert followed(RateRule.of_run(0.2, None, math.inf), [1.0, *[1e-9] * 20])[-1] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "0 < share <= 1"),
        ({"share": 1.5}, "0 < share <= 1"),
        ({"share": -0.1}, "0 < share <= 1"),
        ({"share": math.nan}, "0 < share <= 1"),
        ({"share": True}, "0 < share <= 1"),
        ({"half_life": 0}, "half_life > 0"),
        ({"half_life": -3}, "half_life > 0"),
        ({"half_life": math.nan}, "half_life > 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RateRule(**{"share": 0.2, **options})
