"""Keeping every update one-to-one on the neurons: step clipping, with and without Lightning's Trainer."""

from lightning_topo.clipping.clipper import MAX_CRITICALITY, StepClipper, require_criticality
from lightning_topo.clipping.finite_guard import FiniteGuard
from lightning_topo.clipping.group_update import GroupUpdate
from lightning_topo.clipping.step_hooks import topological_step_clipping

__all__ = [
    "MAX_CRITICALITY",
    "FiniteGuard",
    "GroupUpdate",
    "StepClipper",
    "require_criticality",
    "topological_step_clipping",
]
