"""The search for the critical learning rate: a pure descent from above.

A trial that breaks stops at once, a trial that holds costs all its steps. So the search comes down from rates that are
too high, where trials last a few steps, and aims to spend only one full trial, on the first rate that holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lightning_topo.finder.result import TopologicalLRResult, Trial

# Where the first update diverged beyond what floating point holds, its κ gives no hint how far to go down.
_BLIND_RATIO = 100.0
# After the first update κ grows at least with the square of the rate (the rate acts on a state that it has changed).
_POWER = 2.0
# An instability takes a number of steps proportional to 1 / (η / η* - 1) to grow: a trial at (1 + 2 / t) η* breaks at t
# or a little later, on the benchmark's tasks.
_GROWTH = 2.0
# A bracket is closed up to rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SearchState:
    """Where a search stands.

    Attributes:
        next_lr: The rate to try next.
        held: The largest rate that held, 0 if none did yet.
        broken: The trial at the smallest rate that broke, None if none did yet.
        trials: All trials so far.
    """

    next_lr: float
    held: float = 0.0
    broken: Trial | None = None
    trials: tuple[Trial, ...] = ()

    @property
    def alternating(self) -> bool:
        """Whether the smallest rate that broke did so sooner than a higher one."""
        smallest = self.broken
        return smallest is not None and any(
            not trial.held and trial.lr > smallest.lr and (trial.broke_at_step or 0) > (smallest.broke_at_step or 0)
            for trial in self.trials
        )


@dataclass(frozen=True)
class CriticalRateSearch:
    r"""Search for the largest learning rate at which updates stay one-to-one on the neurons.

    The first trial, at ``max_lr``, breaks at its first update, whose κ is linear in the rate: η = max_lr / κ is the
    first update's 1/K, above which every rate breaks at once. From there each broken trial says how far to go down:
    with criticality κ at update t >= 1, and while the schedule warms up the share s of its peak that it has reached,

    $$
    \eta_{next} = \eta / \max(c,\; \min(\sqrt\kappa,\; 1 + 2 / t)) \quad\text{or}\quad
    \eta / \max(c,\; \min(\kappa^2,\; 1 / \sqrt s)), \qquad c = 1 + \text{tolerance}
    $$

    until a rate holds. If that left a gap, the rest is taken in steps of c, again from above.

    The rates that hold need not form an interval; coming from above finds the upper end of the set. An instability that
    grows breaks later at a lower rate. Where the smallest rate that broke did so sooner than a higher one, the batches
    decide which rates hold and which break, the two alternate, and a finer bracket would tell no more: it is closed
    when its ends are within a factor of c², and the result says so.

    The idea follows arXiv 2510.02670, section 3: an update is one-to-one on the neurons for η < η* = 1/K.

    Args:
        min_lr: Smallest rate to try.
        max_lr: Largest rate to try.
        tolerance: The bracket is closed when its ends are within a factor of 1 + tolerance, of its square where rates
            that hold and rates that break alternate.
        warm_up: Share of its peak that the schedule has reached at each of a trial's first updates; 1 after that.

    Raises:
        ValueError: When the rates or the tolerance are out of range.

    Example:
        >>> search = CriticalRateSearch()
        >>> state = search.init()
        >>> while not search.terminate(state):
        ...     kappa = state.next_lr / 0.03  # a network whose critical rate is 0.03
        ...     broken = kappa >= 1
        ...     trial = Trial(state.next_lr, not broken, 0 if broken else None, kappa, steps=1 if broken else 50)
        ...     state = search.step(state, trial)
        >>> round(search.result(state).critical_lr, 3), search.result(state).total_steps
        (0.03, 52)
    """

    min_lr: float = 1e-8
    max_lr: float = 100.0
    tolerance: float = 0.1
    warm_up: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ValueError(f"expected 0 < min_lr < max_lr < inf, got min_lr={self.min_lr}, max_lr={self.max_lr}")
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"expected tolerance > 0, got {self.tolerance}; 0.1 brackets the rate within 10%")

    @property
    def _cell(self) -> float:
        """The smallest step between two rates."""
        return 1 + self.tolerance

    def _widest(self, state: SearchState) -> float:
        """The widest bracket that is closed."""
        return self._cell ** (2 if state.alternating else 1)

    def init(self) -> SearchState:
        """The state before the first trial."""
        return SearchState(next_lr=self.max_lr)

    def step(self, state: SearchState, trial: Trial) -> SearchState:
        """The state after a trial at ``state.next_lr``."""
        if trial.held:
            state = replace(state, held=trial.lr, trials=(*state.trials, trial))
        else:
            state = replace(state, broken=trial, trials=(*state.trials, trial))
        return replace(state, next_lr=self._propose(state))

    def terminate(self, state: SearchState) -> bool:
        """Whether the bracket is closed, or an end of the allowed range is reached."""
        if state.broken is None:
            return state.held > 0
        if state.held > 0:
            return state.broken.lr <= state.held * self._widest(state) * (1 + _ROUNDING)
        return state.broken.lr <= self.min_lr

    def result(self, state: SearchState) -> TopologicalLRResult:
        """What a search found that ``terminate`` says is over."""
        if state.broken is None:
            return TopologicalLRResult("not_reached", (state.held, math.inf), state.trials)
        bracket = (state.held, state.broken.lr)
        if state.held == 0:
            return TopologicalLRResult("below_min", bracket, state.trials)
        return TopologicalLRResult("found", bracket, state.trials, alternating=state.alternating)

    def _propose(self, state: SearchState) -> float:
        if state.broken is None:
            return self.max_lr
        if state.held > 0:
            return self._between(state.held, state.broken, self._widest(state))
        return max(self.min_lr, self._below(state.broken))

    def _between(self, held: float, broken: Trial, widest: float) -> float:
        """The next rate to try below one that broke and above one that held, on a grid of cells of a width."""
        width = math.log(broken.lr / held)
        cells = max(1, math.ceil(width / math.log(widest) - _ROUNDING))
        # Only a first update can have led far too low. Trials that break there cost a step: half of the way is safe.
        down = max(1, cells // 2) if broken.broke_at_step == 0 else 1
        return broken.lr * math.exp(-width / cells * down)

    def _below(self, broken: Trial) -> float:
        """The next rate to try below one that broke."""
        kappa, t, cell = broken.max_criticality, broken.broke_at_step or 0, self._cell
        if t > 0:
            if t < len(self.warm_up):
                return broken.lr / max(cell, min(kappa**_POWER, self.warm_up[t] ** -0.5))
            return broken.lr / max(cell, min(kappa ** (1 / _POWER), 1 + _GROWTH / t))
        if not math.isfinite(kappa):
            return broken.lr / _BLIND_RATIO
        # Half a cell above the first update's 1/K: breaks there, for one step, and then one cell lower is a bracket
        # around 1/K.
        return broken.lr / kappa * math.sqrt(cell) if kappa > cell else broken.lr / cell
