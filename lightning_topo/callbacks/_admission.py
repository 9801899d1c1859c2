"""Whether to make a due measurement: one decision for all processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._processes import Processes


@dataclass
class _DueTimes:
    """How often a kind of measurement has been due in a fit, and from which time on to ask the budget again."""

    seen: int = 0
    ask_again: int = 0


class Admission:
    """Asks the first process's budget, for all.

    Args:
        budget: Of this process.
        processes: Those of the fit.
    """

    def __init__(self, budget: OverheadBudget, processes: Processes) -> None:
        self._budget, self._processes = budget, processes
        self._due_times: dict[str, _DueTimes] = {}

    def admits(self, kind: str = "", guess: float = 0.0, run_time: float = 0.0) -> bool:
        """As ``OverheadBudget.admits``; every process enters.

        After a refusal the processes do not ask again before there is a prospect of another answer.
        """
        if not self._processes.several or self._budget.max_overhead is None:
            return self._budget.admits(kind, guess, run_time)
        times = self._due_times.setdefault(kind, _DueTimes())
        times.seen += 1
        if times.seen < times.ask_again:
            self._budget.due += self._processes.lead
            return False
        left_out = 0
        if self._processes.lead and not self._budget.admits(kind, guess, run_time):
            left_out = self._budget.due_until_affordable(kind, times.seen, guess)
        left_out = self._processes.agreed(left_out)
        times.ask_again = times.seen + left_out
        return left_out == 0
