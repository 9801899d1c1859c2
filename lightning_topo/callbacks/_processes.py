"""What the processes of a run decide together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_topo.sharding import hides_optimizer_steps, hides_parameters, shards_parameters

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of one fit, which measure together: the first decides, computes and logs.

    Attributes:
        lead: Whether this is the first.
        sharded: Whether the parameters are spread over the processes, so that all have to take part in reading them.
        strategy: Lightning's strategy where there are several processes, otherwise None.
    """

    lead: bool = True
    sharded: bool = False
    strategy: Any = None

    @classmethod
    def of(cls, trainer: Any) -> Processes:
        """Those of a Trainer."""
        several = trainer.world_size > 1
        return cls(trainer.is_global_zero, shards_parameters(trainer.strategy), trainer.strategy if several else None)

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.strategy is not None

    @property
    def read(self) -> bool:
        """Whether this process takes part in reading neurons."""
        return self.lead or self.sharded

    def agreed(self, value: Value) -> Value:
        """The first process's value; every process enters."""
        return self.strategy.broadcast(value, src=0) if self.several else value


def hidden_neurons(strategy: Any) -> str | None:
    """Why the neurons cannot be read under this strategy, or None."""
    if hides_parameters(strategy):
        return "under DeepSpeed stage 3, which spreads the parameters over the processes in a way of its own"
    return None


def hidden_updates(strategy: Any) -> str | None:
    """Why the optimizer steps cannot be looked at under this strategy, or None."""
    if hides_optimizer_steps(strategy) and not hides_parameters(strategy):
        return "under DeepSpeed, whose optimizers call no hooks before and after a step"
    return hidden_neurons(strategy)
