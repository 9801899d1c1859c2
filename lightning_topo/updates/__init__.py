"""One optimizer step as the neurons see it: hooks, parameters before, displacements, κ."""

from lightning_topo.updates.bound_watch import BoundWatch
from lightning_topo.updates.cost import expected_seconds
from lightning_topo.updates.loss_along import is_made_again, loss_along
from lightning_topo.updates.measurement import Arrival, Measurement
from lightning_topo.updates.module_state import ModuleState, module_kept
from lightning_topo.updates.moved_groups import LearningRate, MovedGroups, held_parameters
from lightning_topo.updates.parameter_places import ParameterPlaces
from lightning_topo.updates.parameters_before import ParametersBefore
from lightning_topo.updates.placement import AlikeGroups, Placement
from lightning_topo.updates.recorded_steps import NotRepeatableError, RecordedSteps
from lightning_topo.updates.step_hooks import StepHooks, is_step_hook, rates_are_controlled
from lightning_topo.updates.unseen_updates import UnseenUpdates
from lightning_topo.updates.update_meter import MeasuredSet, UpdateMeter

__all__ = [
    "AlikeGroups",
    "Arrival",
    "BoundWatch",
    "LearningRate",
    "MeasuredSet",
    "Measurement",
    "ModuleState",
    "MovedGroups",
    "NotRepeatableError",
    "ParameterPlaces",
    "ParametersBefore",
    "Placement",
    "RecordedSteps",
    "StepHooks",
    "UnseenUpdates",
    "UpdateMeter",
    "expected_seconds",
    "held_parameters",
    "is_step_hook",
    "is_made_again",
    "loss_along",
    "module_kept",
    "rates_are_controlled",
]
