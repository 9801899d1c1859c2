"""One optimizer's learning rate, held at a share of the critical one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, RMSprop

from lightning_topo.control.base_rates import base_rates, require_controllable, set_rate
from lightning_topo.control.rule import RateRule, RateState
from lightning_topo.control.schedule_shape import Shape
from lightning_topo.neurons import NeuronGroup
from lightning_topo.sharding import held_here
from lightning_topo.updates import Arrival, Measurement, ParametersBefore, UpdateMeter

# A window ends when this share of the K that is predicted of an update is above what the rule remembers.
_ALARM = 0.4
# As good as all of them, by the measurements of docs/evidence/rate-control-settings.md.
_NEURONS = 64


class RateController:
    r"""Sets the rates of one optimizer before each of its steps, and puts them back after it.

    With the rule's rate η, the full rates b of the parameter groups and the schedule's shape s, group g steps at

    $$\eta_g(t) = \eta(t) \, \frac{b_g}{\max b} \, s_g(t)$$

    Over a window of updates

    $$K = \sqrt{\textstyle\sum_g \kappa_g^2} \Big/ \sum_t \eta(t)\, s(t)$$

    with κ of each group by the net displacement, so that noise that cancels does not count, among the 64 neurons that
    it moved farthest. All groups count: many layers that each move a little move the network as far as one that moves
    much. The windows are of 1, 1, 2, 4, 8, ... updates up to ``every``; where ``watches``, one ends at once when the
    lengths of an update predict that K has risen. The first update is made at the optimizer's own rate, and scaled to
    its target afterwards. RMSprop divides by a mean square that starts at zero: its rates are multiplied by
    $\sqrt{1 - \alpha^t}$, which is Adam's correction.

    A measurement is known one update later on an accelerator, and at once on the CPU; which one it is depends on the
    device alone, so that runs can be repeated.

    Args:
        optimizer: The optimizer, whose updates are proportional to its rate.
        model: The module that holds the groups' parameters.
        groups: Neuron groups to follow; those of which the optimizer holds nothing are left out.
        rule: Says which share of η* to train at.
        shape: Shape of the schedule by the number of the update; None: what the optimizer's own rates do.
        every: Updates in a window.
        watches: Whether to watch each update for when to measure.
        schedulers: Those of the optimizer, for their peaks.
        agree: What the processes of a run make of a measured K, so that all use the same; default: each its own.
        sharded: Whether the parameters are sharded over processes.
        compares: Whether this process compares what was read.

    Attributes:
        every, watches: As above; they may be changed.
        updates: Steps seen so far.
        state: What is known of the smoothness.
        learning_rate: The largest rate of the last update; ``nan`` before the first.
        critical_lr: η* = η/κ of the group with the largest κ, as it was measured last; ``nan`` before.
        range: Smallest and largest rate so far.
        diverged: Whether a measurement found neurons that are NaN or infinite; they are left out.

    Raises:
        TypeError: The optimizer has no rate that could be controlled.
        ValueError: All rates are 0, or the optimizer moves no neuron group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        groups: Sequence[NeuronGroup],
        rule: RateRule,
        shape: Shape | None = None,
        every: int = 10,
        watches: bool = True,
        schedulers: Iterable[Any] = (),
        agree: Callable[[float], float] = float,
        sharded: bool = False,
        compares: bool = True,
    ) -> None:
        require_controllable(optimizer)
        self.optimizer, self.every, self.watches = optimizer, every, watches
        self._rule, self._shape, self._agree, self._schedulers = rule, shape, agree, list(schedulers)
        self._meter = UpdateMeter(
            optimizer, model, groups, _NEURONS, sharded, compares, estimates=True, watches=watches
        )
        if not self._meter.sets:
            names = ", ".join(group.name for group in groups) or "none"
            raise ValueError(f"expected a neuron group that the optimizer holds a parameter of, got: {names}")
        self._base = base_rates(optimizer, self._schedulers)
        self._lags = any(one.device.type != "cpu" for one in self._meter.sets)
        self.updates = 0
        self.state = RateState()
        self.learning_rate = self.critical_lr = math.nan
        self.range = (math.inf, 0.0)
        self.diverged = False
        self._own: list[float] = []
        self._rate = 0.0
        self._sum, self._count, self._length = 0.0, 0, 1
        self._opened = False
        self._part = 1.0
        self._lost = False
        self._correction = _Correction(optimizer)
        self._alarm: tuple[Arrival, float] | None = None
        self._watch_seconds = self._measure_seconds = math.inf
        self._first: ParametersBefore | None = None
        self._pending: list[tuple[Measurement | None, float, int]] = []

    @property
    def watch_seconds(self) -> float:
        """What watching an update takes; 0 where nothing is watched."""
        return self._watch_seconds if math.isfinite(self._watch_seconds) else 0.0

    @property
    def measure_seconds(self) -> float:
        """What the quickest measurement took on the host; 0 before the first."""
        return self._measure_seconds if math.isfinite(self._measure_seconds) else 0.0

    def before(self) -> None:
        """Set the rates; to be called before the optimizer's step."""
        self._apply()
        if len(self._base) != len(self.optimizer.param_groups):  # layers have been unfrozen
            self._base = base_rates(self.optimizer, self._schedulers)
        if not self._opened:
            self._find_parameters()
        groups, largest = self.optimizer.param_groups, max(self._base)
        self._own = [float(group["lr"]) for group in groups]
        if self._shape is None:
            parts = [own / base if base > 0 else 0.0 for own, base in zip(self._own, self._base, strict=True)]
        else:
            parts = [self._shape(self.updates)] * len(groups)
        full = largest if self.state.smoothed is None else self._rule.rate(self.state)
        for group, base, part in zip(groups, self._base, parts, strict=True):
            set_rate(group, full * (base / largest) * part * self._correction(self.updates))
        # In units of the group of the largest full rate.
        self._part = max(part for part, base in zip(parts, self._base, strict=True) if base > 0)
        self._rate = full * self._part
        if not self._lost:
            self._open()

    def _find_parameters(self) -> None:
        """Start a new window where parameters have been exchanged; measure none where a group's are gone."""
        try:
            changed, self._lost = self._meter.refresh(), False
        except ValueError:
            changed = self._lost = True
        if changed:
            self._opened, self._alarm = False, None

    def _open(self) -> None:
        """Keep the neurons where a window begins, and all parameters before the first update."""
        if not self._opened:
            self._meter.before(self._meter.sets)
            self._sum, self._count, self._opened = 0.0, 0, True
            self._length = max(1, self.updates)
        if self.state.smoothed is None:
            held = [p for group in self.optimizer.param_groups for p in group["params"]]
            self._first = ParametersBefore(held_here(held))
            self._first.take()

    def after(self) -> None:
        """Put the rates back, and measure where a window ends; to be called after the optimizer's step."""
        self.put_back()
        self._sum, self._count = self._sum + self._rate, self._count + 1
        first = self.state.smoothed is None
        if self._lost:
            pass
        elif first or self._count >= min(self.every, self._length) or self._alarmed():
            began = time.perf_counter()
            self._pending.append((self._meter.after(), self._sum, self._count))
            self._measure_seconds = min(self._measure_seconds, time.perf_counter() - began)
            self._opened, self._alarm = False, None
        if first:
            self._scale_first()
        elif not self._lags:
            self._apply()
        if self._rate > 0:
            self.learning_rate = self._rate * self._correction(self.updates)
            self.range = min(self.range[0], self.learning_rate), max(self.range[1], self.learning_rate)
        self.updates += 1

    def _alarmed(self) -> bool:
        """Whether an update's lengths say that K has risen; of the update before this one, where reading takes time."""
        if not self.watches:
            return False
        began = time.perf_counter()
        predicted, earlier = self._meter.predicted(), self._alarm
        self._watch_seconds = min(self._watch_seconds, time.perf_counter() - began)
        self._alarm = None if predicted is None else (predicted, self._rate)
        alarm = earlier if self._lags else self._alarm
        if alarm is None or alarm[1] <= 0:
            return False
        ((kappa,),) = alarm[0].rows()
        return _ALARM * kappa / alarm[1] > self.state.top

    def put_back(self) -> None:
        """The rates as the schedulers know them, also where a step has failed."""
        for group, rate in zip(self.optimizer.param_groups, self._own, strict=False):
            set_rate(group, rate)
        self._own = []

    @torch.no_grad()
    def _scale_first(self) -> None:
        """Make the first update that could be measured the one that its own η* allows."""
        self._apply()
        if self.state.smoothed is not None and self._first is not None:
            target = self._rule.rate(self.state) * self._part
            scaled = torch._foreach_lerp(self._first.copies, self._first.parameters, target / self._rate)
            torch._foreach_copy_(self._first.parameters, scaled)
            self._rate = target
            self._first = None

    def _apply(self) -> None:
        """Let the rule know what has been measured."""
        pending, self._pending = self._pending, []
        for measurement, rates, count in pending:
            kappas = [] if measurement is None else self._finite(measurement)
            smoothness = self._agree(math.hypot(*kappas) / rates if rates > 0 else 0.0)
            if smoothness > 0:  # nothing moved where a gradient scaler has left the step out
                self.state = self._rule.step(self.state, smoothness, count, self.updates)
                self.critical_lr = rates / max(kappas, default=math.nan)

    def _finite(self, measurement: Measurement) -> list[float]:
        """κ of the groups that have one."""
        found = list(measurement.criticalities())
        self.diverged |= not all(finite for _, finite in found)
        return [kappa for kappa, finite in found if finite and not math.isnan(kappa)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next rates depend on, in numbers and tensors."""
        self._apply()
        counts = {"updates": self.updates, "every": self.every, "watches": self.watches, "range": list(self.range)}
        window = {"sum": self._sum, "count": self._count, "length": self._length, "neurons": self._meter.state()}
        return {**asdict(self.state), **counts, "window": window}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            KeyError, TypeError, ValueError: It is not one.
        """
        smoothed = saved["smoothed"]
        state = RateState(None if smoothed is None else float(smoothed), float(saved["top"]))
        updates, every, watches = int(saved["updates"]), int(saved["every"]), bool(saved["watches"])
        low, high = map(float, saved["range"])
        window = saved["window"]
        if self._meter.load(window["neurons"]):
            self._sum, self._count, self._opened = float(window["sum"]), int(window["count"]), True
            self._length = int(window["length"])
        self.state, self.range = state, (low, high)
        self.updates, self.every, self.watches = updates, every, watches


class _Correction:
    r"""What makes up for a mean square that starts at zero: $\sqrt{1 - \alpha^t}$ for RMSprop, else 1."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer if isinstance(optimizer, RMSprop) else None
        steps = [state["step"] for state in optimizer.state.values() if "step" in state]
        self._made = float(steps[0]) if steps and self._optimizer is not None else 0.0

    def __call__(self, updates: int) -> float:
        """The factor on the rates of an update, by the number of those before it."""
        if self._optimizer is None:
            return 1.0
        alpha = float(self._optimizer.param_groups[0]["alpha"])
        return math.sqrt(1 - alpha ** (self._made + updates + 1))
