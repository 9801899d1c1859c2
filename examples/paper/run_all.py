"""All of the paper's experiments, their figures and the table of claims.

    make paper                                     or: python examples/paper/run_all.py
    make paper FAST=1                              or: python examples/paper/run_all.py --fast
    python examples/paper/run_all.py --only neurons_r2 equivariance

writes figures and README.md to ``runs/paper`` or ``runs/paper-fast``, and fails when a claim that is asserted does not
hold. The results of each part are kept there, so that ``--only`` makes the page anew from a part and the others' last
results.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import platform
import sys
import time
from pathlib import Path
from typing import Any

import equivariance
import gudhi_agreement
import neurons_r2
import neurons_r3
import real_networks
import torch
from claims import PARTS, Claim, claims
from common import Run, train_all
from runs_table import runs_table

FIGURES = {"neurons_r2": neurons_r2.figures, "neurons_r3": neurons_r3.figures, "real_networks": real_networks.figures}
CHOICES = (*FIGURES, "equivariance", "gudhi_agreement")


def compute(only: list[str], options: argparse.Namespace) -> None:
    """Run the chosen parts and keep the results of each in ``output``."""
    experiments = {
        "neurons_r2": neurons_r2.experiments(options.fast),
        "neurons_r3": neurons_r3.experiments(options.fast),
        "real_networks": real_networks.experiments(options.fast, options.data_dir),
    }
    for part in experiments:
        if part in only:
            _keep(options.output, part, train_all(experiments[part], options.output, options.processes))
    if "real_networks" in only:
        _keep(options.output, "images", real_networks.images(options.data_dir)[2])
    if "equivariance" in only:
        _keep(options.output, "equivariance", equivariance.check_all())
    if "gudhi_agreement" in only and gudhi_agreement.available():
        jobs = [(*job, options.output) for job in gudhi_agreement.jobs(options.fast)]
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            _keep(options.output, "gudhi_agreement", pool.starmap(gudhi_agreement.compare, jobs, chunksize=1))


def _keep(output: Path, part: str, results: Any) -> None:
    (output / f"{part}.pickle").write_bytes(pickle.dumps(results))


def _kept(output: Path, part: str) -> Any:
    path = output / f"{part}.pickle"
    return pickle.loads(path.read_bytes()) if path.exists() else []


def page(table: list[Claim], runs: dict[str, list[Run]], figures: dict[str, list[Path]], facts: list[str]) -> str:
    lines = [_INTRODUCTION, *facts, "", "## Claims", "", _CLAIMS, ""]
    lines += ["| claim | verdict | numbers | command |", "|---|---|---|---|"]
    lines += [f"| {c.text} | **{c.verdict}** | {c.numbers} | `{c.command}` |" for c in table]
    lines += ["", "## Runs", "", _RUNS, ""]
    for part, paths in figures.items():
        lines += [f"### {PARTS[part][0].upper() + PARTS[part][1:]}", "", f"`python examples/paper/{part}.py`", ""]
        lines += [f"![{path.stem}]({path.name})\n" for path in paths]
        lines += [f"`python examples/paper/run_all.py --only {part}`", "", *runs_table(runs[part]), ""]
    return "\n".join(lines)


_INTRODUCTION = """# The paper's experiments

*Topological Invariance and Breakdown in Learning* (Yang, Poggio, Chuang, Ziyin, arXiv 2510.02670), run by this
package's callbacks on an ordinary Trainer. This page is written by the run itself: `make paper` writes it with its
figures to `runs/paper`; the copy in `examples/paper` is one full run's. `make paper FAST=1` makes a short run of it.

κ is the largest |u_i - u_j| / |p_i - p_j| over all pairs of neurons in one update, η* = η/κ = 1/K. "small" and "large"
are the paper's learning rates; "below" and "above" are ours, where those of the paper lie on the same side of η*.

What differs from the paper:

- Images are those of the folder that `--data-dir` (`make paper DATA_DIR=...`) names, in MNIST's format; without it the
  60,000 of Fashion-MNIST where Debian's package dataset-fashion-mnist is installed, else scikit-learn's digits, of
  which an epoch is five passes over 1,797 images, 9 updates instead of 59.
- Betti numbers are taken at 0.04 (plane) and 0.08 (space) times the diameter, where the loops of the start are open; at
  0.25, the scale of the real networks, they are closed from the start. Self-crossings of the curves are ours: unlike
  Betti numbers at one scale they cannot change under a one-to-one map of the plane.
- In space κ is over all 8 million pairs of neurons at every fourth update, of MNIST at every tenth; elsewhere over all
  pairs at every update.
- Of the two momentum rates of the figure-eight, 0.0045 and 0.0005, the second is the small one.
"""
_CLAIMS = """A run counts as *below η\\** when κ < 1 at every measured update, and as *above* otherwise, whatever its
rate is called. Verdicts are counted from the runs: *holds* for all, *partly* for some, *does not hold* for none. (8) is
the figure-eight, (oo) the two circles, #k the seed where it is not 0."""
_RUNS = """Figures show the runs of seed 0, or mean and range over the seeds where they say so. In the tables:

- Betti numbers: b0,b1,b2 at the start → at the end; *differ at*: measurements at which they are not those of the start
- distortion: upper/lower of the map that the whole run made of all neurons
- bars certified: bars (dimension 0, 1) of 512 neurons at the start, and how long all of them are certainly alive by the
  bi-Lipschitz constants since then, which takes a distortion near 1; the void of the sphere is not among them
- neurons apart: components at 0.001 times the diameter; rank: singular values of the hidden activations on 1,024
  inputs that are above 0.001 of the largest; both at the start → at the end
- η·λmax/2: median of the second half of the run, 1 at the edge of stability of plain GD
- loss: of the first batch → mean of the last epoch"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=CHOICES, default=list(CHOICES), metavar="PART", help=", ".join(CHOICES)
    )
    options = real_networks.arguments_with_data(parser)
    if "real_networks" in options.only:
        print(f"Images: {real_networks.images(options.data_dir)[2]}", flush=True)
    began = time.perf_counter()
    compute(options.only, options)
    runs = {part: _kept(options.output, part) for part in FIGURES}
    figures = {part: FIGURES[part](runs[part], options.output) for part in FIGURES if runs[part]}
    table = claims(runs, _kept(options.output, "equivariance"), _kept(options.output, "gudhi_agreement"))
    minutes = (time.perf_counter() - began) / 60
    cpu = sum(run.seconds for part in runs.values() for run in part) / 60
    facts = [
        f"- images: {_kept(options.output, 'images') or 'none'}",
        f"- made by `{' '.join(['python examples/paper/run_all.py', *sys.argv[1:]])}` in {minutes:.1f} minutes "
        f"({cpu:.1f} core minutes of training and measuring in all, at most {options.processes} at a time)",
        *["- what `--only` leaves out is of an earlier run"] * (set(options.only) < set(CHOICES)),
        f"- torch {torch.__version__}, Python {platform.python_version()}",
    ]
    (options.output / "README.md").write_text(page(table, runs, figures, facts), encoding="utf-8")
    for claim in table:
        print(f"{claim.verdict:14} {claim.text}")
    print(f"\n{options.output / 'README.md'}: {minutes:.1f} minutes")
    failed = [claim for claim in table if claim.asserted and claim.verdict != "holds"]
    assert not failed, "\n".join(f"{claim.text}: {claim.verdict} ({claim.numbers})" for claim in failed)


if __name__ == "__main__":
    main()
