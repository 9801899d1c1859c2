"""Fits on a device without float64, with groups that are spread over two devices, and with models that are moved."""

import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt

from ..second_device import on_a_device_without_double
from .conftest import Classifier, loader

HOST = torch.device("cpu")
# Of the six layers that have parameters or none: where each lies, and so two groups of which one is spread.
LAYERS = range(7)


class Placed(pl.Callback):
    """Puts the layers of a network on their devices at the start of an epoch, and its input on that of the first."""

    def __init__(self, devices, epoch=0):
        self.devices, self.epoch = devices, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            for layer, device in zip(pl_module.net, self.devices, strict=True):
                layer.to(device)
            for parameter, state in trainer.optimizers[0].state.items():
                state["momentum_buffer"] = state["momentum_buffer"].to(parameter.device)

    def on_train_end(self, trainer, pl_module):
        self.seen = {parameter.device for parameter in pl_module.parameters()}


class Spread(Classifier):
    """Hands what it computes from device to device, as pipelines do."""

    def forward(self, x):
        for layer in self.net:
            at = next(layer.parameters(), x).device
            x = layer(x.to(at))
        return x.cpu()


def fit(callbacks, first=()):
    torch.manual_seed(0)
    module = Spread(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[*first, *callbacks],
    )
    torch.manual_seed(1)
    trainer.fit(module, loader(n=48))
    return module


def measured():
    return (
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4, figures=False),
        lt.TopologicalStepClipping(max_criticality=0.05),
    )


def figures(callbacks):
    bi_lipschitz, topology, _ = callbacks
    return (
        {(r.group, r.step): (r.criticality, r.lower, r.upper) for r in bi_lipschitz.history},
        {(r.group, r.step): r.betti for r in topology.history},
    )


def same_as_on_the_host(placed):
    on_host, elsewhere = measured(), measured()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as where tensors of two devices are of one class
    plain, module = fit(on_host), fit(elsewhere, [placed])
    assert placed.seen == set(placed.devices)
    (constants, betti), (other_constants, other_betti) = figures(on_host), figures(elsewhere)
    assert constants.keys() == other_constants.keys()
    assert len(constants) == 2 * 18
    for key, values in constants.items():
        assert other_constants[key] == pytest.approx(values, rel=1e-5), key
    assert betti == other_betti
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter.detach().cpu(), plain.get_parameter(name).detach(), rtol=1e-5, atol=1e-7)


@on_a_device_without_double
def test_all_of_a_network_on_it(device):
    same_as_on_the_host(Placed([device] * 7))


@on_a_device_without_double
def test_groups_that_are_spread_over_it_and_the_host(device):
    same_as_on_the_host(Placed([device] * 4 + [HOST] * 3))


@on_a_device_without_double
def test_a_network_that_is_moved_in_the_fit(device):
    same_as_on_the_host(Placed([device] * 7, epoch=1))


@on_a_device_without_double
def test_control_and_finder(device):
    """The same search on both; the control, whose window ends where the model is moved, goes on."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    results = []
    for placed in ([], [Placed([device] * 4 + [HOST] * 3)]):
        finder = lt.TopologicalLearningRateFinder(hold_steps=5, safety=0.25, update_attr=False)
        fit([*placed, finder])
        results.append(finder.result.critical_lr)
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    control = lt.TopologicalRateControl(every_n_train_steps=3)
    fit([Placed([device] * 7, epoch=1), control])
    assert [record.step for record in control.history] == list(range(18))
    assert len({record.critical_lr for record in control.history[7:]}) > 2  # measured after the move as well
