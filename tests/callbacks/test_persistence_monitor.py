"""PersistenceMonitor: its numbers against the functional layer on weights that the test takes itself."""

import warnings
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt
from lightning_topo.functional import (
    betti_at_scale,
    bottleneck_distance,
    distinct_neurons,
    longest_bar_scale,
    persistence,
    persistence_entropy,
)

from .conftest import Clock


def first_layer(module):
    net = module.net
    scale = [net[1].weight[:, None], net[1].bias[:, None]]
    return torch.cat([net[0].weight, net[0].bias[:, None], *scale, net[4].weight.T], dim=1).detach().clone()


def test_records_before_and_after(classifier, trainer, data):
    module = classifier()
    before = first_layer(module)
    monitor = lt.PersistenceMonitor(groups="net.0", max_overhead=None, every_n_train_steps=10)
    trainer([monitor]).fit(module, data())
    assert [record.step for record in monitor.history] == [0, 9, 19, 24]
    for record, points in ((monitor.history[0], before), (monitor.history[-1], first_layer(module))):
        diagrams = persistence(points, 1)
        assert record.betti == betti_at_scale(points, 0.25, 2)
        assert record.entropy == pytest.approx(persistence_entropy(diagrams))
        assert record.diameter == pytest.approx(diagrams.diameter)
        assert record.covering_radius == 0
    first, last = persistence(before, 1), persistence(first_layer(module), 1)
    drift = bottleneck_distance(first.scaled(1 / first.diameter), last.scaled(1 / last.diameter))
    assert monitor.history[-1].drift == pytest.approx(drift)
    assert monitor.history[0].drift == (0, 0)


def test_certified_numbers_never_exceed_the_true_ones(classifier, trainer, data):
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=1)
    trainer([monitor]).fit(classifier(), data())
    assert monitor.history
    for record in monitor.history:
        assert record.certified_betti
        assert all(c <= b for c, b in zip(record.certified_betti, record.betti, strict=False))
    assert monitor.history[0].certified_betti == monitor.history[0].betti[:2]


def test_distinct_neurons_are_those_of_the_start_and_of_now(classifier, trainer, data):
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.5))
    before = first_layer(module)
    monitor = lt.PersistenceMonitor(groups="net.0", max_overhead=None, every_n_train_steps=10)
    trainer([monitor]).fit(module, data())
    assert [record.distinct for record in monitor.history][:1] == [12]
    assert monitor.history[-1].distinct == distinct_neurons(first_layer(module), before)
    assert all(record.n_compared == 12 for record in monitor.history)


def test_neurons_that_merge_are_counted_live(classifier, trainer, data, recorder):
    class Merge(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            """From the third update on, seven neurons are copies of the first, but for one share in a hundred."""
            if trainer.global_step >= 3:
                net = pl_module.net
                with torch.no_grad():
                    for p in (net[0].weight, net[0].bias, net[1].weight, net[1].bias, net[4].weight.T):
                        p[1:8] = p[0] + 0.001 * (p[1:8] - p[0])

    monitor = lt.PersistenceMonitor(groups="net.0", max_overhead=None, every_n_train_steps=1)
    made = trainer([Merge(), monitor], max_epochs=1, logger=[recorder])
    made.fit(classifier(), data())
    series = recorder.series("topology.net.0.distinct")
    assert [value for _, value in series] == [12] * 3 + [5] * 10
    assert made.callback_metrics["topology/net.0/distinct"] == 5


def test_the_scale_can_be_chosen_at_the_start(classifier, trainer, data, tmp_path, weights_only):
    def monitor():
        return lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=6, scale="auto")

    module = classifier()
    chosen = longest_bar_scale(persistence(first_layer(module), 1))
    first = monitor()
    made = trainer([first], max_epochs=1)
    made.fit(module, data(shuffle=False))
    assert {record.scale for record in first.history if record.group == "net.0"} == {chosen}
    assert len({record.scale for record in first.history}) == 2  # each group has its own
    last = [record for record in first.history if record.group == "net.0"][-1]
    assert last.betti == betti_at_scale(first_layer(module), chosen)
    made.save_checkpoint(tmp_path / "a.ckpt")
    second = monitor()
    trainer([second]).fit(classifier(), data(shuffle=False), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert {record.scale for record in second.history if record.group == "net.0"} == {chosen}


def test_small_groups_are_left_out_unless_they_are_asked_for(classifier, trainer, data, caplog):
    def module():
        made = classifier()
        made.net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 7), torch.nn.Tanh())
        made.net.append(torch.nn.Linear(7, 3))
        return made

    def measured(groups):
        monitor = lt.PersistenceMonitor(groups, max_overhead=None)
        trainer([monitor]).fit(module(), data())
        return {record.group for record in monitor.history}

    with caplog.at_level("INFO"):
        assert measured(None) == {"net.0"}
    said = [r.getMessage() for r in caplog.records if "leaves out groups of fewer than 8 units" in r.getMessage()]
    assert len(said) == 1
    assert "(net.2)" in said[0]
    caplog.clear()
    assert measured("*") == measured(["net.0", "net.2"]) == {"net.0", "net.2"}
    assert "leaves out" not in caplog.text


