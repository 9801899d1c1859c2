"""Torchmetrics classes over the functions of ``lightning_topo.functional``."""

from lightning_topo.metrics.betti_numbers import BettiNumbers
from lightning_topo.metrics.bi_lipschitz_distortion import BiLipschitzDistortion
from lightning_topo.metrics.bottleneck_distance import BottleneckDistance
from lightning_topo.metrics.persistence_entropy import PersistenceEntropy
from lightning_topo.metrics.total_persistence import TotalPersistence

__all__ = ["BettiNumbers", "BiLipschitzDistortion", "BottleneckDistance", "PersistenceEntropy", "TotalPersistence"]
