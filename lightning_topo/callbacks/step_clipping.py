"""TopologicalStepClipping: no update of the run merges neurons."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._clipping_record import ClippingRecord, clipping_metrics
from lightning_topo.callbacks._followed_updates import FollowedUpdates
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._history import remember
from lightning_topo.callbacks._log_writer import LogWriter, logger_step
from lightning_topo.callbacks._loss_bound import LossBound
from lightning_topo.callbacks._options import require_positive_int
from lightning_topo.callbacks._processes import Processes
from lightning_topo.callbacks._releasing import ReleasingCallback
from lightning_topo.callbacks._state import SavedState, count, figures
from lightning_topo.callbacks.log_keys import CLIPPING
from lightning_topo.clipping import MAX_CRITICALITY, FiniteGuard, GroupUpdate, StepClipper, require_criticality
from lightning_topo.sharding import require_whole_updates
from lightning_topo.updates import LearningRate

# Where most of so many updates in a row were scaled back, the bound sets the pace.
_RECENT = 100
_OFTEN = (
    "{} of the last {} updates were scaled back at step {}: the bound sets the pace, not the learning rate. Choose a "
    "lower learning rate (TopologicalRateControl needs none, "
    "TopologicalLearningRateFinder finds one), or a larger max_criticality."
)
_UNSEEN = (
    "Neurons moved although no optimizer of the Trainer made a step that TopologicalStepClipping could see, so that it "
    "cannot keep its bound: an optimizer steps within the backward pass, by another method than step() (as SAM's "
    "first_step), or is unknown to the Trainer. Return it from configure_optimizers and call its step(), or train "
    "without TopologicalStepClipping."
)


class TopologicalStepClipping(ReleasingCallback):
    r"""Scales back every update that would come near merging neurons, as gradient clipping bounds a norm.

    Right after ``optimizer.step``, the criticality κ = max |u_i - u_j| / |p_i - p_j| of the update θ -> θ' is measured
    over all pairs of neurons of every group. Where the root of the sum of their squares is above the bound b, a
    parameter p of groups G(p) becomes

    $$\theta_p + s_p\,(\theta'_p - \theta_p), \qquad s_p = \min_{g \in G(p)} \min(1, c / \kappa_g), \qquad
    \sqrt{\textstyle\sum_g \min(\kappa_g, c)^2} = b$$

    The groups that move most come down to one level c, the rest of the network is left alone; parameters in no group
    go with the smallest s of all. So no update merges two neurons (arXiv 2510.02670, section 3), many layers that each
    move a little do not move the network too far, and rates far above η* train where plain training diverges. The
    bound is ``max_criticality`` at the optimizer's full learning rate and goes down with
    it, so that schedules do at any rate what they do at a good one; beside ``TopologicalRateControl``, whose rates fall
    for another reason, it stands still. The optimizer's running means of gradients (momentum, Adam's first moment) are
    scaled like the update: else they ask for the rest of it again and again. Where the bound is never reached, training
    is what it is without, bit for bit. An update that makes a parameter NaN or infinite is undone, also one of an
    optimizer that moves no neuron. Where parameters are replaced in the fit (pruning, a layer that has grown), the
    groups are found again.

    κ says how neurons move relative to each other, not how all of them move together. Where that is what goes wrong (as
    in small teacher regressions), ``max_loss_step`` also keeps each update at this share of the critical learning rate
    of the loss η_c, as ``SharpnessMonitor`` measures it (arXiv 2601.16979), along the update that was made last. A
    measurement takes as long as two or three training steps.

    Works with any torch optimizer, several of them, manual optimization, accumulation, gradient clipping, mixed
    precision, schedules, DDP, and after ``TopologicalLearningRateFinder``, which searches without it. A monitor beside
    it sees the updates as they were made.

    Logged every ``log_every_n_steps`` of the Trainer, whether something was scaled back or not:
    ``clipping/<group>/{scale, criticality_before, criticality_after}`` of that update and ``clipping/{scale,
    criticality_before, criticality_after, bound}`` over all groups (smallest scale, root of the sum of squares of κ);
    ``clipping/clipped_updates``, the updates so far that were scaled back, and ``clipping/clipped_share``, their share
    of the last 100; with ``max_loss_step`` also ``clipping/loss_critical_lr``, η_c as it was measured last (0: the loss
    does not fall along the update).

    Args:
        max_criticality: Largest root of the sum of squares of the groups' κ at the optimizer's full learning rate, in
            (0, 1]; default the share of the critical learning rate that ``TopologicalRateControl`` trains at. The
            finder's suggestion is seldom above it.
        groups: A glob or list of globs on group names, a list of ``NeuronGroup``, or None for all that are found.
        max_loss_step: Largest rate of an update over the critical learning rate of the loss, above 0; None: no bound by
            the loss. For gradient descent on a quadratic loss an update of 1 gains nothing, one of 1/2 gains the most.
        loss_every_n_train_steps: Measure the critical learning rate of the loss every n-th update.

    Attributes:
        history: List of ``ClippingRecord``: the groups scaled back in each update that was, and all where logged.
        updates: Optimizer steps of the run so far.
        clipped_updates: Those that were scaled back, in part or as a whole.

    Raises:
        ValueError: When an option is out of range; at the first batch, when there is no group; at the start, with
            ``max_loss_step`` and several optimizers.
        TypeError: At the start, under a strategy that shards the parameters: no process can see all neurons; and under
            DeepSpeed, whose optimizers call no hooks.

    Example:
        >>> import lightning_topo as lt
        >>> clipping = lt.TopologicalStepClipping()
        >>> # Trainer(callbacks=[clipping]).fit(model); clipping.clipped_updates
    """

    name = "clipping"
    later_options = MappingProxyType({"max_loss_step": None, "loss_every_n_train_steps": 10})

    def __init__(
        self,
        max_criticality: float = MAX_CRITICALITY,
        groups: Groups = None,
        max_loss_step: float | None = None,
        loss_every_n_train_steps: int = 10,
    ) -> None:
        self.max_criticality = require_criticality(max_criticality)
        self.groups = groups
        self.max_loss_step = _require_loss_step(max_loss_step)
        self.loss_every_n_train_steps = require_positive_int("loss_every_n_train_steps", loss_every_n_train_steps)
        self.history: list[ClippingRecord] = []
        self.updates = 0
        self.clipped_updates = 0
        self.active = False
        self._announcer = Announcer(type(self).__name__)
        self._writer = LogWriter(self._announcer)
        steps = self._before_step, self._after_step
        self._followed = FollowedUpdates(self, groups, self._announcer, *steps, every_batch=True)
        self._neurons: FoundGroups = self._followed.groups
        self._processes = Processes()
        self._full_rates: dict[int, list[float]] = {}
        self._loss: LossBound | None = None
        if self.max_loss_step is not None:
            self._loss = LossBound(self.max_loss_step, self.loss_every_n_train_steps, self._announcer)
        self._forget_fit()
        self.skip_empty_hooks()

    def _forget_fit(self) -> None:
        """Nothing of a fit's model is left."""
        if self._loss is not None:
            self._loss.forget()
        self._clippers: dict[int, StepClipper] = {}
        self._guards: dict[int, FiniteGuard] = {}
        self._logs_now = False
        self._latest: list[tuple[GroupUpdate, ...]] = []
        self._bound = self.max_criticality
        self._recent: deque[bool] = deque(maxlen=_RECENT)

    @property
    def ready(self) -> bool:
        """Whether the groups are known, and with them the charts."""
        return self._neurons.ready

    def state_dict(self) -> dict[str, Any]:
        """Counts of updates, the full learning rates that the bound follows, and the figures that were logged last."""
        self._keep_rates()
        counts = {"updates": self.updates, "clipped_updates": self.clipped_updates}
        return {**counts, "full_rates": dict(self._full_rates), "last": dict(self._writer.last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the counts of a saved run."""
        saved = SavedState(state_dict, self._announcer)
        self.updates, self.clipped_updates = saved.get("updates", count, 0), saved.get("clipped_updates", count, 0)
        self._writer.last = saved.get("last", figures, {}, since="0.2.0")
        self._full_rates = saved.get("full_rates", _rates_by_number, {}, since="0.2.0")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies under which no process sees whole neurons, or no updates; forget an earlier fit."""
        self._followed.forget()
        self._forget_fit()
        self._processes = Processes.of(trainer)
        self.active = stage == "fit" and not self.yields_to_a_rival(trainer)
        if stage == "fit" and trainer.global_step == 0:  # Lightning restores from a checkpoint after this
            self._announcer.forget()
            self.updates, self.clipped_updates, self._writer.last, self._full_rates = 0, 0, {}, {}
        if self.active:
            require_whole_updates(trainer.strategy, f"train without {type(self).__name__}")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the optimizers: before the monitors, so that these see the updates as they were made."""
        if self.active:
            if self._loss is not None and len(trainer.optimizers) > 1:
                raise ValueError(
                    f"expected one optimizer with max_loss_step, got {len(trainer.optimizers)}, whose losses are not "
                    "told apart; train without max_loss_step"
                )
            self._followed.listen(trainer)
            self._writer.publish_last(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find the groups, once; see to it that no update goes unseen."""
        if not self.active:
            return
        if self._followed.follow(trainer, pl_module, batch, self._processes):
            self._keep_rates()
            self._clippers, self._guards = {}, {}
        if self._followed.go_unseen():
            raise RuntimeError(_UNSEEN)
        if self._loss is not None:
            self._loss.begin_batch(trainer, pl_module)
        every = trainer.log_every_n_steps
        self._logs_now = every > 0 and (logger_step(trainer) + 1) % every == 0

    def charts(self) -> dict[str, list[str]]:
        """TensorBoard charts: title and the tags drawn together."""
        before_and_after = [CLIPPING.of_run(f"criticality_{when}") for when in ("before", "after")]
        return {"κ before and after clipping": before_and_after}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what became of the batch's updates."""
        if self._latest:
            figures = {"clipped_updates": self.clipped_updates, "bound": self._bound}
            figures["clipped_share"] = sum(self._recent) / len(self._recent)
            if self._loss is not None and not math.isnan(self._loss.latest):
                figures["loss_critical_lr"] = self._loss.latest
            of_run = {CLIPPING.of_run(name): figure for name, figure in figures.items()}
            self._writer.write(trainer, clipping_metrics(self._latest) | of_run, self._processes)
            self._latest = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Listen no more."""
        self.release()

    def release(self) -> None:
        """Listen no more; keep nothing of the fit."""
        self._keep_rates()
        self._followed.release()
        self._forget_fit()

    def _keep_rates(self) -> None:
        self._full_rates |= {index: clipper.rates.full_rates for index, clipper in self._clippers.items()}

    def _before_step(self, index: int, optimizer: Optimizer) -> None:
        """Keep the parameters."""
        if index not in self._clippers and self._followed.moves_neurons(index, optimizer):
            self._clippers[index] = StepClipper(
                optimizer, self._followed.model, self._neurons.found, self.max_criticality, self._processes.agreed
            )
            self._clippers[index].rates.full_rates = list(self._full_rates.get(index, ()))
        if index in self._clippers:
            self._clippers[index].before()
        else:
            self._guards.setdefault(index, FiniteGuard(optimizer, self._processes.agreed)).before()

    def _after_step(self, index: int, optimizer: Optimizer) -> None:
        """Scale the update back where it is too large."""
        if index not in self._clippers:
            self._guard(index)
            return
        clipper = self._clippers[index]
        clipped = self._clip(clipper)
        self.clipped_updates += clipped
        self.updates += 1
        step = logger_step(self._followed.trainer)
        self._warn_of(clipper, step)
        self._recent.append(clipped)
        if len(self._recent) == _RECENT and 2 * sum(self._recent) > _RECENT:
            self._announcer.warn_once(_OFTEN.format(sum(self._recent), _RECENT, step), kind="often")
        remember(self.history, [ClippingRecord(step, *astuple(update)) for update in clipper.last])
        if self._logs_now:
            self._latest.append(clipper.last)
            self._bound = clipper.bound

    def _clip(self, clipper: StepClipper) -> bool:
        if self._loss is None:
            return clipper.after(exact=self._logs_now)
        rate = float(LearningRate(settings.get("lr", math.nan) for settings in clipper.optimizer.param_groups))
        clipped = clipper.after(exact=self._logs_now, largest_share=self._loss.largest_share(rate))
        self._loss.made(rate, clipper.share)
        return clipped

    def _guard(self, index: int) -> None:
        """Undo an update of other parameters than neurons' where it is not finite."""
        if index in self._guards:
            self._guards[index].after()
            if self._guards[index].undone:
                self._warn_undone(logger_step(self._followed.trainer))

    def _warn_of(self, clipper: StepClipper, step: int) -> None:
        if clipper.diverged:
            self._announcer.warn_once(
                f"Parameters were NaN or infinite before the update at step {step}: there is no state to scale "
                "back to, and TopologicalStepClipping does nothing. Check the initialisation and what loads weights.",
                kind="diverged",
            )
        elif any(math.isinf(update.criticality_before) for update in clipper.last):
            self._warn_undone(step)

    def _warn_undone(self, step: int) -> None:
        self._announcer.warn_once(
            f"The update at step {step} made parameters NaN or infinite and was undone; later ones will be, "
            "too, without a word. Check the loss for what makes its gradient so.",
            kind="undone",
        )


def _require_loss_step(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(
            "expected max_loss_step to be a number above 0, the largest rate of an update over the critical learning "
            f"rate of the loss, or None, got {value!r}"
        )
    return float(value)


def _rates_by_number(value: Any) -> dict[int, list[float]]:
    """Saved rates of the parameter groups of each optimizer, or a TypeError, ValueError or AttributeError."""
    return {int(index): [float(rate) for rate in rates] for index, rates in value.items()}
