"""The evidence page of step clipping, from the runs that are there."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from rates_store import Run, Store

OURS, PLAIN, WITH_LOSS = "step clipping", "plain", "step clipping, max_loss_step"
SPAN = ("0.5", "4", "16")  # the rates of the sensitivity
FEWEST = 4  # rates of plain training of which one can be called the best
SHOWN = ("0.25", "0.5", "4", "16")
SUGGESTION = "suggestion"
GENTLE = (SUGGESTION, "0.25", "0.5")
BEST_NORM, NORMS = "norm, the best of the three", ("norm 0.1", "norm 1", "norm 5")
ALONE = "0.2, each group by itself"
BATCH_NORM = "conv-batchnorm/momentum"
FAR = 1.1  # over the best of the sweep: worth a line
TEACHERS = ("figure-eight/", "two-circles/")
TABLES = ("cancer/", "diabetes/")

HEAD = """# Step clipping beside plain training and other ways to clip

Written by `python benchmarks/clipping.py page` from `clipping.jsonl` beside it, one line a run;
`python benchmarks/clipping.py --help` says how to make them again.

**Tasks.** *Real*: those of `rates.py` (Fashion-MNIST, bytes of Python's library). *Small*: the networks of `tasks.py`
(two teacher regressions; digits with perceptrons, convolutional nets with and without BatchNorm, a transformer), each
with SGD, momentum, Adam and AdamW. **Runs.** 300 updates, linear warm-up of 10% and cosine to 0. **Rates.** Multiples
of the critical learning rate η*, which the topological finder finds on other batches. **Measured.** Validation loss in
evaluation mode at the end; a run that diverges or ends above the loss it started from counts as that loss.
**Over the best**: of real tasks the best of `rates.py`'s sweep (rates a factor of 2 apart), of small ones the best that
plain training reaches at one of the multiples. **Step clipping** is at its defaults: the root of the sum of squares of
the groups' κ is at most 0.2 at the full learning rate, less as the schedule lowers it.

**Rivals**, as published: gradient-norm clipping at 0.1, 1 and 5; adaptive gradient clipping (0.01, unit-wise, not in
the last layer; arXiv 2102.06171); ZClip (z 2.5, decay 0.97, 25 updates of warm-up; 2504.02507); AdaGC (1.05, decay
0.98, norm clipping at 1 for its 100 updates of warm-up; 2502.11034); update clipping (StableAdamW's, Adam and AdamW
only; 2304.13013).
"""

TABLE_TEXT = """Loss over the best: mean (worst); lost: ended at or above the loss it started from. LR sensitivity,
after arXiv 2309.14322: the mean over the logarithm of the rate from 1/2 to 16 η* (trapezoids through 1/2, 4 and 16)
of min(loss, loss of the start) less the method's own best, here over what there is to gain, for losses of different
tasks have different units (0: as good at each rate as at the method's best); in the last column less the best of all.
"""

BATCH_NORM_TEXT = f"""
## BatchNorm with momentum

`{BATCH_NORM}`, the network on which an earlier form of step clipping kept itself going, seeds 0 to 13.
"""

TEACHERS_TEXT = """
## Teacher regressions with a bound by the loss

Validation loss. All neurons move together there, which κ does not see; `max_loss_step` is 0.5.
"""

COST_TEXT = """
## What it costs where nothing is clipped

Processor milliseconds of a step, medians of 50 in turns with and without clipping, one thread. *Clipping* is what it
adds before and after the optimizer's step. Beside it what a single copy of the parameters takes, without which no
update can be undone, and what a copy, two differences and two norms do: the length of the update, and how far the
neurons have gone since their distances were taken. Nothing of this depends on the batch; its share of a step does.
"""

BOUNDED_TEXT = f"""
## What the bound is on

Loss over the best: mean (worst), on the same runs; below, the runs where either is above {FAR}. The bound of 0.2 is on
the largest κ of a group, each by itself, or on the root of the sum of their squares, all together.
"""

FORMS_TEXT = """
## Other forms of step clipping

Validation loss. What becomes of the optimizer's running means of gradients where an update was scaled back,
of the bound as the learning rate falls, and other bounds. A reset with a cool-down leaves a tensor's moments
alone for ten clipped updates after each reset.
"""

READ = """
## How to read it

- Methods differ in their numbers of runs, and a dash is what was not run: compare within the tables by task, or by the
  means over the same runs above. Left out, as the least informative: rivals on further seeds, and norm clipping at 5 on
  real tasks. The runs that are missing are made by `python benchmarks/clipping.py real small forms --seeds 0 1 2`.
- The tasks of one network are not independent of each other.
- The bound of 0.2, and that moments are scaled, were chosen on the BatchNorm net of the digits and on four of the real
  tasks (perceptron momentum, convolutional momentum and AdamW, ResNet momentum), seed 0. That the bound is on all
  groups together was tried first on seven: ViT, LayerNorm perceptron, GRU and convolutional net with Adam, ViT and
  ResNet with momentum, GPT with AdamW, one seed each. The others were not looked at before.
- What went wrong at 4 η* where each group was bounded by itself: all layers moved by up to their bound in the same
  updates. On the LayerNorm perceptron (seed 1) an update was 4% of the weights' norm where the best run's is 0.5%, and
  as the weights grew threefold under Adam, so did the distances, and κ stayed below the bound (5% of the updates were
  scaled back). At 16 η* nearly all were, which also took the momentum out of them; so it ended lower there.
- What is left at 4 η* is the GRU, of two groups: its weights grow sixfold within the run, κ falls with that, and few
  updates are scaled back after the first sixty. A bound that falls as the cloud of neurons grows mends it (0.99), as
  does a bound of 0.1 (1.00), but that one is too low elsewhere; at 16 η* it ends at 1.01. `max_loss_step` does not.
- A small sigmoid perceptron with momentum (digits-sigmoid-sphere) learns nothing at 4 η*: all neurons go the same way
  until every one is saturated, by updates of which 2% are above the bound. With `max_loss_step=0.5` it learns (0.79 of
  the digits).
- At the suggestion some first updates are scaled back on half of the tasks, and the run is another one from there on:
  it ends better by more than 1% three times as often as worse. With RMSprop, whose first updates are several times its
  later ones, η* is that of the first update, and the finder suggests 1.1 to 1.3 η* for depthwise/rmsprop: half of
  the updates are scaled back there, and two seeds of three end 1.1% less accurate.
- Near the bound κ of all groups is evaluated, which takes more than the table of costs says. In one sitting, whole runs
  under clipping took at η*/4 and η*/2 so many times the processor time of plain ones: ViT 1.3 and 1.8, convolutional
  net with momentum 1.6 and 2.3, LayerNorm perceptron 2.3 and 3.1 (AdamW, Adam; a step of it takes 1.7 ms).
- The two small tables (cancer, diabetes) are overfitted within the run: the validation loss then rises with the rate
  while the accuracy stays (cancer at 4 and 16 η*: 0.97 and 0.98).
- η* of a real task is the finder's on the task's other batches. *Suggestion* is what the finder suggests for the run,
  from `rates.jsonl` where it is there.
"""


class Table:
    """Runs of one set of tasks by task, seed, method and rate, with the losses that they are compared to."""

    def __init__(self, store: Store, names: Callable[[str], bool], best: Callable[[str, int], float | None]) -> None:
        self.runs: dict[tuple[str, int], dict[tuple[str, str], Run]] = {}
        for key, run in store.runs.items():
            if key.column not in ("η*", "suggested") and key.schedule == "cosine" and names(key.task):
                self.runs.setdefault((key.task, key.seed), {})[key.column, key.variant] = run
        for runs in self.runs.values():
            for rate in {rate for _, rate in runs}:
                norms = [run for name in NORMS if (run := runs.get((name, rate))) is not None]
                if len(norms) > 1:
                    runs[BEST_NORM, rate] = min(norms, key=lambda run: run.loss)
        self.best_of = best

    def best(self, case: tuple[str, int]) -> float | None:
        found = self.best_of(*case)
        if found is not None:
            return found
        plain = [run.loss for (method, _), run in self.runs[case].items() if method == PLAIN]
        return min(plain) if len(plain) >= FEWEST else None

    def ratio(self, case: tuple[str, int], method: str, rate: str) -> float | None:
        run, best = self.runs[case].get((method, rate)), self.best(case)
        return None if run is None or best is None else min(run.loss, run.start) / best

    def ratios(self, method: str, rate: str, beside: str | None = None) -> list[float]:
        """Of all runs, or of those that another method has as well."""
        cases = (c for c in self.runs if beside is None or (beside, rate) in self.runs[c])
        return [ratio for case in cases if (ratio := self.ratio(case, method, rate)) is not None]

    def lost(self, case: tuple[str, int], method: str, rate: str) -> bool:
        run = self.runs[case].get((method, rate))
        return run is not None and not run.loss < run.start

    def methods(self) -> list[str]:
        found = dict.fromkeys(method for runs in self.runs.values() for method, _ in runs)
        forms = ("moments", "reset", "stands", "max_loss_step", ALONE)
        return sorted((m for m in found if not any(f in m for f in forms)), key=lambda m: (m == OURS, m != PLAIN))

    def sensitivity(self, case: tuple[str, int], method: str) -> tuple[float, float] | None:
        """Mean of min(loss, start) less the method's own best, and less the best of all, over start less the latter."""
        runs = [self.runs[case].get((method, rate)) for rate in SPAN]
        known = [min(run.loss, run.start) for run in runs if run is not None]
        of_all = self.best(case)
        if len(known) < len(SPAN) or of_all is None:
            return None
        start = next(iter(self.runs[case].values())).start
        of_all = min(of_all, *(run.loss for run in self.runs[case].values()))
        mean, gain = mean_over_rates(known), start - of_all
        return (mean - min(known)) / gain, (mean - of_all) / gain


def mean_over_rates(losses: list[float]) -> float:
    """Over the logarithm of the rates of ``SPAN``, by trapezoids."""
    places = [math.log2(float(rate)) for rate in SPAN]
    pieces = zip(itertools.pairwise(places), itertools.pairwise(losses), strict=True)
    return sum((b - a) * (x + y) / 2 for (a, b), (x, y) in pieces) / (places[-1] - places[0])


def mean_and_worst(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.mean(known):.2f} ({max(known):.2f})" if known else "-"


def rates_table(table: Table) -> list[str]:
    lines = [
        "| | " + " | ".join(f"{rate} η*" for rate in SHOWN) + " | LR sensitivity | to the best of all |",
        "|---" * (len(SHOWN) + 3) + "|",
    ]
    for method in table.methods():
        cells = []
        for rate in SHOWN:
            ratios = table.ratios(method, rate)
            lost = sum(table.lost(case, method, rate) for case in table.runs)
            count = f", {len(ratios)} runs" if ratios else ""
            cells.append(mean_and_worst(ratios) + count + (f", {lost} lost" if lost else ""))
        values = [both for case in table.runs if (both := table.sensitivity(case, method)) is not None]
        columns = zip(*values, strict=True) if values else [(), ()]
        cells += [f"{statistics.mean(column):.3f} ({len(column)} runs)" if column else "-" for column in columns]
        name = f"**{method}**" if method == OURS else method
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def worse(one: Run, other: Run) -> bool:
    """Whether the first is worse by more than 1% of the validation metric."""
    if one.extra["accuracy"] is None or other.extra["accuracy"] is None:
        return min(one.loss, one.start) > 1.01 * min(other.loss, other.start)
    return one.extra["accuracy"] < 0.99 * other.extra["accuracy"]


def harm_line(name: str, pairs: Iterable[tuple[Run | None, Run | None]]) -> list[str]:
    both = [(ours, plain) for ours, plain in pairs if ours is not None and plain is not None]
    if not both:
        return []
    losses = [a.loss / b.loss for a, b in both if math.isfinite(b.loss)]
    points = [
        a.extra["accuracy"] - b.extra["accuracy"]
        for a, b in both
        if a.extra["accuracy"] is not None and b.extra["accuracy"] is not None
    ]
    clipped = statistics.mean(a.extra["clipped"] for a, _ in both)
    never = sum(a.extra["clipped"] == 0 for a, _ in both)
    accuracy = f"{statistics.mean(points):+.4f} | {min(points):+.3f}" if points else "- | -"
    return [
        f"| {name} | {len(both)} | {statistics.mean(losses):.3f} | {max(losses):.2f} | {accuracy} | "
        f"{sum(worse(a, b) for a, b in both)} | {sum(worse(b, a) for a, b in both)} | {clipped:.1%} | {never} |"
    ]


HARM_HEAD = [
    "| rate | runs | loss with over without: mean | worst | accuracy with less without: mean | worst | "
    "worse by more than 1% | better by more than 1% | updates scaled back | runs without any |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def harm_table(table: Table) -> list[str]:
    lines = list(HARM_HEAD)
    for rate in GENTLE:
        pairs = [(runs.get((OURS, rate)), runs.get((PLAIN, rate))) for runs in table.runs.values()]
        lines += harm_line(rate if rate == SUGGESTION else f"{rate} η*", pairs)
    return lines


def worse_runs(table: Table) -> list[str]:
    """What stands behind the column of runs that are worse."""
    lines = []
    for (task, seed), runs in sorted(table.runs.items()):
        for rate in GENTLE:
            ours, plain = runs.get((OURS, rate)), runs.get((PLAIN, rate))
            if ours is not None and plain is not None and worse(ours, plain):
                what = "accuracy" if plain.extra["accuracy"] is not None else "loss"
                with_, without = (r.extra["accuracy"] or r.loss for r in (ours, plain))
                lines.append(
                    f"- {task}, seed {seed}, {rate}: {what} {with_:.4g} with, {without:.4g} without, "
                    f"{ours.extra['clipped']:.1%} of the updates scaled back."
                )
    return ["\nThe runs that are worse:\n", *lines] if lines else []


def batch_norm_table(store: Store) -> list[str]:
    lines = list(HARM_HEAD)
    for schedule in ("cosine", "constant"):
        for rate in GENTLE:
            runs: dict[int, dict[str, Run]] = {}
            for key, run in store.runs.items():
                if (key.task, key.schedule, key.variant) == (BATCH_NORM, schedule, rate):
                    runs.setdefault(key.seed, {})[key.column] = run
            name = rate if rate == SUGGESTION else f"{rate} η*"
            lines += harm_line(f"{name}, {schedule}", [(r.get(OURS), r.get(PLAIN)) for r in runs.values()])
    return lines


def teachers_table(store: Store) -> list[str]:
    methods = (PLAIN, OURS, WITH_LOSS)
    found: dict[tuple[str, str], dict[tuple[str, str], Run]] = {}
    for key, run in store.runs.items():
        if key.task.startswith(TEACHERS) and key.column in methods and key.variant in SHOWN and key.seed == 0:
            found.setdefault((key.schedule, key.task), {})[key.column, key.variant] = run
    lines = [
        "| task | start | " + " | ".join(f"{m}, {rate} η*" for rate in ("4", "16") for m in methods) + " |",
        "|---" * (2 + 2 * len(methods)) + "|",
    ]
    for (schedule, task), runs in sorted(found.items(), reverse=True):
        if not any(method == WITH_LOSS for method, _ in runs):
            continue
        cells = []
        for rate in ("4", "16"):
            for method in methods:
                run = runs.get((method, rate))
                lost = " lost" if run is not None and not run.loss < run.start else ""
                cells.append("-" if run is None else f"{run.loss:.2g}{lost}")
        start = next(iter(runs.values())).start
        lines.append(f"| {task}, {schedule} | {start:.2g} | " + " | ".join(cells) + " |")
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


def bounded_table(table: Table) -> list[str]:
    """Each group bounded by itself beside all together, on the same runs."""
    lines = ["| rate | runs | each group by itself | all together |", "|---|---|---|---|"]
    cases: list[str] = []
    for rate in ("4", "16"):
        pairs = [
            (case, before, after)
            for case in sorted(table.runs)
            if (before := table.ratio(case, ALONE, rate)) is not None
            and (after := table.ratio(case, OURS, rate)) is not None
        ]
        if not pairs:
            continue
        columns = [mean_and_worst(pair[place] for pair in pairs) for place in (1, 2)]
        lines.append(f"| {rate} η* | {len(pairs)} | " + " | ".join(columns) + " |")
        for (task, seed), before, after in pairs:
            if max(before, after) > FAR:
                runs = table.runs[task, seed]
                shares = [f"{runs[method, rate].extra['clipped']:.0%}" for method in (ALONE, OURS)]
                cases.append(
                    f"| {task}, seed {seed}, {rate} η* | {before:.2f} | {shares[0]} | {after:.2f} | {shares[1]} |"
                )
    if not cases:
        return []
    head = ["\n| run | each by itself | scaled back | all together | scaled back |", "|---|---|---|---|---|"]
    return [BOUNDED_TEXT, *lines, *head, *cases]


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
    return lines if forms else []


def cost_table(store: Store) -> list[str]:
    lines = [
        "| network | parameters | batch, optimizer | step | clipping | step over plain | with a copy alone | "
        "with copy, differences, norms alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, run in store.runs.items():
        if key.column != "cost":
            continue
        found = run.extra
        plain, clipping = found["plain"], found["before"] + found["after"]
        ratios = " | ".join(f"{1 + part / plain:.2f}" for part in (clipping, found["copy"], found["passes"]))
        lines.append(
            f"| {key.task} | {found['parameters'] / 1e6:.2g} M | {key.steps}, {key.variant} | {plain:.2f} | "
            f"{clipping:.2f} | {ratios} |"
        )
    return lines if len(lines) > 2 else []


def summary(name: str, table: Table) -> list[str]:
    lines = []
    for rate in ("4", "16"):
        ours = table.ratios(OURS, rate)
        if not ours:
            continue
        lost = sum(table.lost(case, OURS, rate) for case in table.runs)
        line = f"- {name} at {rate} η*: {mean_and_worst(ours)} of the best over {len(ours)} runs, {lost} lost."
        rivals = {m: table.ratios(m, rate) for m in table.methods() if m not in (OURS, PLAIN)}
        rivals = {m: ratios for m, ratios in rivals.items() if len(ratios) > 1}
        if rivals:
            next_best = min(rivals, key=lambda m: statistics.mean(rivals[m]))
            same = statistics.mean(table.ratios(OURS, rate, beside=next_best))
            line += (
                f" The next best is {next_best} with {mean_and_worst(rivals[next_best])} over {len(rivals[next_best])},"
                f" of which step clipping has {same:.2f}."
            )
        lines.append(line)
    return lines


def write_page(store: Store, rates: Store, path: Path) -> None:
    """Write the page from what is there."""
    real_names = {key.task for key in rates.runs}
    real = Table(store, lambda n: n in real_names, lambda task, seed: rates.best(task, 300, seed, "cosine"))
    small = Table(store, lambda n: n not in real_names and not n.startswith(TEACHERS), lambda task, seed: None)
    large = Table(store, lambda n: n in real_names and not n.startswith(TABLES), real.best_of)
    parts = [HEAD, "## In short\n"]
    for title, table in (("Real tasks", real), ("Those of images and text", large), ("Small networks", small)):
        parts += summary(title, table)
    for title, table in (("Real tasks", real), ("Small networks", small)):
        if not table.runs:
            continue
        parts += [
            f"\n## {title}\n",
            TABLE_TEXT,
            *rates_table(table),
            "\n### Where plain training is right: clipped beside plain\n",
            "Worse or better by more than 1%: in accuracy, relative to plain; in loss where nothing is classified.\n",
            *harm_table(table),
            *worse_runs(table),
            "\n### By task, at 16 η*\n",
            *tasks_table(table, "16"),
        ]
    parts += bounded_table(real)
    parts += [BATCH_NORM_TEXT, *batch_norm_table(store), TEACHERS_TEXT, *teachers_table(store)]
    costs = cost_table(store)
    if costs:
        parts += [COST_TEXT, *costs]
    forms = forms_table(store)
    if forms:
        parts += [FORMS_TEXT, *forms]
    path.write_text("\n".join([*parts, READ]))
