"""Models that change in the fit: pruned, grown, parametrised, moved. Measured anew, or one clear warning."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import lightning_topo as lt

from .conftest import Classifier

STEPS = 12


class Changes(pl.Callback):
    """Changes the model at the start of the second epoch."""

    def __init__(self, act):
        self.act = act

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.act(trainer, pl_module)


def pruned(trainer, module):
    for layer in (module.net[0], module.net[4]):
        prune.l1_unstructured(layer, "weight", amount=0.3)


def normalised(trainer, module):
    optimizer, layer = trainer.optimizers[0], module.net[4]
    weight_norm(layer)
    optimizer.add_param_group({"params": list(layer.parametrizations.parameters())})


def grown(trainer, module):
    """Four more neurons in the second hidden layer."""
    for at, layer in ((4, nn.Linear(12, 12)), (6, nn.Linear(12, 3))):
        module.net[at] = layer
        trainer.optimizers[0].add_param_group({"params": list(layer.parameters())})


def deepened(trainer, module):
    """Another hidden layer; what was there stays."""
    added = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8))
    module.net[5] = nn.Sequential(nn.Tanh(), added)
    trainer.optimizers[0].add_param_group({"params": list(added.parameters())})


def doubled(trainer, module):
    module.double()
    module.forward = lambda x: module.net(x.double())


def fit(trainer, classifier, data, act, callbacks):
    torch.manual_seed(1)
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([*callbacks, Changes(act)]).fit(module, data())
    messages = [str(w.message) for w in caught if "Monitor" in str(w.message) or "Clipping" in str(w.message)]
    return module, messages


def steps_of(monitor, group):
    return [record.step for record in monitor.history if record.group == group]


def cloud(module, *members):
    return lt.NeuronGroup("by hand", tuple(lt.Member(name, axis) for name, axis in members)).points(module)


class Kappa(pl.Callback):
    """κ of each update of a cloud, by a loop over pairs of its own."""

    def __init__(self, *members):
        self.members, self.values = members, {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = None
        if all(name in dict(pl_module.named_parameters()) for name, _ in self.members):
            self.before = cloud(pl_module, *self.members).double()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.before is None:
            return
        p, u = self.before, cloud(pl_module, *self.members).double() - self.before
        i, j = torch.triu_indices(len(p), len(p), 1)
        self.values[trainer.global_step - 1] = float(((u[i] - u[j]).norm(dim=1) / (p[i] - p[j]).norm(dim=1)).max())


LAST = ("net.6.weight", 1)
OF_NET_4 = {
    pruned: (("net.4.weight_orig", 0), ("net.4.bias", 0), LAST),
    normalised: (
        ("net.4.parametrizations.weight.original0", 0),
        ("net.4.parametrizations.weight.original1", 0),
        ("net.4.bias", 0),
        LAST,
    ),
    grown: (("net.4.weight", 0), ("net.4.bias", 0), LAST),
    doubled: (("net.4.weight", 0), ("net.4.bias", 0), LAST),
}


@pytest.mark.parametrize("act", list(OF_NET_4))
def test_each_update_is_measured_on_the_model_as_it_is(act, classifier, trainer, data):
    monitor, kappa = lt.BiLipschitzMonitor(max_overhead=None), Kappa(*OF_NET_4[act])
    fit(trainer, classifier, data, act, [kappa, monitor])
    told = {record.step: record.criticality for record in monitor.history if record.group == "net.4"}
    after = range(STEPS, 2 * STEPS)
    assert set(after) <= told.keys()
    assert set(after) <= kappa.values.keys()
    for step in after:
        assert told[step] == pytest.approx(kappa.values[step], rel=1e-4)


@pytest.mark.parametrize("act", list(OF_NET_4))
def test_no_update_of_a_changed_model_exceeds_the_bound(act, classifier, trainer, data):
    clipping, kappa = lt.TopologicalStepClipping(1e-3), Kappa(*OF_NET_4[act])
    fit(trainer, classifier, data, act, [kappa, clipping])
    after = [value for step, value in kappa.values.items() if step >= STEPS]
    assert len(after) == STEPS
    level = 1e-3 / math.sqrt(2)  # of two groups that are both far above the bound
    assert 0.9 * level < max(after) <= level * (1 + 1e-6)


def test_neurons_of_a_layer_that_is_added_are_measured(classifier, trainer, data):
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    topology = lt.PersistenceMonitor("*", max_overhead=None, every_n_train_steps=1)  # the new layer has six units
    clipping = lt.TopologicalStepClipping(1e-3)
    fit(trainer, classifier, data, deepened, [monitor, topology, clipping])
    assert steps_of(monitor, "net.5.1.0") == list(range(STEPS, 2 * STEPS))
    assert min(steps_of(topology, "net.5.1.0")) == STEPS
    assert {r.group for r in clipping.history if r.step == 2 * STEPS - 1} >= {"net.0", "net.4", "net.5.1.0"}


def test_topology_of_pruned_neurons_goes_on_with_one_warning(classifier, trainer, data):
    topology = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=2)
    _, messages = fit(trainer, classifier, data, pruned, [topology])
    assert max(steps_of(topology, "net.4")) == 2 * STEPS - 1
    assert len(messages) == 1
    assert "net.0.weight_orig" in messages[0]
    assert "masks" in messages[0]


def test_topology_of_grown_neurons_counts_drift_anew(classifier, trainer, data):
    topology = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    _, messages = fit(trainer, classifier, data, grown, [topology])
    records = [record for record in topology.history if record.group == "net.4"]
    assert {record.betti[0] for record in records if record.step < STEPS - 1} == {8}
    assert {record.betti[0] for record in records if record.step >= STEPS} == {12}
    first = next(record for record in records if record.betti[0] == 12)
    assert first.drift == (0.0, 0.0)
    assert any("net.4 had 8 neurons" in message for message in messages)


def test_topology_of_parametrised_neurons_and_of_another_precision(classifier, trainer, data):
    for act in (normalised, doubled):
        topology = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1, tolerance=1e-6)
        _, messages = fit(trainer, classifier, data, act, [topology])
        assert max(steps_of(topology, "net.4")) == 2 * STEPS - 1
        assert not any("could not" in message for message in messages)
        assert all(math.isfinite(value) for record in topology.history for value in record.drift)


def test_masks_that_are_made_permanent(classifier, trainer, data):
    pruning = pl.callbacks.ModelPruning("l1_unstructured", amount=0.2, use_lottery_ticket_hypothesis=True)
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    topology = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer([monitor, topology, pruning]).fit(classifier(), data())
    assert steps_of(monitor, "net.0") == list(range(2 * STEPS))
    assert max(steps_of(topology, "net.0")) == 2 * STEPS


def test_training_is_untouched(classifier, trainer, data):
    for act in (pruned, grown, deepened, normalised):
        plain, _ = fit(trainer, classifier, data, act, [])
        watched, _ = fit(trainer, classifier, data, act, [lt.BiLipschitzMonitor(), lt.PersistenceMonitor()])
        for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("monitor", [lt.BiLipschitzMonitor, lt.PersistenceMonitor])
def test_neurons_that_were_asked_for_and_are_gone_are_said_once(monitor, classifier, trainer, data):
    def replaced(trainer, module):
        module.net[4], module.net[6] = nn.Identity(), nn.Linear(12, 3)
        trainer.optimizers[0].add_param_group({"params": list(module.net[6].parameters())})

    callback = monitor(groups="net.4", max_overhead=None)
    _, messages = fit(trainer, classifier, data, replaced, [callback])
    assert max(steps_of(callback, "net.4")) <= STEPS
    assert len(messages) == 1
    assert "model that has changed" in messages[0]


def test_clipping_ends_the_run_where_its_neurons_are_gone(classifier, trainer, data):
    def replaced(trainer, module):
        module.net = nn.Linear(6, 3)
        trainer.optimizers[0].add_param_group({"params": list(module.net.parameters())})

    with pytest.raises(ValueError, match="no group of exchangeable neurons"):
        fit(trainer, classifier, data, replaced, [lt.TopologicalStepClipping()])


def test_a_parameter_replaced_within_a_batch_is_found_again_at_the_next(classifier, trainer, data):
    class Within(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 5:
                weight = self.net[4].weight
                self.net[4].weight = nn.Parameter(weight.detach().clone())
                self.trainer.optimizers[0].add_param_group({"params": [self.net[4].weight]})
            return super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([monitor]).fit(Within(), data())
    assert not any("Monitor" in str(w.message) for w in caught)
    assert steps_of(monitor, "net.4") == [step for step in range(2 * STEPS) if step != 5]


def test_the_seconds_of_discovery_are_told(classifier, trainer, data):
    for make in (lt.BiLipschitzMonitor, lt.PersistenceMonitor):
        monitor = make()
        assert monitor.discovery_seconds == 0
        trainer([monitor], max_epochs=1).fit(classifier(), data())
        assert 0 < monitor.discovery_seconds <= monitor._budget.spent


def test_an_optimizer_that_moves_no_neuron_is_kept_finite(trainer, data):
    class Scaled(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.temperature = nn.Parameter(torch.ones(2))

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            loss = nn.functional.cross_entropy(self(batch[0]) * self.temperature.sum(), batch[1])
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            if batch_idx == 3:
                self.temperature.grad[0] = math.nan
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self):
            sgd = torch.optim.SGD
            return [sgd(self.net.parameters(), lr=0.1), sgd([self.temperature], lr=0.1, momentum=0.9)]

    torch.manual_seed(0)
    module, clipping = Scaled(), lt.TopologicalStepClipping()
    made = trainer([clipping], max_epochs=1)
    with pytest.warns(UserWarning, match="was undone"):
        made.fit(module, data())
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert not torch.equal(module.temperature, torch.ones(2))
    assert bool(made.optimizers[1].state[module.temperature]["momentum_buffer"].isfinite().all())
    assert clipping.updates == STEPS
