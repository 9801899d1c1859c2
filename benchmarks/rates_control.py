r"""The rate control of the package as a column, and its rule once more in plain torch, where all its settings are free.

Over each window of updates, with κ_g the criticality of group g by the window's net displacement and ρ_t the rates,

.. math:: K = \frac{\sqrt{\sum_g \kappa_g^2}}{\sum_t \rho_t}, \qquad \bar K \leftarrow \sqrt{\bar K K}, \qquad
    T \leftarrow \max(\bar K, T \cdot 2^{-\mathrm{steps} / h}), \qquad \rho = c\, s(t) / T

A watch on the lengths of each update ends a window early. What the settings are worth: rate-control-settings.md in
docs/evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache

import torch
from rates_tasks import Task
from rates_train import Fit, train
from torch import Tensor, nn
from torch.optim import Optimizer, RMSprop

from lightning_topo.clipping import topological_step_clipping
from lightning_topo.control import topological_rate_control
from lightning_topo.control.controller import RateController
from lightning_topo.functional.criticality import criticality
from lightning_topo.functional.most_changed import most_changed
from lightning_topo.neurons import NeuronGroup, find_neuron_groups

EPS = torch.finfo(torch.float32).eps
SAMPLED = 64  # neurons of a group whose κ is measured, those that change most
AVERAGED = 9  # of the mean of the weights: what the last ninth of the steps holds
WARM_UP = 0.1  # share of the run


@dataclass(frozen=True)
class Settings:
    """One setting of the rule; the defaults are the ones recommended."""

    share: float = 0.2
    half_life: float = 0.5  # share of the run
    warm_half_life: float = 0.15  # share of the run, while it warms up
    window: int = 10
    smoothing: float = 0.5
    watch: float = 0.4
    power: float = 2.0  # of the norm over groups; inf: the largest
    length_power: float = 0.0  # the share falls with the length of the run, as (300 / N) ** length_power

    def norm(self, values: Sequence[float]) -> float:
        if math.isinf(self.power):
            return max(values)
        return sum(value**self.power for value in values) ** (1 / self.power)


@dataclass
class RateControl:
    """Makes the updates of an optimizer at a share of the critical rate.

    Args:
        optimizer: Any whose update is proportional to its rate.
        model: The network it trains.
        groups: Its neuron groups.
        steps: Length of the run.
        settings: Of the rule.
    """

    optimizer: Optimizer
    model: nn.Module
    groups: Sequence[NeuronGroup]
    steps: int
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        self.base = [group["lr"] for group in self.optimizer.param_groups]
        self.updates = self.measured = 0
        self.smooth = self.top = 0.0
        self.stretch: list[float] = []  # κ over length of each group's last window
        self._open(self._points())
        self.rates: list[float] = []

    def update(self, schedule: float) -> None:
        """One update of the optimizer."""
        correction = self._correction()
        first = self.updates == 0
        before = self._points()
        kept = [p.detach().clone() for p in self.model.parameters()] if first else []
        rate = 1.0 if first else self._target(schedule) * correction
        self._step(rate)
        self.updates += 1
        after = self._points()
        if first:  # made at the optimizer's own rate, measured, and scaled to its target
            self._measure(before, after, rate / correction)
            factor = self._target(schedule) * correction / rate
            with torch.no_grad():
                for p, old in zip(self.model.parameters(), kept, strict=True):
                    p.copy_(old + factor * (p - old))
            self._open(self._points())
            self.rates.append(factor)
            return
        self.travelled += rate / correction
        self.rates.append(rate)
        late = self.updates - self.opened >= self.length or self._watched(before, after, rate / correction)
        if late:
            self._measure(self.start, after, self.travelled)
            self._open(after)

    def _target(self, schedule: float) -> float:
        share = self.settings.share * (300 / self.steps) ** self.settings.length_power
        return share * schedule / self.top

    def _correction(self) -> float:
        """What RMSprop's missing bias correction would multiply its update by."""
        if not isinstance(self.optimizer, RMSprop):
            return 1.0
        return math.sqrt(1 - self.optimizer.param_groups[0]["alpha"] ** (self.updates + 1))

    def _step(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()

    def _points(self) -> list[Tensor]:
        return [group.points(self.model) for group in self.groups]

    def _open(self, points: list[Tensor]) -> None:
        """A window begins: as long as the updates made so far, and never longer than the setting."""
        self.start, self.opened, self.travelled = points, self.updates, 0.0
        self.length = min(self.settings.window, max(1, self.updates))

    def _watched(self, before: list[Tensor], after: list[Tensor], rate: float) -> bool:
        """Whether this update alone, by its lengths, seems to be far above what the rate allows for."""
        lengths = [_length(p, q) for p, q in zip(before, after, strict=True)]
        guess = self.settings.norm([a * b for a, b in zip(self.stretch, lengths, strict=True)]) / rate
        return self.settings.watch * guess > self.top

    def _measure(self, before: list[Tensor], after: list[Tensor], rate: float) -> None:
        kappas = [kappa(p, q) for p, q in zip(before, after, strict=True)]
        lengths = [_length(p, q) for p, q in zip(before, after, strict=True)]
        self.stretch = [k / length if length > 0 else 0.0 for k, length in zip(kappas, lengths, strict=True)]
        k = max(self.settings.norm(kappas) / rate, 1e-30)
        weight = self.settings.smoothing
        self.smooth = self.smooth**weight * k ** (1 - weight) if self.measured else k
        warm = self.updates <= WARM_UP * self.steps
        half_life = (self.settings.warm_half_life if warm else self.settings.half_life) * self.steps
        since = self.updates - self.opened
        self.top = max(self.smooth, self.top * 2.0 ** (-since / half_life))
        self.measured += 1


def kappa(before: Tensor, after: Tensor) -> float:
    """κ of the neurons that change most; 0 where no pair is resolved."""
    if len(before) > SAMPLED:
        index = most_changed(before, after, SAMPLED, EPS)
        before, after = before[index], after[index]
    value = criticality(before, after - before, EPS)
    return 0.0 if math.isnan(value) else value


def _length(before: Tensor, after: Tensor) -> float:
    """The largest displacement about the mean of a group."""
    u = after - before
    return float((u - u.mean(0)).square().sum(1).max().sqrt())


@cache
def groups_of(task: Task) -> tuple[NeuronGroup, ...]:
    x, _ = next(task.batches(1, 0))
    return find_neuron_groups(task.model(0), x[:4])


def product(
    task: Task, steps: int, seed: int, schedule: str, share: float | None, clipped: bool = False
) -> tuple[float, RateController]:
    """Validation loss of a run under the package's control, from the optimizer's documented rate, and the control.

    With ``clipped``, step clipping at its default bound is beside it.
    """
    model = task.model(seed)
    optimizer = task.optimizer(model, task.default_lr)
    options = {} if share is None else {"share": share}
    x, _ = next(task.batches(1, 0))
    with ExitStack() as beside:
        control = beside.enter_context(
            topological_rate_control(
                optimizer, model, example_input=x[:4], total_steps=steps, schedule=schedule, **options
            )
        )
        if clipped:
            beside.enter_context(topological_step_clipping(optimizer, model, example_input=x[:4]))
        return train(task, Fit(model, optimizer), steps, seed, "constant"), control


def averaged(task: Task, steps: int, seed: int, share: float) -> tuple[float, RateController]:
    """The package's control at a constant share of η*, and at the end the mean of the weights instead of a decay.

    Averaged with weights that grow as the eighth power of the step (polynomial-decay averaging, arXiv 1212.1824), so
    that the last ninth of the run counts most; statistics of BatchNorm are made anew.
    """
    model = task.model(seed)
    optimizer = task.optimizer(model, task.default_lr)
    x, _ = next(task.batches(1, 0))
    mean = [p.detach().clone() for p in model.parameters()]

    def follow(step: int, share: float) -> None:
        with torch.no_grad():
            for kept, p in zip(mean, model.parameters(), strict=True):
                kept.lerp_(p, AVERAGED / (step + AVERAGED))

    def finish() -> None:
        follow(steps, 1.0)
        with torch.no_grad():
            for kept, p in zip(mean, model.parameters(), strict=True):
                p.copy_(kept)
            if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
                for x, _ in task.batches(50, seed + 1):
                    model(x)

    with topological_rate_control(
        optimizer, model, example_input=x[:4], total_steps=steps, share=share, schedule="constant"
    ) as control:
        return train(task, Fit(model, optimizer, before=follow, finish=finish), steps, seed, "constant"), control


def prototype(task: Task, steps: int, seed: int, schedule: str, settings: Settings) -> tuple[float, RateControl]:
    """The same by the rule as it stands here."""
    model = task.model(seed)
    optimizer = task.optimizer(model, task.default_lr)
    control = RateControl(optimizer, model, groups_of(task), steps, settings)
    now = [1.0]
    fit = Fit(
        model,
        optimizer,
        step=lambda loss: control.update(now[0]),
        before=lambda step, share: now.__setitem__(0, share),
    )
    return train(task, fit, steps, seed, schedule), control
