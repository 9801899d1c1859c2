"""Lightning callbacks: thin shells around the other rooms."""

from lightning_topo.callbacks._bi_lipschitz_record import BiLipschitzRecord
from lightning_topo.callbacks._clipping_record import ClippingRecord
from lightning_topo.callbacks._clone_certificate import CloneCertificate
from lightning_topo.callbacks._control_record import ControlRecord
from lightning_topo.callbacks._sharpness_record import SharpnessRecord
from lightning_topo.callbacks._topology import PersistenceRecord
from lightning_topo.callbacks.alarm import TopologicalAlarm
from lightning_topo.callbacks.bi_lipschitz_monitor import BiLipschitzMonitor
from lightning_topo.callbacks.learning_rate_finder import TopologicalLearningRateFinder
from lightning_topo.callbacks.persistence_monitor import PersistenceMonitor
from lightning_topo.callbacks.rate_control import TopologicalRateControl
from lightning_topo.callbacks.report import report
from lightning_topo.callbacks.sharpness_monitor import SharpnessMonitor
from lightning_topo.callbacks.step_clipping import TopologicalStepClipping

__all__ = [
    "BiLipschitzMonitor",
    "BiLipschitzRecord",
    "ClippingRecord",
    "CloneCertificate",
    "ControlRecord",
    "PersistenceMonitor",
    "PersistenceRecord",
    "SharpnessMonitor",
    "SharpnessRecord",
    "TopologicalAlarm",
    "TopologicalLearningRateFinder",
    "TopologicalRateControl",
    "TopologicalStepClipping",
    "report",
]
