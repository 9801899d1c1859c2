"""The constants of many updates at once, against the definition."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo.functional import bi_lipschitz
from lightning_topo.functional.exact_constants import exact_constants
from lightning_topo.functional.update_constants import UpdateConstants, update_constants, update_criticality

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unpacked(before, after, eps):
    return UpdateConstants.unpack(update_constants(before, after, eps).packed().tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_the_definition_where_certain(points_name, update_name, shape, dtype, update_cloud, pair_loop):
    before, after = update_cloud(points_name, update_name, shape, dtype)
    eps = torch.finfo(dtype).eps
    truth = pair_loop(before, after, eps)
    ((found, finite, certain),) = unpacked(before[None], after[None], eps)
    assert finite
    if certain:
        for name in ("criticality", "lower", "upper"):
            assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-7, abs=1e-12, nan_ok=True), name
        assert found.n_unresolved == truth.n_unresolved
        if truth.criticalities:
            assert truth.criticalities[found.pair] == pytest.approx(found.criticality, rel=1e-9)
        else:
            assert found.pair is None
    else:  # then they are those of some pairs
        assert not found.criticality > truth.criticality * (1 + 1e-9)
        assert not found.lower < truth.lower * (1 - 1e-9)
        assert not found.upper > truth.upper * (1 + 1e-9)


def test_neurons_that_die_or_shrink_alike_are_certain(pair_loop):
    """Updates that fade out in some neurons, and weight decay alone in others."""
    p = noise(120, 30).float()
    u = 1e-3 * noise(120, 30, seed=1)
    u[:30] *= torch.logspace(-9, -3, 30).double()[:, None]
    u[30:60] = -1e-4 * p[30:60].double()
    q = (p.double() + u).float()
    truth = pair_loop(p, q, 2**-23)
    ((found, _, certain),) = unpacked(p[None], q[None], 2**-23)
    assert certain
    assert (found.criticality, found.lower, found.upper) == pytest.approx(
        (truth.criticality, truth.lower, truth.upper), rel=1e-7
    )
    assert found.n_unresolved == truth.n_unresolved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_clouds_of_training_are_certain(update_name, dtype, update_cloud):
    for points in ("random", "nearly equal", "identical", "minute", "huge"):
        before, after = update_cloud(points, update_name, (150, 40), dtype)
        assert update_constants(before[None], after[None], torch.finfo(dtype).eps).certain.item(), points


def test_half_precision_is_taken_as_it_is(pair_loop):
    p = noise(60, 30).half()
    q = (p.double() + 0.1 * noise(60, 30, seed=1)).half()
    ((found, _, certain),) = unpacked(p[None], q[None], 2**-10)
    truth = pair_loop(p, q, 2**-10)
    assert certain
    assert (found.criticality, found.lower, found.upper) == pytest.approx(
        (truth.criticality, truth.lower, truth.upper), rel=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_stack_says_the_same_as_each_cloud_alone(shape, dtype, points_name, update_cloud):
    eps = torch.finfo(dtype).eps
    names = ("small", "none", "dead", "large", "merging")
    before, after = (
        torch.stack(part) for part in zip(*(update_cloud(points_name, x, shape, dtype) for x in names), strict=True)
    )
    together = unpacked(before, after, eps)
    for g, (constants, finite, certain) in enumerate(together):
        ((alone, alone_finite, alone_certain),) = unpacked(before[g : g + 1], after[g : g + 1], eps)
        assert (finite, certain) == (alone_finite, alone_certain)
        if certain:
            for name in ("criticality", "lower", "upper"):
                a, b = getattr(constants, name), getattr(alone, name)
                assert a == pytest.approx(b, rel=1e-14, nan_ok=True), name
            assert constants.n_unresolved == alone.n_unresolved


def test_the_criticality_alone_is_that_of_all_constants(points_name, update_name, shape, update_cloud):
    before, after = (part[None] for part in update_cloud(points_name, update_name, shape, torch.float32))
    every, one = (f(before, after, 2**-23) for f in (update_constants, update_criticality))
    assert one.certain.item() >= every.certain.item()
    if one.certain and every.certain:
        assert torch.equal(one.criticality.nan_to_num(-1.0), every.criticality.nan_to_num(-1.0))
        assert torch.equal(one.n_unresolved, every.n_unresolved)
    assert one.lower.isnan().all()
    assert one.upper.isnan().all()


def test_tensors_and_rows_say_the_same(points_name, update_name, update_cloud):
    before, after = update_cloud(points_name, update_name, (40, 30), torch.bfloat16)
    before, after = before.repeat(3, 1, 1), torch.stack([after, before, after * math.nan])
    tensors = update_constants(before, after, 2**-7)
    for g, (constants, finite, certain) in enumerate(UpdateConstants.unpack(tensors.packed().tolist())):
        assert (finite, certain) == (tensors.finite[g].item(), tensors.certain[g].item())
        for name in ("criticality", "lower", "upper"):
            assert getattr(constants, name) == pytest.approx(getattr(tensors, name)[g].item(), rel=0, nan_ok=True), name
        if finite:
            assert constants.n_unresolved == tensors.n_unresolved[g].item()
        assert list(constants.pair or (-1, -1)) == tensors.pair[g].tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_points(n, pair_loop):
    p, q = noise(n, 7).float(), noise(n, 7, seed=1).float()
    truth = pair_loop(p, q, 2**-23)
    ((found, finite, certain),) = unpacked(p[None], q[None], 2**-23)
    assert finite
    assert certain
    for name in ("criticality", "lower", "upper"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-9, nan_ok=True)
    assert found.n_unresolved == 0
    assert (found.pair is None) == (n == 1)


def test_many_points_in_blocks():
    p, q = noise(700, 20).float(), noise(700, 20, seed=1).float()
    constants = update_constants(p[None], q[None], 2**-23)
    i, j = torch.triu_indices(700, 700, 1)
    d, a, u = (
        torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[i, j]
        for x in (p.double(), q.double(), q.double() - p.double())
    )
    assert constants.certain.all()
    assert constants.criticality.item() == pytest.approx((u / d).max().item(), rel=1e-9)
    assert constants.lower.item() == pytest.approx((a / d).min().item(), rel=1e-9)
    assert constants.upper.item() == pytest.approx((a / d).max().item(), rel=1e-9)
    where = (u / d).argmax()
    assert constants.pair.tolist() == [[i[where].item(), j[where].item()]]


def test_integers_whose_hashes_are_few():
    """Clouds on a lattice in double precision, of which most bits are zero."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        p = torch.randint(-2, 3, (200, 6), generator=generator).double() + 1e-9 * noise(200, 6, seed=seed)
        p[:100] = p[:100].round()
        q = p + 0.1 * noise(200, 6, seed=seed + 1)
        exact = exact_constants(p, q, 2**-52)
        ((found, _, certain),) = unpacked(p[None], q[None], 2**-52)
        assert not certain or found.n_unresolved == exact.n_unresolved


