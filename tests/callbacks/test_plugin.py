"""The entry points that put the monitors into every Trainer, when the environment says so."""

from importlib.metadata import entry_points

import pytest

import lightning_topo as lt
from lightning_topo.callbacks.plugin import callbacks_from_environment

MONITORS = (lt.BiLipschitzMonitor, lt.PersistenceMonitor, lt.SharpnessMonitor)


def ours(trainer):
    return [callback for callback in trainer.callbacks if isinstance(callback, MONITORS)]


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("LIGHTNING_TOPO", raising=False)


@pytest.mark.parametrize("group", ["pytorch_lightning.callbacks_factory", "lightning.pytorch.callbacks_factory"])
def test_registered_under_both_names(group):
    found = [point for point in entry_points(group=group) if point.name == "lightning_topo"]
    assert [point.load() for point in found] == [callbacks_from_environment]


@pytest.mark.parametrize("value", [None, "", "0", "off"])
def test_nothing_is_added_unless_asked(value, trainer, monkeypatch):
    if value is not None:
        monkeypatch.setenv("LIGHTNING_TOPO", value)
    assert ours(trainer()) == []


def test_all_are_added(trainer, monkeypatch):
    monkeypatch.setenv("LIGHTNING_TOPO", "1")
    assert [type(callback) for callback in ours(trainer())] == list(MONITORS)


def test_a_list_chooses(trainer, monkeypatch):
    monkeypatch.setenv("LIGHTNING_TOPO", "sharpness, bilipschitz")
    assert [type(callback) for callback in ours(trainer())] == [lt.SharpnessMonitor, lt.BiLipschitzMonitor]


def test_what_changes_training_is_added_by_name(classifier, trainer, data, monkeypatch):
    monkeypatch.setenv("LIGHTNING_TOPO", "control,clipping")
    made = trainer(max_epochs=1)
    control, clipping = (
        callback
        for callback in made.callbacks
        if isinstance(callback, (lt.TopologicalRateControl, lt.TopologicalStepClipping))
    )
    made.fit(classifier(), data())
    assert control.state_dict()["controllers"][0]["updates"] == clipping.updates == 12
    mine = lt.TopologicalStepClipping(0.5)
    made = trainer([mine], max_epochs=1)
    made.fit(classifier(), data())
    assert mine.updates == 12
    assert [c.updates for c in made.callbacks if isinstance(c, lt.TopologicalStepClipping) and c is not mine] == [0]


def test_finder_from_the_environment(classifier, trainer, data, monkeypatch):
    """It sets the optimizer's rate, though the model keeps none in an attribute; the user's own goes first."""
    monkeypatch.setenv("LIGHTNING_TOPO", "finder")
    made = trainer(max_epochs=1)
    (search,) = [c for c in made.callbacks if isinstance(c, lt.TopologicalLearningRateFinder)]
    made.fit(classifier(), data())
    assert search.result.status == "found"
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(search.optimal_lr)

    mine = lt.TopologicalLearningRateFinder(safety=0.5, update_attr=False)
    made = trainer([mine], max_epochs=1)
    made.fit(classifier(), data())
    results = [c.result for c in made.callbacks if isinstance(c, lt.TopologicalLearningRateFinder)]
    assert len([result for result in results if result is not None]) == 1
    assert mine.result.safety == 0.5


def test_the_other_import_name(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch")
    monkeypatch.setenv("LIGHTNING_TOPO", "bilipschitz")
    made = lightning.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path)
    assert [type(callback) for callback in ours(made)] == [lt.BiLipschitzMonitor]


def test_a_monitor_of_the_user_is_not_doubled(classifier, trainer, data, monkeypatch, recorder):
    monkeypatch.setenv("LIGHTNING_TOPO", "bilipschitz")
    mine = lt.BiLipschitzMonitor(max_overhead=None)
    made = trainer([mine], logger=[recorder])
    made.fit(classifier(), data())
    (added,) = [callback for callback in ours(made) if callback is not mine]
    assert added.history == []
    assert len(mine.history) == 2 * 24
    assert len(recorder.series("bilipschitz.criticality")) == 24


def test_an_added_monitor_measures_and_resumes(classifier, trainer, data, monkeypatch, tmp_path, weights_only):
    monkeypatch.setenv("LIGHTNING_TOPO", "bilipschitz,persistence")
    made = trainer(max_epochs=1)
    for callback in ours(made):  # the run is too short for its neurons' topology to be measured at the default
        callback.max_overhead = callback._budget.max_overhead = None
    made.fit(classifier(), data())
    assert all(callback.history for callback in ours(made))
    made.save_checkpoint(tmp_path / "a.ckpt")
    resumed = trainer(max_epochs=2)
    ours(resumed)[1].max_overhead = ours(resumed)[1]._budget.max_overhead = None
    resumed.fit(classifier(), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert ours(resumed)[0].state_dict()["updates"] == [24]


def test_a_model_without_neurons_still_trains(classifier, trainer, data, monkeypatch):
    import torch

    module = classifier()
    module.net = torch.nn.Linear(6, 3)
    monkeypatch.setenv("LIGHTNING_TOPO", "bilipschitz")
    made = trainer(max_epochs=1)
    with pytest.warns(UserWarning, match="found no group"):
        made.fit(module, data())
    assert made.global_step == 12


def test_an_unknown_monitor_is_an_error(monkeypatch):
    monkeypatch.setenv("LIGHTNING_TOPO", "betti")
    with pytest.raises(
        ValueError, match="bilipschitz, persistence, sharpness, control, clipping, finder; but got 'betti'"
    ):
        callbacks_from_environment()