def test_a_checkpoint_of_an_earlier_version_has_no_distinct_neurons(classifier, trainer, data):
    class Earlier(lt.PersistenceMonitor):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.load_state_dict(saved)  # as Lightning does, after ``setup``

    whole = lt.PersistenceMonitor(groups="net.0", max_overhead=None)
    trainer([whole]).fit(classifier(), data(shuffle=False))
    saved = whole.state_dict()
    for name in ("scale", "nearest", "size"):
        del saved["first"]["net.0"][name]
    saved["measured_at"] = None
    monitor = Earlier(groups="net.0", max_overhead=None, scale=0.4, every_n_train_steps=5)
    trainer([monitor]).fit(classifier(), data(shuffle=False))
    assert monitor.history
    assert all(record.distinct is None and record.scale == 0.4 for record in monitor.history)


def test_samples_of_large_groups_have_a_covering_radius(classifier, trainer, data):
    monitor = lt.PersistenceMonitor(groups="net.0", max_neurons=5, betti_max_neurons=7, max_overhead=None)
    module = classifier()
    trainer([monitor], max_epochs=1).fit(module, data())
    points = first_layer(module).double()
    indices = monitor.state_dict()["first"]["net.0"]["indices"]
    distances = (points[:, None] - points[None, indices]).norm(dim=2)
    assert len(indices) == 5
    assert monitor.history[-1].covering_radius == pytest.approx(distances.min(1).values.max().item(), rel=1e-6)
    assert sum(monitor.history[-1].betti[:1]) <= 7


def test_log_keys(classifier, trainer, data, recorder):
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=10)
    made = trainer([monitor], logger=[recorder])
    made.fit(classifier(), data())
    keys = {key for _, row in recorder.rows for key in row}
    fields = [f"{name}_{k}" for name in ("entropy", "total_persistence", "drift", "certified_betti") for k in (0, 1)]
    fields += ["betti_0", "betti_1", "betti_2", "covering_radius", "diameter"]
    fields += ["distinct", "dormant", "effective_rank"]
    assert {f"topology.{group}.{field}" for group in ("net.0", "net.4") for field in fields} <= keys
    assert "topology.coverage" in keys
    assert "topology/net.0/betti_0" in made.callback_metrics


def test_accumulation_measures_once_a_step(classifier, trainer, data):
    monitor = lt.PersistenceMonitor(groups="net.0", max_overhead=None, every_n_train_steps=2)
    trainer([monitor], accumulate_grad_batches=3).fit(classifier(), data())
    steps = [record.step for record in monitor.history]
    assert len(steps) == len(set(steps)) == 5


def test_tolerance_keeps_diagrams_that_have_hardly_moved(classifier, trainer, data, monkeypatch):
    calls = []
    import lightning_topo.callbacks._snapshot as where

    diagrams = where.persistence_of_distances
    monkeypatch.setattr(where, "persistence_of_distances", lambda *args: calls.append(1) or diagrams(*args))

    def run(tolerance):
        calls.clear()
        monitor = lt.PersistenceMonitor(groups="net.0", max_overhead=None, every_n_train_steps=1, tolerance=tolerance)
        trainer([monitor]).fit(classifier(), data())
        return monitor.history, len(calls)

    exact, n_exact = run(0.0)
    rough, n_rough = run(0.02)
    assert n_exact == 25
    assert 1 < n_rough < 15
    # ½·log(upper/lower) bounds the move of the diagrams in log scale, after rescaling to the best common size.
    for a, b in zip(exact, rough, strict=True):
        assert a.total_persistence[0] / a.diameter == pytest.approx(b.total_persistence[0] / b.diameter, rel=0.5)


