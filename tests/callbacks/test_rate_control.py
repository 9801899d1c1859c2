"""TopologicalRateControl in every way that a Trainer can be asked to train."""

import logging
import math
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import lightning_topo as lt
from lightning_topo.callbacks.rate_control import TopologicalRateControl

from .conftest import Classifier, RecordingLogger, loader


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


class Watch(pl.Callback):
    """The rates that an optimizer steps at, and those that it shows between steps."""

    def __init__(self):
        self.stepped, self.shown = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.stepped and batch_idx == 0 and trainer.current_epoch == 0:
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(lambda o, *_: self.stepped.append([g["lr"] for g in o.param_groups]))

    def on_train_batch_end(self, trainer, *args):
        self.shown.append([g["lr"] for o in trainer.optimizers for g in o.param_groups])


def fit(trainer, module, control, data=loader, **options):
    pl.seed_everything(1, verbose=False)
    made = trainer([control] if control else [], **options)
    made.fit(module, data())
    return made


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=0.5)


def test_it_learns_whatever_the_rate_was(classifier, trainer):
    losses = []
    for rate in (1e-6, 1e2):
        module = classifier(lambda m, rate=rate: torch.optim.Adam(m.parameters(), lr=rate))
        made = fit(trainer, module, lt.TopologicalRateControl(every_n_train_steps=10), max_epochs=12)
        losses.append(float(made.callback_metrics["train_loss"]))
    assert max(losses) < 0.4


def test_schedulers_and_monitors_see_what_they_always_saw(classifier, trainer, recorder):
    def scheduled(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    shown = []
    for control in (None, lt.TopologicalRateControl()):
        log, watch = RecordingLogger(), Watch()
        callbacks = [*([control] if control else []), watch, pl.callbacks.LearningRateMonitor("step")]
        trainer(callbacks, logger=[log]).fit(classifier(scheduled), loader())
        shown.append((watch.shown, log.series("lr-SGD")))
    assert shown[0] == shown[1]
    (stepped,) = watch.stepped[20]
    assert 0 < stepped != shown[0][0][20][0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
    ],
)
def test_modes(options, classifier, trainer, recorder):
    control, watch = lt.TopologicalRateControl(), Watch()
    made = trainer([control, watch], logger=[recorder], max_epochs=4, **options)
    made.fit(classifier(adam), loader())
    steps = 48 // options.get("accumulate_grad_batches", 1)
    assert made.global_step == steps
    rates = recorder.series("control.learning_rate")
    assert len(rates) >= steps - 1
    assert control.learning_rates == {0: control.history[-1].learning_rate}
    if "accumulate_grad_batches" not in options:  # the first update is scaled after it was made
        assert [rate for _, rate in rates[1:]] == pytest.approx([rate for (rate,) in watch.stepped[1:]], rel=1e-6)
    for name in ("learning_rate", "critical_lr", "share"):
        assert f"control/{name}" in made.callback_metrics
    assert all(0 <= share < 2 for _, share in recorder.series("control.share"))
    assert watch.shown[-1] == [0.5]


