import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from rates_control import RateControl, Settings
from rates_store import Key, Run, Store
from rates_tasks import shape
from torch import nn

from lightning_topo import find_neuron_groups, topological_rate_control


def added(store, losses, column="sweep"):
    for rate, loss in losses.items():
        store.add(Run(Key("net/sgd", 10, 0, "cosine", column, repr(rate)), loss, 2.0, 10, 0.0))


def test_the_best_of_a_sweep_is_known_only_once_it_is_inside(tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    added(store, {1.0: 0.5, 2.0: 0.4, 4.0: 0.3})
    assert store.best("net/sgd", 10, 0, "cosine") is None
    added(store, {8.0: math.inf})
    assert store.best("net/sgd", 10, 0, "cosine") == 0.3
    assert store.best("net/sgd", 10, 1, "cosine") is None


def test_a_store_goes_on_where_another_stopped_even_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    added(Store(path), {1.0: math.inf, 2.0: 0.4})
    with path.open("a") as file:
        file.write('{"task": "net/sg')
    store = Store(path)
    assert store.sweep("net/sgd", 10, 0, "cosine") == {1.0: math.inf, 2.0: 0.4}


def test_the_schedule_warms_up_over_a_tenth_and_ends_near_zero():
    values = [shape(step, 100, "cosine") for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[9] > 0.95
    assert values[-1] < 1e-3
    assert shape(3, 100, "constant") == 1.0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_the_rule_written_twice_makes_the_same_updates(make):
    """The package's control and the benchmark's plain form of the rule, each update measured."""

    def trained(product):
        torch.manual_seed(0)
        x, y = torch.randn(64, 5), torch.randn(64, 2)
        model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2))
        optimizer = make(model.parameters(), lr=0.01)
        groups = find_neuron_groups(model, x)

        def backward():
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()

        if product:
            with topological_rate_control(
                optimizer, model, groups=list(groups), total_steps=40, share=0.2, schedule="constant", every=1
            ):
                for _ in range(15):
                    backward()
                    optimizer.step()
        else:
            control = RateControl(optimizer, model, groups, 40, Settings(window=1))
            for _ in range(15):
                backward()
                control.update(1.0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-5)
