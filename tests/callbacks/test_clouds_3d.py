"""Neuron clouds in space: what TensorBoard's pages Mesh and Projector are given."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt
from lightning_topo.callbacks._clouds_3d import write_clouds


@pytest.fixture
def board(tmp_path):
    class Trainer:
        logger = pl.loggers.TensorBoardLogger(tmp_path)
        loggers = (logger,)

    return Trainer


def meshes(logger):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    return {
        tag: [(event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if "custom_scalars" not in tag
    }


def test_mesh_keeps_distances_of_a_cloud_in_three_dimensions(board):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(9, 3, generator=generator)).Q
    start = torch.randn(20, 3, generator=generator) @ basis.T
    write_clouds(board, "topology/a", 2 * start, start, step=7)
    written = meshes(board.logger)
    ((step, vertices),) = [rows[0] for tag, rows in written.items() if "VERTEX" in tag.upper()]
    ((_, colours),) = [rows[0] for tag, rows in written.items() if "COLOR" in tag.upper()]
    assert step == 7
    assert vertices.shape == (1, 20, 3)
    distances = torch.cdist(torch.tensor(vertices[0]).double(), torch.tensor(vertices[0]).double())
    torch.testing.assert_close(distances, 2 * torch.cdist(start.double(), start.double()), rtol=1e-4, atol=1e-5)
    assert len(np.unique(colours[0], axis=0)) > 15


def test_projector_has_all_coordinates_and_labels(board, tmp_path):
    points = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    points[3] = torch.nan
    write_clouds(board, "topology/a", points, points, step=7)
    board.logger.experiment.flush()
    (tensors,) = tmp_path.rglob("tensors.tsv")
    (labels,) = tmp_path.rglob("metadata.tsv")
    kept = [row for row in range(12) if row != 3]
    np.testing.assert_allclose(np.loadtxt(tensors), points[kept].numpy(), rtol=1e-5)
    assert labels.read_text().split("\n")[:3] == ["neuron 0", "neuron 1", "neuron 2"]
    assert "neuron 3\n" not in labels.read_text()


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_few_coordinates_are_drawn_as_they_are(board, dimension):
    points = torch.randn(6, dimension, generator=torch.Generator().manual_seed(0))
    write_clouds(board, "topology/a", points, points, step=0)
    ((_, vertices),) = [rows[0] for tag, rows in meshes(board.logger).items() if "VERTEX" in tag.upper()]
    np.testing.assert_allclose(vertices[0][:, :dimension], points.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("figures", "given"), [("3d", True), (True, False)])
def test_only_where_it_is_asked_for(figures, given, classifier, trainer, data, tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    monitor = lt.PersistenceMonitor(max_overhead=None, figures=figures, groups="net.0")
    trainer([monitor], logger=logger, max_epochs=1).fit(classifier(), data())
    assert bool(list(tmp_path.rglob("projector_config.pbtxt"))) is given
    assert any("VERTEX" in tag.upper() for tag in meshes(logger)) is given


def test_figures_are_checked():
    with pytest.raises(ValueError, match="figures must be True, False or '3d'"):
        lt.PersistenceMonitor(figures="2d")
