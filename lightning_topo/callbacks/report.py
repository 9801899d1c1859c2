"""A report on a fit: one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_topo.callbacks._findings import gather, ours
from lightning_topo.verdict import write_page


def report(trainer: Any, path: str | Path = "lightning_topo_report.html") -> Path:
    """Write what a fit did to the neurons as one self-contained HTML page: the verdict, figures and a table of groups.

    The page needs no network and no other file. Call it after ``trainer.fit``, or within, of what has been measured
    by then.

    Args:
        trainer: A Trainer that holds our callbacks.
        path: The file; folders that are missing are made.

    Returns:
        The path.

    Raises:
        ValueError: When the Trainer holds none of our callbacks.

    Example:
        >>> import lightning_topo as lt
        >>> # trainer = Trainer(callbacks=[lt.BiLipschitzMonitor()]); trainer.fit(model)
        >>> # lt.report(trainer, "report.html")
    """
    callbacks = ours(trainer.callbacks)
    if not callbacks:
        raise ValueError(
            "report expects a Trainer that holds callbacks of lightning_topo, got one without; add "
            "BiLipschitzMonitor() to its callbacks and fit."
        )
    module = getattr(trainer, "lightning_module", None)
    what = f"{type(module).__name__}, " if module is not None else ""
    about = f"{what}{trainer.global_step:,} optimizer steps; measured by {', '.join(_names(callbacks))}."
    return write_page(gather(callbacks), path, about)


def _names(callbacks: tuple[Any, ...]) -> list[str]:
    return list(dict.fromkeys(type(callback).__name__ for callback in callbacks))
