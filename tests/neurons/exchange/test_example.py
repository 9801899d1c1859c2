import threading
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_topo.neurons import ExampleCall, example_inputs_from_batch, find_neuron_groups
from lightning_topo.neurons.exchange.example import example_calls, fewer_items

X, Y = torch.zeros(8, 3), torch.zeros(8)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, scale):
        return self.fc2(self.fc1(x).relu() * scale)


def net():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def found(model, example):
    return [group.name for group in find_neuron_groups(model, example)]


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y], ((X, Y), Y), {"input": X, "label": Y}, {"x": X}])
def test_batches_of_lightning(batch):
    model = net()
    assert found(model, example_inputs_from_batch(model, batch)) == ["0"]


@pytest.mark.parametrize("batch", [(X, Y[:, None]), {"x": X, "scale": Y[:, None], "label": Y}, [(X, Y[:, None]), Y]])
def test_batches_for_two_inputs(batch):
    model = TwoInputs()
    assert found(model, example_inputs_from_batch(model, batch)) == ["fc1"]


def test_entries_that_forward_does_not_name_are_left_out():
    calls = example_inputs_from_batch(TwoInputs(), {"x": X, "scale": 1, "label": Y})
    assert set(calls[0].kwargs) == {"x", "scale"}


@pytest.mark.parametrize("second", ["batch_idx", "number", None])
def test_training_step_of_a_module_without_forward(second):
    class AutoEncoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = net(), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))

        def loss(self, batch):
            x, _ = batch
            return {"loss": nn.functional.mse_loss(self.decoder(self.encoder(x)), x)}

    def with_batch_idx(self, batch, batch_idx):
        return self.loss(batch)

    def with_number(self, batch, number):
        return self.loss(batch)

    steps = {"batch_idx": with_batch_idx, "number": with_number, None: AutoEncoder.loss}
    AutoEncoder.training_step = steps[second]
    model = AutoEncoder()
    # The two units of the code in the middle can be exchanged too; pixels, which the loss compares, cannot.
    assert found(model, example_inputs_from_batch(model, (X + 1, Y))) == ["encoder.0", "encoder.2", "decoder.0"]


@pytest.mark.parametrize("example", [X, (X,), [X], {"input": X}, ExampleCall((X,)), ExampleCall((), {"input": X})])
def test_example_inputs(example):
    assert found(net(), example) == ["0"]


def test_mapping_as_one_argument():
    class OfMapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch):
            return self.net(batch["x"])

    assert found(OfMapping(), {"x": X}) == ["net.0"]


def test_example_input_array_of_the_model():
    model = TwoInputs()
    model.example_input_array = (X, 2.0)
    assert found(model, None) == ["fc1"]
    model.example_input_array = {"x": X, "scale": 2.0}
    assert found(model, None) == ["fc1"]


@pytest.mark.parametrize(
    "model",
    [
        net(),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)),
        nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 1, 3)),
        nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)),
        nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(32, 2)),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    ],
)
def test_made_up_inputs(model):
    assert find_neuron_groups(model)


def test_made_up_input_for_a_recurrent_net():
    class Last(nn.Module):
        def forward(self, output_and_state):
            return output_and_state[0][:, -1]

    assert found(nn.Sequential(nn.GRU(3, 4, batch_first=True), Last(), nn.Linear(4, 2)), None) == ["0"]


def test_nothing_can_be_made_up():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no input can be made up for Sequential; pass example_input"):
        find_neuron_groups(model)


def test_few_items_of_one_leading_size():
    assert fewer_items(ExampleCall((X, {"y": [Y]}))).args[1]["y"][0].shape == (4,)
    unequal = ExampleCall((X, torch.zeros(2, 9)))
    assert fewer_items(unequal) is unequal
    small = ExampleCall((X[:3],))
    assert fewer_items(small) is small


def test_nested_structures_keep_their_types():
    import typing

    class Pair(typing.NamedTuple):
        a: torch.Tensor
        b: int

    changed = ExampleCall((Pair(X, 3), UserDict(x=X), "text")).map(lambda tensor: tensor + 1)
    assert isinstance(changed.args[0], Pair)
    assert changed.args[0].a.sum() == 24
    assert changed.args[1]["x"].sum() == 24
    assert changed.args[2] == "text"


def test_no_example_for_a_mapping_without_string_keys():
    (call,) = example_calls(net(), {0: X})
    assert list(call.args[0]) == [0]


