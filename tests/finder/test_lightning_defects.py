"""What goes wrong with Lightning's own learning-rate finder (2.6.6), one test each: none of it happens here."""

import copy
import math
import threading

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find
from lightning_topo.neurons import find_neuron_groups

HOLD = 6


def finder(**options):
    return TopologicalLearningRateFinder(**{"hold_steps": HOLD, **options})


def test_1_callbacks_loggers_and_max_steps_survive_an_exception(lab):
    class Failing(lab.Classifier):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("in the middle")

    trainer = lab.trainer(max_steps=9, callbacks=[lab.Recorder()], logger=lab.RecordingLogger())
    before = list(trainer.callbacks), list(trainer.loggers), trainer.max_steps, trainer.limit_val_batches
    with pytest.raises(RuntimeError, match="in the middle"):
        topological_lr_find(trainer, lab.model(cls=Failing), lab.loader())
    assert (trainer.callbacks, trainer.loggers, trainer.max_steps, trainer.limit_val_batches) == before


def test_2_checkpoint_that_is_resumed_keeps_optimizer_step_and_epoch(lab, tmp_path):
    def adam(model):
        return Adam(model.parameters(), lr=model.lr)

    first = lab.trainer(max_epochs=1)
    first.fit(lab.model(optimizer=adam), lab.loader())
    first.save_checkpoint(tmp_path / "first.ckpt")
    saved = copy.deepcopy(first.optimizers[0].state_dict()["state"])
    seen = []

    class Witness(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if not seen:
                seen.append(
                    (
                        copy.deepcopy(trainer.optimizers[0].state_dict()["state"]),
                        trainer.global_step,
                        trainer.current_epoch,
                    )
                )

    search = finder()
    model = lab.model(optimizer=adam)
    trainer = lab.trainer(max_epochs=3, callbacks=[search, Witness()])
    trainer.fit(model, lab.loader(), ckpt_path=tmp_path / "first.ckpt")
    state, step, epoch = seen[0]
    assert (step, epoch) == (12, 1)
    for key, value in saved.items():
        for name, tensor in value.items():
            assert torch.equal(state[key][name], tensor)
    assert search.result.status == "found"
    assert trainer.global_step == 36


def test_3_parameter_groups_keep_their_ratio(lab):
    def groups(model):
        return SGD(
            [{"params": model.net[:4].parameters()}, {"params": model.net[4:].parameters(), "lr": model.lr / 10}],
            lr=model.lr,
        )

    during = []

    class Spy(lab.Classifier):
        def on_before_zero_grad(self, optimizer):
            during.append([group["lr"] for group in optimizer.param_groups])

    search = finder()
    trainer = lab.trainer(max_steps=1, callbacks=[search])
    trainer.fit(lab.model(cls=Spy, optimizer=groups), lab.loader())
    assert len(during) > HOLD
    assert all(second == pytest.approx(first / 10) for first, second in during)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([search.optimal_lr, search.optimal_lr / 10])


def test_4_manual_optimization_is_searched(lab):
    class Manual(lab.Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    model, search = lab.model(cls=Manual), finder()
    trainer = lab.trainer(max_steps=1, callbacks=[search])
    trainer.fit(model, lab.loader())
    assert len({trial.lr for trial in search.result.trials}) > 2
    assert model.lr == trainer.optimizers[0].param_groups[0]["lr"] == search.optimal_lr > 1e-4


@pytest.mark.parametrize("before_fit", [False, True])
def test_5_one_cycle_and_cosine_start_from_the_suggestion(lab, before_fit):
    schedulers = {
        "one cycle": lambda o, lr: OneCycleLR(o, lr, total_steps=24),
        "cosine": lambda o, lr: CosineAnnealingLR(o, 24),
    }
    for make in schedulers.values():

        def configure(model, make=make):
            optimizer = SGD(model.parameters(), lr=model.lr, momentum=0.9)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": make(optimizer, model.lr), "interval": "step"},
            }

        class Rates(pl.Callback):
            def __init__(self):
                self.seen = []

            def on_before_optimizer_step(self, trainer, pl_module, optimizer):
                self.seen.append(optimizer.param_groups[0]["lr"])

        search, rates, model = finder(), Rates(), lab.model(optimizer=configure)
        trainer = lab.trainer(max_epochs=2, callbacks=[rates] if before_fit else [search, rates])
        if before_fit:
            search.result = topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
        trainer.fit(model, lab.loader())
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=search.optimal_lr, momentum=0.9)
        scheduler, expected = make(optimizer, search.optimal_lr), []
        for _ in range(24):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step() if len(expected) < 24 else None
        assert rates.seen == pytest.approx(expected, rel=1e-9)


