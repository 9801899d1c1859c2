"""A learning rate that follows the critical one: the rule, its shape over a run, and one optimizer under control."""

from lightning_topo.control.base_rates import base_rates, require_controllable
from lightning_topo.control.controller import RateController
from lightning_topo.control.plain import topological_rate_control
from lightning_topo.control.rule import RateRule, RateState
from lightning_topo.control.schedule_shape import PlannedSchedule, ScheduleName, Shape, schedule_shape

__all__ = [
    "RateController",
    "RateRule",
    "RateState",
    "PlannedSchedule",
    "ScheduleName",
    "Shape",
    "base_rates",
    "require_controllable",
    "schedule_shape",
    "topological_rate_control",
]
