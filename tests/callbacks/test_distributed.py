"""Two processes over gloo: the first measures, and training is the same."""

import json

import pytest
import pytorch_lightning as pl
import torch

import lightning_topo as lt

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


class Witness(pl.Callback):
    """Writes what each process ends with."""

    def __init__(self, folder, monitors):
        self.folder, self.monitors = folder, monitors

    def on_train_end(self, trainer, pl_module):
        seen = {
            "weights": [value.double().abs().sum().item() for value in pl_module.parameters()],
            "batches": pl_module.seen,
            "random": torch.get_rng_state().sum().item(),
            "measured": [len(monitor.history) for monitor in self.monitors],
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


def run(folder, monitors, classifier, trainer, data):
    folder.mkdir()
    module = classifier()
    module.net[1] = torch.nn.Identity()  # BatchNorm's statistics are each process's own
    pl.seed_everything(2, verbose=False)
    callbacks = [*monitors, Witness(folder, monitors)]
    trainer(callbacks, strategy="ddp_fork", devices=2).fit(module, data())
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_the_first_process_measures_and_training_is_untouched(classifier, trainer, data, tmp_path):
    monitors = [
        lt.BiLipschitzMonitor(max_overhead=None),
        lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4),
        lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=3),
    ]
    plain = run(tmp_path / "plain", [], classifier, trainer, data)
    watched = run(tmp_path / "watched", monitors, classifier, trainer, data)
    assert [process.pop("measured") for process in watched] == [[24, 8, 4], [0, 0, 0]]
    assert [process.pop("measured") for process in plain] == [[], []]
    assert watched == plain
    assert watched[0]["weights"] == watched[1]["weights"]
    assert watched[0]["batches"] != watched[1]["batches"]


def test_a_loss_without_second_derivatives_keeps_nobody_waiting(classifier, trainer, data, tmp_path):
    class Attentive(type(classifier())):
        def forward(self, x):
            h = self.net(x)[None, None]
            return torch.nn.functional.scaled_dot_product_attention(h, h, h)[0, 0]

    monitors = [lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=3)]
    watched = run(tmp_path / "watched", monitors, Attentive, trainer, data)
    assert [process["measured"] for process in watched] == [[4], [0]]
