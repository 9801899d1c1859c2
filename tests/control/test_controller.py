"""One optimizer under control, in closed form and against a loop written out."""

import itertools
import math

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.control import RateController, RateRule, schedule_shape
from lightning_topo.functional import bi_lipschitz

N = 40


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 2))


def batches(n=N):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        x = torch.randn(16, 6, generator=generator)
        yield x, x[:, :2].sin()


OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.1),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9),
}


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def controlled(name, lr=0.01, seed=0, **options):
    model = network(seed)
    optimizer = OPTIMIZERS[name](model.parameters(), lr)
    rates = []
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N, **options) as control:
        for x, y in batches():
            step(model, optimizer, x, y)
            rates.append(control.learning_rate)
    return model, rates, control


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rates_are_those_of_the_rule_written_out(name):
    """In double loops over all pairs, on a copy, with windows of one update."""
    _, rates, _ = controlled(name, every=1, share=0.1)
    model, lr = network(), 0.01
    optimizer = OPTIMIZERS[name](model.parameters(), lr)
    groups = lt.find_neuron_groups(model, torch.ones(1, 6))
    smoothed = top = None
    for t, (x, y) in enumerate(batches()):
        shape = min(1, (t + 1) / (0.1 * N)) * 0.5 * (1 + math.cos(math.pi * t / N))
        bias = math.sqrt(1 - 0.9 ** (t + 1)) if name == "rmsprop" else 1
        rate = 0.01 if t == 0 else 0.1 / top
        optimizer.param_groups[0]["lr"] = rate * shape * bias
        before, old = [g.points(model).double() for g in groups], weights(model)
        step(model, optimizer, x, y)
        squares = 0.0
        for group, p in zip(groups, before, strict=True):
            u = group.points(model).double() - p
            pairs = itertools.combinations(range(len(p)), 2)
            squares += max(((u[i] - u[j]).norm() / (p[i] - p[j]).norm()).item() ** 2 for i, j in pairs)
        k = math.sqrt(squares) / (rate * shape)
        smoothed = k if smoothed is None else math.sqrt(smoothed * k)
        half_life = 0.15 * N if t < 0.1 * N else 0.5 * N
        top = smoothed if top is None else max(smoothed, top * 0.5 ** (1 / half_life))
        if t == 0:
            with torch.no_grad():
                for p, q in zip(model.parameters(), old, strict=True):
                    p.copy_(q + (0.1 / top) / rate * (p - q))
            rate = 0.1 / top
        assert rates[t] == pytest.approx(rate * shape * bias, rel=1e-3)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rmsprop"])
def test_the_optimizers_own_rate_does_not_matter(name):
    (one, _, _), (other, _, _) = controlled(name, 1e-4), controlled(name, 1.0)
    for p, q in zip(weights(one), weights(other), strict=True):
        assert torch.allclose(p, q, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_the_first_update_has_the_share_that_was_asked_for(name):
    model = network()
    groups = lt.find_neuron_groups(model, torch.ones(1, 6))
    optimizer = OPTIMIZERS[name](model.parameters(), 3.0)
    before = [group.points(model) for group in groups]
    with lt.topological_rate_control(optimizer, model, groups=list(groups), share=0.07, schedule="constant"):
        step(model, optimizer, *next(batches()))
    kappas = [bi_lipschitz(p, group.points(model)).criticality for group, p in zip(groups, before, strict=True)]
    assert math.hypot(*kappas) == pytest.approx(0.07, rel=1e-3)


def constant_meter(monkeypatch, smoothness):
    """A stand-in that finds the same K whatever happens."""

    def apply(self):
        for _, _rates, count in self._pending:
            self.state = self._rule.step(self.state, smoothness, count, self.updates)
        self._pending = []

    monkeypatch.setattr(RateController, "_apply", apply)
    monkeypatch.setattr(RateController, "_alarmed", lambda self: False)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_no_trace_but_the_rate(monkeypatch, name):
    """Where the critical rate is constant, training is plain training at that rate, bit for bit."""
    constant_meter(monkeypatch, 0.2 / 0.01)
    model, rates, _ = controlled(name, lr=0.01, schedule="constant", share=0.2)
    plain = network()
    optimizer = OPTIMIZERS[name](plain.parameters(), 0.01)
    for x, y in batches():
        step(plain, optimizer, x, y)
    assert all(map(torch.equal, weights(model), weights(plain)))
    assert set(rates) == {0.01}


def test_rates_are_put_back_and_hooks_are_gone():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5))
    rate = optimizer.param_groups[0]["lr"]
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N):
        for x, y in batches(3):
            step(model, optimizer, x, y)
            assert optimizer.param_groups[0]["lr"] is rate
            assert rate.item() == 0.5
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_rates_are_put_back_where_a_step_fails():
    class Fails(torch.optim.SGD):
        def step(self, closure=None):
            raise OSError("no")

    model = network()
    optimizer = Fails(model.parameters(), lr=0.5)

    def run():
        with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N):
            step(model, optimizer, *next(batches()))

    with pytest.raises(OSError, match="no"):
        run()
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_groups_keep_the_ratio_of_their_rates():
    model = network()
    settings = [{"params": model[0].parameters(), "lr": 0.3}, {"params": model[2:].parameters(), "lr": 0.1}]
    optimizer, seen = torch.optim.SGD([*settings, {"params": [nn.Parameter(torch.ones(1))], "lr": 0.0}]), []
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N) as control:
        optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
        for x, y in batches(10):
            step(model, optimizer, x, y)
    for first, second, third in seen:
        assert (second, third) == (pytest.approx(first / 3), 0.0)
    assert control.learning_rate == pytest.approx(seen[-1][0])


