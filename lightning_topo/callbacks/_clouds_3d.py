"""The neuron cloud in three dimensions, to be turned with the mouse: TensorBoard's pages Mesh and Projector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_topo.callbacks._tensorboard import is_tensorboard
from lightning_topo.plots import principal_axes, start_colours

# Share of the cloud's width that a point has on the page Mesh.
_POINT = 0.02


def write_clouds(trainer: Any, tag: str, points: Tensor, start: Tensor, step: int) -> None:
    """Give a neuron cloud to TensorBoard's pages Mesh, with a slider for the step, and Projector.

    Mesh shows the first three principal axes of the start, the same at each step, in the colours of the start;
    Projector all coordinates, of which it finds its own axes (PCA, UMAP, t-SNE) in the browser.

    Args:
        trainer: A Trainer.
        tag: Under which they are found.
        points: Neurons now, shape (n, D).
        start: The same neurons at the start, shape (n, D).
        step: Step under which they are found.
    """
    loggers = [logger for logger in trainer.loggers if is_tensorboard(logger)]
    kept = points.isfinite().all(1) & start.isfinite().all(1)
    if not loggers or not kept.any():
        return
    points, start = points[kept].float().cpu(), start[kept].float().cpu()
    colours = torch.from_numpy(255 * start_colours(start)).round().to(torch.uint8)
    vertices = _in_three(points, start)
    size = _POINT * float(vertices.amax() - vertices.amin() or 1.0)
    numbers = kept.nonzero().flatten().tolist()
    for logger in loggers:
        logger.experiment.add_mesh(
            tag,
            vertices=vertices[None],
            colors=colours[None],
            config_dict={"material": {"cls": "PointsMaterial", "size": size}},
            global_step=step,
        )
        logger.experiment.add_embedding(
            points, metadata=[f"neuron {number}" for number in numbers], global_step=step, tag=tag.replace("/", "_")
        )


def _in_three(points: Tensor, start: Tensor) -> Tensor:
    """The neurons along the first three principal axes of the start; of two or three coordinates as they are."""
    dimension = points.shape[1]
    if dimension <= 3:
        return torch.nn.functional.pad(points, (0, 3 - dimension))
    mean, axes = principal_axes(start, 3)
    return (points - mean) @ axes
