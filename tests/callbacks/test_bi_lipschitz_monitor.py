"""BiLipschitzMonitor: its numbers against weights that another callback kept."""

import math
import warnings

import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt
from lightning_topo.functional import bi_lipschitz

from .conftest import Clock


class KeepWeights(pl.Callback):
    """The weights after each batch, and before the first."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self._keep(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self._keep(pl_module)

    def _keep(self, module):
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})


def points_of_first_layer(state):
    return torch.cat(
        [
            state["net.0.weight"],
            state["net.0.bias"][:, None],
            state["net.1.weight"][:, None],
            state["net.1.bias"][:, None],
            state["net.4.weight"].T,
        ],
        dim=1,
    )


def test_records_are_the_constants_of_each_update(classifier, trainer, data):
    keep, monitor = KeepWeights(), lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor, keep]).fit(classifier(), data())
    records = [record for record in monitor.history if record.group == "net.0"]
    assert len(records) == 24
    for step, record in enumerate(records):
        before, after = (points_of_first_layer(state) for state in keep.states[step : step + 2])
        expected = bi_lipschitz(before, after)
        assert record.step == step
        assert (record.lower, record.upper, record.criticality) == pytest.approx(
            (expected.lower, expected.upper, expected.criticality), rel=1e-9
        )
        assert record.critical_lr == pytest.approx(0.1 / expected.criticality)
        assert record.learning_rate == 0.1


def test_every_logger_gets_the_keys_of_the_design(classifier, trainer, data, recorder):
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    made = trainer([monitor], logger=[recorder])
    made.fit(classifier(), data())
    for group in ("net.0", "net.4"):
        for field in ("lower", "upper", "distortion", "criticality", "critical_lr", "learning_rate"):
            series = recorder.series(f"bilipschitz.{group}.{field}")
            assert [step for step, _ in series] == list(range(24)), (group, field)
            assert [v for _, v in series] == [getattr(r, field) for r in monitor.history if r.group == group]
    overall = dict(recorder.series("bilipschitz.criticality"))
    for step, value in overall.items():
        assert value == max(r.criticality for r in monitor.history if r.step == step)
    rates = dict(recorder.series("bilipschitz.critical_lr"))
    assert rates[5] == min(r.critical_lr for r in monitor.history if r.step == 5)
    assert recorder.series("bilipschitz.coverage")[-1] == (23, 1.0)
    assert made.callback_metrics["bilipschitz/criticality"].item() == pytest.approx(overall[23])


def test_learning_rate_is_that_of_the_update(classifier, trainer, data):
    def schedule(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        halving = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halving, "interval": "step"}}

    monitor = lt.BiLipschitzMonitor(groups="net.0", max_overhead=None)
    trainer([monitor], max_epochs=1).fit(classifier(schedule), data())
    assert [record.learning_rate for record in monitor.history] == [0.5**k for k in range(12)]


def test_learning_rate_is_the_largest_that_moves_the_group(classifier, trainer, data):
    def groups(module):
        return torch.optim.SGD(
            [{"params": module.net[:4].parameters(), "lr": 0.1}, {"params": module.net[4:].parameters(), "lr": 0.3}]
        )

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor], max_steps=1).fit(classifier(groups), data())
    assert {r.group: r.learning_rate for r in monitor.history} == {"net.0": 0.3, "net.4": 0.3}


def test_every_nth_optimizer_step(classifier, trainer, data):
    monitor = lt.BiLipschitzMonitor(groups="net.0", every_n_train_steps=2, max_overhead=None)
    made = trainer([monitor], accumulate_grad_batches=3)
    made.fit(classifier(), data())
    assert made.global_step == 8
    assert [record.step for record in monitor.history] == [0, 2, 4, 6]


def test_a_huge_rate_breaks_updates(classifier, trainer, data, recorder):
    def reckless(module):
        return torch.optim.SGD(module.parameters(), lr=100.0)

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor], logger=[recorder], max_epochs=1).fit(classifier(reckless), data())
    broken = sum(
        any(r.criticality >= 1 for r in monitor.history if r.step == step) for step in {r.step for r in monitor.history}
    )
    assert 0 < broken == monitor.broken_updates
    assert recorder.series("bilipschitz.broken_updates")[-1][1] == broken


def test_sampled_criticality_is_a_lower_bound(trainer, data, classifier):
    full = lt.BiLipschitzMonitor(groups="net.0", max_neurons=None, max_overhead=None)
    part = lt.BiLipschitzMonitor(groups="net.0", max_neurons=6, max_overhead=None)
    trainer([full, part]).fit(classifier(), data())
    assert all(a.criticality <= b.criticality for a, b in zip(part.history, full.history, strict=True))
    assert any(a.criticality == b.criticality for a, b in zip(part.history, full.history, strict=True))


def untimed(**options):
    """A monitor of a limited budget that is never used up, and the clock to list before it."""
    clock, monitor = Clock(), lt.BiLipschitzMonitor(max_overhead=1.0, **options)
    monitor._budget._clock = clock
    return clock, monitor


def test_without_a_limit_all_groups_of_a_large_model_are_measured(classifier, trainer, data, recorder, monkeypatch):
    monkeypatch.setattr("lightning_topo.callbacks._turns.SECONDS_PER_TURN", 0.0)
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor], logger=[recorder], max_epochs=1).fit(classifier(), data())
    assert [(r.step, r.group) for r in monitor.history] == [(k, name) for k in range(12) for name in ("net.0", "net.4")]
    assert recorder.series("bilipschitz.coverage")[-1] == (11, 1.0)


def test_groups_of_a_large_model_take_turns(classifier, trainer, data, recorder, monkeypatch):
    monkeypatch.setattr("lightning_topo.callbacks._turns.SECONDS_PER_TURN", 0.0)
    clock, monitor = untimed()
    trainer([clock, monitor], logger=[recorder]).fit(classifier(), data())
    assert [record.group for record in monitor.history] == ["net.0", "net.4"] * 12
    assert [record.step for record in monitor.history] == list(range(24))
    # Over all groups: the latest value of each, also of the one whose turn it was not.
    overall = dict(recorder.series("bilipschitz.criticality"))
    assert overall[0] == monitor.history[0].criticality
    for step in range(1, 24):
        assert overall[step] == max(record.criticality for record in monitor.history[step - 1 : step + 1])


def test_turns_are_those_of_the_optimizer(classifier, trainer, data, monkeypatch):
    """Only the second group is trained: no update is wasted on the turn of the first."""
    monkeypatch.setattr("lightning_topo.callbacks._turns.SECONDS_PER_TURN", 0.0)
    groups = [lt.NeuronGroup(name, (lt.Member(f"{name}.bias"),)) for name in ("net.0", "net.6")]
    monkeypatch.setattr("lightning_topo.callbacks._found_groups.select_groups", lambda *args: tuple(groups))
    clock, monitor = untimed(groups=groups)
    module = classifier(lambda m: torch.optim.SGD(m.net[6].parameters(), lr=0.1))
    trainer([clock, monitor], max_epochs=1).fit(module, data())
    assert [(record.step, record.group) for record in monitor.history] == [(step, "net.6") for step in range(12)]


def test_over_budget_measurements_are_left_out_and_counted(classifier, trainer, data, recorder):
    monitor = lt.BiLipschitzMonitor(max_overhead=1e-9)
    trainer([monitor], logger=[recorder]).fit(classifier(), data())
    steps = {record.step for record in monitor.history}
    assert steps <= {0}  # where nothing has been felt to take time by then
    assert monitor.state_dict()["made"] == len(steps)
    assert monitor.state_dict()["due"] == 24


def test_resuming_continues_the_counts(classifier, trainer, data, tmp_path, weights_only):
    def reckless(module):
        return torch.optim.SGD(module.parameters(), lr=100.0)

    first = lt.BiLipschitzMonitor(max_overhead=None)
    made = trainer([first], max_epochs=1)
    made.fit(classifier(reckless), data())
    made.save_checkpoint(tmp_path / "a.ckpt")
    second = lt.BiLipschitzMonitor(max_overhead=None)
    resumed = trainer([second], max_epochs=2)
    resumed.fit(classifier(reckless), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert second.state_dict()["updates"] == [24]
    assert second.broken_updates >= first.broken_updates > 0
    assert min(record.step for record in second.history) == 12


def test_a_fresh_fit_counts_anew(classifier, trainer, data):
    def reckless(module):
        return torch.optim.SGD(module.parameters(), lr=100.0)

    monitor = lt.BiLipschitzMonitor(groups="net.0", every_n_train_steps=50, max_overhead=None)
    for count in (1, 2):
        trainer([monitor], max_epochs=1).fit(classifier(reckless), data())
        assert [record.step for record in monitor.history] == [0] * count
        state = monitor.state_dict()
        assert {k: v for k, v in state.items() if k not in ("last", "tally")} == {
            "due": 1, "made": 1, "updates": [12], "broken_updates": 1, "measured_updates": 1
        }  # fmt: skip
        assert state["tally"]["net.0"][:2] == [1, 1]


def test_a_fit_that_goes_on_counts_on(classifier, trainer, data):
    monitor = lt.BiLipschitzMonitor(groups="net.0", every_n_train_steps=8, max_overhead=None)
    made, module = trainer([monitor], max_epochs=1), classifier()
    made.fit(module, data())
    made.fit_loop.max_epochs = 2
    made.fit(module, data())
    assert [record.step for record in monitor.history] == [0, 8, 16]
    assert monitor.state_dict()["updates"] == [24]


def test_nothing_of_a_fit_that_failed_is_logged_in_the_next(classifier, trainer, data, recorder):
    class Fails(pl.Callback):
        def on_train_batch_end(self, *args):
            raise OSError("no room on the disk")

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    with pytest.raises(OSError, match="no room"):
        trainer([Fails(), monitor]).fit(classifier(), data())
    smaller = classifier()
    smaller.net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    trainer([monitor], logger=[recorder], max_epochs=1).fit(smaller, data())
    assert recorder.series("bilipschitz.net.0.criticality")
    assert not recorder.series("bilipschitz.net.4.criticality")


def test_hooks_are_gone_after_an_exception(classifier, trainer, data):
    class Fails(type(classifier())):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt("stop")

    torch.manual_seed(0)
    made = trainer([lt.BiLipschitzMonitor(max_overhead=None)])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        made.fit(Fails(), data())
    assert [len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in made.optimizers] == [0]


def test_diverged_run_warns_once_and_goes_on(classifier, trainer, data, recorder):
    def explosive(module):
        return torch.optim.SGD(module.parameters(), lr=1e30)

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    made = trainer([monitor], logger=[recorder])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(classifier(explosive), data())
    ours = [str(w.message) for w in caught if "diverged" in str(w.message)]
    assert len(ours) == len(set(ours)) <= 2
    assert ours
    assert made.global_step == 24
    ours = [value for _, row in recorder.rows for key, value in row.items() if key.startswith("bilipschitz")]
    assert all(map(math.isfinite, ours))


def test_skipped_updates_are_not_counted(classifier, trainer, data):
    """An optimizer that leaves the weights alone, as a gradient scaler inside it does."""

    class Skipping(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls % 2:
                return closure()
            return super().step(closure)

    monitor = lt.BiLipschitzMonitor(groups="net.0", max_overhead=None)
    trainer([monitor], max_epochs=1).fit(classifier(lambda m: Skipping(m.parameters(), lr=0.1)), data())
    assert [record.step for record in monitor.history] == list(range(1, 12, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_neurons": 1}, "max_neurons must be an integer of at least 2"),
        ({"max_neurons": 2.5}, "max_neurons"),
        ({"every_n_train_steps": 0}, "every_n_train_steps must be an integer of at least 1"),
        ({"every_n_train_steps": -3}, "every_n_train_steps"),
        ({"max_overhead": 0}, "max_overhead is a share"),
        ({"max_overhead": -0.1}, "max_overhead"),
        ({"max_overhead": 2.0}, "max_overhead"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lt.BiLipschitzMonitor(**options)


def test_two_monitors_of_different_options_live_together(classifier, trainer, data):
    monitors = [lt.BiLipschitzMonitor(groups=g, max_overhead=None) for g in ("net.0", "net.4")]
    trainer(monitors, max_epochs=1).fit(classifier(), data())
    assert [{r.group for r in m.history} for m in monitors] == [{"net.0"}, {"net.4"}]
