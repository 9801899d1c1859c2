import pytest
import torch
from torch import nn

from lightning_topo.finder._tensor_state import TensorState


def parameter():
    return nn.Parameter(torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.clone, lambda t: t.T])
@pytest.mark.parametrize("graded", [False, True])
def test_tensor_gets_its_memory_back_with_the_views_of_it(convert, graded):
    tensor = parameter()
    if graded:
        tensor.grad = torch.ones(2, 3)
    grad, address, view = tensor.grad, tensor.data_ptr(), tensor.detach()[0]
    state = TensorState(tensor)
    with torch.no_grad():
        tensor.mul_(3)
        tensor.grad = None
        tensor.data = convert(tensor.data)
        tensor.requires_grad_(False)
    for _ in range(2):  # as often as it is called
        state.restore()
        assert tensor.data_ptr() == address
        assert torch.equal(tensor, torch.arange(6.0).reshape(2, 3))
        assert tensor.requires_grad
        assert tensor.grad is grad
        assert view.tolist() == [0, 1, 2]


def test_gradient_is_written_in_place():
    tensor = parameter()
    tensor.grad = torch.ones(2, 3)
    grad, state = tensor.grad, TensorState(tensor)
    tensor.grad.zero_()
    state.restore()
    assert tensor.grad is grad
    assert torch.equal(grad, torch.ones(2, 3))


SHARED = {
    "expanded": lambda base: base[:4].expand(3, 4),
    "windows": lambda base: base.unfold(0, 4, 1),
    "windows of every second": lambda base: base[1::2].unfold(0, 3, 2),
    "scalar": lambda base: base[3],
    "expanded scalar": lambda base: base[3].expand(2, 2),
    "slice": lambda base: base[::3],
    "transposed": lambda base: base.reshape(2, 5).T,
    "empty": lambda base: base[:0].expand(3, 0),
}


@pytest.mark.parametrize("name", SHARED)
def test_elements_that_share_memory_are_put_back(name):
    base = torch.arange(10.0)
    tensor = SHARED[name](base)
    before, state = tensor.clone(), TensorState(tensor)
    assert not state.moved()
    base.add_(1)
    assert state.moved() == (tensor.numel() > 0)
    state.restore()
    assert torch.equal(tensor, before)
    assert not state.moved()


@pytest.mark.parametrize("make", [lambda: torch.eye(3).to_sparse(), lambda: torch.eye(3).to_sparse_csr()])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sparse_buffers(make):
    tensor = make()
    state = TensorState(tensor)
    tensor.copy_(2 * make())
    state.restore()
    assert torch.equal(tensor.to_dense(), torch.eye(3))
