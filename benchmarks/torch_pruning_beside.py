"""Torch-Pruning beside ours on the architectures of the table: groups found, and groups of which a unit can be taken away.

Needs ``pip install torch-pruning`` (1.6.1 was measured). Run:

    python benchmarks/torch_pruning_beside.py [--only ARCHITECTURE ...] [--page docs/evidence/torch-pruning.md]
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES
from torch import Tensor, nn

from lightning_topo.neurons import NeuronGroup, find_neuron_groups
from lightning_topo.neurons.exchange.outputs import floating_tensors
from lightning_topo.neurons.exchange.sandbox import open_sandbox
from lightning_topo.neurons.group import locate
from lightning_topo.neurons.merging.merge import merge_neurons
from lightning_topo.neurons.merging.slots import placed
from lightning_topo.neurons.merging.trial import MergeTrial
from lightning_topo.neurons.tracing.roles import Roles
from lightning_topo.neurons.tracing.trace import Recorder
from lightning_topo.neurons.discovery import followed

HEADER = """# Torch-Pruning beside ours

Torch-Pruning finds sets of layers that have to be pruned together; we find sets of units that can be exchanged. Both follow one forward pass of the same model
on the same example, from `python benchmarks/torch_pruning_beside.py`. Of Torch-Pruning the pruner's own groups are counted, with whole heads pruned where it is told
which layers make them (`num_heads` for the queries, keys and values of every module that knows its number of heads, `prune_num_heads=True`); layers whose output
the model returns are ignored, as its guide says. One group after the other is pruned by a half on a fresh copy of the model, and the copy is run.
Of ours, one unit of each group is made a clone of another, and the clone is taken away by `merge_neurons`: *runs* counts groups that get smaller with the output
unchanged up to rounding, *refused* those where it says that this cannot be (LayerNorm over the units, say, which pruning does not mind).
Taking a unit away is easier than taking away a clone without a change, so the columns to compare are *found*, and what went wrong: a pruned model that does not run
was promised to.

"""
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_q_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
QUERIES, KEYS = (
    ("q", "query", "q_proj", "q_lin", "query_proj"),
    ("k", "v", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin"),
)
PACKED = ("qkv", "query_key_value", "in_proj", "c_attn", "qkv_proj", "Wqkv")


def head_hints(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads each layer makes, as far as modules know it."""
    hints: dict[nn.Module, int] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        known = [
            getattr(owner, name)
            for owner in (module, config)
            for name in HEADS
            if isinstance(getattr(owner, name, None), int)
        ]
        keys = [
            getattr(owner, name)
            for owner in (module, config)
            for name in KEY_HEADS
            if isinstance(getattr(owner, name, None), int)
        ]
        if not known:
            continue
        if isinstance(module, nn.MultiheadAttention):
            hints[module] = module.num_heads
        for name, child in module.named_children():
            if isinstance(child, (nn.Linear, nn.Conv2d)) and name in (*QUERIES, *KEYS, *PACKED):
                hints[child] = keys[0] if name in KEYS and keys else known[0]
    return hints


def outputs(result: Any) -> list[Tensor]:
    loss = getattr(result, "loss", None)
    return list(floating_tensors(result if loss is None else loss))


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def returned_layers(model: nn.Module, example: Any) -> list[nn.Module]:
    """Layers whose output is returned, by comparison of what they make."""
    made: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, _, out: made.__setitem__(m, out) if isinstance(out, Tensor) else None)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    with torch.no_grad():
        returned = list(floating_tensors(call(model, example)))
        returned += (
            [value for value in vars(call(model, example)).values() if isinstance(value, Tensor)]
            if not isinstance(call(model, example), (Tensor, tuple, list))
            else []
        )
    for hook in hooks:
        hook.remove()
    return [
        m
        for m, out in made.items()
        if any(
            out.numel() == r.numel() and torch.equal(out.flatten(), r.flatten())
            for r in returned
            if r.dtype == out.dtype
        )
    ]


def pruner_of(tp: Any, model: nn.Module, example: Any) -> Any:
    """Torch-Pruning's own pruner, by magnitude, for half of every group."""
    return tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5, head_pruning_ratio=0.5,
        prune_num_heads=True, prune_head_dims=False, num_heads=head_hints(model),
        ignored_layers=returned_layers(model, example), forward_fn=call,
        output_transform=lambda out: sum(tensor.abs().sum() for tensor in outputs(out)),
    )  # fmt: skip


def theirs(tp: Any, model: nn.Module, example: Any) -> tuple[int, int, str]:
    """Groups found, those that can be pruned one by one with a model that runs, and what went wrong otherwise."""
    try:
        n = sum(1 for _ in pruner_of(tp, copy.deepcopy(model), example).step(interactive=True))
    except Exception as failure:
        return 0, 0, f"finds none: {named(failure)}"
    ran, problems = 0, []
    for which in range(n):
        pruned = copy.deepcopy(model)
        try:
            for position, group in enumerate(pruner_of(tp, pruned, example).step(interactive=True)):
                if position == which:
                    group.prune()
                    break
            with torch.no_grad():
                call(pruned, example)
        except Exception as failure:
            problems.append(named(failure))
        else:
            ran += 1
    return n, ran, "; ".join(dict.fromkeys(problems))


def named(failure: Exception) -> str:
    return f"{type(failure).__name__} {str(failure).strip().partition(chr(10))[0][:60]}".replace("|", "/")


@torch.no_grad()
def clone_last_units(model: nn.Module, example: Any, groups: tuple[NeuronGroup, ...]) -> None:
    """Make the last unit of each group from the same as its first."""
    roles = Roles(followed(open_sandbox(model, example, Recorder)))
    for group in groups:
        for member, tensor, _ in locate(group, model)[1]:
            span = range(member.offset, member.offset + member.outer * member.n_units(tensor) * member.inner)
            if True not in roles.reads(member.parameter, member.axis % tensor.ndim, span, member.inner):
                units = member.units(tensor)
                units[-1] = units[0]


def ours(model: nn.Module, example: Any) -> tuple[int, int, int, int]:
    """Groups found, those of which a clone can be taken away, those where that is refused, and wrong ones."""
    model = copy.deepcopy(model)
    groups = find_neuron_groups(model, example)
    clone_last_units(model, example, groups)
    report = merge_neurons(model, groups, example)
    with torch.no_grad():
        call(model, example)
    merged = sum(group.units_after < group.units_before for group in report.groups)
    refused = sum(group.refused is not None for group in report.groups)
    return len(groups), merged, refused, len(groups) - merged - refused


def row(tp: Any, name: str) -> list[str]:
    torch.manual_seed(0)
    model, example = ARCHITECTURES[name]()
    model.eval()
    found, merged, refused, _ = ours(model, example)
    their_found, ran, problems = theirs(tp, model, example)
    return [name, str(found), str(merged), str(refused), str(their_found), str(ran), problems]


def main() -> None:
    """Print the table, and write the page that the command line names."""
    import torch_pruning as tp

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", metavar="ARCHITECTURE", help="names of rows; default all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    head = ["| architecture | ours: found | clone merged | refused | Torch-Pruning: found | prunes and runs | what went wrong |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    print(*head, sep="\n", flush=True)
    lines = []
    for name in options.only or ARCHITECTURES:
        lines.append("| " + " | ".join(row(tp, name)) + " |")
        print(lines[-1], flush=True)
    if options.page:
        options.page.write_text(HEADER + "\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
