"""Exact clones in every architecture of the table: merging them leaves the function as it is, or is refused."""

import copy
import math
import warnings

import pytest
import torch

from lightning_topo.neurons import find_neuron_groups, merge_neurons
from lightning_topo.neurons.exchange.outputs import floating_tensors

from ..conftest import architectures

TABLE = architectures()
# Of those written here: which groups become smaller, as theory says of each. All others are refused.
MERGED = {
    "MLP": {"3"},  # the first layer is normalised
    "BatchNorm ResNet": {"layer1.residual", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.residual",
                         "layer2.1.conv1"},
    "depthwise net": {"0", "6"},
    "ConvNeXt-like": {"1.pwconv1", "2.pwconv1"},
    "nn.TransformerEncoder": {"encoder.layers.0.linear1", "encoder.layers.1.linear1"},
    "LSTM classifier": set(),  # all layers of one module have one size
    "GRU classifier": {"rnn"},
    "bidirectional LSTM": set(),
    "U-Net": {"down1.0", "down2.0", "bottom.0", "up2", "join2.0", "up1", "join1.0"},
    "GAN": {"generator.0", "generator.3", "critic.0", "critic.2"},
    "graph net": {"residual"},
}  # fmt: skip


def built(name):
    if name not in {**TABLE.SMALL, **TABLE.UNUSUAL, **MERGED}:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    try:
        model, example = TABLE.ARCHITECTURES[name]()
    except (AttributeError, ImportError, TypeError) as missing:
        pytest.skip(f"this version of transformers has no such model ({missing})")
    for parameter in model.parameters():
        if parameter.is_floating_point() and float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)  # biases and layer scales, by which units would be alike
    return model.eval(), example


@torch.no_grad()
def numbers(model, example):
    """What the model itself returns, in double precision where it runs in it."""
    for double in (True, False):
        wide = copy.deepcopy(model).double() if double else model
        try:
            torch.manual_seed(0)
            result = _called(wide, example, double)
        except RuntimeError:
            continue
        loss = getattr(result, "loss", None)
        return [tensor.double() for tensor in floating_tensors(result if loss is None else loss)]
    raise AssertionError("the model does not run")


def _called(model, example, double):
    def fitted(value):
        return value.double() if double and torch.is_tensor(value) and value.is_floating_point() else value

    if isinstance(example, dict):
        return model(**{key: fitted(value) for key, value in example.items()})
    return model(*map(fitted, example)) if isinstance(example, tuple) else model(fitted(example))


@pytest.mark.parametrize("name", TABLE.ARCHITECTURES)
def test_exact_clones(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, on its own configurations
        model, example = built(name)
        groups = find_neuron_groups(model, example)
        TABLE.clone_last_units(model, example, groups)
        before = numbers(model, example)
        report = merge_neurons(model, groups, example)
        after = numbers(model, example)
    smaller = {group.name for group in report.groups if group.units_after == group.units_before - 1}
    refused = {group.name for group in report.groups if group.refused is not None}
    assert smaller | refused == {group.name for group in groups}
    assert smaller == MERGED.get(name, smaller)
    assert (report.parameters_after < report.parameters_before) == bool(smaller)
    assert sum(math.prod(parameter.shape) for parameter in model.parameters()) == report.parameters_after
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
