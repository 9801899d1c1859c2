import copy
import json
import logging
import pickle
import warnings
from functools import partial

import lightning.pytorch as lightning
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Subset

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import (
    SearchState,
    TopologicalLRResult,
    Trial,
    topological_lr_find,
)
from lightning_topo.finder._progress import SearchProgress

HOLD = 6


def finder(**options):
    return TopologicalLearningRateFinder(**{"hold_steps": HOLD, **options})


def test_trains_at_the_suggestion(lab):
    search, model = finder(safety=0.25), lab.model()
    trainer = lab.trainer(callbacks=[search])
    trainer.fit(model, lab.loader())
    assert search.result.status == "found"
    assert search.optimal_lr == 0.25 * search.result.critical_lr
    assert model.lr == trainer.optimizers[0].param_groups[0]["lr"] == search.optimal_lr
    assert trainer.global_step == 24


def test_update_attr_false_changes_no_rate(lab):
    search, model = finder(update_attr=False), lab.model()
    del model.lr
    model.make_optimizer = lambda m: SGD(m.parameters(), lr=0.02)
    trainer = lab.trainer(max_steps=1, callbacks=[search])
    trainer.fit(model, lab.loader())
    assert search.result.status == "found"
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.02


def test_rate_is_in_units_of_the_attribute(lab):
    """Two attributes that differ by a factor, for the same optimizer: η* differs by that factor."""
    results = []
    for scale in (1.0, 10.0):
        search = finder(update_attr=False, tolerance=0.01)
        model = lab.model(lr=0.05 * scale, optimizer=lambda m, scale=scale: SGD(m.parameters(), lr=m.lr / scale))
        torch.manual_seed(0)
        lab.trainer(max_steps=1, callbacks=[search]).fit(model, lab.loader())
        results.append(search.result.critical_lr)
    assert results[1] == pytest.approx(10 * results[0], rel=0.02)


def test_logged_once_to_every_logger(lab, tmp_path):
    class Board(TensorBoardLogger):
        @property
        def experiment(self):
            writer = super().experiment
            writer.add_figure = lambda tag, figure, step: figures.append((tag, step))
            return writer

    figures, recording, search = [], lab.RecordingLogger(), finder()
    board = Board(tmp_path)
    trainer = lab.trainer(callbacks=[search], logger=[recording, board], log_every_n_steps=1)
    trainer.fit(lab.model(), lab.loader())
    rows = [row for row in recording.rows if isinstance(row, tuple) and "lr_find/critical_lr" in row[1]]
    low, high = search.result.bracket
    assert rows == [
        (0, {
            "lr_find/critical_lr": search.result.critical_lr, "lr_find/suggestion": search.optimal_lr,
            "lr_find/held": low, "lr_find/broke": high, "lr_find/steps": search.result.total_steps,
        })
    ]  # fmt: skip
    assert figures == [("lr_find", 0)]
    assert float(trainer.callback_metrics["lr_find/critical_lr"]) == pytest.approx(search.result.critical_lr)
    assert trainer.callback_metrics["lr_find/steps"] == search.result.total_steps


def test_tensorboard_holds_the_scalars_and_the_figure(lab, tmp_path):
    search = finder()
    board = TensorBoardLogger(tmp_path)
    lab.trainer(max_steps=1, callbacks=[search], logger=board).fit(lab.model(), lab.loader())
    events = EventAccumulator(board.log_dir, size_guidance={"images": 0}).Reload()
    assert events.Scalars("lr_find/critical_lr")[0].value == pytest.approx(search.result.critical_lr)
    assert events.Scalars("lr_find/suggestion")[0].value == pytest.approx(search.optimal_lr)
    assert len(events.Images("lr_find")) == 1


def test_other_callbacks_see_the_found_rate_from_the_first_step(lab):
    search = finder()
    logger = lab.RecordingLogger()
    trainer = lab.trainer(
        max_steps=1,
        callbacks=[search, LearningRateMonitor(logging_interval="step")],
        logger=logger,
        log_every_n_steps=1,
    )
    trainer.fit(lab.model(), lab.loader())
    rates = [row[1]["lr-SGD"] for row in logger.rows if "lr-SGD" in row[1]]
    assert rates == [search.optimal_lr]


