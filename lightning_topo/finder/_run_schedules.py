"""The schedules of all optimizers of a run, as far as trials can follow them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_topo._user_warning import warn_user
from lightning_topo.finder._ahead import UnknownScheduleError, schedule_ahead
from lightning_topo.finder._rates import BaseRates
from lightning_topo.finder.schedule import Schedule


@dataclass(frozen=True)
class RunSchedules:
    """What the trials of a search follow.

    Attributes:
        followed: By ``id`` of an optimizer.
        decays: Whether the run's own schedule decays, also where trials do not follow it.
        words: What is followed.
    """

    followed: Mapping[int, Schedule]
    decays: bool
    words: str

    @classmethod
    def of_run(cls, trainer: Any, module: Any, rates: BaseRates, follow: bool) -> RunSchedules:
        """Those of a Trainer that is about to run a training batch; what cannot be followed is said."""
        constant = {id(optimizer): Schedule.constant(len(rates.of(optimizer))) for optimizer in trainer.optimizers}
        if not trainer.lr_scheduler_configs:
            return cls(constant, False, "constant, as the run has no scheduler")
        if len(trainer.optimizers) != 1 or not module.automatic_optimization:
            return cls(constant, False, "constant, as the training step steps its own schedulers")
        (optimizer,) = trainer.optimizers
        try:
            schedule, remark = schedule_ahead(trainer, module, rates.of(optimizer))
        except UnknownScheduleError as error:
            if follow and trainer.is_global_zero:
                warn_user(
                    f"The learning-rate search cannot follow the run's schedule: {error}. Its trials hold the rate "
                    "constant; pass schedule=False to say that this is meant."
                )
            return cls(constant, False, f"constant, as the run's cannot be known ({error})")
        if remark and trainer.is_global_zero:
            warn_user(
                f"The learning-rate schedule of the run ends before the run does: {remark}. Training will meet that as "
                "well; give the scheduler the number of updates that the run makes."
            )
        if not follow:
            return cls(constant, schedule.decays, f"constant (schedule=False); the run's own is {schedule}")
        plateau = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        return cls({id(optimizer): schedule}, schedule.decays, f"{schedule}{_PLATEAU if plateau else ''}")

    def warm_up(self, steps: int) -> tuple[float, ...]:
        """The share of its peak that a trial of so many updates has reached at each of its first updates."""
        if len(self.followed) != 1:
            return ()
        (schedule,) = self.followed.values()
        heights = [max(factors) for factors in schedule.followed(steps)]
        return tuple(height / max(heights) for height in heights[: heights.index(max(heights))])


_PLATEAU = ", until ReduceLROnPlateau lowers it"
