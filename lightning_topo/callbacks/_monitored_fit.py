"""What the monitors of neuron groups hold of the fit that they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_topo.callbacks._admission import Admission
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._found_groups import FoundGroups, Groups
from lightning_topo.callbacks._history import PresentRun
from lightning_topo.callbacks._log_writer import LogWriter
from lightning_topo.callbacks._per_group import PerGroup
from lightning_topo.callbacks._processes import Processes
from lightning_topo.callbacks._run_length import RunLength
from lightning_topo.callbacks._state import SavedState, count, figures
from lightning_topo.callbacks._tensorboard import write_layout
from lightning_topo.neurons import NeuronGroup
from lightning_topo.sharding import measured_model


class MonitoredFit:
    """The neuron groups of a fit, the time for measuring them, and the loggers that are told.

    Args:
        speaker: Name of the callback.
        groups: What the user asks for.
        max_overhead: Share of the training time that measuring may take, or None.
        per_group: Whether loggers get the figures of each group.

    Attributes:
        announcer: Says things once.
        budget: Time for measuring.
        writer: Writes to the loggers.
        neurons: The groups.
        processes: Those of the fit.
        admission: Whether to make a due measurement.
        model: The module that holds the groups' parameters, once they have been found.
        length: How long the fit will be, once it has begun.
        sizes: Number of neurons of each group.
    """

    def __init__(self, speaker: str, groups: Groups, max_overhead: float | None, per_group: PerGroup = "auto") -> None:
        self.announcer = Announcer(speaker)
        self.budget = OverheadBudget(max_overhead)
        self.neurons = FoundGroups(groups, self.announcer)
        self.writer = LogWriter(self.announcer, self.neurons, per_group)
        self.sizes: dict[str, int] = {}
        self._seen_a_fit, self._obstacle = False, ""
        self._run = PresentRun()
        self._meet(Processes())
        self.forget()

    def _meet(self, processes: Processes) -> None:
        self.processes = processes
        self.admission = Admission(self.budget, processes)

    def forget(self) -> None:
        """Nothing of the fit's model is left; the groups stay known until another fit begins."""
        self.model: Any = None
        self.length: RunLength | None = None

    @property
    def discovery_seconds(self) -> float:
        """Seconds that finding the groups took in this fit."""
        return self.budget.spent_on("discovery")

    def state(self) -> dict[str, Any]:
        """Counts of measurements, and the figures that were logged last."""
        return {"due": self.budget.due, "made": self.budget.made, "last": dict(self.writer.last)}

    def load_state(self, state: Mapping[str, Any]) -> SavedState:
        """Continue the counts of a saved run; what else was saved is read from what is returned."""
        saved = SavedState(state, self.announcer)
        self.budget.due, self.budget.made = saved.get("due", count, 0), saved.get("made", count, 0)
        self.writer.last = saved.get("last", figures, {}, since="0.2.0")
        return saved

    def enter(self, trainer: Any) -> None:
        """Another fit is set up, maybe of another model."""
        self._seen_a_fit, self._obstacle = True, ""
        self.neurons.forget()
        self.sizes = {}
        self.forget()
        self._meet(Processes.of(trainer))

    def begin_anew(self, history: Sequence[Any]) -> None:
        """The run starts at its first step: nothing of an earlier one counts, and what is in the history is of one."""
        self._run.begin_anew(history)
        self.budget.forget()
        self.announcer.forget()
        self.writer.last = {}

    def of_run(self, history: Sequence[Any]) -> Sequence[Any]:
        """The records of the present run."""
        return self._run.records(history)

    def unhindered(self, obstacle: str | None) -> bool:
        """Whether nothing is in the way of measuring; what is, is said once."""
        self._obstacle = obstacle or ""
        if obstacle is not None and self.processes.lead:
            self.announcer.warn_once(
                f"{self.announcer.speaker} does not measure {obstacle}. Training goes on unmonitored."
            )
        return obstacle is None

    def start(self, trainer: Any) -> None:
        """Training begins; others are told the last figures."""
        self.length = RunLength(trainer)
        self.writer.publish_last(trainer)

    def find(self, trainer: Any, pl_module: Any, batch: Any) -> tuple[NeuronGroup, ...]:
        """Look for the groups; an empty batch shows nothing."""
        with self.budget.spending(pl_module.device, kind="discovery"):
            found = self.neurons.find(trainer, pl_module, batch, self.processes)
        if found:
            self.model = measured_model(trainer, pl_module)
            self._count()
        return found

    def find_again(self, trainer: Any, pl_module: Any, batch: Any) -> None:
        """Look for the groups again, in a model that has changed."""
        with self.budget.spending(pl_module.device, kind="discovery"):
            self.neurons.find_again(trainer, pl_module, batch, self.processes)
        self._count()

    def _count(self) -> None:
        with self.announcer.never_fatal("count the neurons"):
            self.sizes = {group.name: group.n_units(self.model) for group in self.neurons.found}

    def write_layout(self, trainer: Any) -> None:
        """Lay out TensorBoard's charts, once all monitors know their groups."""
        if self.processes.lead:
            with self.announcer.never_fatal("write the layout of TensorBoard's charts"):
                write_layout(trainer)

    def write(self, trainer: Any, metrics: dict[str, float], step: int) -> None:
        """Write figures to every logger; every process enters."""
        self.writer.write(trainer, metrics, self.processes, step)

    def run_seconds(self) -> float:
        """Expected training time of the whole fit in seconds, 0 where it is not known."""
        return self.length.seconds(self.budget.training) if self.length else 0.0

    @property
    def shows_groups(self) -> bool:
        """Whether the loggers get the figures of each group."""
        return self.writer.shows_groups

    @property
    def shown_groups(self) -> tuple[NeuronGroup, ...]:
        """The groups whose figures the loggers get."""
        return self.neurons.found if self.shows_groups else ()

    def why_nothing(self, updates: int) -> str:
        """Why no update was measured, of so many that were made."""
        unseen = "" if updates else "no optimizer of the Trainer made a step that could be seen."
        reason = (
            self._nothing_to_measure() or unseen or self._too_dear() or "those that were looked at moved no neurons."
        )
        return f"No update was measured: {reason}"

    def why_no_topology(self) -> str:
        """Why no topology was measured."""
        reason = self._nothing_to_measure() or self._too_dear() or "a message said why during the fit."
        return f"No topology was measured: {reason}"

    def _nothing_to_measure(self) -> str:
        speaker = self.announcer.speaker
        if not self._seen_a_fit:
            return f"{speaker} has seen no fit. Put it into Trainer(callbacks=[...]) and call fit."
        if self._obstacle:
            return f"{speaker} does not measure {self._obstacle}."
        if not self.neurons.ready:
            return "the fit ended before its first batch of data."
        if not self.neurons.found:
            return (
                "no group of exchangeable neurons was found, for the reason that a warning gave at the start. They can "
                "be named by groups=[NeuronGroup(...)]."
            )
        return ""

    def _too_dear(self) -> str:
        if self.budget.made or self.budget.max_overhead is None:
            return ""
        return (
            f"each would have taken more than max_overhead={self.budget.max_overhead:g} leaves in a fit of this "
            "length. Pass a larger max_overhead, or None to measure all that are due."
        )
