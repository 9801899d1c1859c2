"""Figures for every logger, by what it can do and not by its name."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.plots.picture import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def takes_figures(trainer: Any) -> bool:
    """Whether some logger of a Trainer can show figures, or has a folder for them."""
    return any(_way_of(logger) is not None for logger in trainer.loggers)


def write_figures(trainer: Any, figures: Mapping[str, Figure], step: int, announcer: Announcer) -> None:
    """Give figures, by their tags, to every logger that takes some; a logger that fails is said once."""
    for logger in trainer.loggers:
        with announcer.never_fatal(f"give figures to {type(logger).__name__}"):
            way = _way_of(logger)
            for tag, figure in figures.items() if way is not None else ():
                way(logger, tag, figure, step)


def _way_of(logger: Any) -> Any:
    """How a logger takes a figure, or None."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "add_figure"):
        return _add_figure
    if hasattr(logger, "log_image"):
        return _log_image
    if hasattr(experiment, "log_figure"):
        return _log_artifact if "artifact_file" in signature(experiment.log_figure).parameters else _log_figure
    if hasattr(experiment, "__getitem__") and hasattr(experiment, "upload_files"):
        return _append
    return _save if isinstance(getattr(logger, "log_dir", None), (str, Path)) else None


def _add_figure(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """TensorBoard."""
    logger.experiment.add_figure(tag, figure, global_step=step, close=False)


def _log_image(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """Weights & Biases, and loggers of its kind, which take images."""
    import io

    from PIL import Image

    logger.log_image(tag, images=[Image.open(io.BytesIO(png(figure)))], step=step)


def _log_artifact(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """MLflow."""
    logger.experiment.log_figure(logger.run_id, figure, f"{_file(tag, step)}")


def _log_figure(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """Comet."""
    logger.experiment.log_figure(figure_name=tag, figure=figure, step=step)


def _append(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """Neptune."""
    logger.experiment[tag].append(figure, step=step)


def _save(logger: Any, tag: str, figure: Figure, step: int) -> None:
    """Files beside the metrics."""
    path = Path(logger.log_dir) / _file(tag, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def _file(tag: str, step: int) -> str:
    return f"figures/{tag}/step_{step:08d}.png"
