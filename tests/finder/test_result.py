import json
import math
from dataclasses import replace

import pytest

from lightning_topo.finder import TopologicalLRResult, Trial

HELD = Trial(0.08, True, None, 0.9, (1.0, 0.5), "fc1", 50)
BROKEN = Trial(0.0845, False, 3, math.inf, (1.0, math.nan), None, 4)
FOUND = TopologicalLRResult("found", (0.08, 0.0845), (BROKEN, HELD))
NOT_REACHED = TopologicalLRResult("not_reached", (100.0, math.inf), (HELD,))


def test_critical_rate_is_the_geometric_centre():
    assert FOUND.critical_lr**2 == pytest.approx(0.08 * 0.0845)
    assert FOUND.total_steps == 54


def test_suggestion_is_a_share_of_the_critical_rate():
    assert FOUND.suggestion(1.0) == FOUND.critical_lr
    assert FOUND.suggestion(0.25) == pytest.approx(FOUND.critical_lr / 4)
    assert NOT_REACHED.suggestion() is None


@pytest.mark.parametrize("safety", [0.0, -1.0, 1.5, math.nan])
def test_safety_out_of_range(safety):
    with pytest.raises(ValueError, match="safety"):
        FOUND.suggestion(safety)


@pytest.mark.parametrize("result", [FOUND, NOT_REACHED])
def test_dictionary_is_strict_json_and_comes_back(result):
    text = json.dumps(result.to_dict(), allow_nan=False)
    back = TopologicalLRResult.from_dict(json.loads(text))
    assert repr(back) == repr(result)  # nan is not equal to itself, but reads the same


def test_print_is_a_few_plain_lines():
    assert repr(FOUND).splitlines() == [
        "TopologicalLRResult",
        "  critical learning rate 0.0822: held at 0.08, broke at 0.0845 (not finite after update 3)",
        "  suggestion 0.0206, a share of 0.25 of it",
        "  schedule of the trials: constant",
        "  2 trials, 54 optimizer steps",
    ]
    broken = Trial(1e-8, False, 0, 7.5, (1.0,), "fc1", 1)
    assert "below 1e-08, the smallest that was allowed, which broke (criticality 7.5 in fc1 at update 0)" in str(
        TopologicalLRResult("below_min", (0.0, 1e-8), (broken,))
    )
    assert "held at 100, the largest that was allowed" in str(NOT_REACHED)
    assert all(len(line) < 120 and line.isascii() for line in repr(FOUND).splitlines())


def test_alternating_rates_are_said_and_kept():
    result = replace(FOUND, alternating=True)
    lines = repr(result).splitlines()
    assert lines[2] == (
        "  rates that hold and rates that break alternate there: a lower one broke sooner than a higher one"
    )
    assert [*lines[:2], *lines[3:]] == repr(FOUND).splitlines()
    assert TopologicalLRResult.from_dict(json.loads(json.dumps(result.to_dict()))).alternating
    assert not TopologicalLRResult.from_dict(FOUND.to_dict()).alternating
    assert not TopologicalLRResult.from_dict(
        {k: v for k, v in FOUND.to_dict().items() if k != "alternating"}
    ).alternating


def test_share_that_was_asked_for_is_kept():
    result = TopologicalLRResult("found", (0.1, 0.1), (), safety=0.5)
    assert result.suggestion() == 0.05
    assert result.suggestion(0.1) == pytest.approx(0.01)
    assert TopologicalLRResult.from_dict(result.to_dict()) == result
    assert TopologicalLRResult.from_dict({**result.to_dict(), "safety": -1}).safety == 0.25


@pytest.mark.parametrize("values", [{}, None, 3, {"status": "found"}, {**FOUND.to_dict(), "status": "lost"}])
def test_values_that_are_no_result(values):
    with pytest.raises(ValueError, match="expected"):
        TopologicalLRResult.from_dict(values)
