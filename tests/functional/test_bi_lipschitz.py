"""bi_lipschitz against a plain double loop, known maps and invariants."""

import itertools
import math

import numpy as np
import pytest
import torch

from lightning_topo.functional.bi_lipschitz import bi_lipschitz


def double_loop(before, after):
    """The definition, pair by pair, with more digits than float64 where the platform has them."""
    p, q = before.numpy().astype(np.longdouble), after.numpy().astype(np.longdouble)
    ratios, criticalities = [], []
    for i, j in itertools.combinations(range(len(p)), 2):
        distance = np.linalg.norm(p[i] - p[j])
        if distance == 0:
            continue
        ratios.append(np.linalg.norm(q[i] - q[j]) / distance)
        criticalities.append(np.linalg.norm((q[i] - p[i]) - (q[j] - p[j])) / distance)
    return float(min(ratios)), float(max(ratios)), float(max(criticalities))


def cloud(n, dimension, seed=0):
    return torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cases():
    for dimension in (1, 2, 5, 30, 300):
        p = cloud(40, dimension)
        yield pytest.param(p, p + 0.3 * cloud(40, dimension, 1), id=f"random-{dimension}")
        close = p.clone()
        close[1] = close[0] + 1e-7 * cloud(1, dimension, 2)[0]
        close[3] = close[2] + 1e-5 * cloud(1, dimension, 3)[0]
        yield pytest.param(close, close.sin(), id=f"nearly-equal-{dimension}")
        same = p.clone()
        same[5:9] = same[4]
        yield pytest.param(same, same + 0.1 * same.cos(), id=f"identical-{dimension}")


@pytest.mark.parametrize(("before", "after"), list(cases()))
def test_agrees_with_the_double_loop(before, after):
    result = bi_lipschitz(before, after)
    expected = double_loop(before, after)
    assert (result.lower, result.upper, result.criticality) == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert result.distortion == pytest.approx(expected[1] / expected[0])
    i, j = result.pair
    u = after - before
    assert i < j
    assert result.criticality == pytest.approx(((u[i] - u[j]).norm() / (before[i] - before[j]).norm()).item())


def test_counts_identical_pairs_as_unresolved():
    p = cloud(10, 20)
    p[1] = p[2] = p[0]
    assert bi_lipschitz(p, p + 0.1 * p.sin()).n_unresolved == 3


def test_many_blocks_agree_with_one():
    p = cloud(700, 12)
    q = p + 0.2 * cloud(700, 12, 1)
    distances = torch.cdist(p, p, compute_mode="donot_use_mm_for_euclid_dist")
    u = q - p
    criticality = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist") / distances.fill_diagonal_(torch.inf)
    assert bi_lipschitz(p, q).criticality == pytest.approx(criticality.max().item(), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_invariances(seed):
    p = cloud(30, 15, seed)
    q = p + 0.3 * cloud(30, 15, seed + 100)
    expected = bi_lipschitz(p, q)
    rotation = torch.linalg.qr(cloud(15, 15, seed + 200)).Q
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    transformed = {
        "permutation": (p[order], q[order]),
        "rotation": (p @ rotation, q @ rotation),
        "translation": (p + 3.0, q + 3.0),
        "scaling": (7.0 * p, 7.0 * q),
    }
    for name, (x, y) in transformed.items():
        result = bi_lipschitz(x, y)
        for field in ("lower", "upper", "criticality"):
            assert getattr(result, field) == pytest.approx(getattr(expected, field), rel=1e-9), (name, field)


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 0.5, 2.0, 30.0])
def test_criticality_bounds_the_ratios(strength):
    p = cloud(50, 9)
    result = bi_lipschitz(p, p + strength * cloud(50, 9, 1))
    assert 1 - result.criticality <= result.lower <= result.upper <= 1 + result.criticality


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.5])
def test_scaling_map(factor):
    result = bi_lipschitz(cloud(20, 4), factor * cloud(20, 4))
    assert (result.lower, result.upper) == pytest.approx((factor, factor))
    assert result.criticality == pytest.approx(abs(1 - factor))


def test_merging_two_points():
    p = cloud(20, 30)
    q = p.clone()
    q[7] = q[3]
    result = bi_lipschitz(p, q)
    assert result.lower == 0
    assert result.distortion == math.inf
    assert result.criticality >= 1


