from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lightning_topo.functional import sharpness


def _perceptron(activation: type[nn.Module], depth: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    widths = [5, *[9] * depth]
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), activation())]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 3)).to(dtype)
    for param in model.parameters():
        param.data = torch.randn(param.shape, generator=generator, dtype=dtype) / 2
    x = torch.randn(40, 5, generator=generator, dtype=dtype)
    y = torch.randint(3, (40,), generator=generator)
    return model, x, y


def _true_eigenvalues(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """All eigenvalues in float64, from the dense Hessian that torch.func makes (no Hessian-vector products)."""
    names, params = zip(*[(name, param.detach().double()) for name, param in model.named_parameters()], strict=True)
    sizes = [param.numel() for param in params]

    def loss(flat: Tensor) -> Tensor:
        pieces = [piece.view_as(p) for piece, p in zip(flat.split(sizes), params, strict=True)]
        return cross_entropy(functional_call(model, dict(zip(names, pieces, strict=True)), (x.double(),)), y)

    return torch.linalg.eigvalsh(jacrev(jacrev(loss))(torch.cat([param.flatten() for param in params])))


def _quadratic(eigenvalues: list[float], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A loss whose Hessian is a rotation of diag(eigenvalues)."""
    n = len(eigenvalues)
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rotation = torch.linalg.qr(noise).Q.to(dtype)
    theta = torch.ones(n, dtype=dtype, requires_grad=True)
    return (torch.tensor(eigenvalues, dtype=dtype) * (rotation @ theta) ** 2).sum() / 2, theta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.ReLU, nn.GELU])
@pytest.mark.parametrize(("depth", "seed"), [(1, 0), (2, 1), (3, 2)])
def test_equals_the_dense_hessian(activation, depth, seed, dtype):
    model, x, y = _perceptron(activation, depth, seed, dtype)
    truth = _true_eigenvalues(model, x, y)[-1].item()
    assert sharpness(cross_entropy(model(x), y), model.parameters()) == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-9.0, -1.0, 0.5, 2.0],  # the largest in magnitude is negative
        [-9.0, -4.0, -3.0, -2.0],  # negative definite
        [5.0, 5.0, 5.0, 1.0],  # a multiple one
        [3.0] * 6,  # one step ends the recurrence
        [-2.0, -1.0, 0.0, 0.0],  # the largest is 0
        [1e8, 1.0, 1e-8, -1e8],
        [1e-12, 1e-13, -1e-12, 0.0],
    ],
)
def test_largest_means_algebraically_largest(eigenvalues):
    loss, theta = _quadratic(eigenvalues)
    scale = max(map(abs, eigenvalues))
    assert sharpness(loss, [theta]) == pytest.approx(max(eigenvalues), rel=1e-7, abs=1e-14 * scale)


def test_copies_of_converged_ritz_values_do_no_harm():
    # The negative eigenvalues converge at once and come back as copies: the recurrence needs more iterations than
    # there are dimensions, which is impossible as long as its vectors are orthogonal.
    spectrum = [-1e4, -1e3, 1.0, 0.9999, *torch.linspace(0, 0.99, 60).tolist()]
    loss, theta = _quadratic(spectrum)
    with pytest.warns(UserWarning, match="did not converge"):
        sharpness(loss, [theta], tolerance=1e-8, max_iter=len(spectrum))
    assert sharpness(loss, [theta], tolerance=1e-8, max_iter=200) == pytest.approx(1.0, rel=1e-10)


@pytest.mark.filterwarnings("ignore:sharpness did not converge")
def test_never_above_the_truth_and_rising_with_iterations():
    loss, theta = _quadratic([float(i) for i in range(60)])
    values = [sharpness(loss, [theta], max_iter=k) for k in (1, 2, 4, 8, 16)]
    assert values == sorted(values)
    assert values[-1] <= 59.0 * (1 + 1e-12)


def test_warns_when_it_has_not_converged():
    loss, theta = _quadratic([float(i) for i in range(60)])
    with pytest.warns(UserWarning, match="did not converge.*max_iter"):
        sharpness(loss, [theta], max_iter=3)


def test_a_linear_loss_has_none():
    theta = torch.ones(3, requires_grad=True)
    assert sharpness((2 * theta).sum(), [theta]) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_loss_gives_nan(value):
    theta = torch.ones(3, requires_grad=True)
    assert math.isnan(sharpness((theta**2).sum() + value, [theta]))


def test_a_second_derivative_that_is_not_finite_gives_nan():
    theta = torch.zeros(3, requires_grad=True)
    assert math.isnan(sharpness((theta.abs() ** 1.5).sum(), [theta]))


def test_mini_batches_mean_their_mean_and_need_one_graph_at_a_time():
    model, x, y = _perceptron(nn.Tanh)
    alive, most = [0], [0]

    class _Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            ctx.token = _Token(alive)
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    batches = [lambda i=i: _Count.apply(cross_entropy(model(x[i : i + 10]), y[i : i + 10])) for i in (0, 10, 20, 30)]
    whole = sharpness(cross_entropy(model(x), y), model.parameters())
    assert sharpness(iter(batches), model.parameters()) == pytest.approx(whole, rel=1e-6)
    assert most[0] == 1
    assert sharpness(batches[:1], model.parameters()) == sharpness(batches[0], model.parameters())


class _Token:
    def __init__(self, alive: list[int]):
        self.alive = alive

    def __del__(self):
        self.alive[0] -= 1


def test_leaves_no_trace():
    model, x, y = _perceptron(nn.Tanh)
    model.insert(1, nn.Dropout(0.5))
    for param in model.parameters():
        param.grad = torch.full_like(param, 7.0)
    loss = cross_entropy(model(x), y)
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    state = torch.get_rng_state()

    sharpness(loss, model.parameters())
    sharpness([lambda: cross_entropy(model(x), y)] * 2, model.parameters())

    assert torch.equal(torch.get_rng_state(), state)
    assert all((param.grad == 7.0).all() for param in model.parameters())
    loss.backward()
    assert all(torch.equal(p.grad, g + 7.0) for p, g in zip(model.parameters(), expected, strict=True))


def test_dropout_is_one_fixed_loss():
    model, x, y = _perceptron(nn.Tanh)
    model.insert(2, nn.Dropout(0.5))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    once = sharpness(cross_entropy(model(x), y), model.parameters())
    torch.set_rng_state(state)
    assert sharpness([lambda: cross_entropy(model(x), y)] * 2, model.parameters()) == pytest.approx(once, rel=1e-6)


def test_same_seed_same_value():
    model, x, y = _perceptron(nn.Tanh)
    values = [sharpness(cross_entropy(model(x), y), model.parameters(), seed=seed) for seed in (1, 1, 2)]
    assert values[0] == values[1] == pytest.approx(values[2], rel=1e-6)


def test_works_under_no_grad():
    model, x, y = _perceptron(nn.Tanh)
    expected = sharpness(cross_entropy(model(x), y), model.parameters())
    with torch.no_grad():
        assert sharpness(lambda: cross_entropy(model(x), y), model.parameters()) == expected


def test_frozen_unused_and_repeated_parameters():
    model, x, y = _perceptron(nn.Tanh)
    params = list(model.parameters())
    expected = sharpness(cross_entropy(model(x), y), params)
    unused = torch.ones(4, requires_grad=True)
    assert sharpness(cross_entropy(model(x), y), [unused, *params, *params]) == pytest.approx(expected, rel=1e-6)

    model[0].requires_grad_(False)
    block = sharpness(cross_entropy(model(x), y), params)
    assert block == sharpness(cross_entropy(model(x), y), params[2:])
    assert block <= expected  # a principal submatrix


def test_one_tensor_is_one_parameter():
    loss, theta = _quadratic([1.0, 2.0, 3.0])
    assert sharpness(loss, theta) == pytest.approx(3.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision(dtype, tolerance):
    model, x, y = _perceptron(nn.Tanh)
    truth = _true_eigenvalues(model, x, y)[-1].item()
    loss = cross_entropy(model.to(dtype)(x.to(dtype)), y)
    assert sharpness(loss, model.parameters()) == pytest.approx(truth, rel=tolerance)


def test_parameters_of_mixed_dtypes():
    model, x, y = _perceptron(nn.Tanh, dtype=torch.float64)
    expected = sharpness(cross_entropy(model(x), y), model.parameters())
    model[-1].float()
    loss = cross_entropy(model[-1](model[:-1](x).float()), y)
    assert sharpness(loss, model.parameters()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu():
    model, x, y = _perceptron(nn.Tanh)
    truth = _true_eigenvalues(model, x, y)[-1].item()
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    state = torch.cuda.get_rng_state()
    assert sharpness(lambda: cross_entropy(model(x), y), model.parameters()) == pytest.approx(truth, rel=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_no_second_derivative_says_what_to_do():
    query = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def loss() -> Tensor:
        return scaled_dot_product_attention(query, query, query).square().sum()

    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION),
        pytest.raises(RuntimeError, match=r"second derivative.*SDPBackend\.MATH"),
    ):
        sharpness(loss, [query])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sharpness(loss, [query]) > 0


def test_compiled_module_says_what_to_do():
    model, x, y = _perceptron(nn.Tanh)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(RuntimeError, match="uncompiled module"):
        sharpness(cross_entropy(compiled(x), y), model.parameters())


def test_complex_parameters_are_refused_and_real_ones_joined_give_the_whole_hessian():
    curvatures = torch.tensor([[1.0, 9.0], [2.0, 3.0]])  # of real and imaginary part

    def loss(z: Tensor) -> Tensor:
        return (curvatures * torch.view_as_real(z) ** 2).sum() / 2

    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    other = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"expected real parameters, got .*complex64 and shape \(2,\); keep it"):
        sharpness(loss(z), [other, z])
    pairs = torch.ones(2, 2, requires_grad=True)
    assert sharpness(loss(torch.view_as_complex(pairs)), [pairs]) == pytest.approx(9.0)
    frozen = z.detach()
    assert sharpness(loss(frozen) + (other**2).sum(), [other, frozen]) == pytest.approx(2.0)


def test_bad_input():
    theta = torch.ones(3, requires_grad=True)
    scalar = (theta**2).sum()
    with pytest.raises(ValueError, match="at least one parameter that requires grad"):
        sharpness(scalar, [torch.ones(3)])
    with pytest.raises(ValueError, match="at least one parameter"):
        sharpness(scalar, [])
    with pytest.raises(ValueError, match=r"expected a scalar tensor as loss, got \(3,\)"):
        sharpness(theta**2, [theta])
    with pytest.raises(ValueError, match="got float"):
        sharpness(lambda: 1.0, [theta])
    with pytest.raises(ValueError, match="without"):
        sharpness(scalar.detach(), [theta])
    with pytest.raises(ValueError, match="none of the 1 parameters"):
        sharpness(scalar, [torch.ones(3, requires_grad=True)])
    with pytest.raises(ValueError, match="empty"):
        sharpness([], [theta])
    with pytest.raises(ValueError, match="max_iter=0"):
        sharpness(scalar, [theta], max_iter=0)
    with pytest.raises(ValueError, match="tolerance=-1"):
        sharpness(scalar, [theta], tolerance=-1)


def test_sparse_gradients_are_refused():
    embedding, linear = torch.nn.Embedding(5, 3, sparse=True), torch.nn.Linear(3, 1)

    def loss():
        return linear(embedding(torch.tensor([1, 2]))).square().mean()

    with pytest.raises(ValueError, match=r"expected dense gradients, got .* of shape \(5, 3\), .* sparse=False"):
        sharpness(loss, [*embedding.parameters(), *linear.parameters()])
    assert sharpness(loss, linear.parameters()) > 0
