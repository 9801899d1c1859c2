"""What TensorBoard shows beyond scalars: figures, and a layout of the custom-scalars page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_figures(trainer: Any, figures: dict[str, Axes], step: int) -> None:
    """Add the figures of some axes to every TensorBoard logger of the Trainer."""
    for logger in _tensorboard_loggers(trainer):
        for tag, ax in figures.items():
            logger.experiment.add_figure(tag, ax.figure, global_step=step)


def write_layout(trainer: Any) -> None:
    """Write the charts of all our monitors, once: TensorBoard reads one layout a run.

    Each of a Trainer's monitors calls this when it knows its tags; the last one writes.
    """
    monitors = [callback for callback in trainer.callbacks if hasattr(callback, "charts") and callback.active]
    if not all(monitor.ready for monitor in monitors):
        return
    layout: dict[str, dict[str, list[Any]]] = {}
    for monitor in monitors:
        for title, tags in monitor.charts().items():
            # Tags are regular expressions there.
            exact = [f"^{re.escape(tag)}$" for tag in tags]
            layout.setdefault(f"lightning_topo: {monitor.name}", {})[title] = ["Multiline", exact]
    for logger in _tensorboard_loggers(trainer):
        logger.experiment.add_custom_scalars(layout)


def has_tensorboard(trainer: Any) -> bool:
    """Whether the Trainer writes to TensorBoard."""
    return bool(_tensorboard_loggers(trainer))


def _tensorboard_loggers(trainer: Any) -> list[Any]:
    # By name, for `lightning` and `pytorch_lightning` have a class of this name each.
    return [logger for logger in trainer.loggers if "TensorBoardLogger" in {c.__name__ for c in type(logger).__mro__}]
