"""When a measurement is due."""

from __future__ import annotations


def multiple_reached(n: int, step: int, last: int | None) -> bool:
    """Whether a multiple of n optimizer steps has been reached since ``last``: a batch may make several steps.

    Where that is not known, or was of another run, only a multiple itself tells.
    """
    return step % n == 0 if last is None or last > step else step // n > last // n
