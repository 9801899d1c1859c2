"""Distances against extended precision."""

import numpy as np
import pytest
import torch

from lightning_topo.functional import betti_at_scale, farthest_point_sample, persistence
from lightning_topo.functional.distances import as_cloud, pairwise_distances


def cloud(n, dimension, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return offset + torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def extended(points):
    x = points.double().numpy().astype(np.longdouble)
    return np.stack([np.sqrt(np.square(x - row).sum(1)) for row in x])


@pytest.mark.parametrize("dimension", [1, 2, 16, 17, 300])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_error_is_tiny_against_the_size_of_the_cloud(dimension, offset):
    points = cloud(300, dimension, offset=offset)
    truth = extended(points)
    error = np.abs(pairwise_distances(points).numpy() - truth).max()
    assert error <= 1e-13 * truth.max()


@pytest.mark.parametrize("dimension", [2, 40, 300])
@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9])
def test_close_pairs_keep_their_digits(dimension, gap):
    points = cloud(60, dimension)
    points[1::2] = points[::2]
    points[1::2, 0] += gap
    truth = extended(points)
    i = np.arange(0, 60, 2)
    got = pairwise_distances(points).numpy()[i, i + 1]
    np.testing.assert_allclose(got, truth[i, i + 1].astype(float), rtol=1e-12)


@pytest.mark.parametrize("dimension", [3, 50])
def test_identical_points_are_at_distance_zero(dimension):
    points = cloud(20, dimension, offset=3.7)
    points[10:] = points[:10]
    distances = pairwise_distances(points)
    assert (distances[range(10), range(10, 20)] == 0).all()


# The second is computed in several row blocks.
@pytest.mark.parametrize("shape", [(90, 5), (700, 30), (1, 4), (2, 40)])
def test_symmetric_with_zero_diagonal(shape):
    distances = pairwise_distances(cloud(*shape))
    assert distances.shape == (shape[0], shape[0])
    assert distances.dtype == torch.float64
    assert torch.equal(distances, distances.T)
    assert (distances.diagonal() == 0).all()


def test_row_blocks_agree_with_extended_precision():
    points = cloud(700, 30)
    np.testing.assert_allclose(pairwise_distances(points).numpy(), extended(points).astype(float), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_is_computed_in_float64(dtype):
    points = cloud(30, 40).to(dtype)
    assert torch.equal(pairwise_distances(points), pairwise_distances(points.double()))


def test_gradients_and_input_are_left_alone():
    points = cloud(10, 30).requires_grad_()
    before = points.detach().clone()
    assert not pairwise_distances(points).requires_grad
    assert torch.equal(points.detach(), before)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(3), r"shape \(3,\)"),
        (torch.zeros(0, 3), r"shape \(0, 3\)"),
        (torch.zeros(3, 0), r"shape \(3, 0\)"),
        (torch.zeros(3, 2, dtype=torch.long), "torch.int64"),
        (torch.tensor([[0.0], [float("nan")]]), "NaN, infinite"),
        (torch.tensor([[0.0], [float("-inf")]]), "NaN, infinite"),
        (torch.tensor([[0.0], [1e200]], dtype=torch.float64), "above 1e\\+150"),
    ],
)
def test_bad_clouds_are_refused(points, message):
    with pytest.raises(ValueError, match=f"asker expects.*{message}"):
        as_cloud(points, "asker")


@pytest.mark.gpu
def test_gpu_agrees():
    points = cloud(200, 100)
    distances = pairwise_distances(points.cuda())
    assert distances.is_cuda
    torch.testing.assert_close(distances.cpu(), pairwise_distances(points), atol=1e-12, rtol=0)


@pytest.mark.parametrize("points", [[[0.0, 1.0]], (1.0, 2.0), None])
def test_what_is_no_tensor_is_refused(points):
    for function in (pairwise_distances, persistence, betti_at_scale, lambda x: farthest_point_sample(x, 1)):
        with pytest.raises(TypeError, match=r"expects a tensor of shape \(n, D\), .* convert it with torch.as_tensor"):
            function(points)


def test_points_without_coordinates_are_refused():
    for function in (pairwise_distances, persistence, betti_at_scale, lambda x: farthest_point_sample(x, 1)):
        with pytest.raises(ValueError, match=r"one point and one coordinate, but got shape \(3, 0\)"):
            function(torch.zeros(3, 0))
