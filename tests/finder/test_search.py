import math
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.finder import CriticalRateSearch, Trial

HOLD = 50


def hold(kappas, lr):
    """The trial of a network whose κ at update t is ``kappas(lr)[t]``."""
    broke = next((t for t, kappa in enumerate(kappas) if not kappa < 1), None)
    steps = len(kappas) if broke is None else broke + 1
    return Trial(lr, broke is None, broke, max(kappas[:steps]), steps=steps)


def run(search, kappas):
    state = search.init()
    while not search.terminate(state):
        state = search.step(state, hold(kappas(state.next_lr), state.next_lr))
        assert len(state.trials) < 1000
    return search.result(state)


def instability(critical):
    """κ of a curvature that grows by |1 - 2 η / η*| a step, as of gradient descent on a parabola."""

    def kappas(lr):
        growth = abs(1 - 2 * lr / critical)
        return [1e-3 * lr / critical * math.exp(min(t * math.log(growth + 1e-12), 60)) for t in range(HOLD)]

    return kappas


@pytest.mark.parametrize("critical", [3e-7, 1e-3, 0.02, 1.0, 60.0])
@pytest.mark.parametrize("tolerance", [0.02, 0.1, 0.5])
def test_first_update_decides(critical, tolerance):
    result = run(CriticalRateSearch(tolerance=tolerance), lambda lr: [lr / critical / (1 + t) for t in range(HOLD)])
    low, high = result.bracket
    assert result.status == "found"
    assert low < critical <= high <= low * (1 + tolerance) * (1 + 1e-6)
    assert result.critical_lr == pytest.approx(critical, rel=0.51 * tolerance)
    assert result.total_steps <= 2 + HOLD


@pytest.mark.parametrize("critical", [1e-5, 0.01, 2.0])
@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("peak", [1, 7, 49])
def test_power_law_of_a_later_update(critical, power, peak):
    def kappas(lr):
        return [(lr / critical) ** power if t == peak else 0.01 * lr / critical for t in range(HOLD)]

    result = run(CriticalRateSearch(), kappas)
    assert result.bracket[0] < critical <= result.bracket[1]
    assert result.critical_lr == pytest.approx(critical, rel=0.05)
    assert sum(trial.held for trial in result.trials) <= 2


@pytest.mark.parametrize("critical", [1e-4, 0.3])
def test_instability_is_cheap(critical):
    result = run(CriticalRateSearch(), instability(critical))
    growing = instability(critical)
    assert all(kappa < 1 for kappa in growing(result.bracket[0]))
    assert any(kappa >= 1 for kappa in growing(result.bracket[1]))
    assert result.total_steps < 200


@pytest.mark.parametrize("critical", [1e-4, 0.3])
def test_instability_that_shows_at_the_end_of_a_warm_up(critical):
    """κ follows the rate that the schedule has reached; trials that break early are far above, and say so."""
    warm_up = tuple((t + 1) / 30 for t in range(30))
    reached = [*warm_up, *[1.0] * (HOLD - 30)]

    def kappas(lr):
        return [(lr * part / critical) ** 4 if t > 1 else 0.0 for t, part in enumerate(reached)]

    informed = run(CriticalRateSearch(warm_up=warm_up), kappas)
    assert informed.critical_lr == pytest.approx(critical, rel=0.05)
    assert informed.total_steps < run(CriticalRateSearch(), kappas).total_steps


def by_chance(seed, low, high, soonest=8):
    """Below ``low`` all rates hold and above ``high`` all break soon; between them chance decides, anew for each."""

    def kappas(lr):
        chance = random.Random(f"{seed} {lr:.6g}")
        if lr < low or (lr < high and chance.random() < 0.3):
            return [0.5] * HOLD
        broke = int(soonest * high / lr) if lr >= high else chance.randrange(soonest + 1, HOLD)
        return [0.5] * broke + [1.2] + [0.5] * (HOLD - broke - 1)

    return kappas


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("width", [1.5, 3.0])
def test_where_rates_that_hold_and_break_alternate_the_answer_is_below_all_that_broke(seed, width):
    search = CriticalRateSearch()
    result = run(search, by_chance(seed, 0.01, 0.01 * width))
    low, high = result.bracket
    broken = {trial.lr: trial.broke_at_step for trial in result.trials if not trial.held}
    assert result.status == "found"
    assert 0.01 / 1.21 < low < high <= 1.21 * low * (1 + 1e-6)
    assert low < result.critical_lr < high == min(broken)
    assert result.alternating is any(step > broken[high] for step in broken.values())
    assert result.alternating or high <= 1.1 * low * (1 + 1e-6)


