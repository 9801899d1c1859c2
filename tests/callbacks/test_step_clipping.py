"""TopologicalStepClipping in a Trainer: every update is measured by a monitor beside it."""

import math
import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.functional import bi_lipschitz

from .conftest import Classifier
from .test_untouched import MODES, assert_untouched, manual, same, train

BOUND = 0.05


def fast(**options):
    return lambda module: torch.optim.SGD(module.parameters(), lr=5.0, **options)


def watched(callbacks=(), **options):
    return [*callbacks, lt.BiLipschitzMonitor(max_overhead=None, max_neurons=None, **options)]


def assert_bounded(monitor, bound=BOUND):
    kappas = [record.criticality for record in monitor.history if not math.isnan(record.criticality)]
    assert kappas
    assert max(kappas) <= bound


# What it does to a run.


@pytest.mark.parametrize("monitor_first", [True, False])
def test_no_update_exceeds_the_bound(monitor_first, classifier, trainer, data):
    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    trainer([monitor, clipping] if monitor_first else [clipping, monitor]).fit(classifier(fast(momentum=0.9)), data())
    assert (clipping.updates, len(monitor.history)) == (24, 48)
    assert clipping.clipped_updates > 12
    assert_bounded(monitor)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode(mode, classifier, trainer, data):
    options, make = MODES[mode]

    def faster(module):
        made = make(module)
        optimizer = made["optimizer"] if isinstance(made, dict) else made
        for group in optimizer.param_groups:
            for key in {"lr", "max_lr", "initial_lr", "min_lr"} & group.keys():
                group[key] *= 30
        return made

    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    module = classifier(faster)
    train(module, trainer([clipping, monitor], **options), data)
    assert clipping.clipped_updates > 0
    assert clipping.updates == (6 if mode == "accumulation" else 24)
    assert_bounded(monitor)
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_bound_that_is_never_reached_changes_nothing(classifier, trainer, data):
    def slow(module):
        return torch.optim.AdamW(module.parameters(), lr=1e-4)

    (clipping,) = assert_untouched(
        lambda: classifier(slow, dropout=0.3), trainer, data, lambda: [lt.TopologicalStepClipping(1.0)]
    )
    assert (clipping.updates, clipping.clipped_updates) == (24, 0)


def test_manual_optimization_with_several_optimizers(classifier, trainer, data):
    torch.manual_seed(0)
    module = manual(type(classifier()))()
    clipping, (monitor,) = lt.TopologicalStepClipping(1e-3), watched()
    train(module, trainer([clipping, monitor]), data)
    assert clipping.updates == 72
    assert_bounded(monitor, 1e-3)