def test_points_that_differ_by_few_roundings_have_different_hashes():
    from lightning_topo.functional._products import hashes

    steps = torch.cartesian_prod(*[torch.arange(-3, 4)] * 5).int()
    points = (torch.full((len(steps), 5), 1.5).view(torch.int32) + steps).view(torch.float32)
    assert len(hashes(points).unique()) == len(steps)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_cloud_is_said_and_spoils_no_other(value):
    p = noise(3, 20, 10).float()
    q = p + 0.1 * noise(3, 20, 10, seed=1).float()
    expected = unpacked(p, q, 2**-23)
    q[1, 4, 5] = value
    found = unpacked(p, q, 2**-23)
    assert [finite for _, finite, _ in found] == [True, False, True]
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert math.isnan(found[1][0].criticality)
    assert math.isnan(found[1][0].lower)
    assert math.isnan(found[1][0].upper)
    assert found[1][0].pair is None
    assert found[1][2]  # there is nothing else to find out


def test_equal_ratios_are_left_to_double_precision():
    p = noise(60, 10).float()
    found = update_constants(p[None], 0.75 * p[None], 2**-23)
    assert not found.certain.item()
    assert found.criticality.item() == pytest.approx(0.25, rel=1e-6)


def test_all_points_in_one_is_certain():
    p = noise(60, 10).float()
    found = update_constants(p[None], torch.zeros_like(p)[None], 2**-23)
    assert found.lower.item() == 0


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [update_constants, update_criticality])
@pytest.mark.parametrize(("n", "dimension"), [(1, 5), (5, 3), (64, 75), (300, 20)])
def test_nothing_is_read_back_and_operations_do_not_grow_with_the_groups(function, n, dimension):
    counts = set()
    for groups in (1, 3, 12):
        p = noise(groups, n, dimension).float()
        with Operations() as operations:
            function(p, p + 0.1, 2**-23).packed()
        counts.add(operations.count)
    assert len(counts) == 1
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        with FakeTensorMode():  # which refuses whatever depends on a value
            points = torch.empty(3, n, dimension, dtype=dtype)
            packed = function(points, points + 1, 2**-23).packed()
        assert packed.shape == (3, 13)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_precision_of_products_changes_nothing(precision):
    p = noise(2, 100, 300).float()
    q = p + 1e-3 * noise(2, 100, 300, seed=1).float()
    expected = unpacked(p, q, 2**-23)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert unpacked(p, q, 2**-23) == expected
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.autocast("cpu", torch.bfloat16):
        assert unpacked(p, q, 2**-23) == expected


