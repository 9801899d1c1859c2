"""The verdict's five lines."""

import io
import sys
from types import SimpleNamespace

from lightning_topo.verdict import Findings, verdict

KAPPAS = [0.1, 0.2, 0.4, 0.2, 0.1, 0.1, 0.1]


def topology(group, step, distinct, drift=(0.0,)):
    return SimpleNamespace(group=group, step=step, distinct=distinct, drift=drift)


def test_five_lines(course, findings):
    made = findings(course(*KAPPAS, group="fc2"), made=70)
    largest, broken, rates, neurons, advice = verdict(made).lines
    assert largest.startswith("Largest criticality: κ = 0.4 in fc2 at step 2;")
    assert broken == "Updates with κ ≥ 1: 0 of 7 that were measured, of 70 that were made."
    assert rates.startswith(
        "Learning rate η beside critical rate η*: 0.1 beside 1 in the median, 0.1 beside 1 at the end"
    )
    assert "by factors from 0.6 (fc2, step 2)" in neurons
    assert "PersistenceMonitor() tells how many stay distinct" in neurons
    assert "could merge neurons" in advice


def test_the_critical_rate_of_the_loss_is_beside_that_of_the_neurons(course, findings):
    sharpness = [SimpleNamespace(step=0, critical_lr=0.5), SimpleNamespace(step=1, critical_lr=None)]
    assert verdict(findings(course(*KAPPAS), sharpness=sharpness)).lines[2].endswith("of the loss η_c 0.5.")


def test_neurons_that_merged_are_counted(course, findings):
    rows = [topology("a", 0, 64), topology("b", 0, 32), topology("a", 50, 64), topology("b", 50, 20)]
    line = verdict(findings(course(*KAPPAS), topology=rows)).lines[3]
    assert line == "Distinct neurons: 96 at the first measurement, 84 at the last; b 32 → 20."
    kept = verdict(findings(course(*KAPPAS), topology=[rows[0], rows[2]])).lines[3]
    assert kept == "Distinct neurons: 64 at the first measurement, 64 at the last; no group has lost any."


def test_clones_are_excluded_where_all_updates_were_seen(course, findings):
    broken = verdict(findings(course(*KAPPAS), made=7, clones_excluded=True)).lines[1]
    assert broken == (
        "Updates with κ ≥ 1: 0 of 7 that were measured, of 7 that were made, on all neurons: none have become clones."
    )


def test_dormant_units_are_named(course, findings):
    rows = [topology(name, step, 64) for step in (0, 50) for name in "abc"]
    for row, share in zip(rows[3:], (0.25, 0.004, None), strict=True):
        row.dormant = share
    line = verdict(findings(course(*KAPPAS), topology=rows)).lines[3]
    assert line.endswith("; no group has lost any. Dormant units: a 25%.")


def test_a_start_that_was_measured_late_is_the_first(course, findings):
    rows = [topology("a", 50, 20), topology("a", 0, 32)]
    assert "32 at the first measurement, 20 at the last" in verdict(findings(course(*KAPPAS), topology=rows)).lines[3]


def test_drift_where_neurons_are_not_counted(course, findings):
    rows = [topology(name, step, None, (drift,)) for name, drift in zip("abcd", (0.1, 0.4, 0.2, 0.3), strict=True)
            for step in (0, 1)]  # fmt: skip
    line = verdict(findings(course(*KAPPAS), topology=rows)).lines[3]
    assert "by b 0.4, d 0.3, c 0.2 and less in 1 more groups since the first" in line


def test_ascii_form_says_the_same(course, findings):
    made = verdict(findings(course(*KAPPAS)))
    assert made.ascii.isascii()
    assert "Largest criticality: kappa = 0.4 in fc1" in made.ascii
    assert "Updates with kappa >= 1" in made.ascii
    assert "critical rate eta*" in made.ascii


def test_terminals_get_what_they_can_write(course, findings, monkeypatch):
    made = verdict(findings(course(*KAPPAS)))
    for encoding, expected in (("ascii", made.ascii), ("latin-1", made.ascii), ("utf-8", made.text)):
        assert made.for_encodings(["utf-8", encoding]) == expected
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            print(made)
            stream.flush()
        assert stream.buffer.getvalue().decode(encoding) == expected + "\n"


def test_nothing_measured_is_one_line():
    assert verdict(Findings(nothing_because="No update was measured: why.")).lines == ("No update was measured: why.",)
