import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_topo.finder import ShareSearch, ShareTrial


def run(search, loss):
    """All trials of a search, where a share of 2^-k ends at ``loss(k)``."""
    trials = {}
    while (k := search.halvings(trials)) is not None:
        assert k not in trials
        trials[k] = ShareTrial(2.0**-k, (), search.steps, loss(k))
        assert len(trials) < 20
    return trials


@pytest.mark.parametrize("best", range(1, 8))
@pytest.mark.parametrize("start", [0.5, 0.1, 0.02])
def test_descent_finds_the_lowest(best, start):
    trials = run(ShareSearch(start=start), lambda k: 1 + (k - best) ** 2)
    assert ShareSearch().best(trials) == best
    assert ShareSearch().share(trials, decays=True) == pytest.approx(2.0**-best, rel=0.1)
    assert ShareSearch().share(trials, decays=False) == pytest.approx(2.0**-best / 2, rel=0.1)


def test_share_lies_where_the_parabola_is_lowest():
    """Of exp((k - 2.3)²) the logarithm is a parabola, whose lowest point no trial hit."""
    trials = run(ShareSearch(), lambda k: math.exp((k - 2.3) ** 2))
    assert sorted(trials) == [1, 2, 3]
    assert ShareSearch().share(trials, decays=True) == pytest.approx(2**-2.3)


def test_of_shares_that_cannot_be_told_apart_the_one_between_or_lower():
    assert ShareSearch().best({1: ShareTrial(0.5, (), 25, 1.0), 2: ShareTrial(0.25, (), 25, 1.0)}) == 2
    between = {k: ShareTrial(2.0**-k, (), 25, loss) for k, loss in ((1, 2.0), (2, 1.0), (3, 1.0), (4, 2.0))}
    assert ShareSearch().share(between, decays=True) == pytest.approx(2**-2.5)


def test_descent_goes_on_where_only_the_median_is_above():
    """By the median one batch more or less decides; the mean over the same batches is lower, and the next is best."""
    search = ShareSearch(steps=10)
    courses = {1: [5.0] * 6 + [1.0, 1.0, 1.0, 4.0], 2: [5.0] * 6 + [1.1] * 4, 3: [5.0] * 6 + [0.8] * 4}
    trials = {k: search.trial(2.0**-k, losses, 10) for k, losses in courses.items()}
    assert search.best({k: trials[k] for k in (1, 2)}) == 1
    assert search.halvings({k: trials[k] for k in (1, 2)}) == 3
    assert search.best(trials) == 3
    higher = search.trial(0.25, [5.0] * 6 + [1.9] * 4, 10)
    assert search.halvings({1: trials[1], 2: higher}) is None


@pytest.mark.parametrize(("largest", "least"), [(1.0, 0), (0.5, 1), (0.2, 3)])
def test_no_trial_is_made_above_the_largest_share(largest, least):
    trials = run(ShareSearch(largest=largest), lambda k: 1.0 + k)
    assert min(trials) == least
    assert ShareSearch(largest=largest).share(trials, decays=True) == 2.0**-least


def test_what_diverges_is_left_downwards_and_never_chosen():
    trials = run(ShareSearch(), lambda k: math.inf if k < 5 else 1.0 + k)
    assert ShareSearch().best(trials) == 5
    assert ShareSearch().share(trials, decays=True) == 2.0**-5


def test_everything_diverges():
    trials = run(ShareSearch(), lambda k: math.inf)
    assert max(trials) == 14


@given(st.lists(st.floats(0.01, 10) | st.just(math.inf), min_size=15, max_size=15), st.floats(1e-6, 0.5))
def test_any_losses_end_in_a_share_beside_the_lowest_that_was_seen(losses, start):
    search = ShareSearch(start=start)
    trials = run(search, lambda k: losses[k])
    best = min(trial.loss for trial in trials.values())
    assert trials[search.best(trials)].loss == best
    assert (
        2 ** -(search.best(trials) + 0.5) * 0.999
        <= search.share(trials, True)
        <= 2 ** -(search.best(trials) - 0.5) * 1.001
    )


def test_a_course_is_worth_the_median_of_its_last_part():
    search = ShareSearch(steps=10)
    losses = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 1.0, 2.0, 3.0, 100.0]
    assert search.trial(0.1, losses, 10).loss == 2.5
    assert search.trial(0.1, losses[:9], 9).loss == math.inf  # it was given up
    assert search.trial(0.1, [*losses[:8], math.nan, math.nan], 10).loss == math.inf
    assert search.trial(0.1, [], 10).loss == math.inf


def test_a_course_that_has_risen_is_given_up():
    search = ShareSearch(steps=10)
    assert not search.hopeless([1.0, 5.0, 5.0])
    assert search.hopeless([1.0, 1.0, 5.0, 5.0, 5.0])
    assert not search.hopeless([1.0, 5.0, 5.0, 5.0, 1.2])


def lasting(losses):
    return ShareTrial(0.1, tuple(losses), len(losses), statistics.median(losses[-4:]))


@given(
    st.lists(st.floats(0.01, 10), min_size=10, max_size=10),
    st.lists(st.lists(st.floats(0.01, 10), min_size=10, max_size=10), min_size=1, max_size=3),
)
def test_what_is_stopped_would_have_ended_above_the_best(losses, others):
    """Whatever the losses that were not seen; and it is still not the best by what was."""
    search = ShareSearch(steps=10)
    others = [lasting(other) for other in others]
    best = min(other.loss for other in others)
    stops = [n for n in range(1, 10) if search.beaten(losses[:n], others)]
    if stops:
        assert statistics.median(losses[-4:]) > best
        assert statistics.median([*losses[6 : stops[0]], *[0.0] * (10 - stops[0])]) > best
        assert (
            search.hopeless(losses[: stops[0]])
            or math.inf > search.trial(0.1, losses[: stops[0]], stops[0], others).loss > best
        )


def test_a_course_that_cannot_end_lowest_is_stopped():
    search = ShareSearch(steps=10)
    others = [lasting([2.0] * 6 + [1.0] * 4), lasting([2.0] * 10), ShareTrial(0.4, (9.0,) * 5, 5, math.inf)]
    assert not search.enough([2.0] * 8, others)  # two of its last four are above 1: the others may be 0
    assert search.enough([2.0] * 9, others)
    assert search.trial(0.1, [2.0] * 8 + [3.0], 9, others).loss == 2.0
    assert not search.beaten([2.0] * 9, [])
    assert not search.enough([2.0] * 6 + [0.5] * 3, others)


@pytest.mark.parametrize("steps", [4, 0, -1, 25.0, True])
def test_too_few_steps(steps):
    with pytest.raises(ValueError, match=r"trial_steps .* at least 5"):
        ShareSearch(steps)