def test_alternating_rates_are_seen_and_no_finer_bracket_is_sought():
    """The trials of a convolutional net under SGD and a warm-up: a jump over a gap, in which each rate broke sooner."""
    search = CriticalRateSearch()
    state = search.init()
    made = [(100.0, 3), (1.59, 24), (1.44, 12), (0.96, None)]
    for lr, broke in made:
        kappas = [0.5] * HOLD if broke is None else [0.5] * broke + [1.4]
        state = search.step(state, hold(kappas, lr))
    assert state.alternating
    assert not search.terminate(state)
    kappas = [0.5] * 22 + [1.1]
    while not search.terminate(state):
        state = search.step(state, hold(kappas, state.next_lr))
    result = search.result(state)
    assert result.alternating
    assert result.bracket[0] == 0.96
    assert 1.1 < result.bracket[1] / 0.96 < 1.21
    assert len(result.trials) < len(made) + 4  # as many as steps of 1.1 would have taken


@given(st.floats(1e-4, 1.0), st.floats(0.1, 20.0))
def test_what_grows_the_slower_the_lower_the_rate_does_not_alternate(critical, power):
    def kappas(lr):
        growth = power * math.log(lr / critical)
        return [1e-3 * math.exp(min(60, t * growth)) for t in range(HOLD)]

    result = run(CriticalRateSearch(), kappas)
    assert result.status == "not_reached" or not result.alternating


def test_gap_that_a_step_down_has_left_is_closed_in_few_trials():
    """A first update whose κ grows faster than its rate: the first step down goes ten thousand times too far."""
    result = run(CriticalRateSearch(), lambda lr: [(lr / 1e-4) ** 1.7] * HOLD)
    assert result.critical_lr == pytest.approx(1e-4, rel=0.05)
    assert len(result.trials) < 15


def test_rate_that_holds_everywhere_is_not_reached():
    result = run(CriticalRateSearch(max_lr=10.0), lambda lr: [0.01 * lr] * HOLD)
    assert (result.status, result.bracket, result.critical_lr) == ("not_reached", (10.0, math.inf), None)
    assert result.suggestion() is None


def test_rate_that_breaks_everywhere_is_below_min():
    result = run(CriticalRateSearch(min_lr=1e-3), lambda lr: [1e9 * lr] * HOLD)
    assert (result.status, result.bracket, result.critical_lr) == ("below_min", (0.0, 1e-3), None)


def test_held_at_min_lr_is_found():
    result = run(CriticalRateSearch(min_lr=0.9e-3, max_lr=1.0), lambda lr: [lr / 1e-3] * HOLD)
    assert result.status == "found"
    assert result.bracket[0] < 1e-3 <= result.bracket[1]


def test_divergence_beyond_floating_point_at_the_first_update():
    result = run(CriticalRateSearch(), lambda lr: [math.inf if lr > 1e-4 else lr / 1e-5] * HOLD)
    assert result.critical_lr == pytest.approx(1e-5, rel=0.05)


@given(
    st.lists(st.floats(0, 4), min_size=64, max_size=64),
    st.lists(st.integers(0, HOLD - 1), min_size=64, max_size=64),
    st.floats(0.01, 1.0),
)
def test_any_response_ends_in_a_bracket_of_what_was_seen(kappas, steps, tolerance):
    """Also where rates hold and break without any order: the bracket lies between two trials that were made."""
    search = CriticalRateSearch(min_lr=1e-6, max_lr=10.0, tolerance=tolerance)

    def response(lr):
        cell = hash(lr) % 64
        return [0.0] * steps[cell] + [kappas[cell]] + [0.0] * (HOLD - 1 - steps[cell])

    result = run(search, response)
    by_rate = {trial.lr: trial for trial in result.trials}
    low, high = result.bracket
    if result.status == "found":
        assert by_rate[low].held
        assert not by_rate[high].held
        assert low < high <= low * (1 + tolerance) ** (2 if result.alternating else 1) * (1 + 1e-6)
        assert high == min(trial.lr for trial in result.trials if not trial.held)
        assert low < result.critical_lr < high
    elif result.status == "not_reached":
        assert by_rate[10.0].held
    else:
        assert not any(trial.held for trial in result.trials)


def test_step_is_pure():
    search = CriticalRateSearch()
    state = search.init()
    before = asdict(state)
    trial = hold([2.0], state.next_lr)
    assert search.step(state, trial) == search.step(state, trial)
    assert asdict(state) == before


@pytest.mark.parametrize(
    "options",
    [
        {"min_lr": 1.0, "max_lr": 1.0},
        {"min_lr": 2.0, "max_lr": 1.0},
        {"min_lr": 0.0},
        {"max_lr": math.inf},
        {"tolerance": 0.0},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match="expected"):
        CriticalRateSearch(**options)
