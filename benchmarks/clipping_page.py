"""The evidence page of step clipping, from the runs that are there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from rates_store import Run, Store

OURS, PLAIN, WITH_LOSS = "step clipping", "plain", "step clipping, max_loss_step"
SPAN = ("0.0625", "0.25", "1", "4", "16")  # evenly spaced in the logarithm, for the sensitivity
SHOWN = ("0.25", "0.5", "4", "16")

HEAD = """# Step clipping beside plain training and other ways to clip

Written by `python benchmarks/clipping.py page` from `clipping.jsonl` beside it, one line a run;
`python benchmarks/clipping.py --help` says how to make them again.

**Tasks.** *Real*: those of `rates.py` (Fashion-MNIST, bytes of Python's library). *Small*: the networks of `tasks.py`
(two teacher regressions; digits with perceptrons, convolutional nets with and without BatchNorm, a transformer), each
with SGD, momentum, Adam and AdamW. **Runs.** 300 updates, linear warm-up of 10% and cosine to 0. **Rates.** Multiples
of the critical learning rate η*, which the topological finder finds on other batches. **Measured.** Validation loss in
evaluation mode at the end; a run that diverges or ends above the loss it started from counts as that loss.
**Over the best**: of real tasks the best of `rates.py`'s sweep (rates a factor of 2 apart), of small ones the best that
plain training reaches at one of the six multiples. **Step clipping** is at its defaults: κ at most 0.2 at the full
learning rate, less as the schedule lowers it.

**Rivals**, as published: gradient-norm clipping at 0.1, 1 and 5; adaptive gradient clipping (0.01, unit-wise, not in
the last layer; arXiv 2102.06171); ZClip (z 2.5, decay 0.97, 25 updates of warm-up; 2504.02507); AdaGC (1.05, decay
0.98, norm clipping at 1 for its 100 updates of warm-up; 2502.11034); update clipping (StableAdamW's, Adam and AdamW
only; 2304.13013).
"""

READ = """
## How to read it

- Methods differ in their numbers of runs, and a dash is what was not run: compare within the tables by task. The runs
  that are missing are made by `python benchmarks/clipping.py real small forms`.
- The tasks of one network are not independent of each other, and most rows are of one seed.
- The default bound, and that moments are scaled, were chosen on the BatchNorm net of the digits and on four of the real
  tasks (perceptron momentum, convolutional momentum and AdamW, ResNet momentum), seed 0. The others were not looked at.
- η* of a real task is the finder's on the task's other batches (`rates.py`'s where it is known there).
- κ does not see all neurons moving together: what step clipping cannot prevent shows in the small teacher regressions.
"""


class Table:
    """Runs of one set of tasks by task, seed, method and multiple, with the losses that they are compared to."""

    def __init__(self, store: Store, names: Callable[[str], bool], best: Callable[[str, int], float | None]) -> None:
        self.runs: dict[tuple[str, int], dict[tuple[str, str], Run]] = {}
        for key, run in store.runs.items():
            if key.column != "η*" and names(key.task):
                self.runs.setdefault((key.task, key.seed), {})[key.column, key.variant] = run
        self._best = best

    def best(self, case: tuple[str, int]) -> float | None:
        found = self._best(*case)
        if found is not None:
            return found
        plain = [run.loss for (method, _), run in self.runs[case].items() if method == PLAIN]
        return min(plain) if len(plain) >= len(SPAN) else None

    def ratio(self, case: tuple[str, int], method: str, multiple: str) -> float | None:
        run, best = self.runs[case].get((method, multiple)), self.best(case)
        return None if run is None or best is None else min(run.loss, run.start) / best

    def lost(self, case: tuple[str, int], method: str, multiple: str) -> bool:
        run = self.runs[case].get((method, multiple))
        return run is not None and not run.loss < run.start

    def methods(self) -> list[str]:
        found = dict.fromkeys(method for runs in self.runs.values() for method, _ in runs)
        return [m for m in found if "moments" not in m and "reset" not in m and "stands" not in m]

    def sensitivity(self, case: tuple[str, int], method: str) -> float | None:
        """Mean of min(loss, start) - best over the span of rates, over what there is to gain, start - best."""
        runs = [self.runs[case].get((method, multiple)) for multiple in SPAN]
        known = [run for run in runs if run is not None]
        best = self.best(case)
        if len(known) < len(SPAN) or best is None:
            return None
        best = min(best, *(run.loss for (m, _), run in self.runs[case].items()))
        return statistics.mean((min(run.loss, run.start) - best) / (run.start - best) for run in known)


def mean_and_worst(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.mean(known):.2f} ({max(known):.2f})" if known else "-"


def rates_table(table: Table) -> list[str]:
    lines = [
        "| | " + " | ".join(f"{multiple} η*" for multiple in SHOWN) + " | LR sensitivity (1/16 to 16 η*) |",
        "|---" * (len(SHOWN) + 2) + "|",
    ]
    for method in table.methods():
        cells = []
        for multiple in SHOWN:
            ratios = [r for case in table.runs if (r := table.ratio(case, method, multiple)) is not None]
            lost = sum(table.lost(case, method, multiple) for case in table.runs)
            cells.append(mean_and_worst(ratios) + f", {len(ratios)} runs" + (f", {lost} lost" if lost else ""))
        values = [s for case in table.runs if (s := table.sensitivity(case, method)) is not None]
        cells.append(f"{statistics.mean(values):.3f} ({len(values)} tasks)" if values else "-")
        name = f"**{method}**" if method == OURS else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def harm_table(table: Table) -> list[str]:
    lines = [
        "| rate | runs | loss with over without: mean | worst | accuracy with less without: mean | worst | "
        "worse by more than 1% | updates scaled back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for multiple in ("0.0625", "0.25", "0.5"):
        pairs = [(runs.get((OURS, multiple)), runs.get((PLAIN, multiple))) for runs in table.runs.values()]
        both = [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(b.loss)]
        if not both:
            continue
        losses = [a.loss / b.loss for a, b in both]
        points = [
            a.extra["accuracy"] - b.extra["accuracy"]
            for a, b in both
            if a.extra["accuracy"] is not None and b.extra["accuracy"] is not None
        ]
        worse = sum(
            a.loss > 1.01 * b.loss if a.extra["accuracy"] is None else a.extra["accuracy"] < 0.99 * b.extra["accuracy"]
            for a, b in both
        )
        clipped = statistics.mean(a.extra["clipped"] for a, _ in both)
        lines.append(
            f"| {multiple} η* | {len(both)} | {statistics.mean(losses):.3f} | {max(losses):.2f} | "
            f"{statistics.mean(points):+.4f} | {min(points):+.3f} | {worse} | {clipped:.1%} |"
        )
    return lines


def tasks_table(table: Table, multiple: str) -> list[str]:
    methods = table.methods()
    lines = ["| task | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for case in sorted(table.runs):
        ratios = [table.ratio(case, method, multiple) for method in methods]
        if all(ratio is None for ratio in ratios):
            continue
        name = case[0] if case[1] == 0 else f"{case[0]}, seed {case[1]}"
        cells = [
            "-" if ratio is None else f"{ratio:.2f}" + (" lost" if table.lost(case, method, multiple) else "")
            for method, ratio in zip(methods, ratios, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def forms_table(store: Store) -> list[str]:
    forms: dict[str, dict[tuple[str, str, int], Run]] = {}
    for key, run in store.runs.items():
        if "moments" in key.column or "reset" in key.column or "stands" in key.column:
            forms.setdefault(key.column, {})[key.variant, key.task, key.seed] = run
    columns = sorted({c for runs in forms.values() for c in runs}, key=lambda c: (-float(c[0]), c[1:]))
    lines = [
        "| | " + " | ".join(f"{task}, {multiple} η*" for multiple, task, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, runs in forms.items():
        cells = ["-" if c not in runs else f"{min(runs[c].loss, runs[c].start):.3f}" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines if forms else ["Not run."]


def summary(name: str, table: Table) -> list[str]:
    lines = []
    for multiple in ("4", "16"):
        means = {}
        for method in table.methods():
            ratios = [r for case in table.runs if (r := table.ratio(case, method, multiple)) is not None]
            if ratios:
                means[method] = statistics.mean(ratios)
        if OURS in means:
            rivals = {method: mean for method, mean in means.items() if method != OURS}
            next_best = min(rivals, key=rivals.__getitem__)
            lost = sum(table.lost(case, OURS, multiple) for case in table.runs)
            lines.append(
                f"- {name} at {multiple} η*: {means[OURS]:.2f} of the best in the mean, {lost} runs lost; the next "
                f"best is {next_best} with {rivals[next_best]:.2f}."
            )
    return lines


def write_page(store: Store, rates: Store, path: Path) -> None:
    """Write the page from what is there."""
    real_names = {key.task for key in rates.runs}
    real = Table(store, lambda n: n in real_names, lambda task, seed: rates.best(task, 300, seed, "cosine"))
    small = Table(store, lambda n: n not in real_names, lambda task, seed: None)
    parts = [HEAD, "## In short\n", *summary("Real tasks", real), *summary("Small networks", small)]
    for title, table in (("Real tasks", real), ("Small networks", small)):
        if not table.runs:
            continue
        parts += [
            f"\n## {title}\n",
            "Loss over the best: mean (worst); lost: ended at or above the loss it started from. LR sensitivity, after",
            "arXiv 2309.14322: mean over the rates of min(loss, loss of the start) less the best of all, over what",
            "there is to gain (0: as good as the best at each rate, 1: nothing is learned at any).\n",
            *rates_table(table),
            "\n### Where plain training is right: clipped beside plain\n",
            "Worse by more than 1%: in accuracy, relative to plain; in loss where nothing is classified.\n",
            *harm_table(table),
            "\n### By task, at 16 η*\n",
            *tasks_table(table, "16"),
        ]
    parts += [
        "\n## Other forms of step clipping\n",
        "Validation loss. What becomes of the optimizer's running means of gradients where an update was scaled back,",
        "of the bound as the learning rate falls, and other bounds. A reset with a cool-down leaves a tensor's moments",
        "alone for ten clipped updates after each reset.\n",
        *forms_table(store),
        READ,
    ]
    path.write_text("\n".join(parts))
