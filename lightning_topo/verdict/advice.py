"""One sentence of advice from what was measured."""

from __future__ import annotations

import math
from statistics import median

from lightning_topo.plots.history import worst_of_each_step
from lightning_topo.verdict.findings import Findings, UpdateRecord

# Networks whose updates were made at this share of η*, by the largest κ and with a schedule, trained to 1.06 times the
# loss of the best rate of a sweep, in the mean of 16 tasks (docs/evidence/rate-control-settings.md). Where κ stays far
# below, there is room for a higher rate.
GOOD_SHARE = 0.15
# κ below a third of that throughout: the rate is too low to matter; above half of the edge: too near to raise it.
_ROOM, _NEAR = GOOD_SHARE / 3, 0.5
# Of the room that the loss leaves, half is used: above η_c an update does not lower its own batch's loss. A rate that
# could be less than one and a half times as high is left alone.
_SHARE_OF_ROOM, _WORTH_IT = 0.5, 1.5
# Fewer measured updates than this say nothing about a run.
_FEW = 5
# From this share on, updates of κ >= 1 are the rule and not exceptions.
_OFTEN = 0.1
# A part of the run that counts as its beginning.
_EARLY = 0.1


def advice(findings: Findings) -> str:
    """What to do after a fit, in one sentence; a fit that nothing was measured of has no advice but to measure."""
    if findings.nothing_because:
        return findings.nothing_because
    if findings.diverged:
        return (
            f"Neurons of {_names(findings.diverged)} became NaN or infinite, so the run has diverged: lower the "
            "learning rate, or scale updates back with TopologicalStepClipping()."
        )
    worst = worst_of_each_step(findings.updates)
    if not worst:
        return "No two neurons could be told apart by rounding, so there is no κ to judge the learning rate by."
    if findings.broken:
        return _of_broken(findings, worst)
    if findings.measured < _FEW:
        return (
            f"Too few updates were measured to judge the learning rate by, {findings.measured} of {findings.made:,}: "
            "train longer, or pass max_overhead=None to measure every update."
        )
    return _of_intact(findings, worst)


def _of_broken(findings: Findings, worst: list[UpdateRecord]) -> str:
    broken = [record for record in findings.updates if record.criticality >= 1]
    start = f"{findings.broken:,} of {findings.measured:,} measured updates could merge neurons"
    if not broken:  # all before the checkpoint that the fit went on from
        return f"{start}, all before this fit was resumed: none since."
    groups = list(dict.fromkeys(record.group for record in broken))
    where = f"{'all ' if len(groups) == 1 else ''}in {_names(groups)}"
    when = _phase(broken, worst)
    typical = median(record.criticality for record in worst)
    if when:
        do = "give the rate a longer warm-up, or scale such updates back with TopologicalStepClipping()"
    elif findings.broken >= _OFTEN * findings.measured and typical > GOOD_SHARE:
        do = (
            f"divide the learning rate by about {_round_up(typical / GOOD_SHARE):g}, or let TopologicalRateControl() "
            "choose it"
        )
    else:
        do = "they are exceptions, and TopologicalStepClipping(max_criticality=0.3) scales such updates back"
    return f"{start}, {where}{when}: {do}."


def _of_intact(findings: Findings, worst: list[UpdateRecord]) -> str:
    largest = max(record.criticality for record in worst)
    seen = "" if findings.measured >= findings.made * _OFTEN else f", as far as {findings.measured:,} updates tell"
    if largest == 0:
        return "The neurons did not move against each other: look at whether the optimizer holds their parameters."
    if largest >= _NEAR:
        return f"No measured update could merge neurons, but the largest came near it{seen}: do not raise the rate."
    start = f"κ stayed below {_ceil(largest):g}{seen}"
    # Where few updates were measured, others may have been made at higher rates, as before a schedule lowered them.
    critical = min(record.critical_lr for record in worst if record.critical_lr > 0)
    if seen and findings.top_rate > largest * critical:
        largest = findings.top_rate / critical
        start = (
            f"At its highest, {findings.top_rate:.2g}, the learning rate was {_percent(largest)} of the smallest η*"
            f"{seen}"
        )
    if findings.controlled:
        return f"{start}: TopologicalRateControl chose the rates, and there is nothing to change."
    if largest < _ROOM:
        room_of_loss = _room_of_loss(findings)
        if _SHARE_OF_ROOM * room_of_loss < GOOD_SHARE / largest:
            times, bound = _SHARE_OF_ROOM * room_of_loss, "η within half of η_c"
        else:
            times, bound = GOOD_SHARE / largest, f"κ within {GOOD_SHARE:g}, where networks trained best"
        if times < _WORTH_IT:
            near = f"η is {_percent(1 / room_of_loss)} of η_c" if room_of_loss > 0 else "η_c is 0"
            return (
                f"{start}: the neurons would bear a higher rate, but the loss would not: {near} in the median, so "
                "leave it as it is."
            )
        factor = f"about {_round_down(times):g} times" if times <= 100 else "more than 100 times"
        return (
            f"{start}: the rate could be {factor} higher and keep {bound}; TopologicalRateControl() finds the rate by "
            "itself."
        )
    if largest < _NEAR:
        return f"{start}: no update that was measured could merge neurons, and the rate need not be changed."
    return f"{start}: it came near to where neurons merge, so do not raise it."


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _room_of_loss(findings: Findings) -> float:
    """How many times higher the rate could be before updates no longer lower the loss, in the median of the run."""
    rooms = [
        one.critical_lr / one.learning_rate
        for one in findings.sharpness
        if getattr(one, "learning_rate", 0) > 0 and math.isfinite(getattr(one, "critical_lr", math.nan))
    ]
    return median(rooms) if rooms else math.inf


def _phase(broken: list[UpdateRecord], worst: list[UpdateRecord]) -> str:
    """When the broken updates were made, if that is a part of the run that advice can be given for."""
    last = max(record.step for record in broken)
    if last >= worst[-1].step:
        return ""
    top = max(record.learning_rate for record in worst)
    reached = next(record.step for record in worst if record.learning_rate >= 0.99 * top)
    if last <= reached and reached > worst[0].step:
        return " during warm-up"
    if last <= worst[0].step + _EARLY * (worst[-1].step - worst[0].step):
        return " in the first tenth of the run"
    return ""


def _names(names: list[str] | tuple[str, ...]) -> str:
    if len(names) > 3:
        return f"{names[0]}, {names[1]} and {len(names) - 2} more groups"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _ceil(value: float) -> float:
    """The value, rounded up to one digit."""
    return _rounded(value, math.ceil)


def _round_up(value: float) -> float:
    return max(2.0, _rounded(value, math.ceil))


def _round_down(value: float) -> float:
    return _rounded(value, math.floor)


def _rounded(value: float, to_integer: object) -> float:
    if not (0 < value < math.inf):
        return value
    unit = 10.0 ** math.floor(math.log10(value))
    return float(f"{to_integer(round(value / unit, 6)) * unit:.3g}")  # type: ignore[operator]
