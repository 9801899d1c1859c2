"""The paper's figure-eight (arXiv 2510.02670): one-to-one updates at a learning rate of 0.0025, not at 0.003.

Neurons p = (w1, w2) of x -> W2·sigmoid(W1·x) start on a figure-eight in the plane; a teacher of the same kind is
learned.
"""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_topo as lt

pytestmark = pytest.mark.slow
N_NEURONS, N_TEACHER, N_SAMPLES = 1024, 128, 3500


class Student(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.hidden, self.readout = nn.Linear(1, N_NEURONS, bias=False), nn.Linear(N_NEURONS, 1, bias=False)
        t = 2 * torch.pi * torch.rand(N_NEURONS)
        with torch.no_grad():
            self.hidden.weight[:, 0] = 0.1 * t.sin() - 2
            self.readout.weight[0] = (2 * t).sin()

    def forward(self, x):
        return self.readout(torch.sigmoid(self.hidden(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def teacher_data():
    x = 2 * torch.randn(N_SAMPLES, 1)
    hidden, readout = torch.randn(N_TEACHER, 1), 0.6 * torch.randn(1, N_TEACHER)
    y = torch.sigmoid(x @ hidden.T) @ readout.T
    return DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)


def largest_criticality(lr, seed, trainer):
    torch.manual_seed(seed)
    data = teacher_data()
    monitor = lt.BiLipschitzMonitor(max_neurons=None, max_overhead=None)
    trainer([monitor], max_epochs=20).fit(Student(lr), data)
    assert len(monitor.history) == 20 * 28
    return max(record.criticality for record in monitor.history)


@pytest.mark.parametrize("seed", range(3))
def test_one_to_one_below_the_critical_rate(seed, trainer):
    assert largest_criticality(0.0025, seed, trainer) < 1


@pytest.mark.parametrize("seed", range(3))
def test_not_one_to_one_above_it(seed, trainer):
    assert largest_criticality(0.003, seed, trainer) > 1
