"""κ of each optimizer step, by arithmetic that shares nothing with the package's."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

import lightning_topo as lt

# Pairs this near the edge of what rounding resolves are left to either side.
_MARGIN = 1e-6


def kappa(before: Tensor, after: Tensor, eps: float) -> float:
    """max |u_i - u_j| / |p_i - p_j| in float64 over all pairs of points (n, D) that rounding can tell apart.

    A pair counts when |p_i - p_j| is more than 4 times the rounding of both points, (eps / 2) sqrt(|p_i|² + |p_j|²),
    and |u_i - u_j| at least 4 times that of the points after the update. Lengths are scaled before they are squared.
    """
    p, q = before.double(), after.double()
    u = q - p
    largest = 0.0
    scale = float(torch.stack([p.abs().max(), q.abs().max()]).max())
    if not 0 < scale < math.inf:
        return 0.0
    p, q, u = p / scale, q / scale, u / scale
    for i in range(len(p) - 1):
        rest = slice(i + 1, None)
        distance = (p[rest] - p[i]).norm(dim=1)
        moved = (u[rest] - u[i]).norm(dim=1)
        rounding = 2 * eps * torch.hypot(p[rest].norm(dim=1), p[i].norm())
        rounding_after = 2 * eps * torch.hypot(q[rest].norm(dim=1), q[i].norm())
        counts = (distance > (1 + _MARGIN) * rounding) & (moved >= (1 + _MARGIN) * rounding_after) & (moved > 0)
        if counts.any():
            largest = max(largest, float((moved[counts] / distance[counts]).max()))
    return largest


class Witness(pl.Callback):
    """Looks at each optimizer step from outside; the last of the Trainer's callbacks.

    Attributes:
        kappas: The largest κ of each step over all groups.
        turned: Steps that made finite parameters NaN or infinite.
        shown: The learning rates that can be seen after steps and between batches.
        groups: The neuron groups, found before the fit.
    """

    def __init__(self, groups: list[lt.NeuronGroup]) -> None:
        self.groups = groups
        self.kappas: list[float] = []
        self.turned = 0
        self.shown: list[list[float]] = []
        self._handles: list[Any] = []
        self._of: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if [*map(id, self._of)] == [*map(id, trainer.optimizers)]:
            return
        self._release()
        self._of = list(trainer.optimizers)
        for optimizer in self._of:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._before(pl_module)))
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after(trainer, pl_module)))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._show(trainer)

    def _show(self, trainer: pl.Trainer) -> None:
        self.shown.append([float(group["lr"]) for o in trainer.optimizers for group in o.param_groups])

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._of = [], []

    def _before(self, module: Any) -> None:
        self._finite = all(bool(p.isfinite().all()) for p in module.parameters())
        self._clouds = [group.points(module) for group in self.groups]

    def _after(self, trainer: pl.Trainer, module: Any) -> None:
        self._show(trainer)
        finite = all(bool(p.isfinite().all()) for p in module.parameters())
        self.turned += self._finite and not finite
        if not (self._finite and finite):
            self.kappas.append(math.nan)
            return
        found = [0.0]
        for group, before in zip(self.groups, self._clouds, strict=True):
            eps = max(torch.finfo(p.dtype).eps for p in group.parameters(module))
            found.append(kappa(before, group.points(module), eps))
        self.kappas.append(max(found))
