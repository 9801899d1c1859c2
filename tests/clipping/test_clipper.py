"""StepClipper: updates known in closed form, and runs that are measured from outside."""

import itertools
import math

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.clipping import StepClipper, topological_step_clipping
from lightning_topo.functional import bi_lipschitz


def two_layers(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    n_in, n, n_out = shape or (3, 8, 2)
    return nn.Sequential(nn.Linear(n_in, n), nn.Tanh(), nn.Linear(n, n_out)).to(dtype)


def push(model, direction):
    """Gradients of the loss <direction, θ>."""
    for parameter, gradient in zip(model.parameters(), direction, strict=True):
        parameter.grad = gradient.clone()


def directions(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator).to(p) for p in model.parameters()]


def state(model):
    return [p.detach().clone() for p in model.parameters()]


# One update, in closed form.


def test_an_update_is_scaled_to_the_bound():
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before, points = state(model), group.points(model)
    gradients = directions(model)
    plain = two_layers()
    with torch.no_grad():
        for p, g in zip(plain.parameters(), gradients, strict=True):
            p -= g
    kappa = bi_lipschitz(points, group.points(plain)).criticality
    assert kappa > 0.1

    clipper = StepClipper(optimizer, model, [group], 0.1)
    push(model, gradients)
    clipper.before()
    optimizer.step()
    assert clipper.after()

    (made,) = clipper.last
    assert made.group == "0"
    assert made.criticality_before == pytest.approx(kappa, rel=1e-5)
    assert 0.0998 < made.criticality_after <= 0.1
    assert made.criticality_after == pytest.approx(bi_lipschitz(points, group.points(model)).criticality, rel=1e-5)
    assert made.scale == pytest.approx(0.1 / kappa, rel=2e-3)
    # The output's bias, in no group, goes the same share of its way.
    for p, start, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), start - made.scale * gradient)


def test_what_stays_below_is_left_as_it_is():
    model, twin = two_layers(), two_layers()
    optimizer, other = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (model, twin))
    clipper = StepClipper(optimizer, model, lt.find_neuron_groups(model, torch.ones(1, 3)), 1.0)
    for seed in range(5):
        for m in (model, twin):
            push(m, directions(model, seed))
        clipper.before()
        optimizer.step()
        other.step()
        assert not clipper.after()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert (clipper.updates, clipper.clipped_updates, clipper.last) == (5, 0, ())


def test_exact_evaluates_every_group():
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    clipper = StepClipper(optimizer, model, [group], 0.5)
    before = group.points(model)
    push(model, directions(model))
    clipper.before()
    optimizer.step()
    assert not clipper.after(exact=True)
    kappa = bi_lipschitz(before, group.points(model)).criticality
    (seen,) = clipper.last
    assert (seen.criticality_before, seen.criticality_after) == pytest.approx((kappa, kappa), rel=1e-5)
    assert seen.scale == 1


@pytest.mark.parametrize("rate", [0.01, 0.1, 10.0])
def test_to_look_at_every_group_changes_no_update(rate):
    models = []
    for exact in (False, True):
        model = convolutional()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        clipper = StepClipper(optimizer, model, lt.find_neuron_groups(model, torch.randn(4, 16)), 0.2)
        for seed in range(20):
            push(model, directions(model, seed))
            clipper.before()
            optimizer.step()
            clipper.after(exact=exact)
        models.append((state(model), clipper.clipped_updates))
    (one, clipped), (other, too) = models
    assert clipped == too
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Sets of groups.


def test_groups_that_share_nothing_have_factors_of_their_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = two_layers(), two_layers()
            self.both = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.both * (self.left(x) + self.right(x))

    model = Two()
    groups = lt.find_neuron_groups(model, torch.randn(4, 3))
    assert [group.name for group in groups] == ["left.0", "right.0"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    for (name, p), strength in zip(model.named_parameters(), [1.0, *[3.0] * 4, *[0.01] * 4], strict=True):
        gradients[name] = strength * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        p.grad = gradients[name].clone()
    clipper = StepClipper(optimizer, model, groups, 0.1)
    clipper.before()
    optimizer.step()
    assert clipper.after()
    (made,) = clipper.last
    assert made.group == "left.0"
    for name, p in model.named_parameters():
        factor = 1.0 if name in ("right.0.weight", "right.0.bias", "right.2.weight") else made.scale
        torch.testing.assert_close(p.detach(), before[name] - factor * gradients[name])
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], factor * gradients[name])


def level_by_bisection(kappas, bound):
    """Where the largest κ are cut for a root of the sum of squares at the bound."""
    below, above = 0.0, max(kappas)
    for _ in range(60):
        middle = (below + above) / 2
        within = math.sqrt(sum(min(kappa, middle) ** 2 for kappa in kappas)) <= bound
        below, above = (middle, above) if within else (below, middle)
    return below


