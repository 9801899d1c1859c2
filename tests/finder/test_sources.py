"""What data sets and modules draw from and count in is after a search where it was, wherever it is kept."""

import io
import itertools
import multiprocessing
import random
import sqlite3
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find
from lightning_topo.finder._sources import Sources
from lightning_topo.neurons import find_neuron_groups

HOLD = 6
OPTIONS = {"hold_steps": HOLD, "update_attr": False}


def finder(**options):
    return TopologicalLearningRateFinder(**OPTIONS, **options)


def seed():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)


def left(trainer, model, counts):
    """All of a run that a draw too many would change."""
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    draws = random.random(), np.random.rand(), torch.rand(2).tolist(), torch.rand(2, generator=GLOBAL).tolist()  # noqa: NPY002
    return weights, model.seen, trainer.global_step, draws, counts


class Augmented(Dataset):
    """Noise from a generator of its own, one of another object's, one of the module's globals, and two counters."""

    def __init__(self, data):
        self.data, self.generator, self.calls = data, np.random.default_rng(4), 0
        self.seen = {"items": [], "counts": np.zeros(4)}
        self.transforms = [SimpleNamespace(random=random.Random(5)), SimpleNamespace(state=np.random.RandomState(6))]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        self.calls += 1
        self.seen["items"].append(index)
        self.seen["counts"][index % 4] += 1
        noise = self.generator.normal() + self.transforms[0].random.gauss(0, 1) + self.transforms[1].state.rand()
        return x + 0.1 * noise + 0.01 * self.calls + torch.rand((), generator=GLOBAL), y


GLOBAL = torch.Generator().manual_seed(8)


class Epochs:
    """No data loader, but an iterable that shuffles by a count of its own."""

    __slots__ = ("data", "epoch")

    def __init__(self, data):
        self.data, self.epoch = data, 0

    def __iter__(self):
        self.epoch += 1
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(self.epoch))
        for indices in order.split(8):
            yield self.data[indices]


class Words(IterableDataset):
    """Reads on where it stopped, in a file that it keeps open."""

    def __init__(self, data):
        self.data, self.file = data, io.BytesIO(bytes(range(0, 250, 7)))

    def __iter__(self):
        for _ in range(40):
            if not (byte := self.file.read(1)):
                self.file.seek(0)
                byte = self.file.read(1)
            yield self.data[byte[0] % len(self.data)]


def seeded(lab):
    return lab.loader(generator=torch.Generator().manual_seed(9))


DATA = {
    "generators and counters of the data": lambda lab: DataLoader(Augmented(lab.data()), 8, shuffle=True),
    "subset of such data": lambda lab: DataLoader(Subset(Augmented(lab.data()), range(64)), 8, shuffle=True),
    "iterable that counts its epochs": lambda lab: Epochs(lab.data()),
    "loader with a generator": seeded,
    "open file": lambda lab: DataLoader(Words(lab.data()), 8),
    "several loaders": lambda lab: CombinedLoader([seeded(lab), Epochs(lab.data())], "max_size_cycle"),
}


def noisy(lab):
    """A module that draws from a generator of its own, of its functions and of its globals, and holds odd buffers."""
    enclosed = random.Random(11)

    class Noisy(lab.Classifier):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.own = np.random.default_rng(10)
            self.locked = SimpleNamespace(lock=threading.Lock(), count=0)  # cannot be copied
            self.register_buffer("position", torch.arange(6.0).expand(4, 6), persistent=False)
            self.register_buffer("windows", torch.arange(8.0).unfold(0, 4, 1), persistent=False)

        def training_step(self, batch, batch_idx):
            if isinstance(batch[0], list):
                batch = batch[0]
            self.locked.count += 1
            x = batch[0] + 0.1 * self.own.normal() + 0.1 * enclosed.gauss(0, 1) + 0.01 * self.locked.count
            x = x + torch.rand((), generator=GLOBAL) + 0.1 * noise() + self.position[0] / 10
            return super().training_step((x, batch[1]), batch_idx)

    return Noisy


NOISE = [np.random.Generator(np.random.PCG64(12))]


def noise():
    return NOISE[0].normal()


def reset_globals():
    GLOBAL.manual_seed(8)
    NOISE[0] = np.random.default_rng(12)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("how", ["within", "before"])
def test_data_and_generators_are_where_they_were(lab, data, how):
    runs, groups = [], list(find_neuron_groups(lab.model()))
    for searched in (False, True):
        reset_globals()
        loader, model, search = DATA[data](lab), lab.model(cls=noisy(lab)), finder(groups=groups)
        trainer = lab.trainer(callbacks=[search] if searched and how == "within" else [])
        seed()
        if searched and how == "before":
            search.result = topological_lr_find(trainer, model, loader, groups=groups, **OPTIONS)
        trainer.fit(model, loader)
        runs.append(left(trainer, model, model.locked.count))
    assert search.result.total_steps > HOLD
    assert runs[1] == runs[0]


