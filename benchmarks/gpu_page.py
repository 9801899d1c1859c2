"""The page of the figures measured on a GPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from gpu_networks import SETTINGS
from markdown_table import head, line

PAGE = """# What the callbacks cost and reach on a GPU

Written by `python benchmarks/gpu.py page` from `gpu.jsonl` beside it, one line a result; `python benchmarks/gpu.py
--help` says how to make them again. {machine}, bf16-mixed, batches made on the device: MLP 784-1024-1024-10 (Adam,
batch 128), ResNet-18 (momentum, batch 256) on Fashion-MNIST, a GPT of GPT-2's size (85 M; AdamW, 16 x 512 bytes of
Python's library). *Before* is the version before measurements were recorded as CUDA graphs and long products were
shared out among the multiprocessors. Timings of this machine moved by up to a quarter from run to run: those of plain
runs stand beside each.

## One measurement of all groups

Milliseconds until it is queued, and until it is done on an idle device.

{measurement}
*One in*: at BiLipschitzMonitor's default, which plans with 3% of the time, one update in so many can be measured, once
the training has earned what finding the groups took (0.3 to 1 s). Recorded are sets of groups that take at most a 64th
of the device's memory: here all but two of the GPT's, whose measurement is bound by the device, not by the host.

## A step

Wall time in milliseconds, and over the plain runs before and after it. *Measured*: updates measured, of those due.

{steps}
These runs are of one or two seconds, in which a monitor at its defaults hardly measures, for finding the groups counts
as overhead. The idle monitors' time has SharpnessMonitor's first two measurements in it. A step that may have to be
clipped waits for the device once or twice, which a run that queues ahead feels. Step clipping bounded each group by
itself when this was measured; bounding all together, it has to look more often.

## Rate control beside a sweep

Validation loss after {n_steps} steps (warm-up of 10%, cosine to 0), one seed.

{control}
{cut}
## The finder beside Lightning's

{search}"""
PLANNED = 0.03  # three fifths of BiLipschitzMonitor's max_overhead
TITLES = {"mlp": "MLP", "resnet": "ResNet-18", "gpt": "GPT"}


def page(rows: list[dict[str, Any]]) -> str:
    def of(part: str, when: str = "after") -> list[dict[str, Any]]:
        return [row for row in rows if row["part"] == part and row["when"] == when]

    def both(part: str, key: str) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any]]]:
        before = {(row["network"], row[key]): row for row in of(part, "before")}
        for row in sorted(of(part), key=lambda row: list(TITLES).index(row["network"])):
            yield before.get((row["network"], row[key])), row

    def taken(row: dict[str, Any] | None) -> tuple[str, str]:
        return (f"{row['ms']:.1f}", f"{row['ratio']:.2f}") if row else ("-", "-")

    def one_in(row: dict[str, Any]) -> str:
        plain = [ms for step in of("steps") if step["network"] == row["network"] for ms in step["plain"]]
        return f"{row['done'] / (PLANNED * statistics.median(plain)):.0f}" if "all" in row["what"] else "-"

    def measured(row: dict[str, Any]) -> str:
        return ", ".join(f"{made} of {due}" for made, due in row.get("coverage", {}).values()) or "-"

    measurement = table(
        ("", "groups", "what", "queued before", "queued", "done before", "done", "one in"),
        (
            (
                TITLES[now["network"]],
                now["groups"],
                now["what"],
                *(f"{one[key]:.2f}" for key in ("queued", "done") for one in (was or now, now)),
                one_in(now),
            )
            for was, now in both("measurement", "what")
        ),
    )
    steps = table(
        ("", "callback", "before", "", "after", "", "measured"),
        (
            (TITLES[now["network"]], now["guard"], *taken(was), *taken(now), measured(now))
            for was, now in both("steps", "guard")
        ),
    )  # fmt: skip
    runs = of("control")
    control = table(
        ("", "run", "validation loss", "seconds"),
        ((TITLES[row["network"]], row["run"], f"{row['loss']:.3f}", f"{row['seconds']:.0f}") for row in runs),
    )
    missing = [
        f"{TITLES[name]} at {', '.join(f'{lr:g}' for lr in rates if f'{lr:g}' not in done)}"
        for name, rates in ((name, setting.sweep) for name, setting in SETTINGS.items())
        for done in [{row["run"] for row in runs if row["network"] == name}]
        if done and len(done) <= len(rates)
    ]
    cut = f"Not run for want of time on the device: {'; '.join(missing)}.\n" if missing else ""
    search = table(
        ("", "η*", "suggestion", "steps", "seconds", "Lightning's suggestion", "its seconds"),
        (
            (TITLES[row["network"]], f"{row['critical_lr']:.3g}", f"{row['suggestion']:.3g}", row["steps"],
             f"{row['seconds']:.1f}", f"{row['theirs']:.3g}", f"{row['their_seconds']:.1f}")
            for row in of("search")
        ),
    )  # fmt: skip
    machine = "One NVIDIA H200, PyTorch 2.11"
    return PAGE.format(
        machine=machine, measurement=measurement, steps=steps, control=control, cut=cut, search=search,
        n_steps=f"{runs[0]['steps']:,}",
    )  # fmt: skip


def table(columns: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    return "\n".join([*head(columns), *map(line, rows)]) + "\n"
