"""Torch-Pruning beside ours on the same architectures: groups found, and groups that get smaller in a model that runs.

Needs ``pip install torch-pruning``. Run:

    python benchmarks/pruning.py [--only ARCHITECTURE ...] [--page docs/evidence/torch-pruning.md]
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, clone_last_units
from torch import Tensor, nn

from lightning_topo.neurons import find_neuron_groups, merge_neurons
from lightning_topo.neurons.exchange.outputs import floating_tensors

HEADER = """# Torch-Pruning beside ours

Torch-Pruning finds layers that have to be pruned together, we find units that can be exchanged; both follow one
forward pass of the same model on the same example. From `python benchmarks/pruning.py` with torch-pruning {version}.

**Ours.** *Found*: groups of discovery. In each of them the last unit is made a clone of the first, by its incoming
weights alone, and `merge_neurons` takes the clones away. *Merged*: groups that got smaller with an output that
stayed, up to rounding. *Refused*: groups of which it says why they cannot (statistics over the units, products of
activations, a fixed size).

**Torch-Pruning.** *Found*: the groups that its pruner asks for half of, whole heads of attention included. It is told
the number of heads of the layers that make queries, keys and values wherever a module or its configuration knows them
(`num_heads`, with `prune_num_heads=True`), and to leave layers alone whose output the model returns. *Prunes and
runs*: groups of which half can be pruned, one group at a time on a fresh copy of the model, with a copy that still
runs. Its pruning changes the output by intent, so that no statistics are in its way, and it does not look for groups
of the channels within heads.

"""
COLUMNS = (
    "architecture",
    "ours: found",
    "merged",
    "refused",
    "Torch-Pruning: found",
    "prunes and runs",
    "what goes wrong",
)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
OF_KEYS = ("k", "v", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin")
OF_QUERIES = ("q", "query", "q_proj", "q_lin", "qkv", "query_key_value", "in_proj", "c_attn", "qkv_proj", "Wqkv")


def head_hints(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads each layer makes, as far as modules or their configurations know it."""
    hints: dict[nn.Module, int] = {}
    for module in model.modules():
        heads, key_heads = _number(module, HEADS), _number(module, KEY_HEADS)
        if heads is not None and isinstance(module, nn.MultiheadAttention):
            hints[module] = heads
        for name, child in module.named_children() if heads is not None else ():
            if isinstance(child, (nn.Linear, nn.Conv2d)) and name in (*OF_QUERIES, *OF_KEYS):
                hints[child] = key_heads if key_heads is not None and name in OF_KEYS else heads
    return hints


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None


def call(model: nn.Module, example: Any) -> list[Tensor]:
    """What the model returns."""
    if isinstance(example, dict):
        result = model(**example)
    else:
        result = model(*example) if isinstance(example, tuple) else model(example)
    return list(floating_tensors(result))


@torch.no_grad()
def returned_layers(model: nn.Module, example: Any) -> list[nn.Module]:
    """Layers whose output the model returns; only the loss is compared of those that return one."""
    made: dict[nn.Module, Tensor] = {}
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [layer.register_forward_hook(lambda m, _, made_here: made.update({m: made_here})) for layer in layers]
    returned = call(model, example)
    for hook in hooks:
        hook.remove()
    flat = [output.flatten() for output in returned]
    return [layer for layer, out in made.items() if any(torch.equal(out.flatten(), output) for output in flat)]


def asked_groups(tp: Any, model: nn.Module, example: Any) -> Iterator[Any]:
    """The groups of Torch-Pruning's own pruner, by magnitude, for half of each."""
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5, head_pruning_ratio=0.5,
        prune_num_heads=True, prune_head_dims=False, num_heads=head_hints(model),
        ignored_layers=returned_layers(model, example), forward_fn=call,
        output_transform=lambda outputs: sum(output.abs().sum() for output in outputs),
    )  # fmt: skip
    yield from pruner.step(interactive=True)


def theirs(tp: Any, model: nn.Module, example: Any) -> tuple[int, int, str]:
    """Groups found, groups that can be pruned alone with a model that runs, and what goes wrong."""
    try:
        n = sum(1 for _ in asked_groups(tp, copy.deepcopy(model), example))
    except Exception as failure:
        return 0, 0, f"no groups: {_said(failure)}"
    problems = []
    for which in range(n):
        pruned = copy.deepcopy(model)
        try:
            next(islice(asked_groups(tp, pruned, example), which, None)).prune()
            with torch.no_grad():
                call(pruned, example)
        except Exception as failure:
            problems.append(_said(failure))
    return n, n - len(problems), "; ".join(dict.fromkeys(problems))


def _said(failure: Exception) -> str:
    first = str(failure).strip().partition("\n")[0].replace("|", "/")
    return f"{type(failure).__name__}: {first[:60]}"


def ours(model: nn.Module, example: Any) -> tuple[int, int, int]:
    """Groups found, groups of which a clone was taken away, and groups where that is refused."""
    groups = find_neuron_groups(model, example)
    clone_last_units(model, example, groups)
    before = call(model, example)
    report = merge_neurons(model, groups, example)
    for one, other in zip(before, call(model, example), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.detach().abs().max()))
    merged = sum(group.units_after < group.units_before for group in report.groups)
    return len(groups), merged, sum(group.refused is not None for group in report.groups)


def row(tp: Any, name: str) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model, example = ARCHITECTURES[name]()
    model.eval()
    return (name, *ours(copy.deepcopy(model), example), *theirs(tp, model, example))


def table_line(cells: tuple[Any, ...]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Print the table, and write the page that the command line names."""
    import torch_pruning as tp

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", metavar="ARCHITECTURE", help="names of rows; default all")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [table_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    print(*lines, sep="\n", flush=True)
    rows = []
    for name in options.only or ARCHITECTURES:
        rows.append(row(tp, name))
        lines.append(table_line(rows[-1]))
        print(lines[-1], flush=True)
    lines.append(table_line(("all", *(sum(r[i] for r in rows) for i in range(1, 6)), "")))
    if options.page:
        options.page.write_text(HEADER.format(version=version("torch-pruning")) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
