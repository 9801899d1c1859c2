"""Rows of units, against the formula for their positions in a plain loop."""

import pytest
import torch

from lightning_topo.sharding import RowLayout

LAYOUTS = [RowLayout(0, 1, 12, 1, 0), RowLayout(1, 2, 3, 2, 0), RowLayout(2, 1, 4, 2, 3), RowLayout(1, 3, 2, 1, 5)]


def position(layout, unit, outer, inner):
    return layout.offset + (outer * layout.size + unit) * layout.inner + inner


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows(layout):
    tensor = torch.arange(12.0 * 12 * 12).view(12, 12, 12)
    for unit, row in enumerate(layout.rows(tensor)):
        numbers = [
            tensor.select(layout.axis, position(layout, unit, outer, inner)).flatten()
            for outer in range(layout.outer)
            for inner in range(layout.inner)
        ]
        assert sorted(row.tolist()) == sorted(torch.cat(numbers).tolist())
    some = [layout.size - 1, 0, 0]
    assert torch.equal(layout.rows(tensor, some), layout.rows(tensor)[some])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_of_some_units_laid_out_alone_give_the_same_rows(layout):
    tensor = torch.randn(12, 12, 12)
    units = torch.tensor([layout.size - 1, 0])
    taken = tensor.index_select(layout.axis, layout.positions(units))
    assert torch.equal(layout.alone(2).rows(taken), layout.rows(tensor, units))
