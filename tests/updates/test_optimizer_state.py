"""What wrapped optimizers remember: found whatever it is called, and scaled where it pushes."""

import math
import warnings
from collections import defaultdict

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.clipping import StepClipper
from lightning_topo.updates.optimizer_state import OptimizerMemory, optimizers_within


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)


class BaseOptimizer(torch.optim.Optimizer):
    """As SAM's and many a Lookahead's: ``base_optimizer``, with a copy of the weights of its own."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})
        self.base_optimizer = momentum(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        for settings in self.param_groups:
            for p in settings["params"]:
                self.state[p].setdefault("slow", p.clone())
        return self.base_optimizer.step(closure)


class NoInit(torch.optim.Optimizer):
    """As widely copied: without ``super().__init__``."""

    def __init__(self, parameters):
        self.optimizer = momentum(parameters)
        self.param_groups, self.defaults, self.state = self.optimizer.param_groups, {}, defaultdict(dict)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Forwards(torch.optim.Optimizer):
    """As Accelerate's: state and parameter groups are the inner one's own."""

    def __init__(self, parameters):
        self._base = [momentum(parameters)]

    state = property(lambda self: self._base[0].state)
    param_groups = property(lambda self: self._base[0].param_groups)
    defaults = property(lambda self: self._base[0].defaults)

    def step(self, closure=None):
        return self._base[0].step(closure)


class OwnCopies(torch.optim.Optimizer):
    """As those of mixed precision: the inner optimizer steps copies in double precision, two levels down."""

    def __init__(self, parameters):
        parameters = list(parameters)
        super().__init__(parameters, {"lr": 1.0})
        self.masters = [nn.Parameter(p.detach().double()) for p in parameters]
        self.inner = BaseOptimizer(self.masters)

    @torch.no_grad()
    def step(self, closure=None):
        own = self.param_groups[0]["params"]
        for p, master in zip(own, self.masters, strict=True):
            master.copy_(p)
            master.grad = p.grad.double()
        self.inner.step()
        for p, master in zip(own, self.masters, strict=True):
            p.copy_(master)


class OtherNames(torch.optim.Optimizer):
    """Momentum, squares and a copy of the weights, under names that nobody knows."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["kept"] = p.clone()
            state["drift"] = state.get("drift", torch.zeros_like(p)) * 0.9 + p.grad
            state["square"] = state.get("square", torch.zeros_like(p)) * 0.9 + p.grad**2
            p -= state["drift"]


def memories(optimizer, name):
    found = [s[name] for one in optimizers_within(optimizer) for s in one.state.values() if name in s]
    return list({id(value): value for value in found}.values())


def clipped(make, poison=False):
    """One update of a small network that is far too large, clipped; the optimizer, the weights before it, the net."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = make(model.parameters())
    clipper = StepClipper(optimizer, model, lt.find_neuron_groups(model, torch.ones(1, 3)), 0.1)
    for parameter in model.parameters():
        parameter.grad = 10 * torch.randn_like(parameter)
    if poison:
        model[2].bias.grad[0] = math.nan
    before = [p.detach().clone() for p in model.parameters()]
    clipper.before()
    optimizer.step()
    assert clipper.after()
    return optimizer, before, model


@pytest.mark.parametrize("make", [momentum, BaseOptimizer, NoInit, Forwards, OwnCopies])
def test_the_momentum_of_a_clipped_step_is_found_in_wrapped_optimizers(make):
    optimizer, before, model = clipped(make)
    found = memories(optimizer, "momentum_buffer")
    assert len(found) == 4
    for buffer, parameter, old in zip(found, model.parameters(), before, strict=True):  # the rate is 1: θ' - θ = -m
        torch.testing.assert_close(buffer.float(), old - parameter, rtol=1e-4, atol=1e-6)


def test_a_wrappers_copy_of_the_weights_is_no_momentum():
    optimizer, before, _ = clipped(BaseOptimizer)
    for slow, old in zip(memories(optimizer, "slow"), before, strict=True):
        assert torch.equal(slow, old)


def test_unknown_names_are_told_by_shape_and_values_and_said_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer, before, model = clipped(OtherNames)
    said = [str(w.message) for w in caught]
    assert [sum(f"keeps {name!r}" in message for message in said) for name in ("kept", "drift", "square")] == [1, 1, 1]
    assert [message.endswith("scaled likewise.") for message in said if "keeps 'drift'" in message] == [True]
    for drift, parameter, old in zip(memories(optimizer, "drift"), model.parameters(), before, strict=True):
        torch.testing.assert_close(drift, old - parameter, rtol=1e-4, atol=1e-6)
    assert all(bool((value > 0).all()) for value in memories(optimizer, "square"))
    assert all(torch.equal(a, b) for a, b in zip(memories(optimizer, "kept"), before, strict=True))


def test_names_that_torch_uses_are_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Rprop, torch.optim.ASGD):
            clipped(lambda parameters, make=make: make(parameters, lr=10.0))
        clipped(lambda parameters: torch.optim.RMSprop(parameters, lr=10.0, momentum=0.9, centered=True))
        clipped(lambda parameters: torch.optim.Adadelta(parameters, lr=1e5))
        clipped(lambda parameters: torch.optim.Adamax(parameters, lr=10.0))


@pytest.mark.parametrize("make", [momentum, BaseOptimizer, NoInit, Forwards, OwnCopies])
def test_nothing_that_is_not_finite_stays_in_a_wrapped_optimizer(make):
    optimizer, before, model = clipped(make, poison=True)
    found = memories(optimizer, "momentum_buffer")
    assert len(found) == 4
    assert all(bool(value.isfinite().all()) for value in found)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_spoiled_copy_of_the_weights_becomes_the_weights():
    optimizer, _, model = clipped(BaseOptimizer)
    slow = optimizer.state[model[0].weight]["slow"]
    kept = slow[1].clone()
    slow[0] = math.nan
    OptimizerMemory(optimizer).forget_non_finite()
    assert torch.equal(slow[0], model[0].weight[0])
    assert torch.equal(slow[1], kept)


def test_an_inner_lbfgs_starts_anew():
    model = nn.Linear(2, 2)
    outer = BaseOptimizer(model.parameters())
    outer.base_optimizer = torch.optim.LBFGS(model.parameters())
    outer.base_optimizer.step(lambda: model(torch.ones(2)).square().sum().backward() or torch.zeros(()))
    assert outer.base_optimizer.state
    OptimizerMemory(outer).scale_pushes({})
    assert not outer.base_optimizer.state


def test_optimizers_that_hold_each_other_end():
    first, second = (momentum([nn.Parameter(torch.zeros(2))]) for _ in range(2))
    first.partner, second.partners = second, {"a": first}
    assert optimizers_within(first) == [first, second]
