"""Predicting κ of an update from the few neurons that moved most in the last one that was measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_topo.functional.near_bound import displacement_lengths
from lightning_topo.updates.placement import AlikeGroups, Placement

# As good as all of them for telling when to measure: docs/evidence/rate-control-settings.md.
_WATCHED = 64


class FastestWatch:
    r"""Follows the 64 neurons of each group that moved most in the last measured window.

    $$\hat\kappa_g = \kappa_g \, \ell_g / L_g$$

    with κ and their longest displacement L of that window, for an update in which their longest displacement is ℓ, all
    lengths about the mean of the 64. O(64 D) an update.

    Args:
        placement: Where the groups lie.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._watched: list[tuple[AlikeGroups, Tensor, Tensor, Tensor]] = []

    def choose(self, alike: AlikeGroups, before: Tensor, after: Tensor, kappa: Tensor) -> None:
        """Watch the neurons of some groups that moved most.

        Args:
            alike: The groups.
            before: Their neurons at the window's start, shape (G, n, D).
            after: The same at its end.
            kappa: κ of each group, shape (G,).
        """
        update = after.float() - before.float()
        rows = displacement_lengths(update).topk(min(_WATCHED, update.shape[1])).indices
        where = rows.unsqueeze(2).expand(-1, -1, update.shape[2])
        ratio = kappa / _longest(update.gather(1, where))
        self._watched = [entry for entry in self._watched if entry[0] is not alike]
        self._watched.append((alike, rows, ratio.nan_to_num(0.0, 0.0), after.gather(1, where).float()))

    def state(self) -> list[tuple[Tensor, Tensor]]:
        """Which neurons are watched, and κ over their longest displacement, of each set that is; for a checkpoint."""
        return [(rows.cpu(), ratio.cpu()) for _, rows, ratio, _ in self._watched]

    def load(self, sets: Sequence[AlikeGroups], state: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Watch what ``state`` says, from the parameters as they are now on."""
        self._watched = []
        for alike, (rows, ratio) in zip(sets, state, strict=False):
            rows, ratio = rows.to(alike.device), ratio.to(alike.device)
            self._watched.append((alike, rows, ratio, alike.clouds(self._placement.parameters, rows).float()))

    @torch.no_grad()
    def predict(self) -> Tensor | None:
        """The root of the sum of squares of all groups' predicted κ, of what happened since the last call."""
        if not self._watched:
            return None
        total: Tensor | None = None
        for number, (alike, rows, ratio, then) in enumerate(self._watched):
            now = alike.clouds(self._placement.parameters, rows).float()
            part = (ratio * _longest(now - then)).square().sum()
            total = part if total is None else total + part.to(total)
            self._watched[number] = alike, rows, ratio, now
        assert total is not None
        return total.sqrt()


def _longest(update: Tensor) -> Tensor:
    """Longest displacement about the mean of each group, shape (G,)."""
    centred = update - update.mean(1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=-1).amax(1)
