"""The verdict at the end of a fit, from summary() and in a report."""

import copy
import io
import logging
import math
import statistics
import sys

import pytest
import torch
from lightning_utilities.core import rank_zero

import lightning_topo as lt


@pytest.fixture
def spoken(monkeypatch):
    """What is said through Lightning's logger, in the letters of an encoding."""
    logger = rank_zero.log

    def listen(encoding="utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        handler = logging.StreamHandler(stream)
        monkeypatch.setattr(logger, "handlers", [handler])
        monkeypatch.setattr(logger, "propagate", False)
        monkeypatch.setattr(logger, "level", logging.INFO)

        def text():
            stream.flush()
            return stream.buffer.getvalue().decode(encoding)

        return text

    return listen


def test_it_is_said_once_at_the_end(classifier, trainer, data, spoken):
    said = spoken()
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor, lt.BiLipschitzMonitor(groups="net.0", max_overhead=None, verdict=False)]).fit(
        classifier(), data()
    )
    assert said().count("Largest criticality: κ = ") == 1
    assert said().rstrip().endswith(monitor.summary().text)
    assert len(monitor.summary().lines) == 5
    peak = max(monitor.history, key=lambda record: record.criticality)
    assert f"κ = {peak.criticality:.2g} in {peak.group} at step {peak.step}" in monitor.summary().lines[0]
    assert monitor.summary().lines[1].startswith("Updates with κ ≥ 1: 0 of 24 that were measured, of 24 that were made")


def test_terminals_without_greek_letters(classifier, trainer, data, spoken, capsys):
    said = spoken("ascii")
    trainer([lt.BiLipschitzMonitor(max_overhead=None)]).fit(classifier(), data())
    assert "Largest criticality: kappa = " in said()
    assert "u03ba" not in capsys.readouterr().err  # where an error of logging would name the letter; Lightning has some


def test_silence(classifier, trainer, data, spoken):
    said = spoken()
    trainer([lt.BiLipschitzMonitor(max_overhead=None, verdict=False)]).fit(classifier(), data())
    assert "criticality" not in said()


def test_what_the_companions_measured_is_part_of_it(classifier, trainer, data):
    callbacks = [
        lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4, groups="net.*"),
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.TopologicalRateControl(),
    ]
    trainer(callbacks).fit(classifier(), data())
    for monitor in callbacks[:2]:
        largest, _, _, neurons, advice = monitor.summary().lines
        assert largest.startswith("Largest criticality")
        assert neurons.startswith(("Distinct neurons", "Neurons: their diagrams"))
        assert "TopologicalRateControl" in advice


def test_steps_of_a_fit_before_are_not_counted(classifier, trainer, data):
    def reckless(module):
        return torch.optim.SGD(module.parameters(), lr=100.0)

    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor], max_epochs=1).fit(classifier(reckless), data())
    assert "could merge neurons" in monitor.summary().lines[-1]
    trainer([monitor], max_epochs=1).fit(classifier(), data())
    assert "0 of 12 that were measured, of 12" in monitor.summary().lines[1]
    assert float(monitor.summary().lines[0].split("κ = ")[1].split(" ")[0]) < 1
    assert len(monitor.plot().lines[0].get_xdata()) == 12


