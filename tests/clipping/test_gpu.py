"""Step clipping on a CUDA device, where its work is recorded."""

import pytest
import torch
from torch import nn

import lightning_topo as lt
from lightning_topo.clipping import StepClipper
from lightning_topo.functional import bi_lipschitz
from lightning_topo.updates import recorded_work

pytestmark = pytest.mark.gpu


def run(bound, optimizer, steps=15):
    """Weights after some steps with noisy gradients, the clipper, and the largest κ over the bound that was made."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 36, 40), nn.ReLU(), nn.Linear(40, 3),
    ).cuda()  # fmt: skip
    groups = lt.find_neuron_groups(model, torch.randn(2, 2, 8, 8).cuda())
    opt = optimizer(model.parameters())
    clipper = StepClipper(opt, model, groups, bound)
    generator, largest = torch.Generator("cuda").manual_seed(0), 0.0
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, device="cuda") * (1 + step % 4)
        before = [group.points(model).cpu() for group in groups]
        clipper.before()
        opt.step()
        clipper.after()
        for points, group in zip(before, groups, strict=True):
            largest = max(largest, bi_lipschitz(points, group.points(model).cpu()).criticality / clipper.bound)
    return [parameter.detach().clone() for parameter in model.parameters()], clipper, largest


@pytest.mark.parametrize("bound", [0.02, 0.2, 1.0])
@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=2e-3, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=2e-2)],
    ids=["momentum", "adamw"],
)
def test_recorded_clipping_is_the_same_bit_for_bit(bound, optimizer, monkeypatch):
    weights, clipper, largest = run(bound, optimizer)
    assert largest <= 1 + 1e-6
    assert any(one._graph is not None for one in clipper._bounds.reach._looks._of.values())
    monkeypatch.setattr(recorded_work, "_fits", lambda one: False)
    plain, other, _ = run(bound, optimizer)
    assert other.clipped_updates == clipper.clipped_updates
    assert all(map(torch.equal, weights, plain))
    assert clipper.clipped_updates > 0 or bound == 1.0