def test_data_module_of_generators_is_where_it_was(lab):
    class Module(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.generator, self.asked = torch.Generator().manual_seed(2), 0

        def setup(self, stage):
            self.data = Augmented(lab.data())

        def train_dataloader(self):
            self.asked += 1
            return DataLoader(self.data, 8, shuffle=True, generator=self.generator)

    runs = []
    for how in ("none", "within", "before"):
        reset_globals()
        data, model = Module(), lab.model()
        trainer = lab.trainer(callbacks=[finder()] if how == "within" else [])
        seed()
        if how == "before":
            topological_lr_find(trainer, model, datamodule=data, **OPTIONS)
        trainer.fit(model, datamodule=data)
        runs.append(left(trainer, model, (data.asked, data.data.calls)))
    assert runs[1] == runs[2] == runs[0]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
def test_search_before_a_fit_leaves_types_and_memory(lab, precision):
    """Under true precisions Lightning converts the module; it gets its own memory back, with all views of it."""
    model = lab.model(cls=noisy(lab))
    groups = list(find_neuron_groups(lab.model()))
    view = model.net[0].weight.detach().view(-1)
    held = {name: (value, value.data_ptr(), value.dtype) for name, value in model.state_dict(keep_vars=True).items()}
    before = {name: value.detach().clone() for name, (value, *_) in held.items()}
    topological_lr_find(lab.trainer(precision=precision), model, lab.loader(), groups=groups, **OPTIONS)
    for name, value in model.state_dict(keep_vars=True).items():
        kept, address, dtype = held[name]
        assert value is kept
        assert (value.data_ptr(), value.dtype) == (address, dtype)
        assert torch.equal(value, before[name])
    with torch.no_grad():
        model.net[0].weight.fill_(3.0)
    assert (view == 3.0).all()


class Once:
    """Keeps its place in an iterator, which nobody can copy."""

    def __init__(self, data):
        self.data, self.order = data, iter(itertools.cycle(range(12)))

    def __iter__(self):
        return (self.data[torch.arange(8) + 8 * next(self.order)] for _ in range(6))


@pytest.mark.parametrize("how", ["within", "before"])
def test_what_cannot_be_put_back_is_said_before_the_search(lab, how):
    model, loader = lab.model(), Once(lab.data())
    trainer = lab.trainer(callbacks=[finder()] if how == "within" else [], max_steps=1)
    run = trainer.fit if how == "within" else partial(topological_lr_find, trainer, **OPTIONS)
    with pytest.warns(UserWarning, match=r"cannot put back train_dataloaders\S*\.order") as caught:
        run(model, loader)
    assert {warning.filename for warning in caught if "put back" in str(warning.message)} == {__file__}


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand((), generator=g).item()),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.normal()),
    "numpy, Mersenne": (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal()),
    "numpy, legacy": (lambda: np.random.RandomState(1), lambda g: g.normal()),
    "python": (lambda: random.Random(1), lambda g: g.gauss(0, 1)),
}


def owner(kind, generator):
    """Something that holds a generator, or a function that can draw from it."""
    if kind == "attribute":
        return SimpleNamespace(deep=[{"of": (SimpleNamespace(generator=generator),)}])
    if kind == "closure":
        return lambda: generator
    if kind == "default":
        return lambda generator=generator: generator
    if kind == "partial":
        return partial(max, key=generator)
    if kind == "method":
        return generator.normal if hasattr(generator, "normal") else generator.__repr__
    return SimpleNamespace(inner=Drawer(generator).draw)


class Drawer:
    def __init__(self, generator):
        self.generator = generator

    def draw(self):
        return self.generator


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("kind", ["attribute", "closure", "default", "partial", "method", "holder's method"])
def test_generators_are_found_wherever_they_are_held(generator, kind):
    make, draw = GENERATORS[generator]
    held = make()
    sources = Sources({"root": owner(kind, held)})
    draw(held)
    restore = sources.present()
    expected = [draw(held) for _ in range(3)]
    for _ in range(2):  # as often as it is called
        restore()
        assert [draw(held) for _ in range(3)] == expected


