"""What TensorBoard shows: figures over all groups first, logarithms, and a page of charts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lightning_topo.callbacks._per_group import is_of_group
from lightning_topo.callbacks.log_keys import has_logarithm

# Of our monitors' charts those about the updates come first.
_ORDER = ("bilipschitz", "control", "topology", "sharpness", "clipping")


def is_tensorboard(logger: Any) -> bool:
    """Whether a logger's experiment is a TensorBoard writer, whatever its class is called."""
    return hasattr(getattr(logger, "experiment", None), "add_custom_scalars")


def first_tag(key: str) -> str:
    """A second tag of a figure over all groups, in the section that the page shows first."""
    return f"all_groups/{key.replace('/', '_')}"


def logarithm_of(key: str) -> str:
    """The key of a figure's base-10 logarithm: the page of charts has no logarithmic axis."""
    before, name = key.rsplit("/", 1)
    return f"{before}/log10_{name}"


def tags_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Figures by their tags, with the logarithms that charts are drawn of.

    Tags are the keys. Where there are figures of groups, among which those over all groups would be hard to find, these
    have a second tag each.
    """
    logarithms = {logarithm_of(key): math.log10(v) for key, v in metrics.items() if has_logarithm(key) and v > 0}
    amid_groups = any(map(is_of_group, metrics))
    first = {first_tag(key): v for key, v in metrics.items() if amid_groups and not is_of_group(key)}
    return {**metrics, **logarithms, **first}


def write_layout(trainer: Any) -> None:
    """Write the charts of all our monitors: TensorBoard shows the last layout of a run.

    Each of a Trainer's monitors calls this when it knows its tags; the last one writes.
    """
    monitors = [callback for callback in trainer.callbacks if hasattr(callback, "charts") and callback.active]
    if not all(monitor.ready for monitor in monitors):
        return
    layout: dict[str, dict[str, list[Any]]] = {}
    sections: dict[str, str] = {}  # of each title
    for monitor in sorted(monitors, key=lambda monitor: _ORDER.index(monitor.name)):
        for title, tags in monitor.charts().items():
            # A rate is that of the callback that sets it, at each update.
            if title not in sections or monitor.name == "control":
                section = sections.setdefault(title, f"lightning_topo: {monitor.name}")
                # Tags are regular expressions there.
                exact = [f"^{re.escape(tag)}$" for tag in tags]
                layout.setdefault(section, {})[title] = ["Multiline", exact]
    for logger in filter(is_tensorboard, trainer.loggers):
        logger.experiment.add_custom_scalars(layout)
