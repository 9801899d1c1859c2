import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_topo.finder._batches import BatchStream

DATA = TensorDataset(torch.arange(40.0))


def fake_trainer(iterables, limits=None, mode="max_size_cycle"):
    combined = CombinedLoader(iterables, mode)
    combined.limits = limits
    return SimpleNamespace(fit_loop=SimpleNamespace(_combined_loader=combined), current_epoch=0)


def values(stream, n):
    return [tuple(stream[i][0][0].tolist()) for i in range(n)]


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def distributed():
    return DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=True, seed=3)


LOADERS = {
    "shuffle": lambda: DataLoader(DATA, 8, shuffle=True),
    "generator": lambda: DataLoader(DATA, 8, shuffle=True, generator=generator()),
    "sampler": lambda: DataLoader(DATA, 8, sampler=RandomSampler(DATA, generator=generator())),
    "weighted": lambda: DataLoader(DATA, 8, sampler=WeightedRandomSampler(torch.ones(40), 40, generator=generator())),
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False)),
    "sampler of batches": lambda: DataLoader(
        DATA, sampler=BatchSampler(RandomSampler(DATA, generator=generator()), 8, False), batch_size=None
    ),
    "distributed": lambda: DataLoader(DATA, 4, sampler=distributed()),
}


@pytest.mark.parametrize("name", LOADERS)
def test_the_runs_batches_stay_what_they_were(name):
    torch.manual_seed(0)
    untouched = LOADERS[name]()
    expected = [[batch[0].tolist() for batch in untouched] for _ in range(2)]

    torch.manual_seed(0)
    searched = LOADERS[name]()
    trainer = fake_trainer(searched)
    streams = [BatchStream(trainer, order) for order in (0, 1)]
    for stream in streams:
        values(stream, 12)
    assert [[batch[0].tolist() for batch in searched] for _ in range(2)] == expected


@pytest.mark.parametrize("name", LOADERS)
def test_orders_differ_and_each_is_the_same_every_time(name):
    trainer = fake_trainer(LOADERS[name]())
    first, second = (values(BatchStream(trainer, order), 10) for order in (0, 1))
    assert first != second
    again = BatchStream(trainer, 0)
    assert values(again, 10) == values(again, 10) == first
    assert {value for batch in first[:5] for value in batch} <= set(range(40))


def test_first_order_is_that_of_a_seeded_sampler():
    trainer = fake_trainer(LOADERS["sampler"]())
    expected = [tuple(batch[0].tolist()) for batch in LOADERS["sampler"]()]
    assert values(BatchStream(trainer), 5) == expected


def test_each_epoch_is_one_pass():
    passes = []

    class Counting(RandomSampler):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    torch.manual_seed(0)
    stream = BatchStream(fake_trainer(DataLoader(DATA, 8, sampler=Counting(DATA))))
    values(stream, 5)
    assert len(passes) == 1
    values(stream, 6)
    assert len(passes) == 2


def test_distributed_epochs_follow_the_trainers():
    trainer = fake_trainer(LOADERS["distributed"]())
    trainer.current_epoch = 4
    sampler = distributed()
    sampler.set_epoch(4)
    assert [v for batch in values(BatchStream(trainer), 5) for v in batch] == [float(i) for i in sampler]


def test_short_epochs_go_on_into_the_next():
    stream = BatchStream(fake_trainer(LOADERS["shuffle"](), limits=[2]))
    assert [stream[i][1] for i in range(6)] == [0, 1, 0, 1, 0, 1]
    assert [stream[i][3] for i in range(6)] == [False, True] * 3


def test_streams_without_length_know_their_last_batch():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(3.0))

    stream = BatchStream(fake_trainer(DataLoader(Stream(), batch_size=None)))
    assert [stream[i][3] for i in range(6)] == [False, False, True] * 2


def test_several_loaders():
    loaders = {"a": DataLoader(DATA, 8, shuffle=True), "b": DataLoader(DATA, 10)}
    stream = BatchStream(fake_trainer(loaders))
    assert stream[0][0].keys() == {"a", "b"}


def test_random_augmentation_draws_from_no_ones_generator():
    class Noisy(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return torch.tensor(index + random.random() + np.random.rand()) + torch.rand(())  # noqa: NPY002

    random.seed(0)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    values_seen = BatchStream(fake_trainer(DataLoader(Noisy(), 8, shuffle=True)))[3]
    assert values_seen[0].isfinite().all()
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_a_batch_changed_in_place_is_fresh_the_next_time():
    stream = BatchStream(fake_trainer(LOADERS["shuffle"]()))
    first = stream[0][0][0].clone()
    stream[0][0][0].zero_()
    assert torch.equal(stream[0][0][0], first)


def test_persistent_workers_of_the_run_are_left_alone():
    loader = DataLoader(DATA, 8, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    running = iter(loader)
    next(running)
    stream = BatchStream(fake_trainer(loader))
    assert values(stream, 2)[0] == tuple(map(float, range(8)))
    assert next(running)[0].tolist() == list(map(float, range(8, 16)))
    assert loader._iterator is running


def test_empty_loader():
    stream = BatchStream(fake_trainer(DataLoader(TensorDataset(torch.zeros(0)), 8)))
    with pytest.raises(ValueError, match="no batch"):
        stream[0]


def test_data_that_can_be_read_once_is_refused_before_it_is_read():
    batches = iter([torch.zeros(2)])
    with pytest.raises(ValueError, match="read only once"):
        BatchStream(fake_trainer(batches))
    assert next(batches).shape == (2,)