def test_a_resumed_run_counts_on(classifier, trainer, data, tmp_path, weights_only):
    first = trainer([lt.BiLipschitzMonitor(max_overhead=None)], max_epochs=1)
    first.fit(classifier(), data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    monitor = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([monitor], max_epochs=2).fit(classifier(), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert "0 of 24 that were measured, of 24" in monitor.summary().lines[1]


def test_no_history_says_why(classifier, trainer, data):
    monitor = lt.BiLipschitzMonitor()
    assert str(monitor.summary()).startswith("No update was measured: BiLipschitzMonitor has seen no fit.")
    trainer([monitor], max_steps=0).fit(classifier(), data())
    assert "the fit ended before its first batch" in str(monitor.summary())
    small, module = lt.PersistenceMonitor(max_overhead=None), classifier()
    module.net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    trainer([small], max_epochs=1).fit(module, data())  # says that it leaves out groups of fewer than eight units
    assert small.summary().lines[0] == "No topology was measured: a message said why during the fit."
    rare = lt.BiLipschitzMonitor(max_overhead=1e-9)
    trainer([rare], max_epochs=1).fit(classifier(), data())
    if not rare.history:  # the first measurement may be too short to be felt, and then is made
        assert "more than max_overhead=1e-09 leaves" in str(rare.summary())
    alone = lt.PersistenceMonitor(max_overhead=None, groups="net.*")
    assert alone.summary().lines[0].startswith("No topology was measured: PersistenceMonitor has seen no fit.")
    monitor, rare = lt.BiLipschitzMonitor(max_overhead=None), lt.PersistenceMonitor(max_overhead=1e-9)
    trainer([monitor, rare], max_epochs=1).fit(classifier(), data())
    if not rare.history:
        squeezed, why, _ = monitor.summary().lines[-3:]
        assert squeezed.startswith("Neurons: a single measured update changed distances")
        assert "PersistenceMonitor" not in squeezed
        assert why.startswith("No topology was measured: each would have taken more than max_overhead=1e-09")
    trainer([alone], max_epochs=1).fit(classifier(), data())
    assert alone.summary().lines[-1].startswith("The neurons of no update were compared: add BiLipschitzMonitor()")


def test_of_the_loss_alone(classifier, trainer, data):
    monitor = lt.SharpnessMonitor(every_n_train_steps=3, max_overhead=None)
    assert monitor.summary().lines[0].startswith("No sharpness was measured: SharpnessMonitor has seen no fit.")
    trainer([monitor], max_epochs=1).fit(classifier(), data())
    rates, advice = monitor.summary().lines
    known = [record for record in monitor.history if math.isfinite(record.critical_lr)]
    critical = statistics.median(record.critical_lr for record in known)
    eigenvalue = statistics.median(r.lambda_max for r in monitor.history if not math.isnan(r.lambda_max))
    assert len(known) == 4
    assert f"0.1 beside {critical:.2g} in the median" in rates
    assert f"0 of {len(known)} measured updates were at or above η_c. Largest eigenvalue" in rates
    assert f"λmax = {eigenvalue:.2g} in the median" in rates
    assert advice.startswith("The neurons of no update were compared: add BiLipschitzMonitor()")
    trainer([monitor], max_epochs=1).fit(classifier(), data())
    assert len(monitor.history) > len(monitor.plot().lines[0].get_xdata()) == 4  # those of the last fit


@pytest.mark.filterwarnings("ignore:SharpnessMonitor measured nothing")
def test_no_sharpness_says_why(classifier, trainer, data):
    rare = lt.SharpnessMonitor(max_overhead=1e-9)
    trainer([rare], max_epochs=1).fit(classifier(), data())
    if not rare.history:  # as above
        assert "more than max_overhead=1e-09 leaves" in rare.summary().lines[0]
    beside = lt.BiLipschitzMonitor(max_overhead=None)
    trainer([rare, beside], max_steps=0).fit(classifier(), data())
    assert "No sharpness was measured: the fit ended before a step was due." in beside.summary().lines


def test_a_model_without_groups_says_why(classifier, trainer, data):
    module = classifier()
    module.net = torch.nn.Linear(6, 3)
    monitor = lt.BiLipschitzMonitor()
    with pytest.warns(UserWarning, match="found no group"):
        trainer([monitor], max_epochs=1).fit(module, data())
    assert "no group of exchangeable neurons was found" in str(monitor.summary())


def test_a_verdict_that_fails_ends_no_run(classifier, trainer, data, monkeypatch):
    def fail(*args):
        raise RuntimeError("spoilt")

    monkeypatch.setattr("lightning_topo.callbacks.bi_lipschitz_monitor.speak", fail)
    made = trainer([lt.BiLipschitzMonitor(max_overhead=None)], max_epochs=1)
    with pytest.warns(UserWarning, match="could not say what the fit did to the neurons .RuntimeError: spoilt"):
        made.fit(classifier(), data())
    assert made.global_step == 12


def test_report(classifier, trainer, data, tmp_path):
    callbacks = [
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None, groups="net.*"),
        lt.SharpnessMonitor(max_overhead=None),
    ]
    made = trainer(callbacks, max_epochs=1)
    made.fit(classifier(), data())
    path = lt.report(made, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    for line in callbacks[0].summary().lines:
        assert line in page
    assert (
        "Classifier, 12 optimizer steps; measured by BiLipschitzMonitor, PersistenceMonitor, SharpnessMonitor." in page
    )


def test_report_of_a_trainer_without_our_callbacks(trainer, tmp_path):
    with pytest.raises(ValueError, match="report expects a Trainer that holds callbacks of lightning_topo"):
        lt.report(trainer(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_callbacks_can_be_copied_before_and_after_a_fit(classifier, trainer, data):
    callbacks = [lt.BiLipschitzMonitor(max_overhead=None), lt.TopologicalAlarm(min_coverage=None)]
    trainer(copy.deepcopy(callbacks), max_epochs=1).fit(classifier(), data())
    trainer(callbacks, max_epochs=1).fit(classifier(), data())
    assert str(copy.deepcopy(callbacks[0]).summary()) == str(callbacks[0].summary())


@pytest.mark.skipif(sys.platform == "win32", reason="no such variable there")
def test_plots_need_no_display(classifier, trainer, data, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monitors = [lt.BiLipschitzMonitor(max_overhead=None), lt.PersistenceMonitor(max_overhead=None, groups="net.*")]
    trainer(monitors, max_epochs=1).fit(classifier(), data())
    for monitor in monitors:
        assert monitor.plot()._repr_png_().startswith(b"\x89PNG")
