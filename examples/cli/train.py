"""Training from the command line with LightningCLI: the callbacks are named in a YAML file, by their class names.

python examples/cli/train.py fit --config examples/cli/config.yaml

"""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo  # noqa: F401  # with this the YAML file can name our callbacks by their class names alone


class Classifier(LightningModule):
    """A perceptron on points of two interlocked half circles."""

    def __init__(self, width: int = 64, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        angle, y = torch.pi * torch.rand(512, generator=generator), torch.arange(512) % 2
        half = torch.stack([angle.cos(), angle.sin()], dim=1)
        x = torch.where(y[:, None] == 1, torch.tensor([1.0, 0.5]) - half, half)
        return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)


if __name__ == "__main__":
    LightningCLI(Classifier, save_config_callback=None)