def test_no_movement_is_the_identity():
    p = cloud(20, 30).float()
    result = bi_lipschitz(p, p.clone())
    assert (result.lower, result.upper, result.criticality, result.n_unresolved) == (1, 1, 0, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_a_cloud_without_pairs_has_no_constants(n):
    result = bi_lipschitz(torch.ones(n, 3), torch.ones(n, 3))
    assert math.isnan(result.criticality)
    assert math.isnan(result.lower)
    assert (result.pair, result.n_unresolved) == (None, 0)


def test_only_identical_points_have_no_constants():
    result = bi_lipschitz(torch.ones(4, 3), torch.ones(4, 3))
    assert math.isnan(result.upper)
    assert result.n_unresolved == 6


def test_smoothness_does_not_depend_on_a_tiny_learning_rate():
    """K = κ/η from float32 points, of which close pairs are lost in rounding, is that of exact arithmetic."""
    p = cloud(200, 2).float()
    p[100:] = p[:100] + 1e-6 * cloud(100, 2, 1).float()  # close pairs: displacement differences below rounding
    gradient = p.double().sin()
    exact = bi_lipschitz(p.double(), p.double() + gradient).criticality
    for lr in (1e-1, 1e-2, 1e-3, 1e-4):
        after = (p.double() + lr * gradient).float()
        result = bi_lipschitz(p, after)
        assert result.n_unresolved > 0
        assert result.criticality / lr == pytest.approx(exact, rel=0.15)


def test_rounding_alone_is_not_taken_for_movement():
    p = cloud(100, 50).float()
    result = bi_lipschitz(p, (p.double() + 1e-9 * cloud(100, 50, 1)).float())
    assert not result.criticality > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    p = cloud(40, 20)
    q = p + 0.5 * cloud(40, 20, 1)
    result = bi_lipschitz(p.to(dtype), q.to(dtype))
    assert result.criticality == pytest.approx(bi_lipschitz(p, q).criticality, rel=20 * torch.finfo(dtype).eps)


def test_half_precision_does_not_overflow():
    p = 3e4 * torch.nn.functional.normalize(cloud(10, 30)).half()
    assert bi_lipschitz(p, 0.5 * p).criticality == pytest.approx(0.5, rel=1e-2)


def test_inputs_are_left_alone():
    p, q = cloud(30, 20), cloud(30, 20, 1)
    copies = p.clone(), q.clone()
    bi_lipschitz(p, q)
    assert torch.equal(p, copies[0])
    assert torch.equal(q, copies[1])


@pytest.mark.gpu
def test_cuda_agrees_with_cpu():
    p, q = cloud(300, 40), cloud(300, 40, 1)
    assert bi_lipschitz(p.cuda(), q.cuda()).criticality == pytest.approx(bi_lipschitz(p, q).criticality, rel=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 3), r"same shape \(n, D\), but got \(3, 2\) and \(3, 3\)"),
        (torch.zeros(3), torch.zeros(3), "same shape"),
        (torch.zeros(3, 0), torch.zeros(3, 0), r"at least one coordinate, but got \(3, 0\)"),
        (torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2, dtype=torch.long), "floating-point"),
        (torch.zeros(3, 2), torch.full((3, 2), torch.nan), "finite"),
        (torch.full((3, 2), torch.inf), torch.zeros(3, 2), "finite"),
    ],
)
def test_bad_input(before, after, message):
    with pytest.raises(ValueError, match=message):
        bi_lipschitz(before, after)


def test_pairs_closer_than_rounding_are_one_neuron():
    """Two float32 neurons that nearly meet at (-2, 0), as on the figure-eight's crossing."""
    p = torch.tensor([[-2.0, 0.0], [-2.0, 1e-8], [1.0, 1.0], [0.0, -1.0]])
    q = p + torch.tensor([[0.0, 1e-3], [0.0, -1e-3], [0.0, 0.0], [0.0, 0.0]])
    result = bi_lipschitz(p, q)
    assert result.n_unresolved == 1
    assert result.criticality < 1e-2


@pytest.mark.parametrize("points", [[[0.0, 1.0]], ((0.0,),), None])
def test_what_is_no_tensor_is_refused(points):
    with pytest.raises(TypeError, match=r"bi_lipschitz expects two tensors .* convert it with torch\.as_tensor"):
        bi_lipschitz(points, torch.zeros(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-2, 3.0, "shrunk"])
def test_large_clouds_have_the_constants_of_double_precision(dtype, change):
    from lightning_topo.functional.exact_constants import exact_constants

    p = cloud(300, 120).to(dtype)
    q = (0.75 * p if change == "shrunk" else p.double() + change * cloud(300, 120, 1)).to(dtype)
    result, exact = bi_lipschitz(p, q), exact_constants(p, q, torch.finfo(dtype).eps)
    for field in ("lower", "upper", "criticality"):
        assert getattr(result, field) == pytest.approx(getattr(exact, field), rel=1e-9, nan_ok=True), field
    assert result.n_unresolved == exact.n_unresolved