def test_resumed_run_does_not_search_again(lab, tmp_path, weights_only):
    search = finder()
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    lab.trainer(max_epochs=1, callbacks=[search, checkpoint], enable_checkpointing=True).fit(lab.model(), lab.loader())
    resumed, recording = finder(), lab.RecordingLogger()
    trainer = lab.trainer(max_epochs=2, callbacks=[resumed], logger=recording)
    trainer.fit(lab.model(), lab.loader(), ckpt_path=tmp_path / "last.ckpt", **weights_only)
    assert resumed.result == search.result
    assert trainer.optimizers[0].param_groups[0]["lr"] == search.optimal_lr
    assert not any("lr_find/critical_lr" in row[1] for row in recording.rows if isinstance(row, tuple))
    assert float(trainer.callback_metrics["lr_find/critical_lr"]) == pytest.approx(search.result.critical_lr)


def test_state_is_primitive_and_comes_back(lab):
    search = finder()
    assert search.state_dict() == {"result": None}
    lab.trainer(max_steps=1, callbacks=[search]).fit(lab.model(), lab.loader())
    back = finder()
    back.load_state_dict(json.loads(json.dumps(search.state_dict(), allow_nan=False)))
    assert repr(back.result) == repr(search.result)


def searches(search, count):
    """Let a finder count the searches that it makes."""
    run = search._finder.run
    search._finder.run = lambda *args: count.append(args) or run(*args)
    return search


@pytest.mark.parametrize("again", ["same objects", "another loader of the same data"])
def test_same_run_is_not_searched_twice(lab, again):
    count, model, loader = [], lab.model(), lab.loader()
    search = searches(finder(), count)
    trainer = lab.trainer(max_epochs=1, callbacks=[search])
    trainer.fit(model, loader)
    first = search.result
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader if again == "same objects" else lab.loader())
    assert trainer.global_step == 24
    assert len(count) == 1
    assert search.result is first


def half(lab, start):
    return DataLoader(Subset(lab.data(96), range(start, start + 48)), 8, shuffle=True)


@pytest.mark.parametrize("other", ["model", "data", "Trainer", "all of them"])
def test_another_run_is_searched_anew(lab, other):
    """One finder over several fits, as over the folds of a cross-validation, which are alike but for the items."""
    count, model, loader = [], lab.model(), half(lab, 0)
    search = searches(finder(), count)
    trainer = lab.trainer(max_epochs=1, callbacks=[search])
    trainer.fit(model, loader)
    first = search.result
    trainer.fit_loop.max_epochs = 2
    trainer = lab.trainer(max_epochs=1, callbacks=[search]) if other in ("Trainer", "all of them") else trainer
    model = lab.model() if other in ("model", "all of them") else model
    trainer.fit(model, half(lab, 48) if other in ("data", "all of them") else loader)
    assert len(count) == 2
    assert search.result is not first
    assert model.lr == trainer.optimizers[0].param_groups[0]["lr"] == search.optimal_lr


def test_copy_of_a_finder_belongs_to_no_run(lab):
    """A copy for each fold, made after the first."""
    count, search = [], finder()
    lab.trainer(max_epochs=1, callbacks=[search]).fit(lab.model(), half(lab, 0))
    other = copy.deepcopy(search)
    assert other.result == search.result
    lab.trainer(max_epochs=1, callbacks=[searches(other, count)]).fit(lab.model(), half(lab, 48))
    assert len(count) == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_other_settings_of_the_optimizer_are_another_run(lab, momentum):
    count, model, loader = [], lab.model(optimizer=lambda m: SGD(m.parameters(), lr=m.lr)), lab.loader()
    trainer = lab.trainer(max_epochs=1, callbacks=[searches(finder(), count)])
    trainer.fit(model, loader)
    model.make_optimizer = lambda m: SGD(m.parameters(), lr=m.lr, momentum=momentum)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, loader)
    assert len(count) == (2 if momentum else 1)


class Wider(pl.LightningModule):
    """Takes the same data as the classifier."""

    def __init__(self, optimizer=SGD):
        super().__init__()
        self.lr, self.optimizer = 0.05, optimizer
        self.net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


@pytest.mark.parametrize(
    ("make", "n", "searched"), [(Wider, 96, 0), (lambda: Wider(torch.optim.Adam), 96, 1), (Wider, 64, 1), (None, 96, 1)]
)
def test_saved_state_says_what_it_was_found_for(lab, make, n, searched):
    search, count = finder(), []
    lab.trainer(max_steps=1, callbacks=[search]).fit(Wider(), lab.loader())
    state = json.loads(json.dumps(search.state_dict()))
    assert set(state["run"]) == {"model", "optimizers", "data"}
    other = searches(finder(), count)
    other.load_state_dict(state)
    lab.trainer(max_steps=1, callbacks=[other]).fit(make() if make else lab.model(), lab.loader(n=n))
    assert len(count) == searched


