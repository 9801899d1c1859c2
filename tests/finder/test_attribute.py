from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from lightning_topo.finder._attribute import LearningRateAttribute


class Hparams(pl.LightningModule):
    def __init__(self, learning_rate=0.1, optimizer=None):
        super().__init__()
        self.save_hyperparameters()


def test_usual_names_in_order():
    model = SimpleNamespace(lr=0.1, learning_rate=0.2)
    assert LearningRateAttribute.find(model).name == "lr"
    assert LearningRateAttribute.find(SimpleNamespace(learning_rate=0.2)).get() == 0.2


def test_set_reaches_model_hparams_and_data_module():
    model, data = Hparams(), SimpleNamespace(learning_rate=0.1, hparams={"learning_rate": 0.1})
    model.learning_rate = 0.1
    LearningRateAttribute.find(model, data).set(0.5)
    assert (
        model.learning_rate == model.hparams.learning_rate == data.learning_rate == data.hparams["learning_rate"] == 0.5
    )


def test_dotted_names_through_attributes_and_mappings():
    model = SimpleNamespace(net=SimpleNamespace(rate=0.1), config={"optimizer": {"lr": 0.2}})
    LearningRateAttribute.find(model, name="net.rate").set(0.3)
    LearningRateAttribute.find(model, name="config.optimizer.lr").set(0.4)
    assert model.net.rate == 0.3
    assert model.config["optimizer"]["lr"] == 0.4
    nested = Hparams(optimizer={"lr": 0.2})
    LearningRateAttribute.find(nested, name="optimizer.lr").set(0.5)
    assert nested.hparams.optimizer["lr"] == 0.5


@pytest.mark.parametrize("model", [SimpleNamespace(), SimpleNamespace(rate=0.1)])
def test_no_attribute(model):
    with pytest.raises(AttributeError, match="attr_name="):
        LearningRateAttribute.find(model)


def test_missing_name_is_named():
    with pytest.raises(AttributeError, match=r"'optim\.eta'"):
        LearningRateAttribute.find(SimpleNamespace(lr=0.1), name="optim.eta")


@pytest.mark.parametrize("value", [0, 0.0, -1.0, True, "auto", float("nan")])
def test_not_a_positive_rate(value):
    with pytest.raises(AttributeError, match="positive learning rate"):
        LearningRateAttribute.find(SimpleNamespace(lr=value))
