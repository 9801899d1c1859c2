"""What merging does to one tensor, and to where other units lie on it."""

import torch

from lightning_topo.neurons.merging.slots import PlacedUnits, Slot, incoming, merge_slots, tie_

MERGED = torch.tensor([0, 1, 0, 3])  # unit 0 stands for unit 2


def slot(axis, outgoing, positions=None, tensor="w"):
    return Slot(tensor, axis, torch.arange(4)[:, None] if positions is None else torch.tensor(positions), outgoing)


def test_incoming_rows_are_left_out_and_outgoing_columns_are_added():
    w = torch.arange(12.0).view(4, 3)
    assert torch.equal(merge_slots(w, [slot(0, False)], MERGED), w[[0, 1, 3]])
    expected = torch.stack([w.T[:, 0] + w.T[:, 2], w.T[:, 1], w.T[:, 3]], 1)
    assert torch.equal(merge_slots(w.T, [slot(1, True)], MERGED), expected)


def test_what_belongs_to_no_unit_stays():
    w = torch.arange(6.0)
    assert merge_slots(w, [slot(0, True, [[1], [2], [3], [4]])], MERGED).tolist() == [0, 1 + 3, 2, 4, 5]


def test_two_positions_a_unit():
    w = torch.arange(8.0)  # two gates of four units
    assert merge_slots(w, [slot(0, False, [[u, u + 4] for u in range(4)])], MERGED).tolist() == [0, 1, 3, 4, 5, 7]
    assert merge_slots(w, [slot(0, True, [[u, u + 4] for u in range(4)])], MERGED).tolist() == [2, 1, 3, 10, 5, 7]


def test_units_on_two_axes():
    w = torch.arange(16.0).view(4, 4)
    small = merge_slots(w, [slot(0, False), slot(1, True)], MERGED)
    assert small.tolist() == [[0 + 2, 1, 3], [4 + 6, 5, 7], [12 + 14, 13, 15]]


def test_many_units_in_half_precision_are_added_with_one_rounding():
    w = torch.full((1, 4097), 2.0**-11, dtype=torch.float16)
    w[0, 0] = 1.0
    every = Slot("w", 1, torch.arange(4097)[:, None], True)
    assert float(merge_slots(w, [every], torch.zeros(4097, dtype=torch.long))) == 3.0


def test_tied_units_have_the_incoming_weights_of_the_one_that_stands_for_them():
    w = torch.arange(16.0).view(4, 4)
    tie_(w, [slot(0, False), slot(1, True)], MERGED)
    assert w.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3], [12, 13, 14, 15]]


def test_what_makes_a_unit_holds_the_sums_of_what_it_reads_of_its_own_group():
    w = torch.arange(16.0).view(4, 4)
    points = incoming([(w, [slot(0, False), slot(1, True)])], MERGED)
    assert points.tolist() == [[2, 1, 3], [10, 5, 7], [18, 9, 11], [26, 13, 15]]


def test_heads_that_became_one_leave_other_places_to_the_units_in_them():
    heads = PlacedUnits("heads", 3, (slot(0, False, [[0, 1], [2, 3], [4, 5]]),))
    values = PlacedUnits("values", 2, (slot(0, False, [[0, 2, 4], [1, 3, 5]]),))
    (left,) = values.without(heads, torch.tensor([0, 0, 2])).slots
    assert left.positions.tolist() == [[0, 2], [1, 3]]
    (other,) = PlacedUnits("x", 2, (slot(0, True, [[6], [7]]),)).without(heads, torch.tensor([0, 0, 2])).slots
    assert other.positions.tolist() == [[4], [5]]


def test_units_that_would_lose_unequal_parts_are_refused():
    some = PlacedUnits("some", 2, (slot(0, False, [[0], [2]]),))
    wide = PlacedUnits("wide", 2, (slot(0, False, [[0, 1], [2, 3]]),))
    assert "some" in wide.without(some, torch.tensor([0, 0])).refused
