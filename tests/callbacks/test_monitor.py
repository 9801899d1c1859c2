"""What the monitors have in common."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import SimpleProfiler

import lightning_topo as lt

STEP_HOOKS = {
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step",
}  # fmt: skip


@pytest.mark.parametrize(
    ("monitor", "used"),
    [
        (lt.BiLipschitzMonitor, {"on_train_batch_start", "on_train_batch_end"}),
        (lt.PersistenceMonitor, {"on_train_batch_start", "on_train_batch_end"}),
        (lt.SharpnessMonitor, {"on_train_batch_start", "on_before_backward"}),
    ],
)
def test_lightning_calls_no_empty_hook_of_a_step(monitor, used, classifier, trainer, data):
    profiler = SimpleProfiler()
    trainer([monitor(max_overhead=None)], max_steps=3, profiler=profiler).fit(classifier(), data())
    called = {name.split(".")[-1] for name in profiler.recorded_durations if f"[Callback]{monitor.__name__}" in name}
    assert called & STEP_HOOKS == used


def test_hooks_of_subclasses_and_other_bases_are_called(classifier, trainer, data):
    calls = []

    class Other(pl.Callback):
        def on_before_zero_grad(self, *args):
            calls.append("other base")

    class Own(lt.PersistenceMonitor, Other):
        def on_after_backward(self, *args):
            calls.append("subclass")

    trainer([Own(max_overhead=None)], max_steps=2).fit(classifier(), data())
    assert sorted(calls) == ["other base"] * 2 + ["subclass"] * 2


class Passing(lt.BiLipschitzMonitor):
    def __init__(self, folder="", **options):
        super().__init__(max_overhead=None, **options)


def test_subclasses_may_hand_on_options_that_they_do_not_name(classifier, trainer, data):
    class Further(Passing):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    monitors = [Passing(groups="net.0"), Passing(groups="net.4"), Further(groups="net.0"), Further(groups="net.4")]
    assert len({monitor.state_key for monitor in monitors}) == 4
    assert Passing(groups="net.0").state_key == monitors[0].state_key
    trainer(monitors, max_steps=1).fit(classifier(), data())
    assert [monitor.history[0].group for monitor in monitors] == ["net.0", "net.4"] * 2


def test_keys_of_the_monitors_are_their_options():
    """Checkpoints are read by them."""
    options = "{'every_n_train_steps': 7, 'max_overhead': 0.05}"
    assert lt.SharpnessMonitor(every_n_train_steps=7).state_key == f"SharpnessMonitor{options}"
    options = "{'max_criticality': 0.2, 'groups': None}"
    assert lt.TopologicalStepClipping().state_key == f"TopologicalStepClipping{options}"


@pytest.fixture
def three_steps(classifier):
    """Makes a module with three optimizer steps in each batch."""

    class Manual(type(classifier())):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for _ in range(3):
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

    def make():
        torch.manual_seed(0)
        return Manual()

    return make


@pytest.mark.parametrize(
    ("monitor", "batches"),
    [  # Batches begin at steps 0, 3, ..., 33 and end at 3, 6, ..., 36; from 12 to 15, say, is no further multiple of 4.
        (lt.PersistenceMonitor, [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]),
        (lt.SharpnessMonitor, [0, 2, 3, 4, 6, 7, 8, 10, 11]),
    ],
)
def test_every_nth_step_of_several_in_a_batch(monitor, batches, three_steps, trainer, data):
    callback = monitor(every_n_train_steps=4, max_overhead=None)
    trainer([callback], max_epochs=1).fit(three_steps(), data())
    assert [record.step for record in callback.history if getattr(record, "group", "net.0") == "net.0"] == batches


@pytest.mark.parametrize("monitor", [lt.PersistenceMonitor, lt.SharpnessMonitor])
@pytest.mark.parametrize("n", [7, 8, 12])
def test_resuming_between_multiples(monitor, n, three_steps, trainer, data, tmp_path, weights_only):
    """The checkpoint is of step 36: a multiple of 12, and the end of a batch that reaches one of 7 and none of 8."""

    def fit(epochs, **options):
        callback = monitor(every_n_train_steps=n, max_overhead=None)
        made = trainer([callback], max_epochs=epochs)
        made.fit(three_steps(), data(), **options)
        return made, [record.step for record in callback.history]

    made, _ = fit(1)
    made.save_checkpoint(tmp_path / "a.ckpt")
    _, resumed = fit(2, ckpt_path=tmp_path / "a.ckpt", **weights_only)
    _, whole = fit(2)
    assert resumed == [step for step in whole if step >= 12]
    assert resumed


def test_resuming_amid_accumulation_does_not_measure_twice(classifier, trainer, data, tmp_path, weights_only):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 8:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    def monitors():
        return [kind(every_n_train_steps=2, max_overhead=None) for kind in (lt.PersistenceMonitor, lt.SharpnessMonitor)]

    first, again = monitors(), monitors()
    trainer([*first, Save()], max_epochs=1, accumulate_grad_batches=4).fit(classifier(), data())
    trainer(again, max_epochs=1, accumulate_grad_batches=4).fit(
        classifier(), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only
    )
    # Steps 2 and 3 are those of batches 8 to 11: what is due at 2 has been measured, the end of training has not.
    assert [record.step for record in first[1].history] == [0, 2]
    assert [len(monitor.history) for monitor in again] == [2, 0]


def test_the_groups_of_a_fit_are_public(classifier, trainer, data):
    callbacks = [
        lt.BiLipschitzMonitor(),
        lt.PersistenceMonitor(max_overhead=None),
        lt.TopologicalStepClipping(),
        lt.TopologicalRateControl(),
    ]
    assert [callback.neuron_groups for callback in callbacks] == [()] * 4
    trainer(callbacks, max_steps=2).fit(classifier(), data())
    for callback in callbacks:
        assert [group.name for group in callback.neuron_groups] == ["net.0", "net.4"]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: lt.BiLipschitzMonitor(max_overhead=None, every_n_train_steps=1000), "bilipschitz/criticality"),
        (lambda: lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1000), "topology/net.0/betti_0"),
        (lambda: lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=1000), "sharpness/lambda_max"),
    ],
)
def test_others_know_the_last_figures_after_a_resume(make, key, classifier, trainer, data, tmp_path, weights_only):
    """Nothing is due in what is left of the run, and EarlyStopping looks at the figure all the same."""

    def fit(epochs, **options):
        stop = pl.callbacks.EarlyStopping(key, patience=100, check_on_train_epoch_end=True)
        made = trainer([make(), stop], max_epochs=epochs)
        made.fit(classifier(), data(), **options)
        return made

    made = fit(1)
    made.save_checkpoint(tmp_path / "a.ckpt")
    resumed = fit(2, ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert resumed.global_step == 24
    assert key in resumed.callback_metrics
