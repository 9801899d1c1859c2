"""Watch the neurons of a network that several processes train together.

    python examples/many_processes.py --strategy fsdp2 --accelerator cpu --devices 2
    python examples/many_processes.py --strategy fsdp1 --accelerator cuda --devices 2

Lightning starts the processes. The first one decides when to measure, computes and logs; where the parameters are
sharded (FSDP), the others send the rows of the sampled neurons. ``--strategy one`` trains on the same global batches in
one process: the metrics, which ``--output`` writes as JSON, are the same up to rounding.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import lightning_topo as lt

GLOBAL_BATCH = 32


class Classifier(pl.LightningModule):
    """Two residual blocks between an embedding and a readout."""

    def __init__(self, sharded: bool):
        super().__init__()
        self.sharded = sharded
        self.embed, self.readout = nn.Linear(16, 33), nn.Linear(33, 4)  # 33: the shards are uneven
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(33), nn.Linear(33, 64), nn.GELU(), nn.Linear(64, 33)) for _ in range(2)
        )

    def configure_model(self) -> None:
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            for part in (*self.blocks, self):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.readout(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(rank: int, count: int) -> DataLoader:
    """The same global batches in any number of processes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    data = TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())
    return DataLoader(data, GLOBAL_BATCH // count, sampler=DistributedSampler(data, count, rank, shuffle=False))


def strategy(name: str, devices: int) -> Strategy | str:
    if name == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    return {"one": "auto", "ddp": DDPStrategy(), "fsdp1": FSDPStrategy(auto_wrap_policy={nn.Sequential})}[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", choices=["one", "ddp", "fsdp1", "fsdp2"], default="fsdp2")
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    devices = 1 if options.strategy == "one" else options.devices

    torch.manual_seed(0)
    model = Classifier(sharded=options.strategy == "fsdp2")
    neurons = lt.BiLipschitzMonitor(max_overhead=None)
    topology = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4, figures=False)
    trainer = pl.Trainer(
        strategy=strategy(options.strategy, devices),
        accelerator=options.accelerator,
        devices=devices,
        max_epochs=options.epochs,
        callbacks=[neurons, topology],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader(int(os.environ.get("LOCAL_RANK", 0)), devices))

    # Every process knows the metrics; the first has measured them.
    assert math.isfinite(float(trainer.callback_metrics["bilipschitz/criticality"]))
    assert bool(neurons.history) == bool(topology.history) == trainer.is_global_zero
    if trainer.is_global_zero:
        metrics = {f"{record.step} {record.group} κ": record.criticality for record in neurons.history}
        metrics |= {f"{record.step} {record.group} diameter": record.diameter for record in topology.history}
        for record in neurons.history[-3:]:
            print(f"step {record.step}, {record.group}: κ = {record.criticality:.4f}, η* = {record.critical_lr:.3g}")
        if options.output is not None:
            options.output.write_text(json.dumps(metrics, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
