"""The share of η* to train at, chosen by short trials of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from lightning_topo.finder._progress import SearchProgress
from lightning_topo.finder._run_schedules import RunSchedules
from lightning_topo.finder._trials import Course, TrialRunner
from lightning_topo.finder.result import TopologicalLRResult
from lightning_topo.finder.share_search import ShareSearch, ShareTrial

# Share of a short trial that a warm-up may take.
_MOST_WARM_UP = 0.3


def choose_share(
    result: TopologicalLRResult,
    schedules: RunSchedules,
    runner: TrialRunner,
    steps: int,
    answer: Callable[[], None],
    progress: SearchProgress,
) -> TopologicalLRResult:
    """A result with the share at which short trials end lowest, or with the one that it has and why it was kept.

    Args:
        result: What was found, with a critical rate.
        schedules: What the run follows.
        runner: Makes the trials.
        steps: Optimizer steps of each.
        answer: Called where a signal cut a trial short.
        progress: Shows them.
    """
    if len(schedules.followed) > 1:
        return replace(result, chosen="as there are several optimizers, of which no one loss tells")
    critical = result.critical_lr
    assert critical is not None
    start = min(0.5, _first_update(result, schedules.warm_up(steps)) / critical)
    search = ShareSearch(steps, start, _largest(result, schedules.decays))
    trials: dict[int, ShareTrial] = {}
    while (halvings := search.halvings(trials)) is not None:
        lr = critical * 2.0**-halvings
        progress.trying_share(lr, len(result.trials) + len(trials))
        others = tuple(trials.values())
        course = runner.course(lr, steps, _MOST_WARM_UP, partial(search.enough, others=others))
        if course is None:
            answer()
            continue
        trials[halvings] = search.trial(lr, course.losses, course.steps, others)
        if unfit := _unfit(course):
            return replace(result, share_trials=tuple(trials.values()), chosen=f"as {unfit}")
    made = tuple(trials.values())
    if unfit := _indistinct(trials):
        return replace(result, share_trials=made, chosen=f"as {unfit}")
    share = search.share(trials, schedules.decays)
    return replace(result, safety=share, share_trials=made, chosen=_words(made, steps, schedules.decays))


def _largest(result: TopologicalLRResult, decays: bool) -> float:
    """The largest share to try, such that no more than a half is suggested; all of η* where a first update decides it.

    Of what starts best, a half is suggested for a run without decay. Elsewhere η* is where an instability is about to
    grow, and K grows with it: what starts best there may not stay so, as the benchmark's one run that was trained there
    and ended at 1.85 times the best loss. A first update's κ is the largest: what holds then holds later.
    """
    broken = next((trial for trial in result.trials if trial.lr == result.bracket[1]), None)
    return 1.0 if not decays or (broken is not None and broken.broke_at_step == 0) else 0.5


def _first_update(result: TopologicalLRResult, warm_up: tuple[float, ...]) -> float:
    """1/K of the first update, if it were made at the schedule's peak; infinite where no trial broke there."""
    first = next((trial for trial in result.trials if trial.broke_at_step == 0 and trial.group is not None), None)
    if first is None:
        return math.inf
    return first.lr / first.max_criticality * (warm_up[0] if warm_up else 1.0)


def _unfit(course: Course) -> str:
    """Why no course of losses can choose a share; empty where it can."""
    if course.several:
        return "the training step returns several losses"
    if course.steps > 0 and not course.losses:
        return "the training step returns no loss"
    return ""


def _indistinct(trials: Mapping[int, ShareTrial]) -> str:
    losses = {trial.loss for trial in trials.values()}
    if losses == {math.inf}:
        return "every short trial diverged"
    return "the loss was the same in all short trials" if len(losses) == 1 else ""


def _words(trials: tuple[ShareTrial, ...], steps: int, decays: bool) -> str:
    rest = "" if decays else ", half of it for a run without decay"
    return f"where {len(trials)} trials of up to {steps} steps end lowest{rest}"
