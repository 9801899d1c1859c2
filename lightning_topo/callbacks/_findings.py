"""What our callbacks of a Trainer have measured, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    of_updates = [one for one in known if one.updates or one.nothing_because]
    nothing = Findings(nothing_because=_UNWATCHED)
    return replace(
        max(of_updates, key=lambda one: (bool(one.updates), one.made), default=nothing),
        updates=[record for one in known for record in one.updates],
        topology=[record for one in known for record in one.topology],
        sharpness=[record for one in _named(callbacks, "sharpness") for record in _last_run(one.history)],
        diverged=tuple(dict.fromkeys(name for one in known for name in one.diverged)),
        controlled=any(getattr(one, "active", False) for one in _named(callbacks, "control")),
    )


def _named(callbacks: Iterable[Any], name: str) -> list[Any]:
    return [callback for callback in callbacks if getattr(callback, "name", "") == name]


def _last_run(history: Sequence[Any]) -> Sequence[Any]:
    """The records since the steps last began anew."""
    first = len(history)
    while first > 0 and (first == len(history) or history[first - 1].step <= history[first].step):
        first -= 1
    return history[first:]
