"""A device without float64 gives the figures of the definition, to the digits that single precision has."""

import itertools
import math

import pytest
import torch

import lightning_topo as lt
from lightning_topo.functional import bi_lipschitz
from lightning_topo.functional.double_precision import has_double, in_double
from lightning_topo.functional.near_bound import criticality_near
from lightning_topo.functional.update_constants import UpdateConstants, update_constants

from ..second_device import on_a_device_without_double
from .conftest import POINTS, UPDATES, cloud, loop


@on_a_device_without_double
def test_a_device_is_asked_for_double_precision(device):
    one = torch.ones(3, device=device)
    assert not has_double(device)
    assert has_double(torch.device("cpu"))
    assert in_double(one).device.type == "cpu"
    with pytest.raises(TypeError, match="float64"):
        one.double()


@on_a_device_without_double
def test_constants_are_those_of_the_definition(device):
    certain = 0
    for points, update, shape, dtype in itertools.product(
        POINTS, UPDATES, [(16, 5), (10, 40)], [torch.float32, torch.bfloat16]
    ):
        before, after = cloud(points, update, shape, dtype)
        eps = torch.finfo(dtype).eps
        truth = loop(before, after, eps)
        before, after = before.to(device), after.to(device)
        found = bi_lipschitz(before, after)
        for name in ("criticality", "lower", "upper"):
            assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-7, abs=1e-12, nan_ok=True)
        if truth.criticality > 0.1:
            assert criticality_near(before, after, 0.1, eps) == pytest.approx(truth.criticality, rel=1e-5)
        ((constants, finite, sure),) = UpdateConstants.unpack(
            update_constants(before[None], after[None], eps).packed().tolist()
        )
        assert finite
        if sure and not math.isnan(truth.criticality):
            certain += 1
            for name in ("criticality", "lower", "upper"):
                expected = getattr(truth, name)
                assert getattr(constants, name) == pytest.approx(expected, rel=1e-5, abs=1e-6), (points, update, name)
    assert certain > 100


@on_a_device_without_double
def test_topology_is_that_of_the_cpu(device):
    angle = 2 * math.pi * torch.arange(24) / 24
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    here, there = circle, circle.to(device)
    assert lt.functional.betti_at_scale(there, scale=0.25) == (1, 1, 0)
    for one, other in zip(
        lt.functional.persistence(here).diagrams, lt.functional.persistence(there).diagrams, strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(
        lt.functional.farthest_point_sample(here, 5)[0], lt.functional.farthest_point_sample(there, 5)[0].cpu()
    )
