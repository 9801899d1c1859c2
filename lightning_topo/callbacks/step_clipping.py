"""TopologicalStepClipping: no update of the run merges neurons."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._group_monitor import Groups
from lightning_topo.callbacks._processes import measured_model
from lightning_topo.callbacks._updates import UpdateMonitor
from lightning_topo.clipping import GroupUpdate, StepClipper, require_criticality
from lightning_topo.sharding import require_whole_updates


@dataclass(frozen=True)
class ClippingRecord:
    """One update of one neuron group, one that was scaled back or one that was logged.

    Attributes:
        step: Step under which it is logged.
        group: Name of the neuron group.
        criticality_before: κ of the optimizer's own update; ``nan`` where it was certainly below the bound and not
            evaluated, ``inf`` where a parameter became NaN or infinite and the update was undone.
        criticality_after: κ of the update that was made, at most ``max_criticality``.
        scale: Factor of the update that was made.
    """

    step: int
    group: str
    criticality_before: float
    criticality_after: float
    scale: float


class TopologicalStepClipping(UpdateMonitor[ClippingRecord]):
    r"""Scales back every update that would come near merging neurons, as gradient clipping bounds a norm.

    Right after ``optimizer.step``, the criticality κ = max |u_i - u_j| / |p_i - p_j| of the update θ -> θ' is measured
    over all pairs of neurons of every group. Where it is above the bound, the parameters become

    .. math:: \theta + s\,(\theta' - \theta), \qquad s = \text{max\_criticality} / \kappa

    and κ is measured again where rounding could lift it above the bound. Groups that share a parameter have one s, the
    smallest that one of them needs, and parameters in no group the smallest of all. The optimizer's running means of
    gradients (momentum, Adam's first moment) start anew for what was scaled back. So no update merges two neurons
    (arXiv 2510.02670, section 3), and rates far above η* train where plain training diverges. Where the bound is never
    reached, training is what it is without, bit for bit. An update that makes a parameter NaN or infinite is undone.

    It bounds how neurons move relative to each other, not how all of them move together: an instability in which all
    move alike (as in small teacher regressions) it does not stop.

    Works with any torch optimizer, several of them, manual optimization, accumulation, gradient clipping, mixed
    precision, schedules, DDP, and after ``TopologicalLearningRateFinder``, which searches without it. A monitor beside
    it sees the updates as they were made.

    Logged every ``log_every_n_steps`` of the Trainer: ``clipping/<group>/{scale, criticality_before,
    criticality_after}`` of that update and ``clipping/{scale, criticality_before, criticality_after}`` over all groups
    (smallest scale, largest κ); and ``clipping/clipped_updates``, the updates so far that were scaled back.

    Args:
        max_criticality: Largest κ of an update, in (0, 1].
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.

    Attributes:
        history: List of ``ClippingRecord``: the groups scaled back in each update that was, and all where logged.
        updates: Optimizer steps of the run so far.
        clipped_updates: Those that were scaled back, in part or as a whole.

    Raises:
        ValueError: When the bound is out of range; at the first batch, when there is no group.
        TypeError: At the start, under a strategy that shards the parameters: no process can see all neurons; and under
            DeepSpeed, whose optimizers call no hooks.

    Example:
        >>> import lightning_topo as lt
        >>> clipping = lt.TopologicalStepClipping(max_criticality=0.1)
        >>> # Trainer(callbacks=[clipping]).fit(model); clipping.clipped_updates
    """

    name = "clipping"
    needs_groups = True

    def __init__(self, max_criticality: float = 0.1, groups: Groups = None) -> None:
        super().__init__(groups, every_n_train_steps=1, max_overhead=None)
        self.max_criticality = require_criticality(max_criticality)
        self.updates = 0
        self.clipped_updates = 0
        self._clippers: dict[int, StepClipper] = {}
        self._model: Any = None
        self._logs_now = False
        self._latest: tuple[GroupUpdate, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        """Counts of updates."""
        return {"updates": self.updates, "clipped_updates": self.clipped_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        self.updates, self.clipped_updates = state_dict["updates"], state_dict["clipped_updates"]

    def forget(self) -> None:
        """A run begins anew, and updates are counted from there."""
        super().forget()
        self.updates = self.clipped_updates = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which no process sees whole neurons, or no updates."""
        super().setup(trainer, pl_module, stage)
        if self.active:
            require_whole_updates(trainer.strategy, f"train without {type(self).__name__}")

    def _obstacle(self, strategy: Any) -> str | None:
        return None  # an error in ``setup``: who asks for this must not go without

    def _coverage(self) -> dict[str, float]:
        return {}  # every update is looked at

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the optimizers: before the monitors, so that these see the updates as they were made."""
        super().on_train_start(trainer, pl_module)
        if self.active:
            self.listen(trainer)

    def groups_found(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew; clippers are made when their optimizers first move neurons."""
        self._model, self._clippers = measured_model(trainer, pl_module), {}

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        return {"κ before and after clipping": [f"clipping/criticality_{when}" for when in ("before", "after")]}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Whether this batch is logged."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        every = trainer.log_every_n_steps
        self._logs_now = every > 0 and (self._step + 1) % every == 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what became of the batch's updates."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._latest:
            self.write(trainer, _metrics(self._latest) | {"clipping/clipped_updates": self.clipped_updates})
            self._latest = ()

    def before_step(self, index: int, optimizer: Optimizer) -> None:
        """Keep the parameters."""
        if index not in self._clippers and self._moves_neurons(optimizer):
            self._clippers[index] = StepClipper(
                optimizer, self._model, self._found, self.max_criticality, self._processes.agreed
            )
        if index in self._clippers:
            self._clippers[index].before()

    def after_step(self, index: int, optimizer: Optimizer) -> None:
        """Scale the update back where it is too large."""
        if index not in self._clippers:
            return
        clipper = self._clippers[index]
        self.clipped_updates += clipper.after(exact=self._logs_now)
        self.updates += 1
        self._warn_of(clipper)
        self.remember([ClippingRecord(self._step, *astuple(update)) for update in clipper.last])
        if self._logs_now:
            self._latest += clipper.last

    def release(self) -> None:
        """Listen no more."""
        super().release()
        self._clippers, self._latest, self._model = {}, (), None

    def _moves_neurons(self, optimizer: Optimizer) -> bool:
        neurons = {id(p) for group in self._found for p in group.parameters(self._model)}
        return any(id(p) in neurons for settings in optimizer.param_groups for p in settings["params"])

    def _warn_of(self, clipper: StepClipper) -> None:
        if clipper.diverged:
            self._warn_once(
                f"Parameters were NaN or infinite before the update at step {self._step}: there is no state to scale "
                "back to, and TopologicalStepClipping does nothing. Check the initialisation and what loads weights.",
                kind="diverged",
            )
        elif any(math.isinf(update.criticality_before) for update in clipper.last):
            self._warn_once(
                f"The update at step {self._step} made parameters NaN or infinite and was undone; later ones will be, "
                "too, without a word. Check the loss for what makes its gradient so.",
                kind="undone",
            )


def _metrics(updates: Iterable[GroupUpdate]) -> dict[str, float]:
    """Of several updates of a group in one batch, the one scaled back most."""
    worst = {update.group: update for update in sorted(updates, key=lambda update: -update.scale)}
    metrics: dict[str, float] = {}
    for name, update in worst.items():
        metrics[f"clipping/{name}/scale"] = update.scale
        metrics[f"clipping/{name}/criticality_before"] = update.criticality_before
        metrics[f"clipping/{name}/criticality_after"] = update.criticality_after
    metrics["clipping/scale"] = min(update.scale for update in worst.values())
    for field in ("criticality_before", "criticality_after"):
        values = [getattr(update, field) for update in worst.values()]
        metrics[f"clipping/{field}"] = max((value for value in values if not math.isnan(value)), default=math.nan)
    return metrics
