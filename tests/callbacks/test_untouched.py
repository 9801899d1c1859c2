"""A run with all monitors is the run without them, bit for bit."""

import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import lightning_topo as lt


class AlwaysMeasuring:
    """All three monitors at their busiest."""

    @staticmethod
    def make():
        return [
            lt.BiLipschitzMonitor(max_overhead=None, max_neurons=10),
            lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=3),
            lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=2),
        ]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def momentum(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)


def lbfgs(module):
    return torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)


def parameter_groups(module):
    first, rest = list(module.net[0].parameters()), list(module.net[1:].parameters())
    return torch.optim.AdamW([{"params": first, "lr": 1e-2}, {"params": rest, "lr": 1e-3}])


def one_cycle(module):
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=24)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def manual(base):
    class Manual(base):
        """Two optimizers, stepped in turn, one of them twice a batch."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            for optimizer in (first, second, second):
                loss = self.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.seen.append(batch[0].sum().item())

        def configure_optimizers(self):
            return (
                torch.optim.SGD(self.net[:3].parameters(), lr=0.1),
                torch.optim.Adam(self.net[3:].parameters(), lr=1e-2),
            )

    return Manual


MODES = {
    "sgd": ({}, sgd),
    "momentum": ({}, momentum),
    "lbfgs": ({}, lbfgs),
    "parameter-groups": ({}, parameter_groups),
    "one-cycle": ({}, one_cycle),
    "accumulation": ({"accumulate_grad_batches": 5}, sgd),
    "clip-norm": ({"gradient_clip_val": 0.1}, momentum),
    "clip-value": ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, sgd),
    "bf16-mixed": ({"precision": "bf16-mixed"}, momentum),
    "bf16-true": ({"precision": "bf16-true"}, sgd),
    "float64": ({"precision": "64-true"}, sgd),
    "anomalies": ({"detect_anomaly": True}, sgd),
    "validation": ({"val_check_interval": 4}, sgd),
}


def outcome(module, trainer_instance):
    states = [optimizer.state_dict() for optimizer in trainer_instance.optimizers]
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "optimizers": states,
        "random": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),  # noqa: NPY002
        "batches": module.seen,
        "metrics": {k: v for k, v in trainer_instance.callback_metrics.items() if "/" not in k},
        "hooks": [
            len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in trainer_instance.optimizers
        ],
        "attributes": sorted(vars(module)),
        "training": [m.training for m in module.modules()],
        "steps": trainer_instance.global_step,
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) or ((a.isnan() == b.isnan()).all() and torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def train(module, trainer_instance, data):
    pl.seed_everything(1, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_instance.fit(module, data(), data(shuffle=False))
    return outcome(module, trainer_instance)


def assert_untouched(make_module, make_trainer, data, monitors=AlwaysMeasuring.make):
    callbacks = monitors()
    plain = train(make_module(), make_trainer([]), data)
    watched = train(make_module(), make_trainer(callbacks), data)
    for part in plain:
        assert same(plain[part], watched[part]), part
    return callbacks


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode, classifier, trainer, data):
    options, optimizer = MODES[mode]
    callbacks = assert_untouched(
        lambda: classifier(optimizer, dropout=0.3), lambda monitors: trainer(monitors, **options), data
    )
    bi_lipschitz, persistence, sharpness = callbacks
    assert bi_lipschitz.history
    assert persistence.history
    assert sharpness.history


def test_manual_optimization_with_several_optimizers(classifier, trainer, data):
    base = type(classifier())

    def make():
        torch.manual_seed(0)
        return manual(base)()

    bi_lipschitz, *_ = assert_untouched(make, trainer, data)
    # Three updates a batch; the middle neurons, between the two optimizers, are moved by both.
    assert len({record.step for record in bi_lipschitz.history}) == 24


@pytest.mark.parametrize("where", ["module", "layers"])
def test_compiled(where, classifier, trainer, data):
    base = type(classifier())

    class Plain(base):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    def make():
        torch.manual_seed(0)
        module = Plain(sgd)
        if where == "module":
            return torch.compile(module, backend="aot_eager")
        module.net = torch.compile(module.net, backend="aot_eager")
        return module

    torch._dynamo.reset()
    bi_lipschitz, persistence, sharpness = assert_untouched(make, trainer, data)
    assert {record.group for record in bi_lipschitz.history} == {"net.0", "net.4"}
    assert persistence.history
    assert all(np.isnan(record.lambda_max) for record in sharpness.history)  # compiled graphs have none
    assert [record.critical_lr > 0 for record in sharpness.history] == [True] * 12


class NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        module = ctx.module
        module.calls += 1
        module.sizes.append(gradient.norm().item())
        noise = torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002
        return gradient * (1 + 0.01 * noise + 0.01 * torch.rand(1, generator=module.generator).item()), None


def hooked(module, where):
    """The module with code of the user's in its backward pass, which counts, draws and changes gradients."""
    counted = []

    def noise(*args):
        counted.append(1)
        return 1 + 0.01 * torch.rand(1).item()

    layer = module.net[4]
    if where == "parameter":
        layer.weight.register_hook(lambda g: g * noise())
    elif where == "module":
        layer.register_full_backward_hook(lambda m, gi, go: tuple(g * noise() for g in gi))
    elif where == "module, before":
        layer.register_full_backward_pre_hook(lambda m, go: tuple(g * noise() for g in go))
    elif where == "activation":
        module.calls, module.sizes = 0, []

        def hook(g):
            module.calls += 1
            return g * (1 + 0.01 * torch.rand(1).item())

        def watch(out):
            if out.requires_grad:
                out.register_hook(hook)

        layer.register_forward_hook(lambda m, args, out: watch(out))
    else:
        module.calls, module.sizes, module.generator = 0, [], torch.Generator().manual_seed(0)
        layer.register_forward_hook(lambda m, args, out: NoisyGradient.apply(out, module))
    return module, counted


