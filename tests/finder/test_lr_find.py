import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find

HOLD = 6


def test_sets_the_attribute_and_agrees_with_the_callback(lab):
    model, search = lab.model(), TopologicalLearningRateFinder(hold_steps=HOLD)
    torch.manual_seed(0)
    lab.trainer(max_steps=1, callbacks=[search]).fit(lab.model(), lab.loader())
    torch.manual_seed(0)
    result = topological_lr_find(lab.trainer(), model, lab.loader(), hold_steps=HOLD)
    assert result.bracket == search.result.bracket
    assert model.lr == result.suggestion()


def test_fresh_trainer_has_not_run(lab):
    model = lab.model()
    trainer = lab.trainer()
    topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
    assert (trainer.global_step, trainer.current_epoch, trainer.state.fn, trainer.optimizers) == (0, 0, None, [])
    assert trainer.lightning_module is None
    assert model._trainer is None
    assert model.events == model.seen == []


def test_after_a_fit(lab):
    """A search at trained weights, by a Trainer that is done."""
    model, trainer = lab.model(), lab.trainer(max_epochs=1)
    trainer.fit(model, lab.loader())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    result = topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
    assert result.status == "found"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (trainer.global_step, trainer.current_epoch) == (12, 1)


def test_data_module_is_set_up_and_left_alone(lab):
    class Data(pl.LightningDataModule):
        def __init__(self):
            super().__init__()
            self.train, self.batch_size = None, 8

        def setup(self, stage):
            self.train = lab.data()

        def train_dataloader(self):
            return DataLoader(self.train, self.batch_size, shuffle=True)

    data, model = Data(), lab.model()
    result = topological_lr_find(lab.trainer(), model, datamodule=data, hold_steps=HOLD)
    assert result.status == "found"
    assert data.train is None
    assert data.trainer is None


def test_loader_of_the_model(lab):
    class Own(lab.Classifier):
        def train_dataloader(self):
            return lab.loader()

    assert topological_lr_find(lab.trainer(), lab.model(cls=Own), hold_steps=HOLD).status == "found"


def test_model_that_builds_itself_in_setup(lab):
    class Late(lab.Classifier):
        def configure_model(self):
            if not hasattr(self, "late"):
                self.late = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.late(super().forward(x))

    model, trainer = lab.model(cls=Late), lab.trainer(max_steps=1)
    assert topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD).status == "found"
    assert not hasattr(model, "late")
    trainer.fit(model, lab.loader())


def test_model_callbacks_do_not_take_part(lab):
    recorder = lab.Recorder()

    class Own(lab.Classifier):
        def configure_callbacks(self):
            return [recorder]

    topological_lr_find(lab.trainer(), lab.model(cls=Own), lab.loader(), hold_steps=HOLD)
    assert recorder.calls == []


def test_compiled_model_is_unwrapped(lab):
    class Silent(lab.Classifier):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    model = lab.model(cls=Silent)
    compiled = torch.compile(model, backend="eager")
    result = topological_lr_find(lab.trainer(), compiled, lab.loader(), hold_steps=HOLD)
    assert model.lr == result.suggestion()


def test_fast_dev_run_warns_and_finds_nothing(lab):
    with pytest.warns(UserWarning, match="fast_dev_run"):
        assert topological_lr_find(lab.trainer(fast_dev_run=True), lab.model(), lab.loader()) is None


@pytest.mark.parametrize("options", [{"limit_train_batches": 0}, {"max_steps": 0}])
def test_trainer_that_would_not_train(lab, options):
    model = lab.model()
    with pytest.raises(ValueError, match="reached none"):
        topological_lr_find(lab.trainer(**options), model, lab.loader())
    assert model._trainer is None


@pytest.mark.filterwarnings("ignore:Total length of:UserWarning")
def test_empty_loader(lab):
    empty = DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), 8)
    with pytest.raises(ValueError, match="check the training data"):
        topological_lr_find(lab.trainer(), lab.model(), empty)


def test_unknown_option(lab):
    with pytest.raises(TypeError, match="num_training"):
        topological_lr_find(lab.trainer(), lab.model(), lab.loader(), num_training=100)
