"""A run with a search that sets nothing is the run without it, bit for bit, in every mode of training."""

import copy
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.plugins import MixedPrecision
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find

HOLD = 6


def silent_finder(**options):
    return TopologicalLearningRateFinder(**{"hold_steps": HOLD, "update_attr": False, **options})


def scheduled(make, interval="step"):
    def configure(model):
        optimizer = SGD(model.parameters(), lr=model.lr, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": make(optimizer), "interval": interval, "monitor": "train_loss"},
        }

    return configure


def manual(lab):
    class Manual(lab.Classifier):
        """Two optimizers, and a schedule that is stepped by hand."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].sum().item())
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                optimizer.step()
            self.lr_schedulers().step()
            self.log("train_loss", loss)
            return {"loss": loss}

        def configure_optimizers(self):
            first, second = SGD(self.net[:4].parameters(), lr=self.lr), Adam(self.net[4:].parameters(), lr=self.lr / 10)
            return [first, second], [StepLR(first, 3)]

    return Manual


def stateful(lab):
    class Stateful(lab.Classifier):
        """Keeps state in metrics, lists, generators, replaced buffers and frozen parameters."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.accuracy = torchmetrics.MeanMetric()
            self.history = {"losses": [], "arrays": np.zeros(1)}
            self.register_buffer("moving", torch.zeros(3))
            self.noise = torch.Generator().manual_seed(4)
            self.grown = None
            self.extra = torch.zeros(2)

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.accuracy(loss.detach())
            self.log("metric", self.accuracy, on_step=True, on_epoch=True)
            self.history["losses"].append(loss.item())
            self.history["arrays"] += random.random() + np.random.rand()  # noqa: NPY002
            self.moving = self.moving + torch.rand(3, generator=self.noise)
            self.extra += 1
            self.net[0].bias.requires_grad_(len(self.seen) % 2 == 0)
            if self.grown is None:
                self.grown = [batch_idx]
                self.net[3].p = 0.25
            return loss

    return Stateful


class Hooked(pl.Callback):
    """Listens to the optimizer itself."""

    def __init__(self):
        self.steps = 0

    def on_train_start(self, trainer, pl_module):
        self.handle = trainer.optimizers[0].register_step_post_hook(self.count)

    def count(self, optimizer, args, kwargs):
        self.steps += 1