def test_6_validation_limits_and_epochs_do_not_touch_the_search(lab):
    model, search = lab.model(), finder(hold_steps=20)
    held = lab.trainer(
        max_epochs=1, limit_train_batches=5, val_check_interval=1, callbacks=[search], num_sanity_val_steps=0
    )

    held.fit(model, lab.loader(), lab.loader())
    assert search.result.status == "found"
    assert max(trial.steps for trial in search.result.trials) == 20
    assert model.events.count("validation") == 5 * 12  # five validations of twelve batches: those of the five batches


def test_7_batch_order_attributes_and_hooks_of_the_module(lab):
    torch.manual_seed(0)
    plain = lab.model()
    lab.trainer().fit(plain, lab.loader())
    torch.manual_seed(0)
    searched = lab.model()
    lab.trainer(callbacks=[finder()]).fit(searched, lab.loader())
    assert searched.seen == plain.seen
    assert searched.events == plain.events == ["on_train_start", "on_train_end"]


def test_8_losses_are_not_smoothed_and_a_later_start_is_a_start(lab):
    class Constant(lab.Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + 1.0

    search = finder(update_attr=False, max_lr=1.0)
    with pytest.warns(UserWarning, match="max_lr"):
        lab.trainer(max_steps=1, callbacks=[search]).fit(lab.model(cls=Constant), lab.loader())
    assert set(search.result.trials[0].losses) == {1.0}

    class Later(TopologicalLearningRateFinder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    later = Later(hold_steps=HOLD)
    lab.trainer(callbacks=[later]).fit(lab.model(), lab.loader())
    assert later.result.status == "found"
    assert later.result.total_steps > HOLD


def test_9_dotted_attribute_name(lab):
    class Dotted(lab.Classifier):
        def __init__(self):
            super().__init__(optimizer=lambda m: SGD(m.parameters(), lr=m.config["optimizer"]["lr"]))
            self.config = {"optimizer": {"lr": 0.01}}

    model = lab.model(cls=Dotted)
    result = topological_lr_find(lab.trainer(), model, lab.loader(), attr_name="config.optimizer.lr", hold_steps=HOLD)
    assert model.config["optimizer"]["lr"] == result.suggestion()
    assert model.lr == 0.05


def test_10_hyperparameters_with_custom_objects_and_no_file_left(lab, tmp_path):
    class Custom:
        """Neither a tensor nor a primitive: a checkpoint of it does not load weights-only."""

    class Hyper(lab.Classifier):
        def __init__(self, custom):
            super().__init__()
            self.save_hyperparameters()
            self.lock = threading.Lock()  # cannot be copied

    model = lab.model(Custom(), cls=Hyper)
    custom, lock = model.hparams.custom, model.lock
    groups = list(find_neuron_groups(lab.model()))
    result = topological_lr_find(lab.trainer(), model, lab.loader(), hold_steps=HOLD, groups=groups)
    assert result.status == "found"
    assert model.hparams.custom is custom
    assert model.lock is lock
    assert list(tmp_path.iterdir()) == []


def test_11_several_optimizers(lab):
    class Two(lab.Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return SGD(self.net[:4].parameters(), lr=self.lr), Adam(self.net[4:].parameters(), lr=self.lr / 100)

    search = finder()
    trainer = lab.trainer(max_steps=2, callbacks=[search])
    trainer.fit(lab.model(cls=Two), lab.loader())
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([search.optimal_lr, search.optimal_lr / 100])


@pytest.mark.parametrize("before_fit", [False, True])
def test_12_callbacks_see_no_checkpoint(lab, before_fit):
    class Saving(pl.Callback):
        calls = 0

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            type(self).calls += 1

        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            type(self).calls += 1

    Saving.calls = 0
    if before_fit:
        topological_lr_find(lab.trainer(callbacks=[Saving()]), lab.model(), lab.loader(), hold_steps=HOLD)
    else:
        lab.trainer(max_steps=1, callbacks=[finder(), Saving()]).fit(lab.model(), lab.loader())
    assert Saving.calls == 0


def test_rate_is_logarithmic_and_bracketed(lab):
    """Ninth, first half: no derivative of a loss is taken at all; the answer is a bracket within the tolerance."""
    result = topological_lr_find(lab.trainer(), lab.model(), lab.loader(), hold_steps=HOLD, tolerance=0.03)
    low, high = result.bracket
    assert math.log(high / low) <= math.log(1.03) * (1 + 1e-6)
    assert math.sqrt(high * low) == pytest.approx(result.critical_lr)
