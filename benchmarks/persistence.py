"""Speed of Betti numbers, diagrams and bottleneck distances beside gudhi's: `python benchmarks/persistence.py`.

Needs gudhi and scikit-learn; with redzed-tda, its times are shown too. The reference for Betti numbers is gudhi's Rips
complex as the paper uses it: edges up to a quarter of the diameter, dimension 3. It runs in a process of its own, with
a limit on time and memory; where it hits one, the truth is gudhi's RipsPersistence (a fork of Ripser after one edge
collapse). Everything takes the points and runs on one core; distances are included. Times are those of the processor,
so that a busy machine distorts little.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from clouds import CLOUDS

from lightning_topo.functional import betti_at_scale, bottleneck_distance, persistence

SCALE = 0.25


def rips_complex(name: str, n: int) -> tuple[float, tuple[int, ...]]:
    """Time and Betti numbers of gudhi's Rips complex."""
    import gudhi
    from scipy.spatial.distance import pdist

    points = CLOUDS[name](n).numpy()
    start = time.process_time()
    edge = SCALE * pdist(points).max()
    tree = gudhi.RipsComplex(points=points, max_edge_length=edge).create_simplex_tree(max_dimension=3)
    tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
    betti = (*tree.betti_numbers(), 0, 0, 0)[:3]
    return time.process_time() - start, betti


def rips_persistence(name: str, n: int) -> tuple[float, tuple[int, ...]]:
    """The same numbers from gudhi's faster engine."""
    from gudhi.sklearn import RipsPersistence
    from scipy.spatial.distance import pdist, squareform

    points = CLOUDS[name](n).numpy()
    engine = RipsPersistence([0, 1, 2], input_type="full distance matrix", num_collapses=1, homology_coeff_field=2)
    start = time.process_time()
    distances = squareform(pdist(points))
    engine.threshold = SCALE * distances.max()
    diagrams = engine.fit_transform([distances])[0]
    betti = tuple(int((bars[:, 1] > engine.threshold).sum()) for bars in diagrams)
    return time.process_time() - start, betti


def limited(function: Callable, arguments: tuple, seconds: float, gigabytes: float) -> tuple[float | None, Any, str]:
    """Time and result of a function in a process of its own, or the limit that it hit."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments, seconds, gigabytes))
    process.start()
    sender.close()
    try:
        elapsed, result = receiver.recv()
        return elapsed, result, f"{1e3 * elapsed:,.0f}"
    except EOFError:
        process.join()
        out_of_time = process.exitcode == -signal.SIGXCPU
        return None, None, f"> {seconds:.0f} s" if out_of_time else f"> {gigabytes:.0f} GB"
    finally:
        process.kill()
        process.join()


def _send(sender: Any, function: Callable, arguments: tuple, seconds: float, gigabytes: float) -> None:
    torch.set_num_threads(1)
    memory, end = int(gigabytes * 2**30), int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    with contextlib.suppress(MemoryError):
        sender.send(function(*arguments))


def timed(function: Callable, repeats: int) -> tuple[float, Any]:
    """Median time of some calls after one that is not counted, and the result."""
    result, times = function(), []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times), result


def betti_rows(sizes: list[int], options: argparse.Namespace) -> list[dict]:
    """One row a cloud and size."""
    print(f"\nb0, b1, b2 at {SCALE} of the diameter (ms)\n")
    print("| cloud | n | gudhi Rips complex | gudhi RipsPersistence | betti_at_scale | ratio | Betti numbers | agree |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for name, make in CLOUDS.items():
        for n in sizes:
            points = make(n)
            ours, betti = timed(lambda points=points: betti_at_scale(points, SCALE), options.repeats)
            limits = (options.max_seconds, options.max_gigabytes)
            slow, slow_betti, slow_text = limited(rips_complex, (name, n), *limits)
            fast, fast_betti, fast_text = limited(rips_persistence, (name, n), *limits)
            truths = [truth for truth in (slow_betti, fast_betti) if truth is not None]
            agree = all(truth == betti for truth in truths) if truths else None
            ratio = slow / ours if slow else None
            ratio_text = f"{ratio:.0f}" if ratio else "-"
            agree_text = {True: "yes", False: "NO", None: "-"}[agree]
            print(
                f"| {name} | {n:,} | {slow_text} | {fast_text} | {1e3 * ours:,.1f} | {ratio_text} "
                f"| {betti} | {agree_text} |",
                flush=True,
            )
            rows.append(
                {"cloud": name, "n": n, "rips_complex": slow_text, "rips_persistence": fast_text, "seconds": ours}
                | {"rips_complex_seconds": slow, "rips_persistence_seconds": fast, "ratio": ratio}
                | {"betti": betti, "agree": agree}
            )
    return rows


def diagram_rows(sizes: list[int], options: argparse.Namespace) -> list[dict]:
    """Diagrams of dimensions 0 and 1, and the bottleneck distance to those of another cloud of the kind."""
    print("\nFull diagrams H0 + H1, and bottleneck distance (ms)\n")
    print("| cloud | n | H0 | H0 + H1, ripser | H0 + H1, gudhi | H0 + H1, redzed | bars of H1 | bottleneck H0 + H1 |")
    print("|---|---|---|---|---|---|---|---|")
    engines = ["ripser", "gudhi", *(["redzed"] if importlib.util.find_spec("redzed_tda") else [])]
    rows = []
    for name, make in CLOUDS.items():
        for n in sizes:
            points, other = make(n), persistence(make(n, seed=1))
            row: dict[str, Any] = {"cloud": name, "n": n}
            row["h0"], _ = timed(lambda points=points: persistence(points, max_dim=0), options.repeats)
            for engine in engines:
                call = lambda points=points, engine=engine: persistence(points, engine=engine)  # noqa: E731
                row[engine], diagrams = timed(call, max(1, options.repeats // 2))
            row["bars"] = len(diagrams.diagrams[1])
            call = lambda p=diagrams, q=other: bottleneck_distance(p, q)  # noqa: E731
            row["bottleneck"], _ = timed(call, options.repeats)
            redzed = f"{1e3 * row['redzed']:,.0f}" if "redzed" in row else "-"
            print(
                f"| {name} | {n:,} | {1e3 * row['h0']:,.1f} | {1e3 * row['ripser']:,.0f} | {1e3 * row['gudhi']:,.0f} "
                f"| {redzed} | {row['bars']} | {1e3 * row['bottleneck']:,.1f} |",
                flush=True,
            )
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--repeats", type=int, default=5, help="calls of which the median is taken")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="limit for one call of gudhi")
    parser.add_argument("--max-gigabytes", type=float, default=8.0, help="address space of gudhi's process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    betti = betti_rows([256] if options.quick else [256, 1024, 2048], options)
    diagrams = diagram_rows([64] if options.quick else [256, 1024], options)
    if options.json:
        options.json.write_text(json.dumps({"betti": betti, "diagrams": diagrams}, indent=1))


if __name__ == "__main__":
    main()