class Chain(nn.Module):
    """Three layers, whose middle matrix belongs to two groups, in a network whose first and last matrix are one."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 10), nn.Linear(10, 7), nn.Linear(7, 6)
        self.out = nn.Linear(6, 10) if not tied else None

    def forward(self, x):
        h = self.fc3(self.fc2(self.fc1(x).tanh()).tanh()).tanh()
        return self.out(h) if self.out is not None else nn.functional.linear(h, self.fc1.weight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_tensor_goes_the_smallest_share_that_its_groups_allow(tied, seed):
    model = Chain(tied)
    groups = lt.find_neuron_groups(model, torch.randn(4, 6))
    members = {group.name: {member.parameter for member in group.members} for group in groups}
    shared = [name for name, _ in model.named_parameters() if sum(name in own for own in members.values()) > 1]
    assert groups
    assert tied or "fc2.weight" in shared
    bound = 0.1
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    points = {group.name: group.points(model) for group in groups}
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.logspace(-3, 1, len(before))[torch.randperm(len(before), generator=generator)]
    update = {
        name: strength * torch.randn(p.shape, generator=generator)
        for (name, p), strength in zip(before.items(), strengths, strict=True)
    }
    for name, p in model.named_parameters():
        p.grad = -update[name]
    plain = Chain(tied)
    plain.load_state_dict({name: before[name] + update.get(name, 0) for name in before})
    kappas = {g.name: bi_lipschitz(points[g.name], g.points(plain)).criticality for g in groups}
    level = level_by_bisection(kappas.values(), bound)
    allowed = {name: min(1.0, level / kappa) for name, kappa in kappas.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with topological_step_clipping(optimizer, model, list(groups), bound) as clipper:
        optimizer.step()
    assert clipper.clipped_updates == 1
    for name, p in model.named_parameters():
        own = [allowed[group] for group, names in members.items() if name in names]
        factor = min(own, default=min(allowed.values()))
        made, expected = p.detach() - before[name], factor * update[name]
        torch.testing.assert_close(made, expected, rtol=0.0, atol=2e-3 * float(expected.abs().max()) + 1e-7)
    assert math.hypot(*(bi_lipschitz(points[g.name], g.points(model)).criticality for g in groups)) <= bound
    scales = {one.group: one.scale for one in clipper.last}
    for group, names in members.items():
        smallest = min(factor for other, factor in allowed.items() if names & members[other])
        assert scales.get(group, 1.0) == pytest.approx(smallest, rel=2e-3)


def test_the_bound_goes_down_with_the_learning_rate():
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    settings = [{"params": model[0].parameters(), "lr": 5.0}, {"params": model[2].parameters(), "lr": 50.0}]
    optimizer = torch.optim.SGD(settings)
    clipper = StepClipper(optimizer, model, [group], 0.4)
    for step, (share, expected) in enumerate([(0.5, 0.4), (1.0, 0.4), (0.25, 0.1), (0.01, 0.004), (2.0, 0.4)]):
        for one, full in zip(optimizer.param_groups, (5.0, 50.0), strict=True):
            one["lr"] = share * full
        before = group.points(model)
        push(model, directions(model, step))
        clipper.before()
        optimizer.step()
        assert clipper.after()
        assert clipper.bound == pytest.approx(expected)
        kappa = bi_lipschitz(before, group.points(model)).criticality
        assert 0.99 * expected < kappa <= expected * (1 + 1e-6)
    assert clipper.rates.full_rates == [10.0, 100.0]


def test_a_rate_of_zero_and_none_at_all():
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    clipper = StepClipper(optimizer, model, [group], 0.4)
    for lr in (0.0, 1e-9, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        push(model, directions(model))
        clipper.before()
        optimizer.step()
        assert not clipper.after(exact=True)
    for settings in optimizer.param_groups:
        del settings["lr"]
    assert clipper.rates.share() == 1.0


def test_an_optimizer_of_some_of_the_parameters():
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=10.0)
    rest = [p.detach().clone() for p in model[2].parameters()]
    before = group.points(model)
    with topological_step_clipping(optimizer, model, [group], 0.2):
        push(model, directions(model))
        optimizer.step()
    assert 0.199 < bi_lipschitz(before, group.points(model)).criticality <= 0.2
    assert all(torch.equal(a, b) for a, b in zip(model[2].parameters(), rest, strict=True))


# The optimizer's memory.

OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, amsgrad=True),
    "nadam": lambda p, lr: torch.optim.NAdam(p, lr=lr),
    "radam": lambda p, lr: torch.optim.RAdam(p, lr=lr),
    "adamax": lambda p, lr: torch.optim.Adamax(p, lr=lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.9, centered=True),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr=lr),
    "rprop": lambda p, lr: torch.optim.Rprop(p, lr=lr),
    "lbfgs": lambda p, lr: torch.optim.LBFGS(p, lr=lr, max_iter=4),
}


@pytest.mark.parametrize(
    ("name", "buffer", "share"),
    [("momentum", "momentum_buffer", 1.0), ("adam", "exp_avg", 0.1), ("nadam", "exp_avg", 0.1)],
)
def test_first_moments_are_scaled_like_the_update(name, buffer, share):
    model = two_layers()
    optimizer = OPTIMIZERS[name](model.parameters(), 1e-4)
    clipper = StepClipper(optimizer, model, lt.find_neuron_groups(model, torch.ones(1, 3)), 0.1)
    gradients = directions(model)
    for lr, clipped in ((1e-6, False), (10.0, True)):
        moments = {p: optimizer.state[p].get(buffer, torch.zeros(())).clone() for p in model.parameters()}
        optimizer.param_groups[0]["lr"] = lr
        push(model, gradients)
        clipper.before()
        optimizer.step()
        assert clipper.after() == clipped
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            decay = 0.9 if moments[parameter].any() else 0.0
            scale = clipper.last[0].scale if clipped else 1.0
            assert (scale < 1) == clipped
            expected = scale * (decay * moments[parameter] + share * gradient)
            torch.testing.assert_close(optimizer.state[parameter][buffer], expected)


# Whole runs, measured from outside.


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 8), layer, nn.Flatten(), nn.Linear(32, 3))


NETWORKS = {"mlp": lambda: two_layers(16, 20, 3), "convolutional": convolutional, "transformer": transformer}


def guarded_run(model, optimizer, bound, steps=12):
    """Trains under clipping, and says what every update did to all neurons."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 16, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    groups = lt.find_neuron_groups(model, x[:2])
    start = [group.points(model) for group in groups]
    kappas = []
    with topological_step_clipping(optimizer, model, list(groups), bound) as clipper:
        for step in range(steps):
            rows = slice(step % 4 * 16, step % 4 * 16 + 16)

            def closure(rows=rows):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                return loss

            before = [group.points(model) for group in groups]
            optimizer.step(closure)
            made = {
                group.name: bi_lipschitz(p, group.points(model)).criticality
                for p, group in zip(before, groups, strict=True)
            }
            for told in clipper.last:
                if not math.isnan(told.criticality_after):
                    assert made[told.group] <= told.criticality_after + 0.001 * bound
                    if len(groups) == 1:  # where no other group had a tensor scaled further
                        assert told.criticality_after == pytest.approx(made[told.group], abs=0.001 * bound)
            kappas.append(math.hypot(*(kappa for kappa in made.values() if not math.isnan(kappa))))
    ends = [group.points(model) for group in groups]
    return kappas, clipper, start, ends


