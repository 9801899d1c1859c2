"""One row a run: what the claims are counted from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import neurons_r2
from common import Run


def name(run: Run) -> str:
    """Optimizer, rate, start of the plane ((8) figure-eight, (oo) two circles) and seed where it is not 0."""
    e = run.experiment
    curve = {"figure-eight": " (8)", "two circles": " (oo)"}.get(e.family, "")
    return f"{e.optimizer} {e.lr:g}{curve}" + (f" #{e.seed}" if e.seed else "")


def certified_until(run: Run) -> int:
    """Number of measurements from the start at which no bar of the start has been lost to the certificate."""
    first = run.topology[0].certified_betti
    lost = (k for k, record in enumerate(run.topology) if record.certified_betti != first)
    return next(lost, len(run.topology))


def edge(run: Run) -> float:
    """η·λmax/2, 1 at the edge of stability: median of the second half of the run."""
    late = run.sharpness[len(run.sharpness) // 2 :]
    return median(record.lambda_max for record in late) * run.experiment.lr / 2


def _betti(run: Run) -> str:
    return f"{_numbers(run.topology[0].betti)} → {_numbers(run.topology[-1].betti)}"


def _numbers(betti: Sequence[int]) -> str:
    return ",".join(map(str, betti))


def _differ(run: Run) -> str:
    return f"{sum(record.betti != run.topology[0].betti for record in run.topology)} of {len(run.topology)}"


def _certified(run: Run) -> str:
    until = certified_until(run)
    when = "to the end" if until == len(run.topology) else f"to epoch {run.epochs[until - 1]}"
    return f"{_numbers(run.topology[0].certified_betti)} {when}"


def _loss(run: Run) -> str:
    first, last = run.losses[0], run.losses[-run.steps_per_epoch :].mean()
    return f"{first:.2g} → {last:.2g}"


def _arrow(before_after: tuple[int, int]) -> str:
    return f"{before_after[0]:,} → {before_after[1]:,}"


_COLUMNS: dict[str, Callable[[Run], str]] = {
    "run": name,
    "called": lambda run: run.experiment.role,
    "largest κ": lambda run: f"{run.criticality:.2g}",
    "updates with κ ≥ 1": lambda run: f"{run.broken:,} of {len(run.updates):,}",
    "Betti numbers": _betti,
    "differ at": _differ,
    "distortion": lambda run: f"{run.distortion:.2g}",
    "bars certified": _certified,
    "neurons apart": lambda run: _arrow(run.distinct),
    "rank": lambda run: _arrow(run.ranks),
    "η·λmax/2": lambda run: f"{edge(run):.2g}",
    "loss": _loss,
}
_CURVES: dict[str, Callable[[Run], str]] = {"self-crossings": lambda run: _arrow(neurons_r2.n_crossings(run))}


def runs_table(runs: Sequence[Run]) -> list[str]:
    """Lines of Markdown."""
    curves = runs[0].experiment.family in neurons_r2.N_CLOSED_CURVES
    columns = _COLUMNS | (_CURVES if curves else {})
    return [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
        *("| " + " | ".join(show(run) for show in columns.values()) + " |" for run in runs),
    ]
