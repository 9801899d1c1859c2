"""The leading eigenpair against dense Hessians and the Lanczos search of `sharpness`."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy

from lightning_topo.functional import sharpness
from lightning_topo.functional.leading_eigenpair import leading_eigenpair


def network(seed, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), activation(), nn.Linear(9, 3)), torch.randn(40, 5), torch.randint(3, (40,))


def dense(model, x, y):
    """The Hessian in double precision, by torch.func."""
    names, params = zip(*[(name, p.detach().double()) for name, p in model.named_parameters()], strict=True)
    sizes = [p.numel() for p in params]

    def loss(flat):
        pieces = [piece.view_as(p) for piece, p in zip(flat.split(sizes), params, strict=True)]
        return cross_entropy(functional_call(model, dict(zip(names, pieces, strict=True)), (x.double(),)), y)

    return hessian(loss)(torch.cat([p.flatten() for p in params]))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_dense_hessian(seed, activation):
    model, x, y = network(seed, activation)
    values, vectors = torch.linalg.eigh(dense(model, x, y))
    found = leading_eigenpair(cross_entropy(model(x), y), model.parameters(), tolerance=1e-4)
    assert found.converged
    assert found.value == pytest.approx(values[-1].item(), rel=1e-5)
    assert abs(torch.dot(found.vector.double(), vectors[:, -1])) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "spectrum", [[-9.0, -1.0, 0.5, 2.0], [-9.0, -4.0, -3.0, -2.0], [5.0, 5.0, 5.0, 1.0], [3.0] * 6]
)
def test_largest_means_algebraically_largest(spectrum):
    rotation = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), dtype=torch.float64)).Q
    theta = torch.ones(len(spectrum), dtype=torch.float64, requires_grad=True)
    loss = (torch.tensor(spectrum, dtype=torch.float64) * (rotation @ theta) ** 2).sum() / 2
    assert leading_eigenpair(loss, [theta], tolerance=1e-6).value == pytest.approx(max(spectrum), rel=1e-8)


def test_takes_about_as_many_products_as_lanczos_and_few_from_near():
    cold, warm, lanczos = [], [], []
    for seed in range(6):
        model, x, y = network(seed)
        loss = cross_entropy(model(x), y)
        first = leading_eigenpair(loss, model.parameters())
        cold.append(first.products)
        lanczos.append(next(k for k in range(1, 40) if _converges(loss, model, k)))
        with torch.no_grad():
            for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                p -= 0.05 * g
        again = leading_eigenpair(cross_entropy(model(x), y), model.parameters(), start=first.vector)
        assert again.value == pytest.approx(torch.linalg.eigvalsh(dense(model, x, y))[-1].item(), rel=1e-3)
        warm.append(again.products)
    assert sum(cold) <= 1.2 * sum(lanczos)
    assert max(warm) <= 3


def _converges(loss, model, products):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sharpness(loss, model.parameters(), max_iter=products, tolerance=1e-2)
    return not caught


def test_too_few_products_give_a_lower_bound():
    model, x, y = network(0)
    loss = cross_entropy(model(x), y)
    whole = leading_eigenpair(loss, model.parameters(), tolerance=1e-4)
    short = leading_eigenpair(loss, model.parameters(), max_iter=3, tolerance=1e-4)
    assert (short.products, short.converged) == (3, False)
    assert short.value < whole.value


def test_a_loss_without_curvature_has_zero():
    theta = torch.ones(3, requires_grad=True)
    assert leading_eigenpair((2 * theta).sum(), [theta]).value == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_loss_gives_nan(value):
    theta = torch.ones(3, requires_grad=True)
    assert math.isnan(leading_eigenpair((theta**2).sum() + value, [theta]).value)


def test_bad_input():
    theta = torch.ones(3, requires_grad=True)
    loss = (theta**2).sum()
    with pytest.raises(ValueError, match=r"expected a start of shape \(3,\)"):
        leading_eigenpair(loss, [theta], start=torch.ones(4))
    with pytest.raises(ValueError, match="max_iter=0"):
        leading_eigenpair(loss, [theta], max_iter=0)
