"""Measured updates: their figures arrive later, and become records and what is logged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord, record_of, update_metrics
from lightning_topo.callbacks._clone_certificate import UpdateTally
from lightning_topo.callbacks._history import remember
from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import LearningRate, Measurement


@dataclass(frozen=True)
class MeasuredUpdate:
    """A measured update whose figures are on their way; no measurement where another process compares."""

    step: int
    rates: dict[str, LearningRate]
    measurement: Measurement | None

    @property
    def arrived(self) -> bool:
        """Whether the figures can be read without waiting."""
        return self.measurement is None or self.measurement.ready


class MeasuredUpdates:
    """The measured updates of a run.

    Args:
        announcer: Says where a run has diverged.

    Attributes:
        history: What the updates did, a record a group and update.
        broken: Updates with κ >= 1 in some group.
        measured: Updates that moved neurons.
        tally: What they did to each group, for its certificate.
        diverged: Groups whose neurons became NaN or infinite.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self.history: list[BiLipschitzRecord] = []
        self.begin_anew()
        self.forget_fit()

    def begin_anew(self) -> None:
        """The run starts at its first step: nothing of an earlier one is counted."""
        self.broken = self.measured = 0
        self.tally = UpdateTally()
        self.diverged: dict[str, None] = {}

    def forget_fit(self) -> None:
        """What is on its way does not count, and no group has a latest figure."""
        self._pending: list[MeasuredUpdate] = []
        self._current: dict[str, BiLipschitzRecord] = {}

    @property
    def pending(self) -> bool:
        """Whether figures are on their way."""
        return bool(self._pending)

    def add(self, update: MeasuredUpdate) -> None:
        """An update has been measured."""
        self._pending.append(update)

    def take(self, wait: bool) -> Iterator[tuple[int, list[MeasuredUpdate]]]:
        """Step by step the updates whose figures have arrived, or all."""
        for step, updates in groupby(list(self._pending), key=lambda update: update.step):
            batch = list(updates)
            if not wait and not all(update.arrived for update in batch):
                return
            del self._pending[: len(batch)]
            yield step, batch

    def remember(self, batch: Sequence[MeasuredUpdate], groups: Sequence[NeuronGroup]) -> dict[str, float]:
        """Remember what the updates of a batch did, and the figures to be logged of them.

        Args:
            batch: Updates of one step.
            groups: In the order in which they are remembered.
        """
        latest: dict[str, BiLipschitzRecord] = {}
        for update in batch:
            records = [] if update.measurement is None else self._records(update, update.measurement, groups)
            for record in records:
                self.tally.add(record)
            # A gradient scaler inside the optimizer can skip the update: nothing moved, and there is nothing to tell.
            if not any(record.criticality != 0 for record in records):
                continue
            self.measured += 1
            self.broken += any(record.criticality >= 1 for record in records)
            remember(self.history, records)
            for record in records:
                known = latest.get(record.group)
                if known is None or not record.criticality <= known.criticality:
                    latest[record.group] = record
        if not latest:
            return {}
        self._current |= latest
        return update_metrics(latest, self._current.values(), self.broken)

    def _records(
        self, update: MeasuredUpdate, measurement: Measurement, groups: Sequence[NeuronGroup]
    ) -> list[BiLipschitzRecord]:
        order = {group.name: number for number, group in enumerate(groups)}
        records = []
        for group, constants in measurement.constants():
            if constants is None:
                self._current.pop(group.name, None)
                self.diverged[group.name] = None
                self._announcer.warn_once(
                    f"Neurons of {group.name} are NaN or infinite at step {update.step}: the run has diverged there. "
                    f"{self._announcer.speaker} goes on with the other groups.",
                    kind=f"diverged {group.name}",
                )
            else:
                records.append(record_of(update.step, group, float(update.rates[group.name]), constants))
        return sorted(records, key=lambda record: order.get(record.group, 0))
