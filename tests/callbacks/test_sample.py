"""NeuronSample: what it chooses of a layer, kept whole or drawn before the update."""

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.callbacks._sample import NeuronSample
from lightning_topo.functional import bi_lipschitz

GROUP = lt.NeuronGroup("0", (lt.Member("0.weight"), lt.Member("0.bias"), lt.Member("2.weight", axis=1)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 60), nn.Tanh(), nn.Linear(60, 2))


def move(model, seed, size=0.01):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def measured(sample, model, seed):
    """The sample's points before and after an update, and those of all neurons."""
    everything, before = GROUP.points(model), sample.before(model)
    move(model, seed)
    return sample.chosen(before, sample.after(model)), (everything, GROUP.points(model))


def rows_of(points, cloud):
    return [cloud.tolist().index(row) for row in points.tolist()]


@pytest.mark.parametrize("size", [None, 60, 100])
def test_small_groups_are_taken_whole(model, size):
    (before, after), everything = measured(NeuronSample(GROUP, size), model, 1)
    assert torch.equal(before, everything[0])
    assert torch.equal(after, everything[1])


def test_chosen_after_the_update_the_sample_has_the_criticality_of_all(model):
    sample = NeuronSample(GROUP, 8)
    for seed in range(5):
        (before, after), everything = measured(sample, model, seed)
        assert before.shape == after.shape == (8, 8)
        assert rows_of(before, everything[0]) == rows_of(after, everything[1])
        assert bi_lipschitz(before, after).criticality == pytest.approx(bi_lipschitz(*everything).criticality, rel=1e-9)


def test_drawn_before_the_update_the_sample_keeps_the_pair_that_decided(model):
    sample = NeuronSample(GROUP, 8, keep_all=False)
    before = sample.before(model)
    assert before.shape == (8, 8)
    move(model, 0)
    before, after = sample.chosen(before, sample.after(model))
    decisive = rows_of(after[list(bi_lipschitz(before, after).pair)], GROUP.points(model))
    again = rows_of(sample.before(model), GROUP.points(model))
    assert len(set(again)) == 8
    assert set(decisive) <= set(again)


def test_a_drawn_sample_sees_every_neuron_in_time(model):
    sample, seen = NeuronSample(GROUP, 8, keep_all=False), set()
    for seed in range(100):
        (before, _), everything = measured(sample, model, seed)
        seen |= set(rows_of(before, everything[0]))
    assert seen == set(range(60))


def test_drawing_leaves_the_random_state(model):
    state = torch.get_rng_state()
    NeuronSample(GROUP, 8, keep_all=False).before(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_too_large_to_be_kept_are_drawn(model, monkeypatch):
    monkeypatch.setattr("lightning_topo.callbacks._sample._MOST_KEPT", 60 * 8 - 1)
    assert NeuronSample(GROUP, 10).before(model).shape == (10, 8)
    assert NeuronSample(GROUP, None).before(model).shape == (60, 8)


def test_work_counts_what_is_copied_searched_and_compared(model):
    assert NeuronSample(GROUP, None).work(model) == 60 * 8 + 60 * 60 * 8 // 100
    assert NeuronSample(GROUP, 10).work(model) == 60 * 8 + 60 * 60 + 10 * 10 * 8 // 100