class Unfreeze(pl.callbacks.BaseFinetuning):
    """Trains the last layer alone for an epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[:5], train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[:5], optimizer, lr=5.0)


def test_layers_that_are_unfrozen_are_clipped_too(classifier, trainer, data):
    def last_layer(module):
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=5.0)

    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    trainer([clipping, monitor, Unfreeze()]).fit(classifier(last_layer), data())
    clipped = [record.step for record in clipping.history if record.group == "net.0" and record.scale < 1]
    assert min(clipped) >= 12
    assert_bounded(monitor)


def test_an_optimizer_that_moves_no_neuron_at_first(trainer, data):
    class Shifted(Classifier):
        def __init__(self):
            super().__init__(lambda module: torch.optim.SGD([module.shift], lr=5.0))
            self.shift = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return self.net(x + self.shift)

    class Late(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.optimizers[0].add_param_group({"params": list(pl_module.net.parameters()), "lr": 5.0})

    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    trainer([clipping, monitor, Late()]).fit(Shifted(), data())
    assert clipping.updates == 12
    assert clipping.clipped_updates > 0
    assert_bounded(monitor)


def test_groups_are_chosen_by_name(classifier, trainer, data):
    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND, groups="net.4"), watched()
    trainer([clipping, monitor]).fit(classifier(fast()), data())
    assert {record.group for record in clipping.history} == {"net.4"}
    assert max(r.criticality for r in monitor.history if r.group == "net.4") <= BOUND


def test_after_a_search_and_with_a_schedule(classifier, trainer, data):
    def one_cycle(module):
        optimizer = torch.optim.Adam(module.parameters(), lr=module.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, module.lr, total_steps=24)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def run(callbacks):
        module = classifier(one_cycle)
        module.lr = 0.1
        pl.seed_everything(3, verbose=False)
        made = trainer(callbacks)
        made.fit(module, data())
        return module

    finders = [lt.TopologicalLearningRateFinder(hold_steps=5, safety=1.0) for _ in range(3)]
    for order in (0, 1):
        clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
        run([finders[order], clipping, monitor] if order == 0 else [clipping, monitor, finders[order]])
        assert clipping.updates == 24  # none of the search
        assert clipping.clipped_updates > 0
        assert_bounded(monitor)
    run([finders[2]])
    # The search sees the optimizer's own updates, clipping or not.
    assert finders[0].result.critical_lr == finders[1].result.critical_lr == finders[2].result.critical_lr


# What it tells.


def test_keys_and_history(classifier, trainer, data, recorder):
    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    made = trainer([clipping, monitor], logger=[recorder], log_every_n_steps=4)
    made.fit(classifier(fast()), data())
    due = [3, 7, 11, 15, 19, 23]
    for group in ("net.0", "net.4"):
        for field in ("scale", "criticality_before", "criticality_after"):
            logged = recorder.series(f"clipping.{group}.{field}")
            of_history = {r.step: getattr(r, field) for r in clipping.history if r.group == group}
            assert logged == [(step, of_history[step]) for step in due]
        made_kappas = {r.step: r.criticality for r in monitor.history if r.group == group}
        for step, kappa in recorder.series(f"clipping.{group}.criticality_after"):
            assert kappa == pytest.approx(made_kappas[step], rel=1e-5)
    assert recorder.series("clipping.clipped_updates")[-1] == (23, clipping.clipped_updates)
    assert recorder.series("clipping.clipped_share")[-1] == (23, clipping.clipped_updates / 24)
    assert not recorder.series("clipping.coverage")
    overall = dict(recorder.series("clipping.criticality_before"))
    for record in clipping.history:
        assert record.scale == 1 or record.scale <= 1
        if record.step in overall:
            assert record.criticality_before <= overall[record.step]
    assert made.callback_metrics["clipping/scale"] == dict(recorder.series("clipping.scale"))[23]
    steps = {record.step for record in clipping.history if record.scale < 1}
    assert len(steps) == clipping.clipped_updates


def test_counts_continue_after_a_checkpoint(classifier, trainer, data, tmp_path, weights_only):
    clipping = lt.TopologicalStepClipping(BOUND)
    first = trainer([clipping], max_epochs=1)
    first.fit(classifier(fast()), data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = lt.TopologicalStepClipping(BOUND)
    resumed = trainer([again], max_epochs=2)
    resumed.fit(classifier(fast()), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert again.updates == 24
    assert again.clipped_updates >= clipping.clipped_updates > 0


def halving(momentum=0.0):
    """SGD far above its bound, whose rate is halved with every epoch."""

    def configure(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=5.0, momentum=momentum)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)}

    return configure


def together(records, first):
    """The root of the sum of squares of the groups' κ, of each update from a step on."""
    found = {}
    for record in records:
        if record.step >= first and not math.isnan(record.criticality):
            found[record.step] = math.hypot(found.get(record.step, 0.0), record.criticality)
    return found.values()


def test_the_bound_goes_down_with_the_schedule_also_after_a_resume(
    classifier, trainer, data, tmp_path, weights_only, recorder
):
    clipping, (monitor,) = lt.TopologicalStepClipping(BOUND), watched()
    first = trainer([clipping, monitor], max_epochs=2, logger=[recorder], log_every_n_steps=12)
    first.fit(classifier(halving()), data())
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert dict(recorder.series("clipping.bound")) == pytest.approx({11: BOUND, 23: BOUND / 2})
    late = together(monitor.history, 12)
    assert 0.9 * BOUND / 2 < max(late) <= BOUND / 2
    again, (later,) = lt.TopologicalStepClipping(BOUND), watched()
    resumed = trainer([again, later], max_epochs=3)
    resumed.fit(classifier(halving()), data(), ckpt_path=tmp_path / "a.ckpt", **weights_only)
    assert len(later.history) > 0
    last = together(later.history, 24)
    assert 0.9 * BOUND / 4 < max(last) <= BOUND / 4