def test_counters_and_contents_go_back_with_their_identity():
    class Slotted:
        __slots__ = ("count", "unset")

    item = SimpleNamespace(
        count=0, list=[1, [2]], table={"a": 1}, array=np.zeros(2), tensor=torch.zeros(2), slots=Slotted()
    )
    item.slots.count = 1
    before = {name: id(value) for name, value in vars(item).items()}
    with Sources({"item": item}).kept():
        item.count += 1
        item.list[1].append(3)
        item.list = [*item.list, 4]
        item.table["b"] = 2
        item.array += 1
        item.tensor.add_(1)
        item.slots.count = 5
        item.new = 1
        del item.table["a"]
    assert {name: id(value) for name, value in vars(item).items()} == before
    assert (item.count, item.list, item.table, item.slots.count) == (0, [1, [2]], {"a": 1}, 1)
    assert (item.array.tolist(), item.tensor.tolist()) == ([0, 0], [0, 0])


def test_other_peoples_variables_are_left_alone():
    """Of what functions use only generators are put back: a list may be somebody's record of what happened."""
    record = []
    with Sources({"function": lambda: record}).kept():
        record.append(1)
    assert record == [1]


def test_nothing_else_is_irreplaceable():
    everyday = {
        "dice": random.SystemRandom(),
        "lock": threading.Lock(),
        "thread": threading.current_thread(),
        "module": random,
        "type": int,
    }
    sources = Sources({"item": SimpleNamespace(**everyday, path="a", log=None)})
    sources.present()()
    assert sources.irreplaceable == ""
    odd = SimpleNamespace(place=iter([1]), zipped=zip([1], [2], strict=True))
    assert Sources({"item": odd}).irreplaceable in ("item.place, item.zipped", "item.zipped, item.place")


class Log(list):
    def append(self, item):
        raise AssertionError("not to be called")


class Defaults(dict):
    def __setitem__(self, key, value):
        raise AssertionError("not to be called")


@pytest.mark.parametrize(
    ("counter", "count"),
    [
        (Counter(a=2), lambda c: c.update(a=1, b=1)),
        (OrderedDict(a=1, b=2), lambda c: (c.move_to_end("a"), c.update(c=3))),
        (defaultdict(int, a=1), lambda c: c["b"]),
        (deque([1, 2], maxlen=3), lambda c: c.extend([3, 4])),
        ({1, 2}, lambda c: c.add(3)),
        (Log([1]), lambda c: c.extend([2])),
        (Defaults(a=1), lambda c: c.update(b=1)),
        (list(range(5000)), lambda c: c.reverse()),
        (np.zeros(10**5), lambda c: np.add(c, 1, out=c)),
        (torch.zeros(3).expand(4, 3), lambda c: c[0].add_(1)),
        (torch.zeros(5).as_strided((3, 3), (1, 1)), lambda c: c[0].add_(1)),
    ],
)
def test_counters_of_every_kind(counter, count):
    def content():
        return list(counter.items()) if isinstance(counter, dict) else [repr(item) for item in counter]

    before, restore = content(), Sources({"data": SimpleNamespace(counter=counter)}).present()
    for _ in range(2):
        count(counter)
        assert content() != before
        restore()
        assert content() == before


def test_value_that_processes_share():
    shared = multiprocessing.get_context("fork").Value("i", 3)
    with Sources({"data": SimpleNamespace(epoch=shared)}).kept():
        shared.value = 5
    assert shared.value == 3


def test_arrays_that_cannot_be_written_are_left_alone(tmp_path):
    fixed = np.zeros(3)
    fixed.flags.writeable = False
    np.zeros(4).tofile(tmp_path / "array")
    with torch.inference_mode():
        inference = torch.zeros(3)
    odd = [
        inference,
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.zeros(3, requires_grad=True),
        fixed,
    ]
    mapped = np.memmap(tmp_path / "array", dtype=float, mode="r")
    with Sources({"data": SimpleNamespace(arrays=[*odd, mapped])}).kept():
        pass
    assert not inference.any()


def test_data_are_not_copied_with_the_counters():
    """A data set of images that it keeps in memory, and a count of how often each was read."""
    images = [torch.zeros(2**20) for _ in range(40)]  # 160 MB
    data = SimpleNamespace(images=images, reads=torch.zeros(2**16))
    sources = Sources({"data": data})
    restore = sources.present()
    data.reads += 1
    for image in images:
        image += 1
    restore()
    assert not data.reads.any()
    assert sum(bool(image.any()) for image in images) > 20


def test_attribute_that_nobody_can_copy_is_said(lab):
    model = lab.model()
    model.connection, model.lock, model.place = sqlite3.connect(":memory:"), threading.Lock(), iter([1, 2])
    trainer = lab.trainer(callbacks=[finder(groups=list(find_neuron_groups(lab.model())))], max_steps=1)
    try:
        with pytest.warns(UserWarning, match="cannot put back Classifier.connection:"):
            trainer.fit(model, lab.loader())
    finally:
        model.connection.close()
