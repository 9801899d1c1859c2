"""A few random runs in the suite; ``python -m tests.fuzz --hours 1`` makes many."""

import pytest

from .checks import CHECKS, run_draw

DRAWS = 16


@pytest.mark.parametrize("check", CHECKS)
def test_draws(check):
    usable = sum(run_draw(seed, check) for seed in range(DRAWS))
    assert usable > DRAWS // 2
