"""Whether loggers get the figures of each neuron group, or only those over all groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

PerGroup = Literal["auto"] | bool

# TensorBoard's page shows twelve charts before one has to turn it, and a group has six: with more groups than this the
# figures over all groups are not found any more.
_MOST_GROUPS = 8


def require_per_group(per_group: PerGroup) -> PerGroup:
    """The value, or a ValueError when it is neither a bool nor "auto"."""
    if not isinstance(per_group, bool) and per_group != "auto":
        raise ValueError(f'per_group must be True, False or "auto", but got {per_group!r}.')
    return per_group


def shows_groups(per_group: PerGroup, n_groups: int) -> bool:
    """Whether so many groups are shown one by one."""
    return n_groups <= _MOST_GROUPS if per_group == "auto" else bool(per_group)


def is_of_group(key: str) -> bool:
    """Whether a key is one of a group, as ``bilipschitz/fc1/criticality`` is."""
    return key.count("/") > 1


def groups_in(keys: Iterable[str]) -> set[str]:
    """The groups that keys are of."""
    return {key.split("/", 1)[1].rsplit("/", 1)[0] for key in keys if is_of_group(key)}
