"""What a step that may have been clipped did to one neuron group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupUpdate:
    """What one optimizer step did to one neuron group.

    Attributes:
        group: Name of the neuron group.
        criticality_before: κ of the optimizer's own update; ``nan`` where it was certainly small enough and not
            evaluated, ``inf`` where a parameter became NaN or infinite. Where ``exact`` was asked for, large groups far
            below the bound have κ of the neurons that moved most.
        criticality_after: κ of the update that was made, at most the bound; ``nan`` where it was not evaluated. Of an
            update that was scaled back it is right to a thousandth of the bound, and a bound on κ where a parameter was
            scaled further for another group's sake; where ``exact`` was asked for, it is measured.
        scale: Smallest factor of the group's parameters, 1 where all were left as they were.
    """

    group: str
    criticality_before: float
    criticality_after: float
    scale: float
