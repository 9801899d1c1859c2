"""The verdict on a fit: five lines in words."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lightning_topo.plots import counts_distinct
from lightning_topo.plots.history import worst_of_each_step
from lightning_topo.verdict.advice import advice
from lightning_topo.verdict.findings import Findings

# What a terminal that knows ASCII only is told instead.
_ASCII = {"κ": "kappa", "η": "eta", "≥": ">=", "→": "->", "×": "x", "λ": "lambda"}
# Groups that are named one by one.
_MOST_NAMED = 3


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a fit did to the neurons; ``print`` it.

    Attributes:
        lines: The largest κ; updates that could merge neurons; η beside η*; the neurons; advice.
    """

    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines, in Unicode."""
        return "\n".join(self.lines)

    @property
    def ascii(self) -> str:
        """The lines for terminals that show nothing else."""
        text = self.text
        for letter, word in _ASCII.items():
            text = text.replace(letter, word)
        return text.encode("ascii", "backslashreplace").decode("ascii")

    def for_encodings(self, encodings: Iterable[str]) -> str:
        """The text, or its ASCII form where one of the encodings cannot write it."""
        try:
            for encoding in encodings:
                self.text.encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return self.ascii
        return self.text

    def __str__(self) -> str:
        """The text as standard output can write it."""
        return self.for_encodings([getattr(sys.stdout, "encoding", None) or "utf-8"])

    __repr__ = __str__


def verdict(findings: Findings) -> Verdict:
    """Say in five lines what was measured of a fit, and what to do; in fewer where nothing was measured.

    Args:
        findings: What the monitors have measured.

    Returns:
        The verdict; its text is ``str`` of it.

    Example:
        >>> from lightning_topo.verdict import Findings, verdict
        >>> print(verdict(Findings(nothing_because="No update was measured: the fit made no optimizer step.")))
        No update was measured: the fit made no optimizer step.
    """
    no_sharpness = "" if findings.sharpness else findings.no_sharpness_because
    no_topology = "" if findings.topology else findings.no_topology_because
    rates = _rates(findings) or _rates_of_loss(findings)
    of_updates, of_neurons = (_largest(findings), _broken(findings), rates), (_neurons(findings), no_topology)
    return Verdict(tuple(filter(None, (*of_updates, no_sharpness, *of_neurons, advice(findings)))))


def _largest(findings: Findings) -> str:
    worst = worst_of_each_step(findings.updates)
    if not worst:
        return ""
    peak = max(worst, key=lambda record: record.criticality)
    return (
        f"Largest criticality: κ = {peak.criticality:.2g} in {peak.group} at step {peak.step:,}; from κ = 1 on an "
        "update can merge neurons."
    )


def _broken(findings: Findings) -> str:
    if not findings.measured:
        return ""
    certain = ", on all neurons: none have become clones." if findings.clones_excluded else "."
    return (
        f"Updates with κ ≥ 1: {findings.broken:,} of {findings.measured:,} that were measured, of {findings.made:,} "
        f"that were made{certain}"
    )


def _rates(findings: Findings) -> str:
    worst = [record for record in worst_of_each_step(findings.updates) if record.criticality > 0]
    if not worst:
        return ""
    last, rate = worst[-1], median(record.learning_rate for record in worst)
    critical = median(record.critical_lr for record in worst)
    text = (
        f"Learning rate η beside critical rate η*: {rate:.2g} beside {critical:.2g} in the median, "
        f"{last.learning_rate:.2g} beside {last.critical_lr:.2g} at the end"
    )
    of_loss = [one.critical_lr for one in findings.sharpness if _known(getattr(one, "critical_lr", None))]
    return text + (f"; critical rate of the loss η_c {median(of_loss):.2g}." if of_loss else ".")


def _rates_of_loss(findings: Findings) -> str:
    """The sharpness of the loss, where there is no η* to stand beside it."""
    text = ""
    known = [one for one in findings.sharpness if _known(one.critical_lr)]
    if known:
        rate, critical = median(one.learning_rate for one in known), median(one.critical_lr for one in known)
        above = sum(one.learning_rate >= one.critical_lr for one in known)
        text = (
            f"Learning rate η beside the critical rate η_c of the loss: {rate:.2g} beside {critical:.2g} in the "
            f"median, {known[-1].learning_rate:.2g} beside {known[-1].critical_lr:.2g} at the end; "
            f"{above:,} of {len(known):,} measured updates were at or above η_c. "
        )
    values = [one.lambda_max for one in findings.sharpness if _known(one.lambda_max)]
    if values:
        text += f"Largest eigenvalue of the loss's Hessian: λmax = {median(values):.2g} in the median, "
        text += f"{values[-1]:.2g} at the end."
    return text.rstrip()


def _known(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _neurons(findings: Findings) -> str:
    """What became of the neurons: how many are left of them, or the topology, or how far updates squeezed them."""
    courses: dict[str, list[Any]] = {}
    for record in sorted(findings.topology, key=lambda record: record.step):  # the start may have been measured late
        courses.setdefault(record.group, []).append(record)
    compared = {name: course for name, course in courses.items() if len(course) > 1}
    if compared:
        return _distinct(compared) if counts_distinct(findings.topology) else _drift(compared)
    known = [record for record in findings.updates if not math.isnan(record.lower)]
    if not known:
        return ""
    lower, upper = min(known, key=lambda record: record.lower), max(known, key=lambda record: record.upper)
    if courses:
        end = "; their topology was measured once, so that there is nothing to compare."
    elif findings.no_topology_because:
        end = "."
    else:
        end = "; PersistenceMonitor() tells how many stay distinct."
    return (
        f"Neurons: a single measured update changed distances between them by factors from {lower.lower:.3g} "
        f"({lower.group}, step {lower.step:,}) to {upper.upper:.3g} ({upper.group}, step {upper.step:,}){end}"
    )


def _distinct(courses: dict[str, list[Any]]) -> str:
    first = {name: course[0].distinct for name, course in courses.items()}
    last = {name: course[-1].distinct for name, course in courses.items()}
    merged = sorted((name for name in first if last[name] < first[name]), key=lambda name: last[name] / first[name])
    start = f"Distinct neurons: {sum(first.values()):,} at the first measurement, {sum(last.values()):,} at the last"
    lost = _listed([f"{name} {first[name]:,} → {last[name]:,}" for name in merged]) or "no group has lost any"
    return f"{start}; {lost}.{_dormant(courses)}"


def _dormant(courses: dict[str, list[Any]]) -> str:
    """Units that say the same whatever the input is, as far as activations are known."""
    last = {name: getattr(course[-1], "dormant", None) for name, course in courses.items()}
    many = sorted(((share, name) for name, share in last.items() if share is not None and share >= 0.01), reverse=True)
    return f" Dormant units: {_listed([f'{name} {share:.0%}' for share, name in many])}." if many else ""


def _drift(courses: dict[str, list[Any]]) -> str:
    moved = {name: max(course[-1].drift, default=math.nan) for name, course in courses.items()}
    order = sorted((name for name in moved if not math.isnan(moved[name])), key=lambda name: -moved[name])
    if not order:
        return "Neurons: all of a group coincide, so that their topology has no size to be compared by."
    shares = [f"{name} {moved[name]:.2g}" for name in order]
    return f"Neurons: their diagrams moved, as a share of the diameter, by {_listed(shares)} since the first."


def _listed(parts: Sequence[str]) -> str:
    named = ", ".join(parts[:_MOST_NAMED])
    return named if len(parts) <= _MOST_NAMED else f"{named} and less in {len(parts) - _MOST_NAMED} more groups"
