"""Random runs by hand: ``python -m tests.fuzz --hours 1``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections import Counter

import torch

from .checks import CHECKS, run_draw


def main() -> int:
    """Make draws until the time or their number is up; the number of those that failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--hours", type=float, default=None, help="stop after so many")
    parser.add_argument("--draws", type=int, default=None, help="stop after so many; default 100 without --hours")
    parser.add_argument("--seed", type=int, default=0, help="number of the first draw")
    parser.add_argument("--check", choices=tuple(CHECKS), default=None, help="default: all in turn")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    asked = parser.parse_args()
    draws = 100 if asked.draws is None and asked.hours is None else asked.draws
    end = float("inf") if asked.hours is None else time.monotonic() + 3600 * asked.hours
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    checks = [asked.check] if asked.check else list(CHECKS)
    made, unusable, failed = Counter[str](), Counter[str](), Counter[str]()
    number = 0
    while (draws is None or number < draws) and time.monotonic() < end:
        check = checks[number % len(checks)]
        try:
            usable = run_draw(asked.seed + number // len(checks), check)
            (made if usable else unusable)[check] += 1
        except AssertionError as error:
            failed[check] += 1
            print(f"FAILED {error}", flush=True)
            if asked.verbose:
                traceback.print_exc()
        number += 1
    for check in checks:
        print(f"{check}: {made[check]} held, {failed[check]} failed, {unusable[check]} could not be trained")
    return sum(failed.values())


if __name__ == "__main__":
    sys.exit(min(main(), 1))
