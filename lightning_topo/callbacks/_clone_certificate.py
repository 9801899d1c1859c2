"""What the measured updates of a run prove: whether neurons can have become clones of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord
from lightning_topo.callbacks._state import count


@dataclass(frozen=True)
class CloneCertificate:
    r"""What the updates of a run so far prove about the neurons of one group.

    An update of criticality κ < 1 maps different neurons to different ones, since |p_i' - p_j'| >= (1 - κ) |p_i - p_j|.
    Where every update was measured, on all neurons, and had κ < 1, no two that differed at the start can be clones. One
    update that was not measured proves nothing.

    Reference: arXiv 2510.02670, section 3.

    Attributes:
        group: Name of the neuron group.
        updates: Updates that the group's optimizers have made.
        seen: How many of them were measured.
        broken: How many of those had κ >= 1.
        all_compared: Whether all pairs of neurons were compared each time, none left out as a sample or for rounding.
        least_ratio: Product of the measured updates' lower constants: where clones are excluded, no two neurons are
            closer now than this share of their distance at the start.
    """

    group: str
    updates: int = 0
    seen: int = 0
    broken: int = 0
    all_compared: bool = True
    least_ratio: float = 1.0

    @property
    def excludes_clones(self) -> bool:
        """Whether no two neurons that differed at the start can be clones now."""
        return 0 < self.updates == self.seen and self.broken == 0 and self.all_compared

    def __str__(self) -> str:
        if self.excludes_clones:
            return f"{self.group}: all {self.updates} updates had κ < 1, so that no neurons have become clones."
        compared = "" if self.all_compared else ", not on all pairs of neurons"
        seen = f"{self.seen} of {self.updates} updates were measured{compared}, {self.broken} of them with κ >= 1"
        return f"{self.group}: {seen}, so that clones are not excluded."


class UpdateTally:
    """What the measured updates of a run did to each group, summed up for its certificate."""

    def __init__(self) -> None:
        self._of: dict[str, CloneCertificate] = {}

    def forget(self) -> None:
        """Another run begins."""
        self._of = {}

    def add(self, record: BiLipschitzRecord) -> None:
        """One more was measured."""
        known = self._of.get(record.group, CloneCertificate(record.group))
        self._of[record.group] = replace(
            known,
            seen=known.seen + 1,
            broken=known.broken + (record.criticality >= 1),
            all_compared=known.all_compared and record.n_unresolved == 0,
            # A single neuron has no constants, and nothing to merge with.
            least_ratio=known.least_ratio * (1.0 if math.isnan(record.lower) else record.lower),
        )

    def certificate(self, group: str, updates: int, all_compared: bool) -> CloneCertificate:
        """That of a group, of so many updates made, whose neurons are all compared or a sample of them."""
        known = self._of.get(group, CloneCertificate(group))
        return replace(known, updates=updates, all_compared=known.all_compared and all_compared)

    def state(self) -> dict[str, Any]:
        """All of it, as numbers."""
        return {name: [one.seen, one.broken, one.all_compared, one.least_ratio] for name, one in self._of.items()}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what ``state`` wrote."""
        self._of = {
            str(name): CloneCertificate(str(name), 0, count(seen), count(broken), bool(compared), float(ratio))
            for name, (seen, broken, compared, ratio) in saved.items()
        }
