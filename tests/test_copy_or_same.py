"""Copies of batches."""

import pytest
import torch
from torch import nn

from lightning_topo.copy_or_same import copy_or_same


def test_what_is_copied_is_not_the_original():
    batch = {"x": [torch.ones(2)], "y": (1, "a")}
    copied = copy_or_same(batch)
    copied["x"][0].zero_()
    assert torch.equal(batch["x"][0], torch.ones(2))
    assert copied["y"] == (1, "a")


def test_what_cannot_be_copied_is_itself():
    generator = (number for number in range(3))
    assert copy_or_same(generator) is generator


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 does not compare jagged tensors")
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 1), lambda x: {"a": [x]}])
def test_jagged_tensors_can_be_trained_on(wrap):
    x = torch.nested.nested_tensor([torch.ones(n, 3) for n in (2, 4)], layout=torch.jagged)
    copied = copy_or_same(wrap(x))
    while not isinstance(copied, torch.Tensor):
        copied = copied["a"] if isinstance(copied, dict) else copied[0]
    layer = nn.Linear(3, 2)
    layer(copied).relu().to_padded_tensor(0.0).sum().backward()
    assert layer.weight.grad is not None
    copied.values().zero_()
    assert torch.equal(x.values(), torch.ones(6, 3))
