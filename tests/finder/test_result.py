import json
import math

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
