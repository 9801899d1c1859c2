"""TopologicalAlarm: speaks up while a run does harm to its neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._options import OptionedCallback, require_positive_int
from lightning_topo.callbacks._per_group import is_of_group
from lightning_topo.callbacks.log_keys import BILIPSCHITZ


class TopologicalAlarm(OptionedCallback):
    """Speaks up once when updates can merge neurons, when neurons have merged, or when too little is measured.

    It listens to what the monitors beside it log, and measures nothing itself: κ and the coverage need a
    ``BiLipschitzMonitor``, merged neurons a ``PersistenceMonitor``. Each kind of alarm is given once a fit, as a
    warning, to every logger that has alerts (Weights & Biases: ``run.alert``), and to ``action``.

    Args:
        max_criticality: Bound on κ; at 1 and above neurons can merge.
        n_updates: Measured updates in a row that have to reach the bound.
        min_coverage: Smallest share of the due updates that has to be measured, None for any.
        min_distinct: Smallest share of a group's neurons that has to stay distinct, None for any.
        action: Called with what is wrong, in one sentence; it may stop the run or write to a chat.

    Raises:
        ValueError: When an option is out of range.

    Example:
        >>> import lightning_topo as lt
        >>> alarm = lt.TopologicalAlarm(n_updates=5)
        >>> # Trainer(callbacks=[lt.BiLipschitzMonitor(), alarm]).fit(model)
    """

    name = "alarm"

    def __init__(
        self,
        max_criticality: float = 1.0,
        n_updates: int = 3,
        min_coverage: float | None = 0.1,
        min_distinct: float | None = 0.9,
        action: Callable[[str], None] | None = None,
    ) -> None:
        if not max_criticality > 0:
            raise ValueError(f"max_criticality must be a number above 0, but got {max_criticality!r}.")
        for name, share in (("min_coverage", min_coverage), ("min_distinct", min_distinct)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be a share in (0, 1] or None, but got {share!r}.")
        self.max_criticality, self.n_updates = max_criticality, require_positive_int("n_updates", n_updates)
        self.min_coverage, self.min_distinct, self.action = min_coverage, min_distinct, action
        self.active = False
        self._announcer = Announcer(type(self).__name__)
        self._forget_fit()
        self.skip_empty_hooks()

    def _forget_fit(self) -> None:
        self._given: set[str] = set()
        self._in_a_row = 0
        self._first: dict[str, float] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget an earlier fit."""
        self.active = stage == "fit"
        self._forget_fit()
        self._announcer.forget()

    def hear_metrics(self, trainer: Any, metrics: Mapping[str, float], step: int) -> None:
        """Look at what a monitor has just logged, on the first process."""
        if not self.active:
            return
        self._hear_criticality(trainer, metrics, step)
        self._hear_coverage(trainer, metrics, step)
        for key, value in metrics.items():
            if is_of_group(key) and _is(key, "topology", "distinct"):
                self._hear_distinct(trainer, _group(key), value, step)

    def _hear_criticality(self, trainer: Any, metrics: Mapping[str, float], step: int) -> None:
        of_groups = (key for key in metrics if is_of_group(key) and _is(key, BILIPSCHITZ.prefix, "criticality"))
        worst = max(of_groups, key=lambda key: metrics[key], default=None)
        if worst is None:
            return
        self._in_a_row = self._in_a_row + 1 if metrics[worst] >= self.max_criticality else 0
        if self._in_a_row >= self.n_updates:
            self._give(
                trainer,
                "criticality",
                f"κ was at {self.max_criticality:g} or above in {self.n_updates} measured updates in a row; at step "
                f"{step} it is {metrics[worst]:.2g} in {_group(worst)}. Lower the learning rate, or scale updates back "
                "with TopologicalStepClipping().",
            )

    def _hear_coverage(self, trainer: Any, metrics: Mapping[str, float], step: int) -> None:
        coverage = metrics.get(BILIPSCHITZ.coverage, 1.0)
        if self.min_coverage is not None and coverage < self.min_coverage:
            self._give(
                trainer,
                "coverage",
                f"only {coverage:.1%} of the due updates have been measured by step {step}; what the others do to the "
                "neurons is not known. Pass a larger max_overhead to BiLipschitzMonitor, or a smaller min_coverage.",
            )

    def _hear_distinct(self, trainer: Any, group: str, distinct: float, step: int) -> None:
        first = self._first.setdefault(group, distinct)
        if self.min_distinct is not None and distinct < self.min_distinct * first:
            self._give(
                trainer,
                f"distinct {group}",
                f"of {first:.0f} distinct neurons of {group} {distinct:.0f} are left at step {step}; the others have "
                "merged. Lower the learning rate, or scale updates back with TopologicalStepClipping().",
            )

    def _give(self, trainer: Any, kind: str, message: str) -> None:
        if kind in self._given:
            return
        self._given.add(kind)
        self._announcer.warn_once(f"TopologicalAlarm: {message}")
        for logger in trainer.loggers:
            with self._announcer.never_fatal(f"give an alert to {type(logger).__name__}"):
                alert = getattr(getattr(logger, "experiment", None), "alert", None)
                if callable(alert):
                    alert(title="Neurons are at risk", text=message)
        if self.action is not None:
            with self._announcer.never_fatal("take the action of the alarm"):
                self.action(message)


def _is(key: str, prefix: str, name: str) -> bool:
    return key.startswith(f"{prefix}/") and key.endswith(f"/{name}")


def _group(key: str) -> str:
    return key.split("/", 1)[1].rsplit("/", 1)[0]