def test_resuming_measures_drift_from_the_first_start(classifier, trainer, data, tmp_path, weights_only):
    def monitor():
        return lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=6)

    whole = monitor()
    torch.manual_seed(3)
    trainer([whole]).fit(classifier(), data(shuffle=False))
    first = monitor()
    made = trainer([first], max_epochs=1)
    made.fit(classifier(), data(shuffle=False))
    made.save_checkpoint(tmp_path / "a.ckpt")
    second = monitor()
    trainer([second]).fit(classifier(), data(shuffle=False), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert second.history == [record for record in whole.history if record.step > 12]
    assert second.state_dict()["made"] == whole.state_dict()["made"]
    # A callback that has seen another run goes on from the checkpoint as well.
    trainer([whole]).fit(classifier(), data(shuffle=False), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert whole.history[-len(second.history) :] == second.history
    assert whole.state_dict()["made"] == second.state_dict()["made"]


def test_a_fresh_fit_starts_anew(classifier, trainer, data):
    """Of another model with other layers, under the same names or not, and of fewer steps than are due."""

    def smaller():
        module = classifier()
        module.net = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
        return module

    twice, once = lt.PersistenceMonitor(max_overhead=None), lt.PersistenceMonitor(max_overhead=None)
    torch.manual_seed(0)
    trainer([twice], max_epochs=1).fit(classifier(), data(shuffle=False))
    first = list(twice.history)
    trainer([twice], max_epochs=1).fit(smaller(), data(shuffle=False))
    trainer([once], max_epochs=1).fit(smaller(), data(shuffle=False))
    assert [record.step for record in once.history] == [0, 12]
    assert twice.history == first + once.history
    counts = {"due": 2, "made": 2, "measured_at": 12}
    assert {k: v for k, v in twice.state_dict().items() if k not in ("first", "last")} == counts


def test_a_fit_that_goes_on_keeps_its_start(classifier, trainer, data):
    monitor, whole = (lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=6) for _ in range(2))
    trainer([whole]).fit(classifier(), data(shuffle=False))
    made, module = trainer([monitor], max_epochs=1), classifier()
    made.fit(module, data(shuffle=False))
    made.fit_loop.max_epochs = 2
    made.fit(module, data(shuffle=False))
    assert monitor.history == whole.history


def test_a_checkpoint_of_another_model_is_dropped_with_a_warning(classifier, trainer, data):
    class Restored(lt.PersistenceMonitor):
        def setup(self, trainer, pl_module, stage):
            super().setup(trainer, pl_module, stage)
            self.load_state_dict(saved)  # as Lightning does, after ``setup``

    monitor = Restored(max_overhead=None)
    first = {"indices": torch.arange(5), "points": torch.zeros(5, 3), "diagrams": [], "diameter": 1.0}
    first |= {"betti_indices": torch.arange(5), "n_measured": 3}
    saved = {"due": 1, "made": 1, "measured_at": None, "first": {"net.0": first, "other": first}}
    with pytest.warns(UserWarning, match="does not fit this model"):
        trainer([monitor]).fit(classifier(), data())
    assert len(monitor.history) >= 4


def test_diverged_run_warns_and_goes_on(classifier, trainer, data):
    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=2)
    made = trainer([monitor])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(classifier(lambda m: torch.optim.SGD(m.parameters(), lr=1e30)), data())
    messages = [str(w.message) for w in caught if "diverged" in str(w.message)]
    assert messages
    assert len(messages) == len(set(messages))
    assert made.global_step == 24


def test_identical_and_dead_neurons(classifier, trainer, data):
    def module():
        made = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.fill_(0.5)
        return made

    monitor = lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4)
    bi_lipschitz = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor, bi_lipschitz]).fit(module(), data())
    assert all(record.betti[0] == 1 and record.drift == () for record in monitor.history)
    assert all(record.distinct == 1 for record in monitor.history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_dim": -1}, "max_dim must be an integer of at least 0"),
        ({"max_neurons": 1}, "max_neurons"),
        ({"scale": 0}, r"scale is a share of the diameter"),
        ({"scale": 1.5}, "scale"),
        ({"scale": "automatic"}, r"or 'auto'; but got 'automatic'"),
        ({"betti_max_dim": -1}, "betti_max_dim"),
        ({"betti_max_neurons": 0}, "betti_max_neurons"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"every_n_train_steps": 0}, "every_n_train_steps"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lt.PersistenceMonitor(**options)


def test_groups_that_are_dear_take_turns(classifier, trainer, data):
    """Each takes half a second, and three fifths of a second a batch are allowed."""
    measured = []

    def measure_group(group, trainer, points, step, now=True):
        clock.now += 0.5
        measured.append((trainer.global_step, group.name))
        return {}

    module = classifier()
    widths = [6, 5, 5, 5, 5, 5, 5, 5, 5, 3]
    layers = [(torch.nn.Linear(n, m), torch.nn.Tanh()) for n, m in pairwise(widths)]
    module.net = torch.nn.Sequential(*(part for pair in layers for part in pair))
    clock, monitor = Clock(), lt.PersistenceMonitor("*", max_overhead=1.0, every_n_train_steps=1)
    monitor._measure_group, monitor._budget._clock = measure_group, clock
    trainer([clock, monitor], max_epochs=1).fit(module, data(n=160))
    names = [name for _, name in measured]
    # Those of the start first, at the expense of the run to come.
    assert len(set(names[:8])) == 8
    assert names == (names[:8] * 3)[: len(names)]
    assert len(names) > 16
    assert monitor._budget.spent <= 0.6 * (clock.now - monitor._budget.spent) + 1e-9