class Trained(nn.Module):
    """As a LightningModule: the step that trains says more of it than ``forward``."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, batch_idx):
        return {"loss": nn.functional.mse_loss(self.net(batch["x"]), batch["y"]), "batch": batch}


class Predicts(Trained):
    def forward(self, x):
        return self.net(x).argmax(-1)


@pytest.mark.parametrize("model", [Trained(), Predicts()])
def test_training_step_stands_in_for_a_forward_that_returns_no_numbers(model):
    batch = {"x": torch.randn(8, 3), "y": torch.randn(8, 2)}
    calls = example_inputs_from_batch(model, batch)
    assert found(model, calls) == ["net.0"]
    fewer = fewer_items(calls[-1])
    assert fewer.on(model)["batch"]["x"].shape == (4, 3)


@dataclass
class Images:
    x: torch.Tensor
    y: torch.Tensor


class WritesToObject(Trained):
    def training_step(self, batch):
        batch.x = batch.x.div_(255)
        batch.y = batch.y + 1
        return nn.functional.mse_loss(self.net(batch.x), batch.y)


class PopsFromMapping(Trained):
    def training_step(self, batch):
        return nn.functional.mse_loss(self.net(batch["x"].div_(255)), batch.pop("y"))


class WritesToItem(WritesToObject):
    def training_step(self, batch):
        return super().training_step(batch["images"][0])


BATCHES = {
    "dataclass": (WritesToObject, Images),
    "any class": (WritesToObject, lambda x, y: SimpleNamespace(x=x, y=y)),
    "within containers": (WritesToItem, lambda x, y: {"images": [Images(x, y)]}),
    "ordered dict": (PopsFromMapping, lambda x, y: OrderedDict(x=x, y=y)),
    "dict": (PopsFromMapping, lambda x, y: {"x": x, "y": y}),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_trial_leaves_batches_of_any_kind_as_they_are(kind):
    model_class, make = BATCHES[kind]
    x, y = torch.rand(8, 3) * 255, torch.randn(8, 2)
    model, batch = model_class(), make(x, y)
    expected = x.clone(), y.clone()
    assert found(model, example_inputs_from_batch(model, batch)) == ["net.0"]
    inner = batch["images"][0] if kind == "within containers" else batch
    now = inner if isinstance(inner, dict) else vars(inner)
    assert now["x"] is x
    assert now["y"] is y
    assert torch.equal(x, expected[0])
    assert torch.equal(y, expected[1])


def test_a_batch_that_cannot_be_copied_is_passed_as_it_is():
    class Reads(Trained):
        def training_step(self, batch):
            return nn.functional.mse_loss(self.net(batch.x), batch.y)

    model, batch = Reads(), SimpleNamespace(x=torch.randn(8, 3), y=torch.randn(8, 2), lock=threading.Lock())
    assert found(model, example_inputs_from_batch(model, batch)) == ["net.0"]


def test_a_copy_shares_no_tensor():
    copied = ExampleCall(([X], "text"), {"images": Images(X, Y)}).copy()
    assert torch.equal(copied.args[0][0], X)
    assert torch.equal(copied.kwargs["images"].x, X)
    assert len({t.data_ptr() for t in (X, copied.args[0][0], copied.kwargs["images"].x)}) == 3


def test_what_to_do_when_a_training_step_does_not_run_on_a_copy():
    class Manual(Trained):
        def training_step(self, batch):
            raise RuntimeError("not attached to a Trainer")

    model = Manual()
    message = (
        r"does not run through Manual\.training_step \(RuntimeError: not attached.*\); define forward, pass example"
    )
    with pytest.raises(ValueError, match=message):
        find_neuron_groups(model, example_inputs_from_batch(model, {"x": X}))


class Jagged(nn.Module):
    """Reads rows of unequal lengths."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu().to_padded_tensor(0.0).sum(1))


@pytest.mark.skipif(torch.__version__ < "2.5", reason="layers of torch 2.4 take no jagged tensors there")
def test_a_batch_that_cannot_be_shortened_is_taken_whole():
    rows = [torch.randn(n, 4) for n in (2, 3, 5, 3, 2, 4, 5, 2)]
    x = torch.nested.nested_tensor(rows, layout=torch.jagged)
    call = ExampleCall((x,))
    assert fewer_items(call) is call
    groups = find_neuron_groups(Jagged(), example_inputs_from_batch(Jagged(), (x, torch.ones(8))))
    assert [(group.name, len(group.members)) for group in groups] == [("a", 3), ("b", 3)]


class Uncut(torch.Tensor):
    """Takes no slice."""

    def __getitem__(self, index):
        raise RuntimeError("not to be cut")


def test_a_tensor_of_a_class_of_its_own_that_cannot_be_shortened():
    call = ExampleCall((torch.ones(9, 3).as_subclass(Uncut),))
    assert fewer_items(call) is call