@pytest.mark.parametrize("rate", [1e-3, 0.1, 30.0])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_update_exceeds_the_bound_and_no_neurons_merge(network, optimizer, rate):
    model = NETWORKS[network]()
    bound = 0.3 if rate == 0.1 else 0.1
    kappas, clipper, start, end = guarded_run(model, OPTIMIZERS[optimizer](model.parameters(), rate), bound)
    assert max(kappas) <= bound
    assert clipper.updates == 12
    if rate == 30.0:
        assert clipper.clipped_updates > 0
    for before, after in zip(start, end, strict=True):
        assert after.isfinite().all()
        apart = torch.pdist(before.double()) > 0
        assert (torch.pdist(after.double())[apart] > 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_random_networks(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    torch.manual_seed(seed)
    widths = [16, *(pick(3, 40) for _ in range(pick(1, 4))), 3]
    layers = [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())][:-1]
    model = nn.Sequential(*layers)
    rate = 10 ** (4 * torch.rand((), generator=generator).item() - 2)
    name = list(OPTIMIZERS)[pick(0, len(OPTIMIZERS))]
    bound = torch.rand((), generator=generator).item()
    kappas, *_ = guarded_run(model, OPTIMIZERS[name](model.parameters(), rate), bound, steps=30)
    assert max(kappas) <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model = two_layers(16, 12, 3, dtype=dtype)
    (group,) = lt.find_neuron_groups(model, torch.ones(2, 16, dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)
    with topological_step_clipping(optimizer, model, [group], 0.25) as clipper:
        for seed in range(10):
            before = group.points(model)
            push(model, directions(model, seed))
            optimizer.step()
            kappa = bi_lipschitz(before, group.points(model)).criticality
            assert math.isnan(kappa) or kappa <= 0.25
            if not math.isnan(kappa):
                assert clipper.last[0].criticality_after == pytest.approx(kappa, abs=0.001 * 0.25)
    assert clipper.clipped_updates == 10


def test_neurons_as_close_as_their_rounding():
    model = two_layers(3, 8, 2)
    with torch.no_grad():  # 6 and 7 are a few roundings apart: no factor but 0 keeps them so
        for p, axis in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            p.select(axis, 7).copy_(p.select(axis, 6) * (1 + 1e-6))
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with topological_step_clipping(optimizer, model, [group], 0.1):
        for seed in range(20):
            before = group.points(model)
            push(model, directions(model, seed))
            optimizer.step()
            kappa = bi_lipschitz(before, group.points(model)).criticality
            assert math.isnan(kappa) or kappa <= 0.1
    assert group.points(model)[6].ne(group.points(model)[7]).any()


# What is not finite.


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "lbfgs"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_is_undone_and_forgotten(optimizer, bad):
    model = two_layers()
    made = OPTIMIZERS[optimizer](model.parameters(), 0.01)
    groups = lt.find_neuron_groups(model, torch.ones(1, 3))
    with topological_step_clipping(made, model, list(groups)) as clipper:
        for seed, poison in enumerate([False, True, False]):
            before = state(model)
            push(model, directions(model, seed))
            if poison:
                next(reversed(list(model.parameters()))).grad[0] = bad  # of the output's bias, which is in no group
            made.step(lambda: torch.zeros(()))
            moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
            assert not any(moved) if poison else all(moved)
            if poison:
                assert clipper.last[0].criticality_before == math.inf
                assert (clipper.last[0].scale, clipper.clipped_updates) == (0, 1)
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_that_were_nan_before_are_left_alone():
    model = two_layers()
    groups = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clipper = StepClipper(optimizer, model, groups)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    push(model, directions(model))
    clipper.before()
    optimizer.step()
    assert not clipper.after()
    assert clipper.diverged


# Bad input.


@pytest.mark.parametrize("bound", [0, -0.1, 1.5, math.nan, "0.1", True, None])
def test_bounds_that_guarantee_nothing(bound):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with (
        pytest.raises(ValueError, match=r"in \(0, 1\]"),
        topological_step_clipping(optimizer, model, max_criticality=bound, example_input=torch.ones(1, 3)),
    ):
        pass


def test_an_optimizer_that_moves_no_neuron():
    model = two_layers()
    optimizer = torch.optim.SGD([model[2].bias], lr=1.0)
    with pytest.raises(ValueError, match="a parameter of, got: 0"):
        StepClipper(optimizer, model, lt.find_neuron_groups(model, torch.ones(1, 3)))


def test_hooks_are_gone_after_the_block_and_after_an_error():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(KeyboardInterrupt), topological_step_clipping(optimizer, model, example_input=torch.ones(1, 3)):
        raise KeyboardInterrupt
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("outlier", [False, True])
def test_large_groups_are_exact_too(monkeypatch, optimizer, outlier):
    """Fast neurons are evaluated first; the pair that decides may be two slow ones."""
    monkeypatch.setattr("lightning_topo.functional.near_bound._ALWAYS_EXACT", 0)
    monkeypatch.setattr("lightning_topo.functional.near_bound._FASTEST", 8)
    model = two_layers(6, 60, 3)
    with torch.no_grad():  # two close neurons
        for p, axis in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            p.select(axis, 7).copy_(p.select(axis, 31) + 1e-3)
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 6))
    made = OPTIMIZERS[optimizer](model.parameters(), 0.01)
    clipper = StepClipper(made, model, [group], 0.1)
    for seed in range(8):
        gradients = directions(model, seed)
        if outlier:
            gradients[0][3] *= 20
        before = group.points(model)
        push(model, gradients)
        clipper.before()
        made.step()
        kappa = bi_lipschitz(before, group.points(model)).criticality
        assert clipper.after() == (kappa > 0.1)
        if kappa > 0.1:
            assert clipper.last[0].criticality_before == pytest.approx(kappa, rel=1e-5)
        assert bi_lipschitz(before, group.points(model)).criticality <= 0.1
    assert clipper.clipped_updates > 0


def test_what_moves_between_steps_is_seen():
    """Another optimizer, or weights clamped by hand, bring two neurons close after a step that was far below."""
    model = two_layers()
    (group,) = lt.find_neuron_groups(model, torch.ones(1, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with topological_step_clipping(optimizer, model, [group], 0.1) as clipper:
        push(model, directions(model))
        optimizer.step()
        assert clipper.clipped_updates == 0
        for p, axis in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            p.data.select(axis, 1).copy_(p.data.select(axis, 0) + 1e-4)
        before = group.points(model)
        push(model, directions(model, 1))
        optimizer.step()
    assert clipper.clipped_updates == 1
    assert 0.09 < bi_lipschitz(before, group.points(model)).criticality <= 0.1
