"""The entry point through which Lightning asks for callbacks: none, unless the environment says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_topo.callbacks._options import OptionedCallback

VARIABLE = "LIGHTNING_TOPO"
_OFF = {"", "0", "false", "no", "off"}
_ON = {"1", "true", "yes", "on", "all"}


def callbacks_from_environment() -> list[OptionedCallback]:
    """The monitors that ``LIGHTNING_TOPO`` asks for, for every Trainer that is made.

    ``LIGHTNING_TOPO=1`` adds the three monitors with their defaults, ``LIGHTNING_TOPO=bilipschitz,persistence``
    chooses. A monitor added so does nothing in a Trainer that holds one of its kind already.

    Returns:
        New callbacks; an empty list when the variable is unset or 0.

    Raises:
        ValueError: When the variable names no monitor; the message lists the names.
    """
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked in _OFF:
        return []
    from lightning_topo.callbacks import BiLipschitzMonitor, PersistenceMonitor, SharpnessMonitor

    kinds = {"bilipschitz": BiLipschitzMonitor, "persistence": PersistenceMonitor, "sharpness": SharpnessMonitor}
    names = list(kinds) if asked in _ON else list(dict.fromkeys(part.strip() for part in asked.split(",")))
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise ValueError(f"{VARIABLE} takes 1, 0 or a list of {', '.join(kinds)}; but got {', '.join(unknown)!r}.")
    monitors: list[OptionedCallback] = [kinds[name]() for name in names]
    for monitor in monitors:
        monitor.from_environment = True
    return monitors
