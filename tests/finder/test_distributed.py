"""Two processes over gloo: one decision, one loss, and no trace."""

import json

import pytest
import pytorch_lightning as pl
import torch

from lightning_topo.callbacks import TopologicalLearningRateFinder
from lightning_topo.finder import topological_lr_find

HOLD = 6

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


class Witness(pl.Callback):
    """Writes what each process ends with."""

    def __init__(self, folder, finder):
        self.folder, self.finder = folder, finder

    def on_train_end(self, trainer, pl_module):
        seen = {
            "weights": [value.double().sum().item() for value in pl_module.parameters()],
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "batches": pl_module.seen,
            "result": self.finder.result.to_dict() if self.finder else None,
            "steps": trainer.global_step,
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(seen))


def fit(lab, folder, finder=None):
    folder.mkdir()
    torch.manual_seed(5)
    callbacks = [*([finder] if finder else []), Witness(folder, finder)]
    trainer = lab.trainer(strategy="ddp_fork", devices=2, max_epochs=2, callbacks=callbacks)
    trainer.fit(lab.model(), lab.loader())
    return trainer, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_both_processes_take_the_same_decisions(lab, tmp_path):
    trainer, (first, second) = fit(lab, tmp_path / "run", TopologicalLearningRateFinder(hold_steps=HOLD))
    assert first["batches"] != second["batches"]
    assert first["result"] == second["result"]
    assert first["result"]["status"] == "found"
    assert first["weights"] == second["weights"]
    assert first["lr"] == second["lr"] == pytest.approx(first["result"]["critical_lr"] * first["result"]["safety"])
    assert len(first["result"]["share_trials"]) >= 2
    # Callbacks of a forked run do not come back, metrics do.
    assert float(trainer.callback_metrics["lr_find/critical_lr"]) == pytest.approx(first["result"]["critical_lr"])


def test_run_with_a_search_is_the_run_without(lab, tmp_path):
    _, expected = fit(lab, tmp_path / "without")
    _, seen = fit(lab, tmp_path / "with", TopologicalLearningRateFinder(hold_steps=HOLD, update_attr=False))
    for process, plain in zip(seen, expected, strict=True):
        process["result"] = None
        assert process == plain


def test_search_before_the_fit_brings_its_result_back(lab, tmp_path):
    _, (expected, _) = fit(lab, tmp_path / "run", TopologicalLearningRateFinder(hold_steps=HOLD))
    torch.manual_seed(5)
    model, trainer = lab.model(), lab.trainer(strategy="ddp_fork", devices=2)
    result = topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
    assert result.to_dict() == expected["result"]
    assert model.lr == result.suggestion()
    trainer.fit(model, lab.loader())  # which Lightning allows a forking Trainer only once


def test_divergence_in_one_process_ends_the_trial_in_both(lab, tmp_path):
    class Fragile(lab.Classifier):
        """Its loss overflows in the second process alone, once a weight has grown."""

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            moved = (self.net[0].weight - self.origin).abs().max()
            return loss * float("inf") if self.global_rank == 1 and moved > 1e-3 else loss

        def on_fit_start(self):
            self.origin = self.net[0].weight.detach().clone()

    model, trainer = lab.model(cls=Fragile), lab.trainer(strategy="ddp_fork", devices=2)
    result = topological_lr_find(trainer, model, lab.loader(), hold_steps=HOLD)
    healthy = topological_lr_find(
        lab.trainer(strategy="ddp_fork", devices=2), lab.model(), lab.loader(), hold_steps=HOLD
    )
    assert result.critical_lr < healthy.critical_lr / 2
    assert any(trial.losses[-1] == float("inf") for trial in result.trials if not trial.held)


def search_and_fail(rank, lab, fail_at):
    class Failing(lab.Classifier):
        """The second process loses its data in the middle of the search."""

        calls_so_far = 0

        def training_step(self, batch, batch_idx):
            Failing.calls_so_far += 1
            if self.global_rank == 1 and Failing.calls_so_far == fail_at:
                raise OSError("the data of this process are gone")
            return super().training_step(batch, batch_idx)

    finder = TopologicalLearningRateFinder(hold_steps=HOLD)
    lab.trainer(strategy="ddp", devices=2, callbacks=[finder]).fit(lab.model(cls=Failing), lab.loader())


@pytest.mark.parametrize("fail_at", [1, 9])
def test_search_ends_when_one_process_fails(lab, processes, fail_at):
    processes.timeout = 30
    _, failures = processes.outcomes(2, search_and_fail, lab, fail_at)
    assert "the data of this process are gone" in failures[1]
    assert failures[0] is not None
