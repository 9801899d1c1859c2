"""Random optimizers and schedules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda ps, lr: torch.optim.SGD(ps, lr),
    "SGD with decay": lambda ps, lr: torch.optim.SGD(ps, lr, weight_decay=1e-2),
    "momentum": lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9),
    "Nesterov": lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.8, nesterov=True),
    "Adam": lambda ps, lr: torch.optim.Adam(ps, lr),
    "Adam, amsgrad": lambda ps, lr: torch.optim.Adam(ps, lr, amsgrad=True, foreach=True),
    "Adam, rate as a tensor": lambda ps, lr: torch.optim.Adam(ps, torch.tensor(lr)),
    "AdamW": lambda ps, lr: torch.optim.AdamW(ps, lr, weight_decay=0.1),
    "RMSprop": lambda ps, lr: torch.optim.RMSprop(ps, lr),
    "RMSprop with momentum": lambda ps, lr: torch.optim.RMSprop(ps, lr, momentum=0.5, centered=True),
    "Adagrad": lambda ps, lr: torch.optim.Adagrad(ps, lr),
    "NAdam": lambda ps, lr: torch.optim.NAdam(ps, lr),
    "Adamax": lambda ps, lr: torch.optim.Adamax(ps, lr),
    "LBFGS": lambda ps, lr: torch.optim.LBFGS(ps, lr, max_iter=3),
}
SCHEDULES = ("none", "none", "StepLR", "OneCycleLR", "cosine", "plateau", "warm-up")


def draw_optimizers(
    kind: str, net: nn.Module, lr: float, groups: bool, several: bool, r: random.Random
) -> list[Optimizer]:
    """One optimizer, with parameter groups or not, or two that share the parameters among them."""
    parameters = [p for p in net.parameters() if p.requires_grad]
    cut = r.randint(1, max(1, len(parameters) - 1))
    first, rest = parameters[:cut], parameters[cut:]
    if several and rest:
        other = r.choice([name for name in OPTIMIZERS if name != "LBFGS"])
        return [OPTIMIZERS[kind](first, lr), OPTIMIZERS[other](rest, lr / 3)]
    if groups and rest and kind != "LBFGS":
        return [OPTIMIZERS[kind]([{"params": first, "lr": lr / 10}, {"params": rest}], lr)]
    return [OPTIMIZERS[kind](parameters, lr)]


def schedule(kind: str, optimizer: Optimizer) -> dict[str, Any] | None:
    """The schedule of an optimizer as Lightning takes it."""
    rate = [float(group["lr"]) for group in optimizer.param_groups]
    each_step = {"interval": "step"}
    if kind == "StepLR":
        return {"scheduler": lr_scheduler.StepLR(optimizer, 1, 0.5)}
    if kind == "OneCycleLR":
        cycle = lr_scheduler.OneCycleLR(optimizer, rate, total_steps=200, cycle_momentum=False)
        return {"scheduler": cycle, **each_step}
    if kind == "cosine":
        return {"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 15), **each_step}
    if kind == "warm-up":
        return {"scheduler": lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4)), **each_step}
    if kind == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"scheduler": plateau, "monitor": "train_loss", "interval": "epoch", "strict": False}
    return None
