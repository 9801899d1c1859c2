"""Which neurons are found in which architecture: one row each, printed and written as a Markdown table.

Run: python benchmarks/architectures.py [--only ARCHITECTURE ...] [--page docs/evidence/architectures.md]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from markdown_table import shown
from small_networks import SMALL
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool2d
from transformer_families import FAMILIES
from unusual_networks import UNUSUAL

from lightning_topo.neurons import NeuronGroup, discover_neurons
from lightning_topo.neurons.discovery import followed
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.exchange.symmetry import asymmetric
from lightning_topo.neurons.group import locate
from lightning_topo.neurons.tracing.roles import Roles
from lightning_topo.neurons.tracing.trace import Recorder

HEADER = """# Which neurons are found in which architecture

One row a network, from `python benchmarks/architectures.py`: the groups that discovery reports, how many of them pass
the exchange test again on a fresh copy, in three trials, and why the other axes of parameters are in no group. The
models of the `transformers` library ({version}) are built from small configurations. Where a model is given labels it
returns its loss; without them it returns hidden states, whose units cannot be exchanged.

"fixed values" are constants that differ from unit to unit: sinusoidal positions added to a stream (CTRL, M2M100),
rotary frequencies, knots of a spline, slopes and decays (which tell heads apart in BLOOM, MPT, Falcon and RetNet),
noise that is drawn in the forward pass.

"""
COLUMNS = ("architecture", "groups by kind", "verified", "parameter axes in no group, and why")
KINDS = ("residual", "heads", "query_heads", "keys", "values", "groups")


class BasicBlock(nn.Module):
    """Two convolutions with BatchNorm, and a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """Two stages of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2), BasicBlock(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 5)."""
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(x.mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm over channels, inverted bottleneck, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1 = nn.Linear(width, 2 * width)
        self.pwconv2 = nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class Recurrent(nn.Module):
    """Classifier on the last state of a recurrent net."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = recurrent
        self.head = nn.Linear(recurrent.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, F) -> (N, 3)."""
        return self.head(self.rnn(x)[0][:, -1])


class EncoderClassifier(nn.Module):
    """Embedding, ``nn.TransformerEncoder`` and a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 18, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, 4)."""
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class UNet(nn.Module):
    """Two levels; the way up joins what the way down has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = self._block(1, 4), self._block(4, 6), self._block(6, 8)
        self.up2, self.join2 = nn.ConvTranspose2d(8, 6, 2, 2), self._block(12, 6)
        self.up1, self.join1 = nn.ConvTranspose2d(6, 4, 2, 2), self._block(8, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def _block(self, n_in: int, n_out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 2, H, W)."""
        first = self.down1(x)
        second = self.down2(max_pool2d(first, 2))
        x = self.up2(self.bottom(max_pool2d(second, 2)))
        x = self.up1(self.join2(torch.cat([x, second], 1)))
        return self.head(self.join1(torch.cat([x, first], 1)))


class GAN(nn.Module):
    """A generator of transposed convolutions, and a critic that shares nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(5, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.ConvTranspose2d(6, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Conv2d(1, 6, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(8, 1, 4),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        """(N, 5) -> (N,)."""
        return self.critic(self.generator(z[:, :, None, None])).flatten()


class GraphNet(nn.Module):
    """Two rounds of messages along the edges of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.message1, self.message2 = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """(nodes, 3), (2, edges) -> (nodes, 2)."""
        x = self.embed(x)
        for message in (self.message1, self.message2):
            x = x + torch.zeros_like(x).index_add(0, edges[1], message(x[edges[0]]).relu())
        return self.head(x)


def mlp() -> tuple[nn.Module, Any]:
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
    return net, torch.randn(4, 6)


def resnet() -> tuple[nn.Module, Any]:
    return ResNet(), torch.randn(2, 3, 8, 8)


def depthwise() -> tuple[nn.Module, Any]:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    return net, torch.randn(2, 3, 10, 10)


def convnext() -> tuple[nn.Module, Any]:
    body = (ConvNeXtBlock(8), ConvNeXtBlock(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3))
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), *body), torch.randn(2, 3, 8, 8)


def transformer_encoder() -> tuple[nn.Module, Any]:
    return EncoderClassifier(), torch.randint(20, (2, 5))


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config), torch.randint(30, (2, 6))


def bert() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 18}
    config = BertConfig(vocab_size=30, max_position_embeddings=8, **shape)
    tokens = torch.randint(30, (2, 6))
    return BertForSequenceClassification(config), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def vit() -> tuple[nn.Module, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 18}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **shape)), torch.randn(2, 3, 8, 8)


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 18}
    config = LlamaConfig(vocab_size=30, num_key_value_heads=3, max_position_embeddings=8, **shape)
    return LlamaForCausalLM(config), torch.randint(30, (2, 6))


def t5() -> tuple[nn.Module, Any]:
    from transformers import T5Config, T5ForConditionalGeneration

    shape = {"d_model": 12, "d_kv": 4, "d_ff": 18, "num_layers": 2, "num_heads": 3}
    config = T5Config(vocab_size=30, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **shape)
    tokens = torch.randint(30, (2, 6))
    return T5ForConditionalGeneration(config), {"input_ids": tokens, "labels": tokens}


def lstm() -> tuple[nn.Module, Any]:
    return Recurrent(nn.LSTM(4, 6, num_layers=2, batch_first=True)), torch.randn(3, 5, 4)