def test_run_that_was_pruned_is_the_same_run(lab, tmp_path):
    """Its parameters have other names in the checkpoint than at the search."""
    pruning = {"use_lottery_ticket_hypothesis": False, "amount": 0.3}
    save = ModelCheckpoint(tmp_path, filename="pruned")
    callbacks = [finder(), pl.callbacks.ModelPruning("l1_unstructured", **pruning), save]
    lab.trainer(max_epochs=1, callbacks=callbacks, enable_checkpointing=True).fit(Wider(), lab.loader())
    count = []
    resumed = [searches(finder(), count), pl.callbacks.ModelPruning("l1_unstructured", **pruning)]
    lab.trainer(max_epochs=2, callbacks=resumed).fit(Wider(), lab.loader(), ckpt_path=tmp_path / "pruned.ckpt")
    assert count == []


ODD = (None, "x", [], {"a": 1}, -1, float("nan"), [1.0], [None, None])


def edits(entries):
    """A dictionary with each entry left out, and with each of other kinds."""
    for key in entries:
        yield {name: value for name, value in entries.items() if name != key}
        yield from ({**entries, key: value} for value in ODD)


def edited(state):
    """States of the finder that another version, or a hand, may have left behind."""
    result = state["result"]
    yield from edits(state)
    yield from ({**state, "result": other} for other in edits(result))
    yield from ({**state, "result": {**result, "trials": [trial]}} for trial in edits(result["trials"][0]))


def test_no_edit_of_the_saved_state_ends_a_resume(lab, tmp_path):
    search, save = finder(), ModelCheckpoint(tmp_path, filename="last")
    lab.trainer(max_epochs=1, callbacks=[search, save], enable_checkpointing=True).fit(Wider(), lab.loader())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    states = list(edited(search.state_dict()))
    assert len(states) > 100
    for state in states:
        other = finder()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            other.load_state_dict(copy.deepcopy(state))
        assert len(caught) == (other.result is None and state.get("result", 0) is not None)
    for state in ({}, {"result": {"status": "found"}}, {"result": 3, "run": {}}):
        saved["callbacks"][search.state_key] = {"of a later version": 1, **state}
        torch.save(saved, tmp_path / "edited.ckpt")
        count = []
        trainer = lab.trainer(max_epochs=2, callbacks=[searches(finder(), count)])
        with pytest.warns(UserWarning, match="cannot read its state.*goes on at the learning rates") as caught:
            trainer.fit(Wider(), lab.loader(), ckpt_path=tmp_path / "edited.ckpt")
        assert [w.filename for w in caught if "its state" in str(w.message)] == [__file__]
        assert trainer.global_step == 24
        assert trainer.optimizers[0].param_groups[0]["lr"] == search.optimal_lr
        assert count == []


