"""The paper's claims, each with what our runs say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import neurons_r2
from common import Run
from equivariance import Equivariance
from gudhi_agreement import Agreement


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        text: What is claimed.
        verdict: holds, partly, does not hold, or not checked.
        numbers: What was counted.
        command: What made it.
        asserted: Whether the run fails when it does not hold.
    """

    text: str
    verdict: str
    numbers: str
    command: str
    asserted: bool = False


PARTS = {"neurons_r2": "neurons in R²", "neurons_r3": "neurons in R³", "real_networks": "real networks"}


def claims(
    runs: dict[str, list[Run]], equivariance: Sequence[Equivariance], agreements: Sequence[Agreement]
) -> list[Claim]:
    table: list[Claim] = []
    for part, title in PARTS.items():
        if runs.get(part):
            table += _of_part(part, title, runs[part])
    every = [run for part in runs.values() for run in part]
    if every:
        table += [_every_optimizer(every), *_sharpness(every), *_expressivity(every)]
    if equivariance:
        table.append(_equivariance(equivariance))
    table.append(_gudhi(agreements))
    return table


def _of_part(part: str, title: str, runs: list[Run]) -> list[Claim]:
    command = f"python examples/paper/run_all.py --only {part}"
    kept, broken = [r for r in runs if r.kept], [r for r in runs if not r.kept]
    named = {role: [r for r in runs if r.experiment.role == role] for role in ("small", "large")}
    table = [
        _count(f"{title}: κ < 1 throughout at the rates called small", named["small"], _kept, command, _rate),
        _count(f"{title}: κ ≥ 1 at the rates called large", named["large"], _broke, command, _rate),
    ]
    if part == "neurons_r2":
        table += [
            _count(
                f"{title}: below η* a curve keeps its self-crossings", kept, _crossings_kept, command, _crossings, True
            ),
            _count(f"{title}: above η* it is folded over itself", broken, _folded, command, _crossings, True),
        ]
    scale = runs[0].experiment.scale
    table += [
        _count(
            f"{title}: below η* the Betti numbers at {scale:g}·diameter never change",
            kept,
            _betti_constant,
            command,
            _betti,
            part == "real_networks",
        ),
        _count(f"{title}: below η* the bars of the start stay certified to the end", kept, _certified, command, _bars),
        _count(
            f"{title}: above η* the Betti numbers at {scale:g}·diameter change", broken, _betti_change, command, _betti
        ),
        _count(f"{title}: above η* they become simpler (their sum falls)", broken, _simpler, command, _betti),
    ]
    return table


def _count(
    text: str,
    runs: Sequence[Run],
    holds: Callable[[Run], bool],
    command: str,
    show: Callable[[Run], str],
    asserted: bool = False,
) -> Claim:
    yes = sum(map(holds, runs))
    numbers = f"{yes} of {len(runs)} runs: " + "; ".join(f"{_name(run)} {show(run)}" for run in runs)
    return Claim(text, _verdict(yes, len(runs)), numbers if runs else "no such run", command, asserted)


def _verdict(yes: int, of: int) -> str:
    return "not checked" if of == 0 else "holds" if yes == of else "does not hold" if yes == 0 else "partly"


def _name(run: Run) -> str:
    e = run.experiment
    curve = {"figure-eight": " (8)", "two circles": " (oo)"}.get(e.family, "")
    return f"{e.optimizer} {e.lr:g}{curve}" + (f" #{e.seed}" if e.seed else "")


def _kept(run: Run) -> bool:
    return run.kept


def _broke(run: Run) -> bool:
    return not run.kept


def _rate(run: Run) -> str:
    return f"κ ≤ {run.criticality:.2g}, {run.broken} of {len(run.updates)} updates"


def _crossings_kept(run: Run) -> bool:
    before, after = neurons_r2.n_crossings(run)
    return before == after


def _folded(run: Run) -> bool:
    before, after = neurons_r2.n_crossings(run)
    return after > before


def _crossings(run: Run) -> str:
    before, after = neurons_r2.n_crossings(run)
    return f"{before} → {after}"


def _betti_constant(run: Run) -> bool:
    return len({record.betti for record in run.topology}) == 1


def _betti_change(run: Run) -> bool:
    return run.topology[-1].betti != run.topology[0].betti


def _simpler(run: Run) -> bool:
    return sum(run.topology[-1].betti) < sum(run.topology[0].betti)


def _betti(run: Run) -> str:
    first, last = ("".join(f"{b}," for b in record.betti)[:-1] for record in (run.topology[0], run.topology[-1]))
    changes = sum(record.betti != run.topology[0].betti for record in run.topology)
    return f"{first} → {last}" + (f" (differs at {changes} of {len(run.topology)})" if changes else "")


def _certified(run: Run) -> bool:
    return _certified_until(run) == len(run.topology)


def _certified_until(run: Run) -> int:
    """Number of measurements from the start at which no bar of the start has been lost to the certificate."""
    first = run.topology[0].certified_betti
    lost = (k for k, record in enumerate(run.topology) if record.certified_betti != first)
    return next(lost, len(run.topology))