def test_several_optimizers_have_a_rate_each(trainer, recorder):
    class Pair(Classifier):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.net[:3].parameters(), lr=7.0),
                torch.optim.Adam(self.net[3:].parameters(), lr=0.2),
            ]

    torch.manual_seed(0)
    charts = []

    class Look(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            charts.append(control.charts())

    control = lt.TopologicalRateControl()
    made = trainer([Look(), control], logger=[recorder])
    made.fit(Pair(), loader())
    assert {"control/optimizer_0/learning_rate", "control/optimizer_1/learning_rate"} <= made.callback_metrics.keys()
    (tags,) = charts[0].values()
    drawn = {f"control/optimizer_{i}/log10_{name}" for i in (0, 1) for name in ("learning_rate", "critical_lr")}
    assert drawn < set(tags)
    first, second = (recorder.series(f"control.optimizer_{i}.learning_rate") for i in (0, 1))
    assert first != second
    assert first[-1][1] < first[5][1]  # the cosine ends with the batches, however many steps each makes


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(classifier, trainer, tmp_path, weights_only):
    def run(*more, **options):
        module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
        pl.seed_everything(3, verbose=False)
        made = trainer([lt.TopologicalRateControl(every_n_train_steps=7), *more], max_epochs=3, **options.pop("t", {}))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
            made.fit(module, loader(shuffle=False), **options)
        return weights(module)

    keep = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = run(keep, t={"enable_checkpointing": True})
    assert all(map(torch.equal, whole, run()))  # saving changes nothing
    for epoch in (0, 1):  # in the middle of windows
        again = run(ckpt_path=tmp_path / f"epoch={epoch}.ckpt", **weights_only)
        assert all(map(torch.equal, whole, again))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.clear(),
        lambda state: state.update(controllers="nothing"),
        lambda state: state["controllers"][0].pop("top"),
        lambda state: state["controllers"][0].update(smoothed="a"),
        lambda state: state.update(future=1),
    ],
)
def test_a_spoilt_state_does_not_end_a_resume(spoil, classifier, trainer, tmp_path, weights_only):
    made = fit(trainer, classifier(adam), lt.TopologicalRateControl(), max_epochs=1)
    made.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (state,) = saved["callbacks"].values()
    spoil(state)
    torch.save(saved, tmp_path / "b.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer([lt.TopologicalRateControl()], max_epochs=2)
        made.fit(classifier(adam), loader(), ckpt_path=tmp_path / "b.ckpt", **weights_only)
    assert made.global_step == 24


def test_beside_step_clipping_it_sees_the_optimizers_own_updates(classifier, trainer, recorder):
    control, clipping = lt.TopologicalRateControl(), lt.TopologicalStepClipping(0.01)
    trainer([clipping, control], logger=[recorder]).fit(classifier(adam), loader())
    assert clipping.clipped_updates > 0
    # κ that is clipped to 0.01 would say that the rate could be higher and higher.
    assert max(rate for _, rate in recorder.series("control.learning_rate")) < 1


def test_beside_a_monitor_the_rates_are_the_controlled_ones(classifier, trainer):
    control, monitor, watch = lt.TopologicalRateControl(), lt.BiLipschitzMonitor(max_overhead=None), Watch()
    trainer([control, monitor, watch]).fit(classifier(adam), loader())
    seen = {record.step: record.learning_rate for record in monitor.history}
    assert [seen[step] for step in range(1, 24)] == pytest.approx([rate for (rate,) in watch.stepped[-23:]])


def test_a_finder_beside_it_is_said_to_be_of_no_use(classifier, trainer):
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    module.lr = 0.1
    control = lt.TopologicalRateControl()
    with pytest.warns(UserWarning, match="finder beside it is not needed"):
        trainer([lt.TopologicalLearningRateFinder(hold_steps=5), control], max_epochs=1).fit(module, loader())
    assert control.state_dict()["controllers"][0]["updates"] == 12


def test_it_says_what_it_does(classifier, trainer, caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        fit(trainer, classifier(adam), lt.TopologicalRateControl())
    said = [record.message for record in caplog.records if "TopologicalRateControl" in record.message]
    assert len(said) == 2
    assert "no scheduler, so the rate has the shape of a warm-up and a cosine to 0 over 24 updates" in said[0]
    assert "24 updates at learning rates from" in said[1]


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(80):
            x = torch.randn(6, generator=generator)
            yield x, (x[0] > 0).long()


@pytest.mark.parametrize("max_epochs", [-1, 3])
def test_a_run_of_unknown_length_has_a_constant_shape(max_epochs, classifier, trainer, caplog):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, *args):
            trainer.should_stop = True

    control = lt.TopologicalRateControl()
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        made = trainer([control, Stop()], max_epochs=max_epochs)
        made.fit(classifier(adam), DataLoader(Stream(), batch_size=8))
    assert made.global_step == 10
    assert any("the rate stays, as the length of the run is not known" in r.message for r in caplog.records)


def test_unseen_updates_are_said(classifier, trainer):
    class Within(Classifier):
        automatic_optimization = False

        def configure_optimizers(self):
            self.inner = torch.optim.SGD(self.parameters(), lr=0.1)
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.inner.zero_grad()
            self.manual_backward(self.loss(batch))
            self.inner.step()

    torch.manual_seed(0)
    with pytest.warns(
        UserWarning, match="no optimizer of the Trainer made a step that TopologicalRateControl could see"
    ):
        trainer([lt.TopologicalRateControl()]).fit(Within(), loader())


def test_a_diverged_run_warns_once_and_goes_on(classifier, trainer):
    class Poison(Classifier):
        def loss(self, batch):
            return super().loss(batch) * (math.nan if self.trainer.global_step == 5 else 1)

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the run has diverged") as caught:
        made = fit(trainer, Poison(adam), lt.TopologicalRateControl())
    assert len([w for w in caught if "the run has diverged" in str(w.message)]) == 1
    assert made.global_step == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "0 < share <= 1"),
        ({"share": 2}, "0 < share <= 1"),
        ({"half_life": 0}, "half_life > 0"),
        ({"schedule": "step"}, "expected schedule to be one of"),
        ({"max_overhead": 0}, "max_overhead is a share"),
        ({"every_n_train_steps": 0}, "every_n_train_steps must be an integer"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        TopologicalRateControl(**options)


def test_what_cannot_be_controlled_is_refused_at_the_start(classifier, trainer):
    module = classifier(lambda m: torch.optim.LBFGS(m.parameters()))
    with pytest.raises(TypeError, match="LBFGS, whose memory"):
        fit(trainer, module, lt.TopologicalRateControl())
    module = classifier(adam)
    module.net = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="found no group of exchangeable neurons"):
        fit(trainer, module, lt.TopologicalRateControl())
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    with pytest.raises(ValueError, match="expected a positive learning rate"):
        fit(trainer, module, lt.TopologicalRateControl())


