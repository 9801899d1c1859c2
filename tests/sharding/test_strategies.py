"""What a strategy does with parameters and optimizers, told by its class."""

import pytest
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from lightning_topo.sharding import hides_optimizer_steps, hides_parameters, require_whole_updates, shards_parameters


class DeepSpeedStrategy:
    """Stands for Lightning's class of the name, which needs a library that is not here."""

    def __init__(self, stage):
        self.zero_stage_3 = stage == 3


STRATEGIES = [
    (SingleDeviceStrategy(), False, False, False), (DDPStrategy(), False, False, False),
    (FSDPStrategy(), True, False, False), (ModelParallelStrategy(), True, False, False),
    (DeepSpeedStrategy(2), False, True, False), (DeepSpeedStrategy(3), True, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "shards", "hides_steps", "hides"), STRATEGIES)
def test_strategies(strategy, shards, hides_steps, hides):
    assert shards_parameters(strategy) is shards
    assert hides_optimizer_steps(strategy) is hides_steps
    assert hides_parameters(strategy) is hides
    if shards or hides_steps:
        with pytest.raises(TypeError, match=f"got {type(strategy).__name__}, which .*; use DDP"):
            require_whole_updates(strategy, "use DDP")
    else:
        require_whole_updates(strategy, "use DDP")
