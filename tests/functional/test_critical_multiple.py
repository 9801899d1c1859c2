"""The critical multiple against closed forms, and a search in double precision that takes every step."""

import math

import pytest
import torch
from torch import nn

from lightning_topo.functional import critical_multiple, sharpness


def quadratic(eigenvalues, seed=0):
    """A convex quadratic in a random basis, a point on it, and its Hessian."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return hessian, basis, torch.randn(n, generator=generator, dtype=torch.float64)


def along(hessian, point, update):
    def loss(t):
        moved = point + t * update
        return (moved @ hessian @ moved / 2).item()

    return loss


@pytest.mark.parametrize("lr", [1e-4, 0.03, 0.2, 40.0])
@pytest.mark.parametrize("seed", range(5))
def test_of_gradient_descent_on_a_quadratic_is_the_closed_form(seed, lr):
    hessian, _, point = quadratic([8.0, 3.0, 1.0, 0.1], seed)
    gradient = hessian @ point
    found = critical_multiple(along(hessian, point, -lr * gradient))
    exact = 2 * (gradient @ gradient / (gradient @ hessian @ gradient)).item()
    assert found.multiple * lr == pytest.approx(exact, rel=1e-6)
    assert found.bracket[0] < found.multiple <= found.bracket[1] <= 1.1 * found.bracket[0]
    assert found.multiple * lr >= 2 / 8.0 * (1 - 1e-9)  # 2/λmax is the least that it can be


@pytest.mark.parametrize("lr", [1e-3, 0.1, 3.0])
def test_along_the_leading_eigenvector_it_is_two_over_the_sharpness(lr):
    hessian, basis, _ = quadratic([8.0, 3.0, 1.0, 0.1])
    weight = (1.7 * basis[:, 0]).requires_grad_()
    lambda_max = sharpness(weight @ hessian @ weight / 2, [weight])
    point = weight.detach()
    found = critical_multiple(along(hessian, point, -lr * hessian @ point))
    assert found.multiple * lr == pytest.approx(2 / lambda_max, rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_of_a_preconditioned_update_is_the_closed_form(seed):
    hessian, _, point = quadratic([8.0, 3.0, 1.0, 0.1], seed)
    update = -torch.tensor([0.1, 0.4, 0.02, 0.3], dtype=torch.float64) * (hessian @ point)
    exact = (-2 * (hessian @ point) @ update / (update @ hessian @ update)).item()
    assert critical_multiple(along(hessian, point, update)).multiple == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("seed", range(3))
def test_of_a_network_agrees_with_a_fine_scan(optimizer, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randint(3, (40,))
    before = [p.detach().clone() for p in model.parameters()]
    stepping = optimizer(model.parameters(), lr=0.02)
    nn.functional.cross_entropy(model(x), y).backward()
    stepping.step()
    after = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def loss(t):
        for p, a, b in zip(model.parameters(), before, after, strict=True):
            p.copy_(a + t * (b - a))
        return nn.functional.cross_entropy(model(x), y).item()

    found = critical_multiple(loss)
    scan = next(t for t in (1.01**k for k in range(-400, 2000)) if loss(t) >= loss(0))
    assert found.bracket[0] / 1.01 <= scan <= found.bracket[1] * 1.01
    assert found.multiple == pytest.approx(scan, rel=0.03)


def test_a_start_near_the_result_takes_six_evaluations():
    curve = along(*(torch.tensor(v, dtype=torch.float64) for v in ([[1.0]], [1.0], [-0.001])))  # returns at 2000
    cold = critical_multiple(curve)
    warm = critical_multiple(curve, start=0.9 * cold.multiple)
    assert warm.multiple == pytest.approx(2000, rel=1e-6)
    assert warm.evaluations == 6
    assert cold.evaluations <= 13


@pytest.mark.parametrize("start", [1.0, 0.5, 2.0, 2.0000001, 1.9999999])
def test_a_start_at_the_result_itself_finds_it(start):
    found = critical_multiple(lambda t: (t - 1) ** 2, start=start)
    assert found.multiple == pytest.approx(2.0, rel=1e-5)
    assert found.evaluations <= 8


def test_few_evaluations_give_a_wider_bracket_with_the_result_in_it():
    few = critical_multiple(lambda t: (t - 3.7) ** 2, max_evaluations=6)
    assert few.evaluations == 6
    assert few.bracket[0] < 7.4 <= few.bracket[1]
    assert few.multiple == pytest.approx(7.4)  # a parabola is told exactly from any bracket
    assert critical_multiple(lambda t: (t - 3.7) ** 2).evaluations > 6


@pytest.mark.parametrize("slope", [1.0, 1e-3, 1e5])
def test_a_loss_that_does_not_fall_is_told_as_zero(slope):
    found = critical_multiple(lambda t: 3.0 + slope * t)
    assert (found.multiple, found.bracket[0]) == (0.0, 0.0)
    assert found.evaluations <= 15


def test_a_loss_that_only_falls_is_told_as_infinite():
    found = critical_multiple(lambda t: 1.0 / (1.0 + t))
    assert found.multiple == math.inf
    assert found.bracket == (2.0**31, math.inf)


def test_a_constant_loss_does_not_fall():
    assert critical_multiple(lambda t: 0.7).multiple == 0.0


@pytest.mark.parametrize("before", [math.nan, math.inf])
def test_without_a_finite_loss_before_there_is_none(before):
    found = critical_multiple(lambda t: before)
    assert math.isnan(found.multiple)
    assert found.evaluations == 1


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_lower(beyond):
    found = critical_multiple(lambda t: 1 - t if t < 5 else beyond)
    assert found.bracket[0] < 5 <= found.multiple == found.bracket[1] <= 1.1 * found.bracket[0]


def test_an_update_too_small_to_be_seen_in_single_precision_is_stretched_until_it_is():
    def loss(t):  # falls by 1e-10 at the update itself, and comes back at 1e6
        x = torch.tensor(1e-6 * t, dtype=torch.float64)
        return (1 + 1e-4 * (x * x - x)).float().item()

    assert loss(1) == loss(0)
    assert critical_multiple(loss).multiple == pytest.approx(1e6, rel=0.02)


def test_rounding_of_a_few_units_decides_nothing():
    unit = torch.finfo(torch.float32).eps

    def loss(t):  # noise of three units in the last place on a parabola that comes back at 300
        noise = 3 * unit * math.sin(1e4 * t)
        return 1 + 1e-3 * ((t / 300) ** 2 - t / 300) + noise

    assert critical_multiple(loss).multiple == pytest.approx(300, rel=0.05)
    for lr in (1e-6, 1e-3, 1.0, 1e3):
        assert critical_multiple(lambda t, lr=lr: loss(t * lr) if t else 1.0).multiple * lr == pytest.approx(
            300, rel=0.05
        )


@pytest.mark.parametrize("options", [{"start": 0.0}, {"start": math.inf}, {"tolerance": 0}, {"resolution": -1.0}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"got .*{next(iter(options))}={next(iter(options.values()))}"):
        critical_multiple(lambda t: 1.0 - t, **options)
