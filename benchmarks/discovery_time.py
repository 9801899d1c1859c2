"""What discovery takes: its processor time in training steps, for models of 10 million parameters and more.

Run: python benchmarks/discovery_time.py [--only MODEL ...] [--page docs/evidence/discovery-time.md]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from markdown_table import shown
from torch import Tensor, nn

from lightning_topo.neurons import discover_neurons

HEADER = """# What discovery takes

Monitors look for the groups of neurons once, at the first batch of a fit. Processor time on one core, from `python
benchmarks/discovery_time.py`; a training step is a forward pass, a backward pass and an AdamW step on the batch that
the table names, the median of three. Discovery itself runs the model on four items of the batch at most, in double
precision: the larger the batch, the fewer steps it is.

"""
COLUMNS = (
    "model",
    "million parameters",
    "groups",
    "batch",
    "training step, s",
    "discovery, s",
    "discovery in training steps",
)
TOKENS, IMAGES = (8, 128), (16, 3, 64, 64)


class Sequence(nn.Module):
    """A recurrent layer or an encoder, and a head on the mean."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(5000, width), body, nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, 10)."""
        result = self.body(self.embedding(tokens))
        return self.head((result[0] if isinstance(result, tuple) else result).mean(1))


def perceptron() -> tuple[nn.Module, Any]:
    net = nn.Sequential(nn.Linear(784, 3072), nn.ReLU(), nn.Linear(3072, 3072), nn.ReLU(), nn.Linear(3072, 10))
    return net, torch.randn(128, 784)


def lstm() -> tuple[nn.Module, Any]:
    return Sequence(nn.LSTM(768, 768, 2, batch_first=True), 768), torch.randint(5000, TOKENS)


def encoder() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(384, 6, 1536, batch_first=True)
    return Sequence(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), 384), torch.randint(5000, TOKENS)


def of(family: str, kind: str, images: bool = False, **options: Any) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        import transformers

        ids = {} if images else {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        model = getattr(transformers, f"{family}{kind}")(getattr(transformers, f"{family}Config")(**ids, **options))
        if images:
            return model, torch.randn(IMAGES)
        tokens = torch.randint(3, options["vocab_size"], TOKENS)
        return model, {"input_ids": tokens, "labels": tokens}

    return make


SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_hidden_layers": 6}
MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "perceptron": perceptron,
    "LSTM": lstm,
    "nn.TransformerEncoder": encoder,
    "GPT-2": of("GPT2", "LMHeadModel", vocab_size=5000, n_embd=384, n_layer=6, n_head=6),
    "BERT": of("Bert", "ForMaskedLM", vocab_size=5000, **SMALL),
    "Llama": of("Llama", "ForCausalLM", vocab_size=5000, num_key_value_heads=3, **SMALL),
    "T5": of("T5", "ForConditionalGeneration", vocab_size=5000, d_model=384, d_ff=1024, num_layers=4, num_heads=6,
             decoder_start_token_id=0),
    "Mixtral": of("Mixtral", "ForCausalLM", vocab_size=5000, num_local_experts=4, num_key_value_heads=3,
                  **{**SMALL, "num_hidden_layers": 3}),
    "ViT": of("ViT", "ForImageClassification", images=True, image_size=64, patch_size=8, **SMALL),
    "ResNet-50": of("ResNet", "ForImageClassification", images=True),
    "ConvNeXt": of("ConvNext", "ForImageClassification", images=True),
    "Swin": of("Swin", "ForImageClassification", images=True, image_size=64, patch_size=2, window_size=4),
}  # fmt: skip


def loss_of(model: nn.Module, example: Any) -> Tensor:
    result = model(**example) if isinstance(example, dict) else model(example)
    loss = getattr(result, "loss", None)
    if loss is None:
        loss = getattr(result, "logits", result).square().mean()
    return loss


def training_step(model: nn.Module, example: Any) -> float:
    """Median processor time of a step, the first left out."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    taken = []
    for _ in range(4):
        began = time.process_time()
        optimizer.zero_grad()
        loss_of(model, example).backward()
        optimizer.step()
        taken.append(time.process_time() - began)
    return statistics.median(taken[1:])


def row(name: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model, example = MODELS[name]()
    began = time.process_time()
    groups = discover_neurons(model, example).groups
    discovery = time.process_time() - began
    step = training_step(model.train(), example)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    tensor = example["input_ids"] if isinstance(example, dict) else example
    shape = " x ".join(map(str, tensor.shape))
    return name, f"{millions:.0f}", len(groups), shape, f"{step:.2f}", f"{discovery:.2f}", f"{discovery / step:.1f}"


def main() -> None:
    """Print the table, and write the page that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", metavar="MODEL", help="names of rows; default all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = shown(COLUMNS, map(row, options.only or MODELS))
    if options.page:
        options.page.write_text(HEADER + table)


if __name__ == "__main__":
    main()
