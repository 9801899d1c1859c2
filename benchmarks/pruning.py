"""Torch-Pruning beside ours on the same architectures: groups found, and groups that get smaller in a model that runs.

Needs ``pip install torch-pruning``. Run:

    python benchmarks/pruning.py [--only ARCHITECTURE ...] [--runs docs/evidence/torch-pruning.jsonl] \
        [--page docs/evidence/torch-pruning.md]

Each architecture is measured in a process of its own, with a limit of the time of each answer. Results stay in a file
of JSON lines; only missing ones are made.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, clone_last_units
from markdown_table import head, line
from torch import Tensor, nn

from lightning_topo.neurons import find_neuron_groups, merge_neurons
from lightning_topo.neurons.exchange.outputs import floating_tensors

HEADER = """# Torch-Pruning beside ours

Torch-Pruning finds layers that have to be pruned together, we find units that can be exchanged; both follow one
forward pass of the same model on the same example. From `python benchmarks/pruning.py` with torch-pruning {version};
what each architecture gave is in `torch-pruning.jsonl` beside this page.

**Ours.** *Found*: groups of discovery. In each of them the last unit is made a clone of the first, by its incoming
weights alone, and `merge_neurons` takes the clones away. *Merged*: groups that got smaller with an output that
stayed, up to rounding. *Refused*: groups of which it says why they cannot; the reasons are counted below the table.

**Torch-Pruning.** *Found*: the groups that its pruner asks for half of, whole heads of attention included. It gets
the hints that the examples of its authors give: the number of heads of the layers that make queries, keys and values
(`num_heads`, with `prune_num_heads=True` and `prune_head_dims=False`), wherever a module or its configuration knows
them, the two halves of a fused gate (`out_channel_groups`), and the layers whose output the model returns, to be left
alone. *Prunes and runs*: groups of which half can be pruned, one group at a time on a fresh copy of the model, with
a copy that still runs, as it is or with the numbers of heads and their widths set anew in the attention modules, as
the examples do it. Its pruning changes the output by intent, so that no statistics are in its way, and it does not
look for groups of the channels within heads. The search for the groups, and each pruning, have {limit} seconds of
processor time.

"""
COLUMNS = (
    "architecture",
    "ours: found",
    "merged",
    "refused",
    "Torch-Pruning: found",
    "prunes and runs",
    "what goes wrong there",
)
LIMIT = 6.0  # seconds of processor time; what ends takes less than 2, on models of some thousand parameters
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
WIDTHS = ("all_head_size", "embed_dim", "inner_dim", "hidden_size", "split_size", "dim")
OF_KEYS = ("k", "v", "key", "value", "k_proj", "v_proj", "k_lin", "v_lin")
PACKED = ("qkv", "query_key_value", "in_proj", "c_attn", "qkv_proj", "Wqkv")
OF_QUERIES = ("q", "query", "q_proj", "q_lin", *PACKED)
FUSED_GATES = ("gate_up_proj",)


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


def gate_hints(model: nn.Module) -> dict[nn.Module, int]:
    return {module: 2 for name, module in model.named_modules() if name.rpartition(".")[2] in FUSED_GATES}


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None


def call(model: nn.Module, example: Any) -> list[Tensor]:
    """What the model returns, with the same random numbers each time."""
    torch.manual_seed(0)
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


def pruner_of(tp: Any, model: nn.Module, example: Any) -> Any:
    """Torch-Pruning's own pruner, by magnitude, for half of each group."""
    return tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5, head_pruning_ratio=0.5,
        prune_num_heads=True, prune_head_dims=False, num_heads=head_hints(model), in_channel_groups={},
        out_channel_groups=gate_hints(model), ignored_layers=returned_layers(model, example), forward_fn=call,
        output_transform=lambda outputs: sum(output.abs().sum() for output in outputs),
    )  # fmt: skip


def runs(model: nn.Module, example: Any, hints: dict[nn.Module, int], widths: dict[nn.Module, int]) -> None:
    """The pruned model, as it is or with its attention modules told their new numbers.

    Raises:
        Exception: That of the model as it is, if it runs in neither way.
    """
    try:
        with torch.no_grad():
            call(model, example)
    except Exception as failure:
        set_heads_anew(model, hints, widths)
        try:
            with torch.no_grad():
                call(model, example)
        except Exception:
            raise failure from None


