"""What a run's schedulers are going to do to its rates, found by stepping copies of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_topo.finder.schedule import Factors, Schedule

# Steps of schedulers that are looked ahead, about a tenth of a second, and updates.
_MOST_STEPS = 20_000
_MOST_UPDATES = 1_000_000


class UnknownScheduleError(Exception):
    """Why it cannot be told what the schedulers are going to do."""


def schedule_ahead(trainer: Any, module: Any, base: list[float]) -> tuple[Schedule, str]:
    """The schedule of a run's only optimizer from the next update on, and what of it could not be known.

    Args:
        trainer: A Trainer that is about to run a training batch.
        module: Its LightningModule.
        base: The optimizer's base rates.

    Returns:
        The schedule, and a remark that is empty where there is nothing to say.

    Raises:
        UnknownScheduleError: The schedulers cannot be stepped on copies.
    """
    (optimizer,) = trainer.optimizers
    configs = [config for config in trainer.lr_scheduler_configs if not config.reduce_on_plateau]
    if configs and _steps_its_own(module):
        raise UnknownScheduleError(f"{type(module).__name__} defines lr_scheduler_step, by which they are stepped")
    stand_in = _stand_in(optimizer)
    copies = [(config, _copied(config.scheduler, optimizer, stand_in, (trainer, module))) for config in configs]

    def factors() -> Factors:
        rates = [float(group["lr"]) for group in stand_in.param_groups]
        return tuple(rate / start if start > 0 else 1.0 for rate, start in zip(rates, base, strict=True))

    starts, found, complete, remark = [0], [factors()], True, ""
    for count, (update, due) in enumerate(_steps(trainer, [config for config, _ in copies])):
        if count >= _MOST_STEPS:
            complete = False
            break
        try:
            next(scheduler for config, scheduler in copies if config is due).step()
        except Exception as error:  # such as of a OneCycleLR whose total is too small
            remark = f"after {update:,} updates of this run it fails ({type(error).__name__}: {error})"
            break
        now = factors()
        if not all(map(math.isfinite, now)):
            remark = f"after {update:,} updates of this run its rates are no longer finite"
            break
        if update == starts[-1]:
            found[-1] = now
        elif now != found[-1]:
            starts.append(update)
            found.append(now)
    return Schedule(tuple(starts), tuple(found), complete and _updates_left(trainer) <= _MOST_UPDATES), remark


def _updates_left(trainer: Any) -> float:
    """Updates of the fit from now on, infinite where no limit is known."""
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps - trainer.global_step
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs - trainer.current_epoch
    return min(steps, epochs * -(-trainer.num_training_batches // trainer.accumulate_grad_batches))


def _steps(trainer: Any, configs: list[Any]) -> Iterator[tuple[int, Any]]:
    """The next steps of the schedulers to come: before which update, counted from now, and of which."""
    by_step = [config for config in configs if config.interval == "step"]
    by_epoch = [config for config in configs if config.interval == "epoch"]
    last = min(_updates_left(trainer), _MOST_UPDATES)
    epoch, first, update = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx, 0
    while configs and update < last:
        for batch in _updating(trainer, first) if by_step else ():
            update += 1
            if update >= last:
                return
            yield from ((update, config) for config in by_step if (batch + 1) % config.frequency == 0)
        if math.isinf(trainer.num_training_batches):
            return
        if not by_step:
            update += sum(1 for _ in _updating(trainer, first))
        if update < last:
            yield from ((update, config) for config in by_epoch if (epoch + 1) % config.frequency == 0)
        epoch, first = epoch + 1, 0


def _updating(trainer: Any, first: int) -> Iterator[int]:
    """The batches of an epoch, from one on, after which an update is made."""
    batches, every = trainer.num_training_batches, trainer.accumulate_grad_batches
    batch = first
    while batch < batches:
        if (batch + 1) % every == 0 or batch + 1 == batches:
            yield batch
        batch += 1


def _steps_its_own(module: Any) -> bool:
    defined = next((cls for cls in type(module).__mro__ if "lr_scheduler_step" in vars(cls)), None)
    return defined is not None and defined.__name__ != "LightningModule"


def _stand_in(optimizer: Optimizer) -> Any:
    """An optimizer for copies of schedulers to set the rates of: one of the same kind, without its parameters."""
    stand_in: Any = object.__new__(type(optimizer))
    groups = [{key: _own(value) for key, value in group.items()} for group in optimizer.param_groups]
    stand_in.__dict__.update(vars(optimizer))
    stand_in.__dict__.update(param_groups=groups, state={}, step=_no_step, _opt_called=True)
    return stand_in


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else [] if isinstance(value, list) else value


def _no_step(*args: Any, **kwargs: Any) -> None:
    """In the place of an optimizer's step."""


_no_step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # or schedulers warn that it has been replaced


def _copied(scheduler: Any, optimizer: Optimizer, stand_in: Any, shared: tuple[Any, ...]) -> Any:
    memo: dict[int, Any] = {id(item): item for item in shared}
    memo[id(optimizer)] = stand_in
    for group, own in zip(optimizer.param_groups, stand_in.param_groups, strict=True):
        memo[id(group)] = own
        memo |= {id(parameter): parameter for parameter in group["params"]}
    try:
        return copy.deepcopy(scheduler, memo)
    except Exception as error:  # code of the user's may hold anything
        raise UnknownScheduleError(
            f"{type(scheduler).__name__} cannot be copied ({type(error).__name__}: {error})"
        ) from error