def test_frozen_groups_and_optimizers_without_neurons(classifier, trainer):
    module = classifier(lambda m: torch.optim.SGD([m.net[6].bias], lr=0.1))
    with pytest.warns(UserWarning, match="moves no neuron group"):
        fit(trainer, module, lt.TopologicalRateControl(), max_epochs=1)
    module = classifier(adam)
    module.net[0].requires_grad_(False)
    control = lt.TopologicalRateControl()
    fit(trainer, module, control, max_epochs=1)
    assert control.state_dict()["controllers"][0]["updates"] == 12


@pytest.mark.parametrize(
    ("measure", "watch", "every", "watches"),
    [(1e-12, 1e-12, 10, True), (1e3, 1e-12, 64, True), (1e3, 1e3, 64, False), (1e-12, 1e3, 10, False)],
)
def test_how_often_is_decided_by_the_cost(classifier, trainer, monkeypatch, measure, watch, every, watches):
    from lightning_topo.control import RateController

    monkeypatch.setattr(RateController, "measure_seconds", measure)
    monkeypatch.setattr(RateController, "watch_seconds", watch)
    control = lt.TopologicalRateControl()
    fit(trainer, classifier(adam), control)
    state = control.state_dict()["controllers"][0]
    assert (state["every"], state["watches"]) == (every, watches)


def in_processes(rank, folder, control):
    torch.manual_seed(0)
    module = Classifier(adam)
    module.net[1] = nn.Identity()
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
        callbacks=[lt.TopologicalRateControl()] if control else [],
    )  # fmt: skip
    trainer.fit(module, loader())
    return weights(module), {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_two_processes_end_with_the_same_weights(processes, tmp_path):
    (first, metrics), (second, others) = processes(2, in_processes, tmp_path, True)
    assert all(map(torch.equal, first, second))
    assert metrics["control/learning_rate"] == others["control/learning_rate"]


def test_tuner_searches_are_left_alone(classifier, trainer):
    """Lightning's own search runs with callbacks of its own: its rates are not ours."""
    module = classifier(lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    module.lr, watch = 0.1, Watch()
    control = lt.TopologicalRateControl()
    made = trainer([pl.callbacks.LearningRateFinder(num_training_steps=10), control, watch], max_epochs=1)
    with pytest.warns(UserWarning, match="finder beside it is not needed"):
        made.fit(module, loader())
    # All batches of the fit, of which Lightning 2.4 leaves two after its search.
    assert control.state_dict()["controllers"][0]["updates"] == len(watch.shown) > 0


def test_a_scheduler_that_is_stepped_by_hand_gives_the_shape(classifier, trainer, recorder, caplog):
    class ByHand(Classifier):
        automatic_optimization = False

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.3)
            self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 12 else 1e-4)
            return optimizer

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.schedule.step()

    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        trainer([lt.TopologicalRateControl()], logger=[recorder]).fit(ByHand(), loader())
    rates = dict(recorder.series("control.learning_rate"))
    assert rates[12] < 1e-3 * rates[11]
    assert not any("no scheduler" in record.message for record in caplog.records)


def test_a_run_that_is_limited_in_time_is_said_to_be(classifier, trainer, caplog):
    with caplog.at_level(logging.INFO, logger="pytorch_lightning"):
        fit(trainer, classifier(adam), lt.TopologicalRateControl(), max_time="00:01:00:00")
    assert any("which max_time may cut short" in record.message for record in caplog.records)


@pytest.mark.parametrize("change", ["pruned", "optimizer"])
def test_models_and_optimizers_that_change_in_the_fit(change, classifier, trainer):
    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1 and change == "pruned":
                nn.utils.prune.l1_unstructured(pl_module.net[4], "weight", amount=0.2)
            elif trainer.current_epoch == 1:
                trainer.strategy.setup_optimizers(trainer)

    control = lt.TopologicalRateControl()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Parameters of neurons go by other names now")
        trainer([control, Change()], max_epochs=3).fit(classifier(adam), loader())
    (state,) = control.state_dict()["controllers"].values()
    assert state["updates"] == 36
    assert max(record.learning_rate for record in control.history[3:]) < 0.4  # never the optimizer's own rate
