"""The architectures of the README's table: which groups they have, and that these are right on the real model."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lightning_topo.neurons import Member, NeuronGroup, UncoveredAxis, discover_neurons, is_permutation_symmetric
from lightning_topo.neurons.exchange.outputs import floating_tensors

from .conftest import architectures

_MODULE = architectures()
MORE = {**_MODULE.SMALL, **_MODULE.UNUSUAL, **_MODULE.FAMILIES}
ARCHITECTURES = {name: make for name, make in _MODULE.ARCHITECTURES.items() if name not in MORE}
TORCH_ONLY = (
    "MLP", "BatchNorm ResNet", "depthwise net", "ConvNeXt-like", "nn.TransformerEncoder", "LSTM classifier",
    "GRU classifier", "bidirectional LSTM", "U-Net", "GAN", "graph net",
)  # fmt: skip


def layers(template, *kinds):
    return [(f"{template.format(layer)}.{kind}", n) for layer in range(2) for kind, n in kinds]


def t5_layers():
    ours = [("residual", 12)]
    for stack in ("encoder", "decoder"):
        ours.append((f"{stack}.block.heads", 3))
        for block in range(2):
            path = f"{stack}.block.{block}.layer"
            ours += [(f"{path}.0.SelfAttention.keys", 4), (f"{path}.0.SelfAttention.values", 4)]
            if stack == "decoder":
                across = f"{path}.1.EncDecAttention"
                ours += [(f"{across}.heads", 3), (f"{across}.keys", 4), (f"{across}.values", 4)]
            ours.append((f"{path}.{1 if stack == 'encoder' else 2}.DenseReluDense.wi_0", 18))
    return ours


EXPECTED = {
    "MLP": [("0", 16), ("3", 12)],
    "BatchNorm ResNet": [
        ("layer1.residual", 8), ("layer1.0.conv1", 8), ("layer1.1.conv1", 8),
        ("layer2.0.conv1", 12), ("layer2.residual", 12), ("layer2.1.conv1", 12),
    ],
    "depthwise net": [("0", 8), ("6", 6)],
    "ConvNeXt-like": [("residual", 8), ("1.pwconv1", 16), ("2.pwconv1", 16)],
    "nn.TransformerEncoder": [
        ("encoder.layers.residual", 12),
        *layers(
            "encoder.layers.{}",
            ("self_attn.heads", 3), ("self_attn.keys", 4), ("self_attn.values", 4), ("linear1", 18),
        ),
    ],
    "GPT-2": [
        ("transformer.residual", 12),
        *layers("transformer.h.{}", ("attn.heads", 3), ("attn.keys", 4), ("attn.values", 4), ("mlp.c_fc", 48)),
    ],
    "BERT": [
        ("bert.residual", 12),
        *layers(
            "bert.encoder.layer.{}",
            ("attention.heads", 3), ("attention.keys", 4), ("attention.values", 4), ("intermediate.dense", 18),
        ),
        ("bert.pooler.dense", 12),
    ],
    "Llama (GQA, SwiGLU)": [
        ("model.layers.residual", 24),
        *layers(
            "model.layers.{}",
            ("self_attn.heads", 3), ("self_attn.query_heads", 2), ("self_attn.values", 4), ("mlp.gate_proj", 18),
        ),
    ],
    "T5 (gated)": t5_layers(),
    "LSTM classifier": [("rnn.l0", 6), ("rnn.l1", 6)],
    "GRU classifier": [("rnn", 6)],
    "bidirectional LSTM": [
        (f"rnn.l{layer}{direction}", 6) for layer in range(2) for direction in ("", "_reverse")
    ],
    "U-Net": [
        ("down1.0", 4), ("down2.0", 6), ("bottom.0", 8), ("up2", 6), ("join2.0", 6), ("up1", 4), ("join1.0", 4),
    ],
    "GAN": [("generator.0", 8), ("generator.3", 6), ("critic.0", 6), ("critic.2", 8)],
    "graph net": [("residual", 8)],
    "GPT-NeoX (fused q, k, v)": [
        ("gpt_neox.layers.residual", 24),
        *layers(  # a quarter of the keys' channels is rotated, the others can be exchanged
            "gpt_neox.layers.{}",
            ("attention.heads", 6), ("attention.keys", 2), ("attention.values", 4), ("mlp.dense_h_to_4h", 16),
        ),
    ],
    "Mixtral (experts)": [
        ("model.layers.residual", 24),
        *layers(
            "model.layers.{}",
            ("self_attn.heads", 3), ("self_attn.query_heads", 2), ("self_attn.values", 4),
            ("mlp.experts", 16),
        ),
    ],
}  # fmt: skip


def built(name):
    if name not in TORCH_ONLY:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, example = ARCHITECTURES[name]()
    for parameter in model.parameters():  # so that no two units are alike
        nn.init.normal_(parameter, std=0.4)
    return model, example


def outputs(model, example):
    model.eval()
    with torch.no_grad():
        if isinstance(example, tuple):
            result = model(*example)
        else:
            result = model(**example) if isinstance(example, dict) else model(example)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_symmetries_of_the_real_model(name):
    model, example = built(name)
    found = discover_neurons(model, example)
    if name in EXPECTED:  # names of modules inside ViT differ between versions of transformers
        assert sorted((group.name, group.n_units(model)) for group in found.groups) == sorted(EXPECTED[name])
    before = outputs(copy.deepcopy(model), example)
    for group in found.groups:
        moved = copy.deepcopy(model)
        group.permute_(moved, torch.randperm(group.n_units(model)))
        torch.testing.assert_close(outputs(moved, example), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_group_with_a_missing_member_is_refused(name):
    model, example = built(name)
    for group in discover_neurons(model, example).groups[:4]:
        weights = [member for member in group.members if "weight" in member.parameter]
        for missing in {weights[0], weights[-1]}:
            wrong = NeuronGroup(group.name, tuple(member for member in group.members if member != missing))
            assert not is_permutation_symmetric(model, wrong, example), (group.name, missing)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_axis_is_covered_or_has_a_reason(name):
    model, example = built(name)
    found = discover_neurons(model, example)
    covered = {(member.parameter, member.axis) for group in found.groups for member in group.members}
    reasoned = {(axis.parameter, axis.axis) for axis in found.uncovered}
    every = {(n, axis) for n, p in model.named_parameters() for axis, size in enumerate(p.shape) if size > 1}
    assert covered & reasoned == set()
    assert every <= covered | reasoned
    assert all(axis.reason for axis in found.uncovered)


def groups_of(name):
    model, example = built(name)
    return {group.name: set(group.members) for group in discover_neurons(model, example).groups}


def test_members_of_packed_attention():
    groups = groups_of("nn.TransformerEncoder")
    path = "encoder.layers.0.self_attn"
    packed = (f"{path}.in_proj_weight", f"{path}.in_proj_bias")
    out = f"{path}.out_proj.weight"
    assert groups[f"{path}.heads"] == {*(Member(p, 0, outer=3, inner=4) for p in packed), Member(out, 1, inner=4)}
    assert groups[f"{path}.keys"] == {Member(p, 0, outer=6, size=4) for p in packed}
    assert groups[f"{path}.values"] == {*(Member(p, 0, outer=3, offset=24) for p in packed), Member(out, 1, outer=3)}


def test_members_of_grouped_query_attention():
    pytest.importorskip("transformers")
    groups = groups_of("Llama (GQA, SwiGLU)")
    path = "model.layers.1.self_attn"
    assert groups[f"{path}.heads"] == {
        Member(f"{path}.q_proj.weight", 0, inner=8),
        Member(f"{path}.k_proj.weight", 0, inner=4),
        Member(f"{path}.v_proj.weight", 0, inner=4),
        Member(f"{path}.o_proj.weight", 1, inner=8),
    }
    assert groups[f"{path}.query_heads"] == {
        Member(f"{path}.q_proj.weight", 0, outer=3, inner=4),
        Member(f"{path}.o_proj.weight", 1, outer=3, inner=4),
    }
    assert groups[f"{path}.values"] == {
        Member(f"{path}.v_proj.weight", 0, outer=3),
        Member(f"{path}.o_proj.weight", 1, outer=6),
    }
    assert groups["model.layers.1.mlp.gate_proj"] == {
        Member("model.layers.1.mlp.gate_proj.weight", 0),
        Member("model.layers.1.mlp.up_proj.weight", 0),
        Member("model.layers.1.mlp.down_proj.weight", 1),
    }


def test_members_of_recurrent_units():
    for name, gates in (("LSTM classifier", 4), ("GRU classifier", 3)):
        groups = groups_of(name)
        readers = {"rnn.l0": Member("rnn.weight_ih_l1", 1), "rnn": Member("head.weight", 1)}
        group = "rnn.l0" if gates == 4 else "rnn"
        packed = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        assert groups[group] == {
            *(Member(f"rnn.{parameter}", 0, outer=gates) for parameter in packed),
            Member("rnn.weight_hh_l0", 1),
            readers[group],
        }


def test_members_of_residual_streams():
    groups = groups_of("BatchNorm ResNet")
    norms = ("bn1", "layer1.0.bn2", "layer1.1.bn2")
    kinds = ("weight", "bias", "running_mean", "running_var")
    assert groups["layer1.residual"] == {
        *(Member(f"{writer}.weight", 0) for writer in ("conv1", "layer1.0.conv2", "layer1.1.conv2")),
        *(Member(f"{norm}.{kind}", 0) for norm in norms for kind in kinds),
        *(Member(f"{reader}.weight", 1) for reader in ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1")),
        Member("layer2.0.downsample.0.weight", 1),
    }


def test_tied_embedding_is_one_member_of_the_residual_stream():
    pytest.importorskip("transformers")
    stream = groups_of("GPT-2")["transformer.residual"]
    assert Member("transformer.wte.weight", 1) in stream
    assert not any("lm_head" in member.parameter for member in stream)


def test_hidden_states_that_are_returned_hide_the_residual_stream_unless_there_is_a_loss():
    pytest.importorskip("transformers")
    model, example = built("T5 (gated)")
    with_loss = discover_neurons(model, example)
    without = discover_neurons(model, {"input_ids": example["input_ids"], "decoder_input_ids": example["labels"]})
    assert {group.name for group in with_loss.groups} - {group.name for group in without.groups} == {"residual"}
    assert UncoveredAxis("shared.weight", 1, "model output") in without.uncovered


def test_fused_projections_and_experts():
    pytest.importorskip("transformers")
    gate_up = groups_of("Phi-3 (fused q, k, v; fused gate and up)")["model.layers.0.mlp.gate_up_proj"]
    assert gate_up == {
        Member("model.layers.0.mlp.gate_up_proj.weight", 0, outer=2), Member("model.layers.0.mlp.down_proj.weight", 1),
    }  # fmt: skip
    experts = groups_of("Mixtral (experts)")["model.layers.0.mlp.experts"]
    assert {(m.parameter.rpartition(".")[2], m.axis, m.outer) for m in experts} == {
        ("gate_up_proj", 1, 2), ("down_proj", 2, 1),
    }  # fmt: skip


MISTAKES = ("not known", "cuts its units", "unexpected shape", "refuted", "does not fit")


@pytest.mark.parametrize("name", MORE)
def test_more_rows_of_the_table(name):
    """Every group is a symmetry of the real model, every axis is in one or has a reason that is none of our failing."""
    if name in _MODULE.FAMILIES:
        pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library, on its own configurations
        torch.manual_seed(0)
        try:
            model, example = MORE[name]()
        except (AttributeError, ImportError, TypeError) as missing:
            pytest.skip(f"this version of transformers has no such model ({missing})")
        found = discover_neurons(model, example)
        assert found.groups
        assert not [axis for axis in found.uncovered if any(mistake in axis.reason for mistake in MISTAKES)]
        covered = {(member.parameter, member.axis) for group in found.groups for member in group.members}
        every = {(n, axis) for n, p in model.named_parameters() for axis, size in enumerate(p.shape) if size > 1}
        assert every <= covered | {(axis.parameter, axis.axis) for axis in found.uncovered}
        before = numbers(model.eval(), example)
        for group in found.groups:
            size = group.n_units(model)
            group.permute_(model, torch.arange(size).roll(1))
        after = numbers(model, example)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def numbers(model, example):
    torch.manual_seed(0)
    if isinstance(example, dict):
        result = model(**example)
    else:
        result = model(*example) if isinstance(example, tuple) else model(example)
    loss = getattr(result, "loss", None)
    return list(floating_tensors(result if loss is None else loss))