def test_rates_that_are_controlled_are_no_schedule(classifier, trainer, data, recorder):
    control = lt.TopologicalRateControl(schedule="linear", max_overhead=None)
    clipping = lt.TopologicalStepClipping(BOUND)
    trainer([clipping, control], logger=[recorder], log_every_n_steps=4).fit(classifier(fast()), data())
    rates = [value for _, value in recorder.series("control.learning_rate")]
    assert rates[-1] < 0.5 * max(rates)
    assert {value for _, value in recorder.series("clipping.bound")} == {BOUND}


def test_what_is_logged_where_nothing_is_scaled_back(classifier, trainer, data, recorder):
    clipping, (monitor,) = lt.TopologicalStepClipping(1.0), watched()
    made = trainer([clipping, monitor], logger=[recorder], log_every_n_steps=4)
    made.fit(classifier(lambda module: torch.optim.SGD(module.parameters(), lr=1e-3)), data())
    assert clipping.clipped_updates == 0
    kappas = dict(recorder.series("clipping.criticality_before"))
    assert list(kappas) == [3, 7, 11, 15, 19, 23]
    for step, kappa in kappas.items():
        of_groups = [r.criticality for r in monitor.history if r.step == step]
        assert kappa == pytest.approx(math.hypot(*of_groups), rel=1e-5)
    assert {value for _, value in recorder.series("clipping.clipped_share")} == {0.0}
    assert {value for _, value in recorder.series("clipping.scale")} == {1.0}


def test_a_fresh_fit_counts_anew(classifier, trainer, data):
    clipping = lt.TopologicalStepClipping(BOUND)
    for _ in range(2):
        trainer([clipping], max_epochs=1).fit(classifier(fast()), data(shuffle=False))
        assert clipping.updates == 12
        assert 0 < clipping.clipped_updates <= 12


def test_tensorboard_has_a_chart(classifier, trainer, data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(tmp_path)
    trainer([lt.TopologicalStepClipping(BOUND)], logger=logger).fit(classifier(fast()), data())
    events = EventAccumulator(logger.log_dir).Reload()
    assert "clipping/net.0/scale" in events.Tags()["scalars"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0].decode()
    assert "κ before and after clipping" in layout


def test_hooks_are_removed(classifier, trainer, data):
    made = trainer([lt.TopologicalStepClipping(BOUND)])
    made.fit(classifier(fast()), data())
    for optimizer in made.optimizers:
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


# What may go wrong.


def test_a_nan_loss_is_undone_with_a_warning(classifier, trainer, data):
    base = type(classifier())

    class Poisoned(base):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.trainer.global_step == 5 else loss

    torch.manual_seed(0)
    module = Poisoned(lambda m: torch.optim.Adam(m.parameters(), lr=1e-3))
    with pytest.warns(UserWarning, match="step 5 made parameters NaN or infinite and was undone"):
        trainer([lt.TopologicalStepClipping(), *watched()]).fit(module, data())
    assert all(p.isfinite().all() for p in module.parameters())


def test_nan_weights_are_said_once(classifier, trainer, data):
    class Poison(pl.Callback):
        @torch.no_grad()
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 5:
                pl_module.net[0].weight[0, 0] = math.nan

    with pytest.warns(UserWarning, match="were NaN or infinite before the update") as caught:
        trainer([lt.TopologicalStepClipping(), Poison()]).fit(classifier(), data())
    said = [str(w.message) for w in caught if "before the update" in str(w.message)]
    assert len(said) == 1
    assert "at step 5" in said[0]


def test_nan_weights_at_the_start_are_an_error(classifier, trainer, data):
    module = classifier()
    with torch.no_grad():
        module.net[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="returned no finite number"):
        trainer([lt.TopologicalStepClipping()]).fit(module, data())


BY_HAND = [
    lt.NeuronGroup(
        "net.0",
        (
            lt.Member("net.0.weight"),
            lt.Member("net.0.bias"),
            *(lt.Member(f"net.1.{name}") for name in ("weight", "bias", "running_mean", "running_var")),
            lt.Member("net.4.weight", axis=1),
        ),
    )
]


def test_a_step_that_the_gradient_scaler_skips(classifier):
    """A scaler that finds infinite gradients calls no step, or one that moves nothing; both leave the count alone."""
    module = classifier()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    clipping = lt.TopologicalStepClipping(BOUND, groups=BY_HAND)
    clipping._neurons.found, clipping._followed.model = tuple(BY_HAND), module
    batches = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    clipping._followed.listen(SimpleNamespace(callbacks=[clipping], fit_loop=batches, optimizers=[optimizer]))
    for poison in (False, True, False):
        before = module.net[0].weight.detach().clone()
        optimizer.zero_grad()
        scaler.scale(module.loss((torch.randn(8, 6), torch.randint(0, 3, (8,))))).backward()
        if poison:
            module.net[0].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, module.net[0].weight) == poison
    assert (clipping.updates, clipping.clipped_updates) == (2, 2)
    clipping.release()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("bound", [0, -1, 1.01, math.nan, True, "a"])
