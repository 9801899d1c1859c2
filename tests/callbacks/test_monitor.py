"""What the monitors have in common."""

import pytest
import pytorch_lightning as pl
from pytorch_lightning.profilers import SimpleProfiler

import lightning_topo as lt

STEP_HOOKS = {"on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"}


@pytest.mark.parametrize(
    ("monitor", "used"),
    [(lt.BiLipschitzMonitor, set()), (lt.PersistenceMonitor, set()), (lt.SharpnessMonitor, {"on_before_backward"})],
)
def test_lightning_calls_no_empty_hook_of_a_step(monitor, used, classifier, trainer, data):
    profiler = SimpleProfiler()
    trainer([monitor(max_overhead=None)], max_steps=3, profiler=profiler).fit(classifier(), data())
    called = {name.split(".")[-1] for name in profiler.recorded_durations if f"[Callback]{monitor.__name__}" in name}
    assert called & STEP_HOOKS == used
    assert "on_train_batch_end" in called


def test_hooks_of_subclasses_and_other_bases_are_called(classifier, trainer, data):
    calls = []

    class Other(pl.Callback):
        def on_before_zero_grad(self, *args):
            calls.append("other base")

    class Own(lt.PersistenceMonitor, Other):
        def on_after_backward(self, *args):
            calls.append("subclass")

    trainer([Own()], max_steps=2).fit(classifier(), data())
    assert sorted(calls) == ["other base"] * 2 + ["subclass"] * 2
