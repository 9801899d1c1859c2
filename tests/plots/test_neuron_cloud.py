from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_topo.plots import plot_neuron_cloud, principal_plane


def _cloud(n: int, dimension: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, dimension, generator=generator) * torch.linspace(3, 1, dimension) + 5).to(dtype)


def _drawn(ax) -> np.ndarray:
    return np.asarray(ax.collections[0].get_offsets())


def _colours(ax) -> np.ndarray:
    return ax.collections[0].get_facecolors()[:, :3]


@pytest.mark.parametrize(("n", "dimension"), [(50, 6), (6, 50), (20, 20), (3, 2), (2, 5)])
def test_principal_plane_equals_the_singular_vectors(n, dimension):
    cloud = _cloud(n, dimension).double()
    mean, basis = principal_plane(cloud)
    assert torch.allclose(mean, cloud.mean(0))
    truth = torch.linalg.svd(cloud - cloud.mean(0), full_matrices=False).Vh[:2].T
    rank = min(2, n - 1)
    assert torch.allclose((basis * truth).sum(0).abs()[:rank], torch.ones(rank, dtype=torch.float64))
    assert torch.allclose(basis.T @ basis, torch.eye(2, dtype=torch.float64), atol=1e-12)


def test_principal_plane_has_one_sign():
    cloud = _cloud(30, 5)
    _, basis = principal_plane(cloud)
    assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(principal_plane(cloud[order])[1], basis, atol=1e-4)


@pytest.mark.parametrize("cloud", [torch.ones(1, 4), torch.ones(5, 4), torch.ones(1, 1), torch.arange(4.0)[:, None]])
def test_principal_plane_of_degenerate_clouds(cloud):
    mean, basis = principal_plane(cloud)
    assert basis.shape == (cloud.shape[1], 2)
    assert basis.isfinite().all()
    assert torch.allclose(mean, cloud.mean(0))


def test_draws_the_principal_coordinates():
    cloud = _cloud(40, 7)
    mean, basis = principal_plane(cloud)
    ax = plot_neuron_cloud(cloud)
    assert _drawn(ax) == pytest.approx(((cloud - mean) @ basis).numpy(), abs=1e-5)
    share = torch.linalg.svdvals(cloud - mean)[0] ** 2 / (cloud - mean).square().sum()
    assert ax.get_xlabel() == f"principal axis 1 ({share:.0%} of the variance)"


def test_the_axes_say_which_they_are_and_how_little_they_may_show():
    start = torch.zeros(40, 7)
    start[:, :2] = _cloud(40, 2)
    plane = principal_plane(start)
    elsewhere = start.clone()
    elsewhere[:, 3] = torch.linspace(-100, 100, 40)
    ax = plot_neuron_cloud(elsewhere, start=start, plane=plane)
    assert ax.get_xlabel() == "fixed axis 1 (under 1% of the variance)"
    collapsed = torch.ones(40, 1) * torch.linspace(0.1, 0.7, 7)
    for chosen, label in ((None, "principal axis 1"), (plane, "fixed axis 1")):
        assert plot_neuron_cloud(collapsed, plane=chosen).get_xlabel() == f"{label} (all neurons coincide)"


def test_two_coordinates_are_drawn_as_they_are():
    cloud = _cloud(40, 2)
    ax = plot_neuron_cloud(cloud)
    assert _drawn(ax) == pytest.approx(cloud.numpy())
    assert ax.get_xlabel() == "coordinate 1"


def test_a_kept_plane_shows_what_moved():
    start = _cloud(40, 7)
    plane = principal_plane(start)
    before = _drawn(plot_neuron_cloud(start, plane=plane))
    after = _drawn(plot_neuron_cloud(start + 2.0 * plane[1][:, 0], plane=plane))
    assert after - before == pytest.approx(np.tile([2.0, 0.0], (40, 1)), abs=1e-4)


def test_colours_follow_the_neuron_from_where_it_started():
    start = _cloud(40, 7)
    mixed = start.flip(0)
    own, followed = plot_neuron_cloud(start), plot_neuron_cloud(mixed, start=start)
    assert _colours(followed) == pytest.approx(_colours(own))
    assert _colours(followed) == pytest.approx(_colours(plot_neuron_cloud(mixed))[::-1], abs=1e-3)
    assert "coloured by start" in followed.get_title()
    assert "coloured" not in own.get_title()


def test_start_is_shown_as_the_key():
    start = _cloud(40, 2)
    ax = plot_neuron_cloud(start + 1, start=start)
    (inset,) = ax.child_axes
    assert _drawn(inset) == pytest.approx(start.numpy())
    assert _colours(inset) == pytest.approx(_colours(ax))
    assert plot_neuron_cloud(start).child_axes == []


def test_neighbours_on_a_circle_have_neighbouring_colours_and_opposites_do_not():
    t = torch.arange(360) * (2 * math.pi / 360)
    colours = _colours(plot_neuron_cloud(torch.stack([0.1 * t.cos(), t.sin()], dim=1)))
    assert np.abs(colours - np.roll(colours, 1, axis=0)).max() < 0.02
    assert np.linalg.norm(colours - np.roll(colours, 180, axis=0), axis=1).min() > 0.4


def test_colours_do_not_depend_on_scale_or_place():
    start = _cloud(40, 7).double()
    expected = _colours(plot_neuron_cloud(start))
    assert _colours(plot_neuron_cloud(start, start=1e3 * start - 7)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    plot_neuron_cloud(_cloud(10, 4, dtype=dtype), start=_cloud(10, 4)).figure.canvas.draw()


def test_neurons_that_are_not_finite_are_left_out_and_counted():
    cloud = _cloud(10, 4)
    cloud[3, 1], cloud[7, 0] = math.nan, math.inf
    ax = plot_neuron_cloud(cloud, start=_cloud(10, 4))
    assert len(_drawn(ax)) == 8
    assert ax.get_title() == "Neuron cloud: 10 neurons (2 not finite, not shown), coloured by start"
    empty = plot_neuron_cloud(torch.full((3, 2), math.nan))
    assert "3 not finite" in empty.get_title()
    empty.figure.canvas.draw()


@pytest.mark.parametrize("cloud", [torch.ones(1, 4), torch.ones(5, 3), torch.ones(1, 1), torch.arange(4.0)[:, None]])
def test_degenerate_clouds_render(cloud):
    plot_neuron_cloud(cloud).figure.canvas.draw()


def test_leaves_pyplot_alone_and_draws_on_given_axes():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    ax = plot_neuron_cloud(_cloud(10, 4))
    assert plot_neuron_cloud(_cloud(10, 4), ax=ax) is ax
    assert pyplot.get_fignums() == []


def test_no_gradient_is_needed():
    cloud = _cloud(10, 4).requires_grad_()
    plot_neuron_cloud(cloud, start=cloud + 1, plane=principal_plane(cloud))
    assert cloud.grad is None


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        principal_plane(torch.ones(3))
    with pytest.raises(ValueError, match="finite"):
        principal_plane(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match=r"equal n, got \(3, 2\) and \(4, 2\)"):
        plot_neuron_cloud(torch.ones(3, 2), start=torch.ones(4, 2))
    with pytest.raises(ValueError, match=r"got \(0, 2\)"):
        principal_plane(torch.ones(0, 2))