@pytest.mark.parametrize("fails", ["log_metrics", "add_figure"])
def test_logger_that_fails_is_said_once_and_training_goes_on(lab, tmp_path, fails):
    class Full(TensorBoardLogger):
        @property
        def experiment(self):
            writer = super().experiment
            if fails == "add_figure":
                writer.add_figure = self.refuse
            return writer

        def log_metrics(self, metrics, step=None):
            if fails == "log_metrics" and any(key.startswith("lr_find") for key in metrics):
                self.refuse()

        def refuse(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    recording = lab.RecordingLogger()
    trainer = lab.trainer(max_steps=3, callbacks=[finder()], logger=[Full(tmp_path), recording])
    with pytest.warns(UserWarning, match="No space left on device.*Training goes on") as caught:
        trainer.fit(lab.model(), lab.loader())
    assert [warning.filename for warning in caught if "No space" in str(warning.message)] == [__file__]
    assert trainer.global_step == 3
    assert any("lr_find/critical_lr" in row[1] for row in recording.rows if isinstance(row, tuple))


@pytest.mark.parametrize("options", [{"max_lr": 1e-6}, {"min_lr": 10.0}])
def test_warnings_are_at_the_users_line(lab, options):
    trainer = lab.trainer(max_steps=1, callbacks=[finder(**options)])
    with pytest.warns(UserWarning, match="stays as it is") as caught:
        trainer.fit(lab.model(), lab.loader())
    assert [warning.filename for warning in caught if "stays as it is" in str(warning.message)] == [__file__]


def said(caplog):
    return [record.getMessage() for record in caplog.records if "Learning-rate search" in record.getMessage()]


@pytest.mark.parametrize("before_fit", [False, True])
def test_search_says_what_it_found_and_did(lab, caplog, before_fit):
    caplog.set_level(logging.INFO)
    search, model = finder(), lab.model()
    trainer = lab.trainer(max_steps=1, callbacks=[] if before_fit else [search])
    if before_fit:
        search.result = topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
    else:
        trainer.fit(model, lab.loader())
    found, suggestion, followed, change, spent = said(caplog)
    low, high = search.result.bracket
    broken = next(trial for trial in search.result.trials if trial.lr == high)
    assert f"{search.result.critical_lr:.3g}: held at {low:.3g}, broke at {high:.3g}" in found
    assert f"in {broken.group} at update {broken.broke_at_step}" in found
    assert f"{search.optimal_lr:.3g}, a share of {search.result.safety:.3g} of it, where" in suggestion
    assert followed.endswith("schedule of the trials: constant, as the run has no scheduler")
    assert change.endswith(f"learning rate lr was 0.05, is {search.optimal_lr:.3g}")
    assert f"{search.result.total_steps} optimizer steps, " in spent
    assert spent.endswith(" s")


def test_search_that_changes_nothing_says_so_and_can_be_silenced(lab, caplog):
    caplog.set_level(logging.INFO)
    trainer = lab.trainer(max_steps=1, callbacks=[finder(update_attr=False)])
    trainer.fit(lab.model(), lab.loader())
    assert "learning rate stays 0.05" in " ".join(said(caplog))
    caplog.clear()
    with (
        caplog.at_level(logging.ERROR, logger="pytorch_lightning"),
        caplog.at_level(logging.ERROR, "lightning.pytorch"),
    ):
        lab.trainer(max_steps=1, callbacks=[finder()]).fit(lab.model(), lab.loader())
    assert said(caplog) == []


def test_search_for_another_run_says_why(lab, caplog):
    caplog.set_level(logging.INFO)
    search = finder()
    for _ in range(2):
        lab.trainer(max_steps=1, callbacks=[search]).fit(lab.model(), lab.loader())
    assert any("another Trainer and model's" in line for line in said(caplog))


def test_new_rate_reaches_hyperparameters_of_loggers_and_checkpoints(lab, tmp_path):
    class Told(lab.RecordingLogger):
        def log_hyperparams(self, params, *args, **kwargs):
            self.rows.append(dict(params))

    class Refusing(lab.RecordingLogger):
        def log_hyperparams(self, params, *args, **kwargs):
            if self.rows:
                raise RuntimeError("a parameter has one value")
            self.rows.append("hyperparams")

    class Hyper(Wider):
        def __init__(self, lr=0.05, width=20):
            super().__init__()
            self.save_hyperparameters()

    told, search = Told(), finder()
    trainer = lab.trainer(max_steps=1, callbacks=[search], logger=[Refusing(), told])
    trainer.fit(Hyper(), lab.loader())
    given = [row for row in told.rows if isinstance(row, dict)]
    assert given == [{"lr": 0.05, "width": 20}, {"lr": search.optimal_lr, "width": 20}]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]["lr"] == search.optimal_lr


