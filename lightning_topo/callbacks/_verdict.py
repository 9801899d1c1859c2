"""Says a verdict at the end of a fit."""

from __future__ import annotations

from typing import Any

from lightning_topo._lightning import log_encodings, rank_zero_info
from lightning_topo.verdict import Verdict


def speak(trainer: Any, verdict: Verdict) -> None:
    """Say it through Lightning's logger, by which it is silenced, in letters that all its streams can write."""
    rank_zero_info(trainer, verdict.for_encodings(log_encodings()))