def set_heads_anew(model: nn.Module, hints: dict[nn.Module, int], widths: dict[nn.Module, int]) -> None:
    """Numbers of heads, and widths of all of them, in the modules whose layers that make heads got narrower."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if child not in hints or child not in widths or width_of(child) == widths[child]:
                continue
            before, packed = widths[child], 3 if name in PACKED else 1
            narrower = width_of(child) * hints[child] // before
            for attribute in KEY_HEADS if name in OF_KEYS and hints[child] != _number(module, HEADS) else HEADS:
                if vars(module).get(attribute) == hints[child]:
                    setattr(module, attribute, narrower)
            for attribute in WIDTHS:
                if vars(module).get(attribute) == before // packed:
                    setattr(module, attribute, width_of(child) // packed)


def width_of(layer: nn.Module) -> int:
    return len(layer.weight) if isinstance(layer, (nn.Linear, nn.Conv2d)) else 0


def theirs(tp: Any, model: nn.Module, example: Any) -> Iterator[dict[str, Any]]:
    """Groups found, then after each of them the groups that prune with a model that runs, and what goes wrong."""
    try:
        n = len(list(pruner_of(tp, copy.deepcopy(model), example).step(interactive=True)))
    except Exception as failure:
        yield {"their_found": 0, "their_runs": 0, "problems": [f"no groups: {said(failure)}"]}
        return
    yield {"their_found": n, "their_runs": 0, "problems": []}
    problems: list[str] = []
    for which in range(n):
        pruned = copy.deepcopy(model)
        hints = head_hints(pruned)
        widths = {layer: width_of(layer) for layer in hints}
        try:
            next(islice(pruner_of(tp, pruned, example).step(interactive=True), which, None)).prune()
            runs(pruned, example, hints, widths)
        except Exception as failure:
            problems.append(said(failure))
        yield {"their_runs": which + 1 - len(problems), "problems": problems}


def said(failure: Exception) -> str:
    first = str(failure).strip().partition("\n")[0].replace("|", "/")
    return f"{type(failure).__name__}: {first[:60]}"


def ours(model: nn.Module, example: Any) -> dict[str, Any]:
    """Groups found, groups of which a clone was taken away, and why that is refused in others."""
    groups = find_neuron_groups(model, example)
    clone_last_units(model, example, groups)
    before = call(model, example)
    report = merge_neurons(model, groups, example)
    for one, other in zip(before, call(model, example), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.detach().abs().max()))
    merged = sum(group.units_after < group.units_before for group in report.groups)
    refused = [group.refused for group in report.groups if group.refused is not None]
    return {"our_found": len(groups), "our_merged": merged, "refused": refused}


def measure(name: str, tell: Callable[[dict[str, Any]], None]) -> None:
    """Tell what is known of an architecture, piece by piece."""
    import torch_pruning as tp

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, example = ARCHITECTURES[name]()
    model.eval()
    for piece in chain([ours(copy.deepcopy(model), example)], theirs(tp, model, example)):
        tell(piece)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # ends the process if the next piece takes longer
    tell({"finished": True})


def measured(name: str) -> dict[str, Any]:
    """What is known of an architecture when its process ends."""
    ear, mouth = (context := multiprocessing.get_context("fork")).Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, mouth.send))
    began, known = time.monotonic(), {"architecture": name, "problems": [], "finished": False}
    process.start()
    mouth.close()
    with contextlib.suppress(EOFError):
        while True:
            known |= ear.recv()
    process.join()
    if process.exitcode == -signal.SIGPROF:
        what = "finding groups" if "their_found" not in known else "pruning a group"
        known["problems"] = [*known["problems"], f"{what}: no end after {LIMIT:.0f} s"]
    elif not known["finished"]:
        raise RuntimeError(f"{name}: the process ended with {process.exitcode}")
    return {**known, "seconds": round(time.monotonic() - began, 1)}


# Page.


def cells(run: dict[str, Any]) -> tuple[Any, ...]:
    numbers = (run.get(name, 0) for name in ("our_found", "our_merged", "their_found", "their_runs"))
    found, merged, their_found, their_runs = numbers
    counts = Counter(run["problems"])
    wrong = "; ".join(f"{count} × {problem}" if count > 1 else problem for problem, count in counts.items())
    return run["architecture"], found, merged, len(run.get("refused", ())), their_found, their_runs, wrong


def page(known: dict[str, dict[str, Any]]) -> str:
    rows = [cells(known[name]) for name in ARCHITECTURES if name in known]
    total = ("all", *(sum(row[i] for row in rows) for i in range(1, 6)), "")
    lines = [
        f"{len(rows)} of the {len(ARCHITECTURES)} architectures of [the table](architectures.md) are measured.",
        "",
    ]
    lines += [*head(COLUMNS), *map(line, rows), line(total), "", "Why ours refuses to merge:", ""]
    refused = (reason for run in known.values() for reason in run.get("refused", ()))
    reasons = Counter(reason.partition(" (")[0] for reason in refused)  # without the message of the forward pass
    lines += [*head(("reason", "groups")), *(line(pair) for pair in reasons.most_common())]
    return HEADER.format(version=version("torch-pruning"), limit=f"{LIMIT:.0f}") + "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write the page that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("torch-pruning.jsonl"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--only", nargs="*", metavar="ARCHITECTURE", help="names of rows; default all")
    options = parser.parse_args()
    import torch_pruning  # noqa: F401 (once, before the processes begin)

    stored = options.runs.read_text().splitlines() if options.runs.exists() else []
    known = {run["architecture"]: run for run in map(json.loads, stored)}
    print(*head(COLUMNS), sep="\n", flush=True)
    for name in options.only or ARCHITECTURES:
        if name not in known:
            known[name] = measured(name)
            with options.runs.open("a") as file:
                file.write(json.dumps(known[name]) + "\n")
        print(line(cells(known[name])), flush=True)
    if options.page:
        options.page.write_text(page(known))


if __name__ == "__main__":
    main()