class ByHand(Wider):
    """Sets the rate of each update itself: at a number, or from the attribute, with a warm-up or without one."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"] = self.rate(self, self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)


@pytest.mark.parametrize(
    ("rate", "undone"),
    [
        (lambda model, step: 0.03, True),
        (lambda model, step: 0.03 * min(1, (step + 1) / 500), True),
        (lambda model, step: model.lr, False),
        (lambda model, step: model.lr * min(1, (step + 1) / 500), False),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_code_that_sets_the_rate_itself_is_noticed(lab, rate, undone, accumulate):
    trainer = lab.trainer(max_steps=4, callbacks=[search := finder()], accumulate_grad_batches=accumulate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(ByHand(rate), lab.loader())
    messages = [warning for warning in caught if "sets the learning rate itself" in str(warning.message)]
    assert len(messages) == undone
    assert all("take the rate from `lr`" in str(message.message) for message in messages)
    assert search.result.status == "found"
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


def test_picklable_before_the_fit():
    assert pickle.loads(pickle.dumps(finder(safety=0.3))).optimal_lr is None


def test_both_import_names(lab, tmp_path):
    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.lr = 0.05
            self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return SGD(self.parameters(), lr=self.lr)

    search = finder(groups="net.0")
    assert isinstance(search, (lightning.Callback, pl.Callback))
    trainer = lightning.Trainer(
        max_steps=2, callbacks=[search], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    model = Model()
    trainer.fit(model, lab.loader())
    assert search.result.status == "found"
    assert model.lr == search.optimal_lr


def test_progress_bar_follows_the_trainers(lab, capfd):
    for enabled in (False, True):
        lab.trainer(max_steps=1, callbacks=[finder()], enable_progress_bar=enabled).fit(lab.model(), lab.loader())
        assert ("Critical learning rate" in capfd.readouterr().err) == enabled


def test_progress_bar_shows_the_bracket(monkeypatch):
    shown = []
    monkeypatch.setattr("lightning_topo.finder._progress.tqdm.set_postfix_str", lambda bar, text: shown.append(text))
    broken = Trial(2.0, False, 0, 4.0)
    with SearchProgress(True) as progress:
        for state in (SearchState(2.0), SearchState(0.5, broken=broken), SearchState(0.75, held=0.5, broken=broken)):
            progress.trying(state)
    assert shown == [
        "held ?, broke ?, trying 2", "held ?, broke 2, trying 0.5", "held 0.5, broke 2, trying 0.75"
    ]  # fmt: skip


def test_groups_are_selected(lab):
    search = finder(groups="net.0", update_attr=False)
    lab.trainer(max_steps=1, callbacks=[search]).fit(lab.model(), lab.loader())
    assert {trial.group for trial in search.result.trials} == {"net.0"}


@pytest.mark.parametrize(("status", "options"), [("not_reached", {"max_lr": 1e-6}), ("below_min", {"min_lr": 10.0})])
def test_rate_stays_where_no_critical_one_is_found(lab, status, options):
    search, model = finder(**options), lab.model()
    trainer = lab.trainer(max_steps=1, callbacks=[search])
    with pytest.warns(UserWarning, match="stays as it is"):
        trainer.fit(model, lab.loader())
    assert search.result.status == status
    assert search.optimal_lr is None
    assert model.lr == trainer.optimizers[0].param_groups[0]["lr"] == 0.05


def test_fast_dev_run_is_left_out(lab):
    search = finder()
    with pytest.warns(UserWarning, match="fast_dev_run"):
        lab.trainer(fast_dev_run=2, callbacks=[search]).fit(lab.model(), lab.loader())
    assert search.result is None


class NoGroup(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.lr, self.net = 0.1, nn.Linear(6, 3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=self.lr)


def bad_input(lab, kind):
    """A model, and the error that a search of it has to raise."""
    if kind == "no attribute":
        model = lab.model()
        model.make_optimizer = lambda m: SGD(m.parameters(), lr=0.1)
        del model.lr
        return model, AttributeError, "attr_name="
    if kind == "nan loss":

        class Diverged(lab.Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) * float("nan")

        return lab.model(cls=Diverged), ValueError, "finite training loss"
    if kind == "no group":
        return NoGroup(), ValueError, "no exchangeable units"
    if kind == "no rate":

        class OwnRate(SGD):
            def __init__(self, params):
                super().__init__(params, lr=0.1)
                self.param_groups[0]["lr"] = None

            def step(self, closure=None):
                return closure()

        return lab.model(optimizer=lambda m: OwnRate(m.parameters())), ValueError, "can be set"
    if kind == "no step":

        class Idle(lab.Classifier):
            def __init__(self):
                super().__init__()
                self.automatic_optimization = False

            def training_step(self, batch, batch_idx):
                return self.loss(batch)

        return lab.model(cls=Idle), RuntimeError, "optimizer steps"

    class OwnBatches(lab.Classifier):
        def training_step(self, dataloader_iter):
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    return lab.model(cls=OwnBatches), TypeError, "dataloader_iter"


@pytest.mark.parametrize("kind", ["no attribute", "nan loss", "no group", "no rate", "no step", "own batches"])
@pytest.mark.parametrize("before_fit", [False, True])
def test_bad_input_is_an_error_and_changes_nothing(lab, kind, before_fit):
    model, error, message = bad_input(lab, kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = lab.trainer(callbacks=[] if before_fit else [finder()])
    callbacks = list(trainer.callbacks)
    run = partial(topological_lr_find, trainer, hold_steps=HOLD) if before_fit else trainer.fit
    with pytest.raises(error, match=message):
        run(model, lab.loader())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainer.callbacks == callbacks
    assert trainer.global_step == 0


@pytest.mark.parametrize(
    "options",
    [
        {"min_lr": 1.0, "max_lr": 0.1},
        {"hold_steps": 0},
        {"hold_steps": 2.5},
        {"orders": 0},
        {"safety": 0.0},
        {"tolerance": 0.0},
    ],
)
def test_bad_options(options):
    with pytest.raises(ValueError, match="expected"):
        TopologicalLearningRateFinder(**options)


def test_documented_defaults():
    search = TopologicalLearningRateFinder()
    assert search.result is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.load_state_dict({"result": TopologicalLRResult("found", (1.0, 1.0), ()).to_dict()})
    assert search.optimal_lr == 0.25