def test_the_optimizers_own_schedule_gives_the_shape():
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 5 else 1e-3)
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), half_life=math.inf) as control:
        for x, y in batches(10):
            step(model, optimizer, x, y)
            schedule.step()
            seen.append(control.learning_rate)
    assert 0.5e-3 < seen[5] / seen[4] < 1.5e-3
    assert optimizer.param_groups[0]["lr"] == 0.3e-3


@pytest.mark.parametrize("at", [7, 23])
@pytest.mark.parametrize("every", [1, 10])
def test_a_saved_run_goes_on_bit_for_bit(at, every):
    def run(stop, saved=None):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        groups = lt.find_neuron_groups(model, torch.ones(1, 6))
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        controller = RateController(
            optimizer, model, groups, RateRule.of_run(0.2, None, N), schedule_shape("cosine", N), every
        )
        if saved is not None:
            controller.load_state_dict(saved[2])
        for x, y in itertools.islice(batches(), controller.updates, stop):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            controller.before()
            optimizer.step()
            controller.after()
        return model.state_dict(), optimizer.state_dict(), controller.state_dict()

    whole, half = run(N), run(at)
    resumed = run(N, half)
    assert all(torch.equal(whole[0][name], resumed[0][name]) for name in whole[0])


def test_a_spike_ends_the_window():
    """One batch of gradients a hundred times as large: measured at once, not at the end of the window."""

    def run(watches):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        groups = lt.find_neuron_groups(model, torch.ones(1, 6))
        controller = RateController(optimizer, model, groups, RateRule(0.2), every=30, watches=watches)
        measured = []
        for t, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            (nn.functional.mse_loss(model(x), y) * (100 if t == 33 else 1)).backward()
            controller.before()
            optimizer.step()
            known = controller.state
            controller.after()
            if controller.state != known:
                measured.append(t)
        return measured

    assert 33 in run(True)
    assert 33 not in run(False)


def test_layers_that_are_unfrozen_are_followed():
    model = network()
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N) as control:
        for t, (x, y) in enumerate(batches()):
            if t == 10:
                optimizer.add_param_group({"params": list(model[:4].parameters()), "lr": 0.05})
            step(model, optimizer, x, y)
    assert control.updates == N
    assert {g.name for one in control._meter.sets for g in one.groups} == {"0", "2"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS, whose memory"),
        (lambda p: torch.optim.Rprop(p), "Rprop, which only starts"),
        (lambda p: torch.optim.SGD([{"params": list(p), "lr": 1.0, "d": 1e-6, "d0": 1e-6}]), "finds its own step"),
        (lambda p: torch.optim.SGD([{"params": list(p), "lr": 1.0, "relative_step": True}]), "relative_step=True"),
        (lambda p: torch.optim.SGD([{"params": list(p), "lr": math.nan}]), "learning rate 'lr' of at least 0"),
    ],
)
def test_optimizers_that_cannot_be_controlled(make, message):
    model = network()
    with (
        pytest.raises(TypeError, match=message),
        lt.topological_rate_control(make(model.parameters()), model, torch.ones(1, 6), N),
    ):
        pass


def test_rates_of_zero_and_nothing_to_follow():
    model = network()
    for optimizer, message in (
        (torch.optim.SGD(model.parameters(), lr=0.0), "expected a positive learning rate"),
        (torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), "a neuron group that the optimizer holds"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N),
        ):
            pass


def test_weights_that_become_nan_leave_the_rate():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lt.topological_rate_control(optimizer, model, torch.ones(1, 6), N, every=1) as control:
        for t, (x, y) in enumerate(batches(10)):
            step(model, optimizer, x * (math.nan if t == 5 else 1), y)
    assert control.diverged
    assert math.isfinite(control.learning_rate)
