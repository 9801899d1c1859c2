"""What our callbacks of a Trainer have measured, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from lightning_topo.callbacks._options import OptionedCallback
from lightning_topo.verdict import Findings

_UNWATCHED = (
    "The neurons of no update were compared: add BiLipschitzMonitor() to the Trainer's callbacks to learn how near the "
    "learning rate comes to merging them."
)


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
        sharpness=[record for one in known for record in one.sharpness],
        no_topology_because=next(filter(None, (one.no_topology_because for one in known)), ""),
        no_sharpness_because=next(filter(None, (one.no_sharpness_because for one in known)), ""),
        diverged=tuple(dict.fromkeys(name for one in known for name in one.diverged)),
        controlled=any(getattr(one, "active", False) for one in _named(callbacks, "control")),
    )


def _named(callbacks: Iterable[Any], name: str) -> list[Any]:
    return [callback for callback in callbacks if getattr(callback, "name", "") == name]
