"""What our callbacks of a Trainer have measured, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lightning_topo.callbacks._options import OptionedCallback
from lightning_topo.verdict import Findings

_UNWATCHED = "No update was measured: add BiLipschitzMonitor() to the Trainer's callbacks to learn about the rate."


def ours(callbacks: Iterable[Any]) -> tuple[OptionedCallback, ...]:
    """Our callbacks among those of a Trainer."""
    return tuple(callback for callback in callbacks if isinstance(callback, OptionedCallback))


def gather(callbacks: Iterable[OptionedCallback]) -> Findings:
    """What these callbacks know of their present or last fit; of several that measure updates, all records."""
    callbacks = tuple(callbacks)
    known = [callback.findings() for callback in callbacks if hasattr(callback, "findings")]
    fullest = max(known, key=lambda one: (bool(one.updates), one.made), default=Findings(nothing_because=_UNWATCHED))
    return replace(
        fullest,
        updates=[record for one in known for record in one.updates],
        topology=_histories(callbacks, "topology"),
        sharpness=_histories(callbacks, "sharpness"),
        diverged=tuple(dict.fromkeys(name for one in known for name in one.diverged)),
        controlled=any(getattr(one, "active", False) for one in _named(callbacks, "control")),
    )


def _histories(callbacks: Iterable[OptionedCallback], name: str) -> list[Any]:
    return [record for callback in _named(callbacks, name) for record in callback.history]


def _named(callbacks: Iterable[Any], name: str) -> list[Any]:
    return [callback for callback in callbacks if getattr(callback, "name", "") == name]
