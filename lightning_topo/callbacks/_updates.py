"""What the callbacks share that look at each optimizer step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._group_monitor import GroupMonitor, Groups
from lightning_topo.callbacks._monitor import Record, logger_step
from lightning_topo.sharding import hides_optimizer_steps


class UpdateMonitor(GroupMonitor[Record]):
    """A monitor that looks at the parameters right before and after each optimizer step of a training batch."""

    def __init__(self, groups: Groups, every_n_train_steps: int, max_overhead: float | None) -> None:
        super().__init__(groups, every_n_train_steps, max_overhead)
        self._handles: list[Any] = []
        self._armed = False
        self._step = 0

    def _obstacle(self, strategy: Any) -> str | None:
        obstacle = super()._obstacle(strategy)
        if obstacle is None and hides_optimizer_steps(strategy):
            return "under DeepSpeed, whose optimizers call no hooks before and after a step"
        return obstacle

    def listen(self, trainer: Any) -> None:
        """Have ``before_step`` and ``after_step`` called; those that listen first are called first."""
        for index, optimizer in enumerate(trainer.optimizers):
            # Partials of bound methods: whoever shields a search from callbacks can tell whose hooks they are.
            self._handles += [
                optimizer.register_step_pre_hook(partial(self._hook, self.before_step, index)),
                optimizer.register_step_post_hook(partial(self._hook, self.after_step, index)),
            ]

    def _hook(
        self, act: Callable[[int, Optimizer], None], index: int, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> None:
        if self._armed:
            act(index, optimizer)

    def before_step(self, index: int, optimizer: Optimizer) -> None:
        """The optimizer of that number is about to step."""

    def after_step(self, index: int, optimizer: Optimizer) -> None:
        """The optimizer of that number has stepped, or its gradient scaler has skipped the step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Arm the hooks: updates outside training batches, as in a search, are not the run's."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._armed = bool(self._found)
        self._step = logger_step(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Disarm the hooks."""
        self._armed = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks."""
        self.release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remove the hooks."""
        self.release()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Remove the hooks."""
        self.release()

    def release(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._armed = [], False