def test_split_factors_give_the_product_of_single_precision():
    """The terms for processors that round the factors of products to 10 bits."""
    from lightning_topo.functional._products import relative_error, split_terms

    def rounded(x):
        return x.view(torch.int32).add(2**12).bitwise_and(-(2**13)).view(torch.float32).double()

    x, y = noise(50, 200).float(), noise(60, 200, seed=1).float()
    product = sum(rounded(a) @ rounded(b).T for a, b in split_terms(x, y))
    norms = x.double().square().sum(1)[:, None] + y.double().square().sum(1)
    error = (2 * (product - x.double() @ y.double().T)).abs() / norms
    assert error.max() < relative_error(torch.float32, 200, "cpu") / 10


def test_the_points_are_left_alone_and_may_need_gradients():
    p = noise(2, 30, 10).float().requires_grad_()
    q = p.detach() + 0.1
    copies = p.detach().clone(), q.clone()
    assert not update_constants(p, q, 2**-23).criticality.requires_grad
    assert torch.equal(p, copies[0])
    assert torch.equal(q, copies[1])


def test_deterministic_algorithms_are_enough():
    p = noise(2, 150, 10).float()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert update_constants(p, p.sin(), 2**-23).certain.all()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("shape", [(4, 300, 40), (3, 12, 30_001), (1, 200, 5000)])
def test_cuda_agrees_with_cpu(shape):
    p = noise(*shape).float()
    q = p + 1e-3 * noise(*shape, seed=1).float()
    x, y = p.cuda(), q.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = update_constants(x, y, 2**-23)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = update_constants(p, q, 2**-23)
    assert bool(found.certain.all())
    assert torch.equal(found.pair.cpu(), expected.pair)
    for name in ("criticality", "lower", "upper"):
        assert getattr(found, name).tolist() == pytest.approx(getattr(expected, name).tolist(), rel=1e-9)


def test_agrees_with_bi_lipschitz_where_products_say_little():
    p = noise(100, 30).float()
    ((found, _, _),) = unpacked(p[None], p[None].sin(), 2**-23)
    assert found.criticality == pytest.approx(bi_lipschitz(p, p.sin()).criticality, rel=1e-9)


@pytest.mark.parametrize("dimension", [10, 1000, 50_000])
@pytest.mark.parametrize(
    "make",
    [
        lambda n, d: noise(n, d),
        lambda n, d: noise(n, 1) * torch.ones(d),
        lambda n, d: noise(n, d).abs(),
        lambda n, d: noise(n, 1) * noise(1, d, seed=1),
        lambda n, d: noise(n, d) * torch.logspace(0, -4, d),
        lambda n, d: noise(1, d) + 1e-4 * noise(n, d, seed=1),
    ],
    ids=["random", "constant", "positive", "line", "decaying", "close"],
)
@pytest.mark.parametrize("shares", [1, 3, 10])
def test_the_error_of_products_is_bounded(make, dimension, shares):
    """Also where the coordinates are shared out, as on a GPU: of so many, some are left over."""
    from lightning_topo.functional._products import relative_error, squared_lengths, subtract_by_shares

    x = torch.stack([make(40, dimension).float(), make(40, dimension).float().flip(0)])
    squares = squared_lengths(x)
    found = squares[:, :, None] + squares[:, None, :]
    subtract_by_shares(found, x, x, shares)
    rows = squares[:, 5:20, None] + squares[:, None, 5:]
    subtract_by_shares(rows, x[:, 5:20], x[:, 5:], shares)
    assert torch.allclose(rows, found[:, 5:20, 5:], atol=1e-4 * float(squares.max()))
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    norms = x.double().square().sum(-1)
    error = (found.double() - exact).abs() / (norms[:, :, None] + norms[:, None, :])
    assert error.max() < relative_error(torch.float32, dimension, "cpu") / 2
