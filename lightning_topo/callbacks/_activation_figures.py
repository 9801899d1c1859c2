"""What the activations of the batches tell in which measurements are due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_topo._lightning import rank_zero_info
from lightning_topo.callbacks._activations import BatchActivations
from lightning_topo.callbacks._announcer import Announcer
from lightning_topo.callbacks._budget import OverheadBudget
from lightning_topo.callbacks._run_length import is_last_batch
from lightning_topo.functional import dormant_share, effective_rank
from lightning_topo.neurons import NeuronGroup
from lightning_topo.updates import is_made_again


class ActivationFigures:
    """Listens to layers in the batches that a measurement follows, and sums up what it has heard.

    Args:
        budget: The monitor's, to which listening is charged.
        announcer: Speaks for the monitor.

    Attributes:
        listens: Whether it listens in the present batch.
    """

    def __init__(self, budget: OverheadBudget, announcer: Announcer) -> None:
        self._budget, self._announcer = budget, announcer
        self._batch = BatchActivations(self._taking)
        self.forget()

    def forget(self) -> None:
        """Another fit or other groups, or nothing to listen to any more; the layers are as they were."""
        self._batch.forget()
        self._ends = self.listens = False

    def begin(self, trainer: Any, batch_idx: int, due: bool, model: nn.Module, groups: Sequence[NeuronGroup]) -> None:
        """Before a batch: listen in it if a measurement is ``due`` after it, or it is the last of the fit."""
        self._ends = is_last_batch(trainer, batch_idx)
        self.listens = due or self._ends
        if self.listens:
            with self._taking():
                self._batch.attach(model, groups, deaf=lambda: is_made_again(trainer))

    def end(self, trainer: Any) -> None:
        """After the batch: listen no more, and say what cannot be heard."""
        unread = self._batch.end()
        if unread:
            rank_zero_info(
                trainer,
                f"{self._announcer.speaker} tells no dormant share and no effective rank of {listed(unread)}: no layer "
                "that reads their units and can be listened to was called; those within compiled modules cannot.",
            )

    def drop(self) -> None:
        """Let go of what was heard, unless the fit ends here and may be measured once more."""
        self.listens = False
        if not self._ends:
            self._batch.drop()

    def of(self, name: str) -> dict[str, Any]:
        """The figures of a group in the batch, by the names of a record's attributes, as far as they are known."""
        with self._announcer.never_fatal("sum up activations"):
            activations = self._batch.rows(name)
            if activations is not None:
                return {"dormant": dormant_share(activations), "effective_rank": effective_rank(activations)}
        return {}

    @contextmanager
    def _taking(self) -> Iterator[None]:
        with self._announcer.never_fatal("listen to activations"), self._budget.spending(kind="activations"):
            yield


def listed(names: Sequence[str]) -> str:
    """Some names of many."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