def gru() -> tuple[nn.Module, Any]:
    return Recurrent(nn.GRU(4, 6, batch_first=True)), torch.randn(3, 5, 4)


def bidirectional() -> tuple[nn.Module, Any]:
    model = Recurrent(nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True))
    model.head = nn.Linear(12, 3)
    return model, torch.randn(3, 5, 4)


def unet() -> tuple[nn.Module, Any]:
    return UNet(), torch.randn(2, 1, 8, 8)


def gan() -> tuple[nn.Module, Any]:
    return GAN(), torch.randn(3, 5)


def graph_net() -> tuple[nn.Module, Any]:
    return GraphNet(), (torch.randn(5, 3), torch.tensor([[0, 1, 2, 3, 4, 1], [1, 2, 3, 4, 0, 0]]))


def mobilenet() -> tuple[nn.Module, Any]:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(depth_multiplier=0.25, num_labels=5)
    return MobileNetV2ForImageClassification(config), torch.randn(2, 3, 32, 32)


def swin() -> tuple[nn.Module, Any]:
    from transformers import SwinConfig, SwinForImageClassification

    shape = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4]}
    return SwinForImageClassification(SwinConfig(window_size=4, num_labels=5, **shape)), torch.randn(2, 3, 16, 16)


def decoder_only(family: str, **options: Any) -> tuple[nn.Module, Any]:
    import transformers

    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=30, max_position_embeddings=8, **shape, **tokens, **options
    )
    return getattr(transformers, f"{family}ForCausalLM")(config), torch.randint(30, (2, 6))


def whisper() -> tuple[nn.Module, Any]:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    shape = {
        f"{stack}_{name}": size
        for stack in ("encoder", "decoder")
        for name, size in (("layers", 1), ("attention_heads", 3), ("ffn_dim", 18))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = WhisperConfig(
        vocab_size=30,
        num_mel_bins=8,
        d_model=12,
        max_source_positions=10,
        max_target_positions=8,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **shape,
        **tokens,
    )
    example = {"input_features": torch.randn(2, 8, 20), "labels": torch.randint(30, (2, 6))}
    return WhisperForConditionalGeneration(config), example


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "MLP": mlp,
    "BatchNorm ResNet": resnet,
    "depthwise net": depthwise,
    "ConvNeXt-like": convnext,
    "nn.TransformerEncoder": transformer_encoder,
    "GPT-2": gpt2,
    "BERT": bert,
    "ViT": vit,
    "Llama (GQA, SwiGLU)": llama,
    "T5 (gated)": t5,
    "LSTM classifier": lstm,
    "GRU classifier": gru,
    "bidirectional LSTM": bidirectional,
    "U-Net": unet,
    "GAN": gan,
    "graph net": graph_net,
    "MobileNetV2": mobilenet,
    "Swin": swin,
    "GPT-NeoX (fused q, k, v)": lambda: decoder_only("GPTNeoX"),
    "Phi-3 (fused q, k, v; fused gate and up)": lambda: decoder_only("Phi3", num_key_value_heads=3),
    "Mixtral (experts)": lambda: decoder_only("Mixtral", num_key_value_heads=3, num_local_experts=4),
    "Mamba": lambda: decoder_only("Mamba", state_size=4),
    "Whisper": whisper,
    **SMALL,
    **UNUSUAL,
    **FAMILIES,
}


@torch.no_grad()
def clone_last_units(model: nn.Module, example: Any, groups: Sequence[NeuronGroup]) -> None:
    """Make the last unit of each group from the same as its first; what reads it stays as it is."""
    roles = Roles(followed(open_sandbox(model, example, Recorder)))
    for group in groups:
        for member, tensor, _ in locate(group, model)[1]:
            span = range(member.offset, member.offset + member.outer * member.n_units(tensor) * member.inner)
            if True not in roles.reads(member.parameter, member.axis % tensor.ndim, span, member.inner):
                units = member.units(tensor)
                units[-1] = units[0]


def kind(name: str) -> str:
    last = name.rstrip("0123456789").rstrip(".").rpartition(".")[2]  # several of one kind in a module are numbered
    return last.replace("_", " ") if last in KINDS else "layer units"


def place(counted_kind: tuple[str, int]) -> int:
    """Of a kind in the table: layer units come last."""
    names = [name.replace("_", " ") for name in KINDS]
    return names.index(counted_kind[0]) if counted_kind[0] in names else len(names)


def row(architecture: str) -> tuple[str, str, str, str]:
    torch.manual_seed(0)
    model, example = ARCHITECTURES[architecture]()
    found = discover_neurons(model, example)
    kinds = dict(sorted(Counter(kind(group.name) for group in found.groups).items(), key=place))
    verified = len(found.groups) - len(asymmetric(open_sandbox(model, example), found.groups))
    uncovered = Counter(axis.reason for axis in found.uncovered)
    return architecture, counted(kinds), f"{verified} of {len(found.groups)}", counted(uncovered)


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def main() -> None:
    """Print the table, and write the page that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", metavar="ARCHITECTURE", help="names of rows; default all")
    options = parser.parse_args()
    table = shown(COLUMNS, map(row, options.only or ARCHITECTURES))
    if options.page:
        options.page.write_text(HEADER.format(version=version("transformers")) + table)


if __name__ == "__main__":
    main()