def _bars(run: Run) -> str:
    until = _certified_until(run)
    return "to the end" if until == len(run.topology) else f"until epoch {run.epochs[until - 1]}"


def _every_optimizer(runs: Sequence[Run]) -> Claim:
    optimizers = sorted({run.experiment.optimizer for run in runs})
    both = [o for o in optimizers if len({run.kept for run in runs if run.experiment.optimizer == o}) == 2]
    numbers = "; ".join(
        f"{o}: largest κ {_range(r.criticality for r in runs if r.experiment.optimizer == o)}" for o in optimizers
    )
    return Claim(
        "GD, momentum and Adam each have rates with κ < 1 throughout and rates without",
        _verdict(len(both), len(optimizers)),
        numbers,
        "make paper",
        True,
    )


def _sharpness(runs: Sequence[Run]) -> list[Claim]:
    table = []
    for optimizer in ("GD", "momentum", "Adam"):
        ratios = [
            ratio for run in runs if run.experiment.optimizer == optimizer for ratio in _inverse_over_critical(run)
        ]
        below = sum(ratio <= 1 for ratio in ratios)
        numbers = (
            f"{below} of {len(ratios)} measurements; 1/λmax over η*: median {median(ratios):.2g}, {_range(ratios)}"
        )
        table.append(
            Claim(
                f"1/λmax is at most η* = 1/K of the same update ({optimizer})",
                _verdict(below, len(ratios)),
                numbers,
                "make paper",
            )
        )
    edges = [
        (run, _edge(run))
        for run in runs
        if run.experiment.optimizer == "GD" and run.experiment.role in ("small", "large")
    ]
    at_edge = sum(0.8 <= edge <= 1.3 for _, edge in edges)
    numbers = f"{at_edge} of {len(edges)} runs; median η·λmax/2 of the second half: " + "; ".join(
        f"{_name(run)} {edge:.2g}" for run, edge in edges
    )
    return [
        *table,
        Claim(
            "GD trains at the edge of stability (η·λmax/2 between 0.8 and 1.3)",
            _verdict(at_edge, len(edges)),
            numbers,
            "make paper",
        ),
    ]


def _inverse_over_critical(run: Run) -> list[float]:
    critical = {record.step: record.critical_lr for record in run.updates}
    return [r.inverse / critical[r.step] for r in run.sharpness if r.inverse > 0 and critical.get(r.step, 0.0) > 0]


def _edge(run: Run) -> float:
    late = run.sharpness[len(run.sharpness) // 2 :]
    return median(record.lambda_max for record in late) * run.experiment.lr / 2


def _expressivity(runs: Sequence[Run]) -> list[Claim]:
    kept, broken = [r for r in runs if r.kept], [r for r in runs if not r.kept]

    def lost(run: Run) -> bool:
        return run.distinct[1] < 0.95 * run.distinct[0]

    def narrowed(run: Run) -> bool:
        return run.ranks[1] < run.ranks[0]

    def neurons(run: Run) -> str:
        return f"{run.distinct[0]} → {run.distinct[1]}"

    def rank(run: Run) -> str:
        return f"{run.ranks[0]} → {run.ranks[1]}"

    return [
        _count(
            "Expressivity: above η* neurons merge (more than 5% fewer apart at 0.001·diameter)",
            broken,
            lost,
            "make paper",
            neurons,
        ),
        _count("Expressivity: below η* they do not", kept, lambda run: not lost(run), "make paper", neurons),
        _count("Expressivity: above η* the rank of the hidden activations falls", broken, narrowed, "make paper", rank),
        _count("Expressivity: below η* it does not", kept, lambda run: not narrowed(run), "make paper", rank),
    ]


def _equivariance(results: Sequence[Equivariance]) -> Claim:
    right = sum(result.holds == result.expected for result in results)
    numbers = "; ".join(f"{result.optimizer}: {result.gap:.0e}" for result in results)
    return Claim(
        "The update commutes with exchanging neurons and their optimizer state (and does not for the counter-example)",
        _verdict(right, len(results)),
        f"gap as a share of the update: {numbers}",
        "python examples/paper/equivariance.py",
        True,
    )


def _gudhi(agreements: Sequence[Agreement]) -> Claim:
    equal, of = sum(a.n_equal for a in agreements), sum(len(a.ours) for a in agreements)
    runs = "; ".join(f"{a.optimizer} {a.lr:g}, {a.n_neurons} neurons: {a.n_equal} of {len(a.ours)}" for a in agreements)
    return Claim(
        "The callback's Betti numbers are those of gudhi's Rips complex at every epoch",
        _verdict(equal, of),
        runs or "no results: gudhi is not installed, or this part was not run",
        "python examples/paper/gudhi_agreement.py",
        bool(agreements),
    )


def _range(values: Iterable[float]) -> str:
    low, *_, high = sorted(values) * 2
    return f"{low:.2g} to {high:.2g}"
