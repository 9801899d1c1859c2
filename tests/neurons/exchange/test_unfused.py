"""Fused kernels taken apart: the same numbers, and operations that can be followed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_topo.neurons import discover_neurons
from lightning_topo.neurons.exchange import unfused


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
     {"attn_mask": torch.randn(5, 5, dtype=torch.double)}],
)  # fmt: skip
@torch.no_grad()
def test_attention(options):
    query, key, value = torch.randn(3, 2, 4, 5, 8, dtype=torch.double)
    expected = scaled_dot_product_attention(query, key, value, **options)
    with Names() as seen, unfused.UnfusedAttention():
        output = scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(output, expected)
    assert seen.names.count("bmm") == 2
    assert not [name for name in seen.names if "attention" in name or name in ("matmul", "to")]


@pytest.mark.skipif(torch.__version__ < "2.5", reason="torch 2.4 has no attention of grouped queries")
@torch.no_grad()
def test_attention_of_grouped_queries():
    query = torch.randn(2, 4, 5, 8, dtype=torch.double)
    key, value = torch.randn(2, 2, 2, 5, 8, dtype=torch.double)
    expected = scaled_dot_product_attention(query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1))
    function = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    torch.testing.assert_close(unfused.attention(function, (query, key, value), {})[0], expected)


LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}


def forced(monkeypatch):
    """As if every tensor were on an accelerator with kernels of its own."""
    step_by_step, names = unfused.step_by_step, []
    monkeypatch.setattr(unfused, "is_accelerated", lambda tensor: True)
    monkeypatch.setattr(unfused, "step_by_step", lambda name, *a: (names.append(name), step_by_step(name, *a))[1])
    return names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_recurrent_layers(name, packed, monkeypatch):
    if name == "lstm" and not packed and torch.__version__ < "2.5":
        pytest.skip("torch 2.4's own steps give the last state one axis more")
    layer = LAYERS[name](3, 4, num_layers=2, bidirectional=True, batch_first=True).double()
    x = torch.randn(3, 5, 3, dtype=torch.double)
    x = pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True) if packed else x
    expected = layer(x)
    seen = forced(monkeypatch)
    with unfused.UnfusedLayers():
        output = layer(x)
    assert seen == [name]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_groups_in_recurrent_layers(name, monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = LAYERS[name](3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model, x = Net(), torch.randn(2, 5, 3)
    expected = discover_neurons(model, x)
    assert [group.name for group in expected.groups] == ["rnn.l0", "rnn.l1"]
    seen = forced(monkeypatch)
    assert discover_neurons(model, x) == expected
    assert name in seen
