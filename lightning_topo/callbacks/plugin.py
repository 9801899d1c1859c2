"""The entry point through which Lightning asks for callbacks: none, unless the environment says so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_topo.callbacks._options import OptionedCallback
    from lightning_topo.callbacks.learning_rate_finder import TopologicalLearningRateFinder

VARIABLE = "LIGHTNING_TOPO"
_OFF = {"", "0", "false", "no", "off"}
_ON = {"1", "true", "yes", "on", "all"}


def callbacks_from_environment() -> list[OptionedCallback | TopologicalLearningRateFinder]:
    """The callbacks that ``LIGHTNING_TOPO`` asks for, for every Trainer that is made.

    ``LIGHTNING_TOPO=1`` adds the three monitors with their defaults, ``LIGHTNING_TOPO=bilipschitz,persistence``
    chooses. What changes training is added only by name: ``control`` (TopologicalRateControl), ``clipping``
    (TopologicalStepClipping) and ``finder`` (TopologicalLearningRateFinder, which then sets the rates of the optimizers
    also where the model keeps no learning rate). One that is added so does nothing in a Trainer that holds one of its
    kind already.

    Returns:
        New callbacks; an empty list when the variable is unset or 0.

    Raises:
        ValueError: When the variable names no callback; the message lists the names.
    """
    asked = os.environ.get(VARIABLE, "").strip().lower()
    if asked in _OFF:
        return []
    from lightning_topo import callbacks as ours

    monitors: dict[str, type[OptionedCallback | TopologicalLearningRateFinder]] = {
        "bilipschitz": ours.BiLipschitzMonitor,
        "persistence": ours.PersistenceMonitor,
        "sharpness": ours.SharpnessMonitor,
    }
    kinds = monitors | {
        "control": ours.TopologicalRateControl,
        "clipping": ours.TopologicalStepClipping,
        "finder": ours.TopologicalLearningRateFinder,
    }
    names = list(monitors) if asked in _ON else list(dict.fromkeys(part.strip() for part in asked.split(",")))
    unknown = [name for name in names if name not in kinds]
    if unknown:
        raise ValueError(f"{VARIABLE} takes 1, 0 or a list of {', '.join(kinds)}; but got {', '.join(unknown)!r}.")
    added: list[OptionedCallback | TopologicalLearningRateFinder] = [kinds[name]() for name in names]
    for callback in added:
        callback.from_environment = True
    return added
