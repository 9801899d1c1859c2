"""What a merge did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergedGroup:
    """What became of the units of one group.

    Args:
        name: Of the group.
        units_before: Number of units before.
        units_after: Number of units after.
        distance: Largest distance of the incoming weights of a unit from those of the unit that now stands for it.
        refused: Why units of this group could not become one; None if they could, also where no two coincide.
    """

    name: str
    units_before: int
    units_after: int
    distance: float
    refused: str | None = None


@dataclass(frozen=True)
class MergeReport:
    """What ``merge_neurons`` did to a model.

    Args:
        groups: One entry for each group that was asked for, in the order in which they were merged.
        parameters_before: Numbers in all parameters before, tied ones counted once.
        parameters_after: The same after.
        largest_change: Largest change of a number of the output for the example input.
        largest_output: Largest number, by absolute value, of the output for the example input before.
    """

    groups: tuple[MergedGroup, ...]
    parameters_before: int
    parameters_after: int
    largest_change: float
    largest_output: float

    def __str__(self) -> str:
        """A few lines: what became smaller, what could not, and what to do next."""
        smaller = [group for group in self.groups if group.units_after < group.units_before]
        refused = [group for group in self.groups if group.refused is not None]
        lines = [f"{group.name}: {group.units_before} units -> {group.units_after}" for group in smaller]
        if not smaller:
            nothing = "nothing was merged" if refused else "no two units coincide"
            lines.append(f"{nothing}, so the model is as it was")
        lines += [f"{group.name}: not merged, because {group.refused}" for group in refused]
        if smaller:
            lines += [
                f"parameters: {self.parameters_before:,} -> {self.parameters_after:,}",
                f"largest change of the output: {self.largest_change:.3g}, of numbers up to {self.largest_output:.3g}",
                "optimizers that were made before still hold the old parameters: make them anew",
            ]
        return "\n".join(lines)
