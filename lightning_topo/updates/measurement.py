"""What an update did to neuron groups: computed on the device, and read when it has arrived."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_topo.functional import BiLipschitz
from lightning_topo.functional.estimated_criticality import estimated_criticality
from lightning_topo.functional.exact_constants import exact_constants
from lightning_topo.functional.update_constants import UpdateConstants, most_changed, update_constants
from lightning_topo.neurons import NeuronGroup


@dataclass(frozen=True, eq=False)
class Compared:
    """Neurons of alike groups before and after an update, and the constants that were computed of them.

    Attributes:
        groups: The groups, G of them.
        before: Their neurons before the update, shape (G, k, D).
        after: The same after it.
        eps: Relative spacing of the numbers that they are stored in.
        constants: What the update did to them.
    """

    groups: tuple[NeuronGroup, ...]
    before: Tensor
    after: Tensor
    eps: float
    constants: UpdateConstants


@torch.no_grad()
def compare(groups: tuple[NeuronGroup, ...], before: Tensor, after: Tensor, size: int | None, eps: float) -> Compared:
    """Compare clouds of shape (G, n, D), or of each those ``size`` neurons that seem to decide the constants."""
    if size is not None and size < before.shape[1]:
        chosen = most_changed(before, after, size, eps).unsqueeze(2).expand(-1, -1, before.shape[2])
        before, after = before.gather(1, chosen), after.gather(1, chosen)
    return Compared(groups, before, after, eps, update_constants(before, after, eps))


@torch.no_grad()
def estimate(groups: tuple[NeuronGroup, ...], before: Tensor, after: Tensor, eps: float) -> Compared:
    """Compare clouds of shape (G, n, D) by an estimate of κ alone, in less than half of the operations."""
    return Compared(groups, before, after, eps, estimated_criticality(before, after, eps))


class Measurement:
    """The constants of one update of some groups, on their way from the device to the host.

    Args:
        compared: What was measured.
    """

    def __init__(self, compared: Sequence[Compared]) -> None:
        self._compared = list(compared)
        by_device: dict[torch.device, list[Tensor]] = {}
        for one in compared:
            by_device.setdefault(one.before.device, []).append(one.constants.packed())
        self._arrivals = {device: Arrival(torch.cat(tables)) for device, tables in by_device.items()}

    @property
    def ready(self) -> bool:
        """Whether everything has arrived, so that reading it waits for nothing."""
        return all(arrival.ready for arrival in self._arrivals.values())

    def rows(self) -> Iterator[list[float]]:
        """What was computed, a row a group, as it arrived; waits for what has not."""
        tables = {device: iter(arrival.rows()) for device, arrival in self._arrivals.items()}
        for one in self._compared:
            for _ in range(len(one.before)):
                yield next(tables[one.before.device])

    def criticalities(self) -> Iterator[tuple[float, bool]]:
        """κ of each group as single precision found it, and whether all neurons are finite; waits for them.

        Where a doubt is left, it is that of some pairs, and the true κ is larger.
        """
        for row in self.rows():
            constants, finite, _ = UpdateConstants.unpack([row])[0]
            yield constants.criticality, finite

    def constants(self) -> list[tuple[NeuronGroup, BiLipschitz | None]]:
        """Each group with its constants, None where a neuron is NaN or infinite; waits for what has not arrived.

        Where single precision leaves a doubt, the same neurons are evaluated again in double precision.
        """
        rows, found = self.rows(), list[tuple[NeuronGroup, BiLipschitz | None]]()
        for one in self._compared:
            for index, group in enumerate(one.groups):
                constants, finite, certain = UpdateConstants.unpack([next(rows)])[0]
                if not finite:
                    found.append((group, None))
                elif certain:
                    found.append((group, constants))
                else:
                    found.append((group, exact_constants(one.before[index], one.after[index], one.eps)))
        return found


class Arrival:
    """A small table that is copied to the host, shape (k, columns), without waiting for it."""

    def __init__(self, table: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._table = table
        if table.is_cuda:
            self._table = table.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(table.device))

    @property
    def ready(self) -> bool:
        """Whether it has arrived."""
        return self._event is None or self._event.query()

    def rows(self) -> list[list[float]]:
        """Its rows; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._table.tolist()
