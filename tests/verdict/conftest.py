"""Courses of κ that are written down by hand."""

import math
from types import SimpleNamespace

import pytest

from lightning_topo.verdict import Findings


def _record(step, kappa, rate=0.1, group="fc1"):
    critical = rate / kappa if kappa else math.inf
    return SimpleNamespace(
        step=step, group=group, learning_rate=rate, criticality=kappa, critical_lr=critical, lower=1 - kappa, upper=1
    )


def _course(*kappas, rates=None, group="fc1"):
    rates = [0.1] * len(kappas) if rates is None else rates
    return [_record(step, kappa, rate, group) for step, (kappa, rate) in enumerate(zip(kappas, rates, strict=True))]


def _findings(records, **others):
    steps = {one.step for one in records}
    broken = {one.step for one in records if one.criticality >= 1}
    counts = {"made": len(steps), "measured": len(steps), "broken": len(broken)}
    return Findings(updates=records, **(counts | others))


@pytest.fixture
def record():
    """What an update at a step did: κ, η and η* = η / κ."""
    return _record


@pytest.fixture
def course():
    """One record a step."""
    return _course


@pytest.fixture
def findings():
    """Findings of a fit in which every update was measured."""
    return _findings
