"""The paper's claims, each with what our runs say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import neurons_r2
from common import Run
from equivariance import Equivariance
from gudhi_agreement import Agreement
from runs_table import certified_until, edge, name


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
    kept, broken = _below_and_above(runs)
    named = {role: [r for r in runs if r.experiment.role == role] for role in ("small", "large")}
    scale = f"{runs[0].experiment.scale:g}·diameter"
    bars = [run for run in kept if sum(run.topology[0].certified_betti) > 1]
    plane, real = part == "neurons_r2", part == "real_networks"
    rows = [
        ("κ < 1 throughout at the rates called small", named["small"], _kept, part != "neurons_r3"),
        ("κ ≥ 1 at the rates called large", named["large"], _broke, part == "neurons_r3"),
        (f"at the rates called small the Betti numbers at {scale} never change", named["small"], _betti_constant, real),
        ("at the rates called large they change", named["large"], _betti_change, False),
        (f"below η* the Betti numbers at {scale} never change", kept, _betti_constant, False),
        ("below η* the bars of the start (beyond one component) stay certified to the end", bars, _certified, False),
        (f"above η* the Betti numbers at {scale} change", broken, _betti_change, not plane),
        ("above η* they become simpler (their sum falls)", broken, _simpler, False),
    ]
    if plane:
        rows[2:2] = [
            ("below η* a curve keeps its self-crossings", kept, _crossings_kept, True),
            ("above η* it is folded over itself", broken, _folded, True),
        ]
    command = f"python examples/paper/run_all.py --only {part}"
    table = [_count(f"{title}: {text}", subset, holds, command, must) for text, subset, holds, must in rows]
    return [*table, _distortion(title, kept, broken, command)]


def _distortion(title: str, kept: Sequence[Run], broken: Sequence[Run], command: str) -> Claim:
    least = min((run.distortion for run in broken), default=0.0)
    milder = sum(run.distortion < least for run in kept) if broken else 0
    numbers = f"{milder} of {len(kept)} runs below; " if kept and broken else ""
    numbers += "; ".join(
        f"{side}: {_range(run.distortion for run in runs)}"
        for side, runs in (("below", kept), ("above", broken))
        if runs
    )
    text = f"{title}: runs below η* distort the neurons less than any run above"
    return Claim(text, _verdict(milder, len(kept) if broken else 0), numbers, command, bool(kept and broken))


def _below_and_above(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    return [run for run in runs if run.kept], [run for run in runs if not run.kept]


def _count(
    text: str, runs: Sequence[Run], holds: Callable[[Run], bool], command: str = "make paper", asserted: bool = False
) -> Claim:
    yes = [name(run) for run in runs if holds(run)]
    no = [name(run) for run in runs if not holds(run)]
    numbers = f"{len(yes)} of {len(runs)} runs" if runs else "no such run"
    if yes and no:
        numbers += f"; only {', '.join(yes)}" if len(yes) < len(no) else f"; not {', '.join(no)}"
    return Claim(text, _verdict(len(yes), len(runs)), numbers, command, asserted)


def _verdict(yes: int, of: int) -> str:
    return "not checked" if of == 0 else "holds" if yes == of else "does not hold" if yes == 0 else "partly"


def _kept(run: Run) -> bool:
    return run.kept


def _broke(run: Run) -> bool:
    return not run.kept


def _crossings_kept(run: Run) -> bool:
    before, after = neurons_r2.n_crossings(run)
    return before == after


def _folded(run: Run) -> bool:
    before, after = neurons_r2.n_crossings(run)
    return after > before


def _betti_constant(run: Run) -> bool:
    return len({record.betti for record in run.topology}) == 1


def _betti_change(run: Run) -> bool:
    return run.topology[-1].betti != run.topology[0].betti


def _simpler(run: Run) -> bool:
    return sum(run.topology[-1].betti) < sum(run.topology[0].betti)


def _certified(run: Run) -> bool:
    return certified_until(run) == len(run.topology)


def _at_edge(run: Run) -> bool:
    return 0.8 <= edge(run) <= 1.3


def _merged(run: Run) -> bool:
    return run.distinct[1] < 0.95 * run.distinct[0]


def _narrowed(run: Run) -> bool:
    return run.ranks[1] < run.ranks[0]


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
    gd = [r for r in runs if r.experiment.optimizer == "GD" and r.experiment.role in ("small", "large")]
    return [
        *(_inverse_sharpness([r for r in runs if r.experiment.optimizer == o], o) for o in ("GD", "momentum", "Adam")),
        _count("GD trains at the edge of stability (η·λmax/2 between 0.8 and 1.3)", gd, _at_edge),
    ]


def _inverse_sharpness(runs: Sequence[Run], optimizer: str) -> Claim:
    ratios = [ratio for run in runs for ratio in _inverse_over_critical(run)]
    below = sum(ratio <= 1 for ratio in ratios)
    numbers = f"{below} of {len(ratios)} measurements"
    if ratios:
        numbers += f"; 1/λmax over η*: median {median(ratios):.2g}, {_range(ratios)}"
    text = f"1/λmax is at most η* = 1/K of the same update ({optimizer})"
    return Claim(text, _verdict(below, len(ratios)), numbers, "make paper")


def _inverse_over_critical(run: Run) -> list[float]:
    critical = {record.step: record.critical_lr for record in run.updates}
    return [r.inverse / critical[r.step] for r in run.sharpness if r.inverse > 0 and critical.get(r.step, 0.0) > 0]


def _expressivity(runs: Sequence[Run]) -> list[Claim]:
    kept, broken = _below_and_above(runs)
    merge = "Expressivity: above η* neurons merge (more than 5% fewer apart at 0.001·diameter)"
    return [
        _count(merge, broken, _merged),
        _count("Expressivity: below η* they do not", kept, lambda run: not _merged(run), asserted=True),
        _count("Expressivity: above η* the rank of the hidden activations falls", broken, _narrowed),
        _count("Expressivity: below η* it does not", kept, lambda run: not _narrowed(run)),
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