@pytest.mark.parametrize("where", ["parameter", "module", "module, before", "activation", "function"])
def test_code_in_the_backward_pass_notices_nothing(where, classifier, trainer, data):
    made = []

    def make():
        module, counted = hooked(classifier(sgd), where)
        hooks = module.net[4]._backward_hooks, module.net[4]._backward_pre_hooks
        made.append((module, counted, hooks, [dict(h) for h in hooks]))
        return module

    def monitors():
        return [lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=2)]

    (sharpness,) = assert_untouched(make, trainer, data, monitors)
    assert len(sharpness.history) == 12
    (plain, plain_count, *_), (watched, watched_count, hooks, at_first) = made
    assert plain_count == watched_count
    for name in ("calls", "sizes"):
        assert getattr(plain, name, None) == getattr(watched, name, None)
    assert list(map(dict, hooks)) == at_first


@pytest.mark.parametrize("in_place", [True, False])
def test_checkpointed_activations(in_place, classifier, trainer, data):
    class Average(nn.Module):
        """A running mean, whose buffer is written to or replaced by another."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(12))
            self.register_buffer("zeros", torch.zeros(1).expand(12))  # not to be written to

        def forward(self, h):
            mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
            self.mean = self.mean.copy_(mean) if in_place else mean
            return h - self.mean + self.zeros

    class Checkpointed(type(classifier())):
        def forward(self, x):
            h = torch.utils.checkpoint.checkpoint(self.net[:4], x, use_reentrant=False)
            return self.net[4:](h)

    def make():
        torch.manual_seed(0)
        module = Checkpointed(momentum, dropout=0.3)
        module.net[2] = nn.Sequential(nn.Softplus(), Average())
        return module

    def monitors():
        return [lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=1)]

    (sharpness,) = assert_untouched(make, trainer, data, monitors)
    assert len(sharpness.history) == 24


def test_weight_averaging(classifier, trainer, data):
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("needs pytorch-lightning 2.6")
    assert_untouched(lambda: classifier(sgd), lambda monitors: trainer([*monitors, averaging(decay=0.5)]), data)


def test_frozen_layers(classifier, trainer, data):
    def make():
        module = classifier(sgd)
        module.net[0].requires_grad_(False)
        return module

    assert_untouched(make, trainer, data)


def test_a_module_without_forward(classifier, trainer, data):
    class WithoutForward(type(classifier())):
        forward = nn.Module.forward

        def loss(self, batch):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def make():
        torch.manual_seed(0)
        return WithoutForward(momentum, dropout=0.3)

    bi_lipschitz, *_ = assert_untouched(make, trainer, data)
    assert bi_lipschitz.history  # a copy's training step showed the neurons


def test_the_other_import_name(tmp_path, data):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
            self.seen = []

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].sum().item())
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return sgd(self)

    def make():
        torch.manual_seed(0)
        return Module()

    def make_trainer(callbacks):
        return lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    callbacks = assert_untouched(make, make_trainer, data)
    assert all(
        isinstance(callback, (lightning.Callback)) and isinstance(callback, pl.Callback) for callback in callbacks
    )
    assert all(callback.history for callback in callbacks)
