"""What is found out about a draw. Each check raises an AssertionError where the package does not keep its word."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning_topo as lt

from .arithmetic import Witness
from .compare import require_same
from .data import parts
from .draw import Draw, Run


class UnusableError(Exception):
    """The draw cannot be trained even without the package, or there is nothing in it for the package to see."""


def _plain(draw: Draw, callbacks: Any = ()) -> Run:
    try:
        return draw.fit(callbacks)
    except Exception as error:
        raise UnusableError(f"{type(error).__name__}: {error}") from error


def _groups(draw: Draw) -> list[lt.NeuronGroup]:
    """The groups, as somebody finds them who knows of no callback."""
    module = draw.module()
    x, _ = parts(next(iter(draw.loader())))
    try:
        groups = lt.find_neuron_groups(module, x)
    except Exception as error:
        raise UnusableError(f"{type(error).__name__}: {error}") from error
    if not groups:
        raise UnusableError("no neuron group")
    return groups


def monitors(draw: Draw) -> None:
    """The three monitors leave training as it is, bit for bit."""
    r = random.Random(f"{draw.seed} options")
    overhead = r.choice((None, None, 0.05))
    watching = [
        lt.BiLipschitzMonitor(max_overhead=overhead, max_neurons=r.choice((None, 5))),
        lt.PersistenceMonitor(max_overhead=overhead, every_n_train_steps=r.randint(1, 4)),
        lt.SharpnessMonitor(max_overhead=overhead, every_n_train_steps=r.randint(1, 4)),
    ]
    if r.random() < 0.3:
        watching = r.sample(watching, r.randint(1, 2))
    require_same(_plain(draw).outcome, draw.fit(watching).outcome)


def finder(draw: Draw) -> None:
    """Training after searches that set nothing is training without them, bit for bit, also where a search fails."""
    r = random.Random(f"{draw.seed} options")
    options = {
        "hold_steps": r.choice((2, 5)),
        "max_lr": r.choice((100.0, 1.0)),
        "tolerance": r.choice((1.0, 5.0)),
        "orders": r.choice((1, 1, 2)),
        "safety": r.choice(("auto", "auto", 0.25)),
        "trial_steps": r.choice((5, 8)),
        "schedule": r.random() < 0.8,
    }
    times, within = r.choice((1, 1, 2)), r.random() < 0.3

    def search(trainer: Any, module: Any, loader: Any) -> None:
        for _ in range(times):
            with suppress(ValueError):  # nothing to search for, as where the loss is infinite to begin with
                lt.topological_lr_find(trainer, module, loader, update_attr=False, **options)

    plain = _plain(draw)
    if not within:
        require_same(plain.outcome, draw.fit(prepare=search).outcome)
        return
    callback = lt.TopologicalLearningRateFinder(update_attr=False, **options)
    try:
        searched = draw.fit([callback])
    except ValueError as error:  # as above, but it ends the fit
        raise UnusableError(str(error)) from error
    require_same(plain.outcome, searched.outcome)


def clipping(draw: Draw) -> None:
    """No update under step clipping exceeds the bound, and none makes finite parameters infinite."""
    r = random.Random(f"{draw.seed} options")
    bound, groups = r.choice((1e-3, 0.03, 0.1, 0.5, 1.0)), _groups(draw)
    _plain(draw)
    callback, witness = lt.TopologicalStepClipping(bound), Witness(groups)
    draw.fit([callback, witness])
    _require_bound(witness, bound)
    moving = sum(value > 0 for value in witness.kappas)
    assert callback.updates >= moving, f"saw {callback.updates} updates of {moving}"


def control(draw: Draw) -> None:
    """Rate control puts rates back, ends finite or says so, repeats a run bit for bit; clipping holds beside it."""
    r = random.Random(f"{draw.seed} options")
    groups, every, bound = _groups(draw), r.randint(1, 5), r.choice((None, None, 0.03, 0.3))
    shapes = ("auto", "constant") if "stream" in draw.source else ("auto", "cosine", "constant")
    options = {"share": r.choice((0.1, 0.15, 0.5)), "schedule": r.choice(shapes)}
    unwatched = Witness([])
    _plain(draw, [unwatched])
    runs = []
    for _ in range(2):
        witness = Witness(groups)
        beside = [] if bound is None else [lt.TopologicalStepClipping(bound)]
        steering = lt.TopologicalRateControl(every_n_train_steps=every, **options)
        runs.append(draw.fit([*beside, steering, witness]))
    require_same(*(run.outcome for run in runs))
    if draw.schedule != "plateau":  # which follows the loss
        assert witness.shown == unwatched.shown, "the rates were not put back"
    if bound is not None:
        _require_bound(witness, bound)
    finite = all(bool(p.isfinite().all()) for p in runs[1].module.parameters())
    assert finite or any("NaN" in said for said in runs[1].warned), "the run diverged without a word"


def _require_bound(witness: Witness, bound: float) -> None:
    above = [value for value in witness.kappas if value > bound * (1 + 1e-6)]
    assert not above, f"{len(above)} of {len(witness.kappas)} updates above {bound}: {above[:5]}"
    assert not witness.turned, f"{witness.turned} updates made finite parameters NaN or infinite"


CHECKS: dict[str, Callable[[Draw], None]] = {c.__name__: c for c in (monitors, finder, clipping, control)}


def command(draw: Draw) -> str:
    """What repeats a draw."""
    return f"python -m tests.fuzz --check {draw.check} --seed {draw.seed} --draws 1"


def run_draw(seed: int, check: str) -> bool:
    """Make one draw.

    Returns:
        Whether there was anything to check.

    Raises:
        AssertionError: The package did not keep its word; the message repeats the draw.
    """
    draw = Draw(seed, check)
    try:
        CHECKS[check](draw)
    except UnusableError:
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n  {draw}\n  repeat: {command(draw)}") from error
    return True