def test_bounds_that_guarantee_nothing(bound):
    with pytest.raises(ValueError, match=r"in \(0, 1\], for above 1 neurons can merge"):
        lt.TopologicalStepClipping(bound)


def test_a_model_without_groups_is_an_error(trainer, data):
    class Linear(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ValueError, match=r"found no group .* Pass groups="):
        trainer([lt.TopologicalStepClipping()]).fit(Linear(), data())


def test_an_unknown_group_is_an_error(classifier, trainer, data):
    with pytest.raises(ValueError, match=r"no group matches 'head'; known groups: net.0, net.4"):
        trainer([lt.TopologicalStepClipping(groups="head")]).fit(classifier(), data())


@pytest.mark.parametrize("kind", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_strategies_are_refused_at_the_start(kind, classifier):
    strategy = type(kind, (), {"zero_stage_3": kind == "DeepSpeedStrategy"})()
    made = SimpleNamespace(callbacks=[], strategy=strategy, world_size=2, is_global_zero=True, global_step=0)
    with pytest.raises(TypeError, match=rf"{kind}, which shards the parameters"):
        lt.TopologicalStepClipping().setup(made, classifier(), "fit")


# Two processes.


def test_two_processes_stay_together(classifier, trainer, data, tmp_path):
    class Keep(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.kappas, self.points = [], None

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.points = BY_HAND[0].points(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.kappas.append(bi_lipschitz(self.points, BY_HAND[0].points(pl_module)).criticality)

        def on_train_end(self, trainer, pl_module):
            torch.save(
                (self.kappas, clipping.clipped_updates, list(pl_module.parameters())),
                tmp_path / f"{trainer.global_rank}.pt",
            )

    clipping = lt.TopologicalStepClipping(BOUND)
    pl.seed_everything(2, verbose=False)
    trainer([clipping, Keep()], strategy="ddp_fork", devices=2).fit(classifier(fast(momentum=0.9)), data())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert same(first[2], second[2])
    assert first[1] == second[1] > 0
    assert max(first[0]) <= BOUND


@pytest.mark.parametrize(("bound", "warned"), [(1e-4, 1), (1.0, 0)])
def test_a_bound_that_sets_the_pace_is_said_once(bound, warned, classifier, trainer, data):
    clipping = lt.TopologicalStepClipping(bound)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([clipping], max_epochs=12).fit(classifier(), data())
    said = [str(w.message) for w in caught if "the bound sets the pace" in str(w.message)]
    assert len(said) == warned
    assert not warned or "100 of the last 100 updates were scaled back at step 99" in said[0]