def scaled():
    """Half precision with a gradient scaler, which skips the first steps, on the CPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4))


MODES = {
    "sgd": {},
    "adam": {"optimizer": lambda m: Adam(m.parameters(), lr=m.lr)},
    "dropout": {"dropout": 0.5},
    "groups": {
        "optimizer": lambda m: SGD(
            [{"params": m.net[:4].parameters()}, {"params": m.net[4:].parameters(), "lr": 1e-3}], lr=m.lr
        )
    },
    "one cycle": {"optimizer": scheduled(lambda o: OneCycleLR(o, 0.1, total_steps=24))},
    "cosine by epoch": {"optimizer": scheduled(lambda o: CosineAnnealingLR(o, 2), "epoch")},
    "sequential": {"optimizer": scheduled(lambda o: SequentialLR(o, [StepLR(o, 2), CosineAnnealingLR(o, 20)], [5]))},
    "plateau": {"optimizer": scheduled(lambda o: ReduceLROnPlateau(o, patience=1))},
    "lbfgs": {"optimizer": lambda m: torch.optim.LBFGS(m.parameters(), lr=m.lr, max_iter=2)},
    "clipping": {"trainer": {"gradient_clip_val": 0.1}},
    "accumulation": {"trainer": {"accumulate_grad_batches": 5}},
    "bf16-mixed": {"trainer": {"precision": "bf16-mixed"}},
    "16-mixed": {"precision": scaled},
    "64-true": {"trainer": {"precision": "64-true"}},
    "few batches": {"trainer": {"limit_train_batches": 3}},
    "validation": {"trainer": {"val_check_interval": 4}, "validate": True},
    "manual": {"cls": manual},
    "stateful": {"cls": stateful},
    "orders": {"options": {"orders": 2}},
    "lightning.pytorch": {"lightning": True},
}


def state_of(trainer, model):
    """All that a run leaves behind."""
    optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
    schedulers = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
    loops = copy.deepcopy(trainer.fit_loop.state_dict())
    plain = {
        k: copy.deepcopy(v)
        for k, v in vars(model).items()
        if k in ("seen", "events", "last", "history", "grown", "lr", "extra")
    }
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "frozen": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "optimizers": optimizers,
        "hooks": [(len(o._optimizer_step_pre_hooks), len(o._optimizer_step_post_hooks)) for o in trainer.optimizers],
        "schedulers": schedulers,
        "scaler": trainer.precision_plugin.state_dict(),
        "loops": loops,
        "counters": (trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped),
        "metrics": {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("lr_find")},
        "logged": dict(trainer.logged_metrics),
        "plain": plain,
        "random": (random.random(), np.random.rand(), torch.rand(3)),  # noqa: NPY002
    }


def assert_same(seen, expected, where="state"):
    if isinstance(expected, dict):
        assert seen.keys() == expected.keys(), where
        for key in expected:
            assert_same(seen[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(seen) == len(expected), where
        for i, (a, b) in enumerate(zip(seen, expected, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(expected, (torch.Tensor, np.ndarray)):
        assert torch.equal(torch.as_tensor(seen), torch.as_tensor(expected)), where
    else:
        assert seen == expected or (seen != seen and expected != expected), where


def seed():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)


def fit(lab, mode, finder=None, before=None):
    settings = MODES[mode]
    cls = settings["cls"](lab) if "cls" in settings else lab.Classifier
    model = lab.model(cls=cls, **{k: settings[k] for k in ("optimizer", "dropout") if k in settings})
    recorder, logger, hooked = lab.Recorder(), lab.RecordingLogger(), Hooked()
    callbacks = [recorder, hooked, *([finder] if finder else [])]
    options = dict(settings.get("trainer", {}))
    if "precision" in settings:
        options["plugins"] = settings["precision"]()
    trainer = lab.trainer(callbacks=callbacks, logger=logger, log_every_n_steps=1, **options)
    seed()
    train = lab.loader()
    if before:
        before(trainer, model, train)
    trainer.fit(model, train, lab.loader() if settings.get("validate") else None)
    rows = [row for row in logger.rows if not (isinstance(row, tuple) and any(k.startswith("lr_find") for k in row[1]))]
    return {**state_of(trainer, model), "calls": recorder.calls, "rows": rows, "hooked": hooked.steps}


def in_mode(modes):
    return pytest.mark.parametrize("mode", modes)


@in_mode([mode for mode in MODES if mode != "lightning.pytorch"])
def test_run_with_a_search_is_the_run_without(lab, mode):
    expected = fit(lab, mode)
    finder = silent_finder(**MODES[mode].get("options", {}))
    assert_same(fit(lab, mode, finder), expected)
    assert finder.result.total_steps > HOLD


@in_mode(["sgd", "dropout", "one cycle", "manual", "stateful", "validation", "64-true"])
def test_run_after_a_search_is_the_run_without(lab, mode, tmp_path):
    expected = fit(lab, mode)
    results = []

    def search(trainer, model, train):
        files = sorted(tmp_path.rglob("*"))
        results.append(topological_lr_find(trainer, model, train, hold_steps=HOLD, update_attr=False))
        assert sorted(tmp_path.rglob("*")) == files

    assert_same(fit(lab, mode, before=search), expected)
    assert results[0].total_steps > HOLD


class Interrupted:
    """A module whose training step fails within the search."""

    def __new__(cls, lab, error, after):
        class Failing(stateful(lab)):
            left = after
            loud = True

            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                type(self).left -= 1
                if type(self).left == 0:
                    raise error
                return loss

        return Failing


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_exception_in_the_middle_of_a_search_before_the_fit(lab, error, after):
    """Everything is as it was, and a fit then runs as if nothing had happened."""
    expected_model = lab.model(cls=Interrupted(lab, error, -1), dropout=0.5)
    expected_trainer = lab.trainer()
    seed()
    expected_trainer.fit(expected_model, lab.loader())
    expected = state_of(expected_trainer, expected_model)

    model = lab.model(cls=Interrupted(lab, error, after), dropout=0.5)
    recorder = lab.Recorder()
    trainer = lab.trainer(callbacks=[recorder])
    listeners = list(trainer.callbacks)
    seed()
    train = lab.loader()
    with pytest.raises(type(error)):
        topological_lr_find(trainer, model, train, hold_steps=HOLD)
    assert trainer.callbacks == listeners
    assert recorder.calls == []
    assert model._trainer is None
    trainer.fit(model, train)
    assert_same(state_of(trainer, model), expected)


@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [1, 2, 7])
def test_exception_in_the_middle_of_a_search_within_the_fit(lab, error, after):
    """What the exception finds is the state at which the search began."""
    model = lab.model(cls=Interrupted(lab, error, after), dropout=0.5)
    snapshots = []

    class Witness(lab.Recorder):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            snapshots.append((state_of(trainer, pl_module), trainer.callbacks, trainer.loggers))
            seed()

        def on_exception(self, trainer, pl_module, exception):
            seed()
            snapshots.append((state_of(trainer, pl_module), trainer.callbacks, trainer.loggers))

    trainer = lab.trainer(
        callbacks=[Witness(), TopologicalLearningRateFinder(hold_steps=HOLD)], logger=lab.RecordingLogger()
    )
    seed()
    # Lightning ends the process on Ctrl-C.
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError):
        trainer.fit(model, lab.loader())
    (before, *listeners), (after_it, *later_listeners) = snapshots
    before.pop("random"), after_it.pop("random")
    assert_same(after_it, before)
    assert listeners == later_listeners


def test_identity_of_what_others_may_hold(lab):
    """Optimizer state, lists and buffers are the same objects afterwards, not equal ones."""
    model = lab.model(cls=stateful(lab), optimizer=lambda m: Adam(m.parameters(), lr=m.lr))
    held = []

    class Holder(pl.Callback):
        def objects(self, trainer, module):
            optimizer = trainer.optimizers[0]
            return [
                module.history, module.seen, module.moving, module.noise, module.accuracy, optimizer.state,
                optimizer.param_groups, optimizer.param_groups[0], *optimizer.state.values(), *module.parameters(),
                trainer.fit_loop.epoch_loop.batch_progress, trainer.fit_loop._data_fetcher, trainer.callbacks,
            ]  # fmt: skip

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                held.append(self.objects(trainer, pl_module))

    class Late(TopologicalLearningRateFinder):
        """Searches at the third batch, when there is state."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    finder = Late(hold_steps=HOLD, update_attr=False)
    lab.trainer(max_steps=4, callbacks=[Holder(), finder, Holder()]).fit(model, lab.loader())
    assert finder.result is not None
    before, after = held
    assert all(a is b for a, b in zip(before, after, strict=True))
