"""What users get wrong, and models and runs that have little to measure."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import lightning_topo as lt

MONITORS = [lt.BiLipschitzMonitor, lt.PersistenceMonitor]


def fit(trainer, module, data, monitors, **options):
    made = trainer(monitors, max_epochs=1, **options)
    made.fit(module, data())
    return made


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("groups", ["encoder.*", ["net.0", "nett.4"]])
def test_unknown_group_names_list_the_known_ones(monitor, groups, classifier, trainer, data):
    with pytest.raises(ValueError, match=r"(?s)net\.0.*net\.4"):
        fit(trainer, classifier(), data, [monitor(groups=groups)])


@pytest.mark.parametrize("monitor", MONITORS)
def test_a_group_that_is_not_exchangeable_is_refused(monitor, classifier, trainer, data):
    forgotten = lt.NeuronGroup("mine", (lt.Member("net.0.weight"), lt.Member("net.0.bias")))
    with pytest.raises(ValueError, match=r"net\.0\.weight"):
        fit(trainer, classifier(), data, [monitor(groups=[forgotten])])


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize(
    ("member", "message"), [(lt.Member("net.0.wieght"), r"net\.0\.weight"), (lt.Member("net.0.bias", axis=1), "axis 1")]
)
def test_a_member_that_names_nothing(monitor, member, message, classifier, trainer, data):
    group = lt.NeuronGroup("mine", (lt.Member("net.0.weight"), member))
    with pytest.raises(ValueError, match=message):
        fit(trainer, classifier(), data, [monitor(groups=[group])])


@pytest.mark.parametrize("monitor", MONITORS)
def test_a_model_without_groups_warns_once_and_trains(monitor, classifier, trainer, data):
    module = classifier()
    module.net = nn.Linear(6, 3)
    callback = monitor(max_overhead=None)
    with pytest.warns(UserWarning, match="found no group") as caught:
        made = fit(trainer, module, data, [callback])
    assert len([w for w in caught if "found no group" in str(w.message)]) == 1
    assert (made.global_step, callback.history) == (12, [])


def strange(classifier, needs_trainer):
    """A module whose ``forward`` does not run, and whose training step may ask for the Trainer."""

    class Strange(type(classifier())):
        def forward(self, x, missing):
            raise NotImplementedError

        def loss(self, batch):
            assert not needs_trainer or self.trainer.training
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    torch.manual_seed(0)
    return Strange()


@pytest.mark.parametrize("monitor", MONITORS)
def test_a_forward_that_does_not_run_warns_and_trains(monitor, classifier, trainer, data):
    callback = monitor(max_overhead=None)
    with pytest.warns(UserWarning, match="example_input"):
        made = fit(trainer, strange(classifier, needs_trainer=True), data, [callback])
    assert (made.global_step, callback.history) == (12, [])


@pytest.mark.parametrize("monitor", MONITORS)
def test_the_training_step_stands_in_for_a_forward_that_does_not_run(monitor, classifier, trainer, data):
    callback, usual = monitor(max_overhead=None), monitor(max_overhead=None)
    fit(trainer, strange(classifier, needs_trainer=False), data, [callback])
    fit(trainer, classifier(), data, [usual])
    assert {record.group for record in callback.history} == {record.group for record in usual.history} != set()


@pytest.mark.parametrize("monitor", MONITORS)
def test_groups_by_hand_of_a_model_that_cannot_be_tried(monitor, classifier, trainer, data):
    group = lt.NeuronGroup(
        "mine", (lt.Member("net.4.weight"), lt.Member("net.4.bias"), lt.Member("net.6.weight", axis=1))
    )
    callback = monitor(groups=[group], max_overhead=None)
    with pytest.warns(UserWarning, match=r"as they are given, untested.*forward"):
        fit(trainer, strange(classifier, needs_trainer=True), data, [callback])
    assert {record.group for record in callback.history} == {"mine"}


@pytest.mark.parametrize("monitor", MONITORS)
def test_names_of_groups_need_a_model_that_can_be_tried(monitor, classifier, trainer, data):
    with pytest.raises(ValueError, match="does not run through Strange"):
        fit(trainer, strange(classifier, needs_trainer=True), data, [monitor(groups="net.*")])


def test_groups_of_one_neuron_have_no_constants(classifier, trainer, data, recorder):
    module = classifier()
    module.net = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3))
    group = lt.NeuronGroup(
        "one", (lt.Member("net.0.weight"), lt.Member("net.0.bias"), lt.Member("net.2.weight", axis=1))
    )
    bi_lipschitz = lt.BiLipschitzMonitor(groups=[group], max_overhead=None)
    topology = lt.PersistenceMonitor(groups=[group], max_overhead=None, every_n_train_steps=4)
    fit(trainer, module, data, [bi_lipschitz, topology], logger=[recorder])
    assert all(math.isnan(record.criticality) for record in bi_lipschitz.history)
    assert topology.history[-1].betti == (1, 0, 0)
    assert not recorder.series("bilipschitz.one.criticality")


def test_identical_neurons_stay_identical(classifier, trainer, data):
    module = classifier()
    module.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for parameter, axis in ((module.net[0].weight, 0), (module.net[0].bias, 0), (module.net[2].weight, 1)):
            parameter.index_copy_(axis, torch.tensor([3]), parameter.index_select(axis, torch.tensor([1])))
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    fit(trainer, module, data, [monitor])
    assert all(record.n_unresolved == 1 and record.criticality > 0 for record in monitor.history)


def test_dead_neurons_do_not_move(classifier, trainer, data):
    module = classifier()
    module.net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        module.net[0].bias[:3] = -100.0
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    fit(trainer, module, data, [monitor])
    assert all(record.lower <= 1 <= record.upper and record.criticality > 0 for record in monitor.history)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite(value, classifier, trainer, data):
    class Breaks(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 5:
                with torch.no_grad():
                    pl_module.net[6].weight[0, 0] = value

    monitors = [monitor(max_overhead=None) for monitor in MONITORS]
    monitors[1].every_n_train_steps = 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = fit(trainer, classifier(), data, [Breaks(), *monitors])
    messages = [str(w.message) for w in caught if "NaN or infinite" in str(w.message)]
    assert made.global_step == 12
    assert len(messages) == len(set(messages))
    assert {m.split()[2] for m in messages} >= {"net.4"}
    assert monitors[0].history[-1].step >= 5


def test_no_logger(classifier, trainer, data):
    monitors = [
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None),
        lt.SharpnessMonitor(max_overhead=None),
    ]
    made = fit(trainer, classifier(), data, monitors, logger=False)
    assert all(monitor.history for monitor in monitors)
    assert "bilipschitz/criticality" in made.callback_metrics


def test_fast_dev_run(classifier, trainer, data):
    monitors = [
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None),
        lt.SharpnessMonitor(max_overhead=None),
    ]
    made = trainer(monitors, fast_dev_run=True)
    made.fit(classifier(), data())
    assert all(monitor.history for monitor in monitors)


def test_early_stopping_can_watch_the_metrics(classifier, trainer, data):
    stop = pl.callbacks.EarlyStopping("bilipschitz/broken_updates", mode="min", stopping_threshold=-1, patience=1)
    made = trainer([lt.BiLipschitzMonitor(max_overhead=None), stop], max_epochs=5)
    made.fit(classifier(), data(), data(shuffle=False))
    assert made.current_epoch < 5


def test_callbacks_can_be_pickled_and_cloned():
    import copy
    import pickle

    for monitor in (lt.BiLipschitzMonitor("net.*"), lt.PersistenceMonitor(), lt.SharpnessMonitor()):
        assert pickle.loads(pickle.dumps(monitor)).state_key == monitor.state_key
        assert copy.deepcopy(monitor).state_key == monitor.state_key


class EmptyFirst(torch.utils.data.IterableDataset):
    """Batches of their own size, of which the first is empty."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for size in (0, 8, 8, 8, 5):
            x = torch.randn(size, 6, generator=generator)
            yield x, (x[:, 0] > 0).long()


@pytest.mark.parametrize(
    "make",
    [
        lambda: lt.BiLipschitzMonitor(max_overhead=None),
        lambda: lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1),
        lambda: lt.TopologicalStepClipping(0.01),
        lambda: lt.TopologicalRateControl(),
    ],
)
def test_an_empty_first_batch(make, classifier, trainer):
    class Careful(type(classifier())):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if len(batch[0]) else None

    torch.manual_seed(0)
    module = Careful()
    module.net[1] = nn.Identity()  # BatchNorm refuses an empty batch
    callback = make()
    made = trainer([callback], max_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*training_step. returned .None.")
        made.fit(module, torch.utils.data.DataLoader(EmptyFirst(), batch_size=None))
    assert made.global_step >= 4
    assert callback.history or callback.state_dict()["updates"] == 4
