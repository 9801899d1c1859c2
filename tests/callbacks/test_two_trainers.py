"""Two Trainers in two threads of one process: switches and warnings of the process are afterwards as they were."""

import os
import threading
import warnings

import pytorch_lightning as pl
import torch

import lightning_topo as lt

from .conftest import Classifier, loader

# More of them by hand: PAIRS=50 pytest tests/callbacks/test_two_trainers.py
PAIRS = int(os.environ.get("PAIRS", "3"))


def switches():
    backends = torch.backends
    return {
        "fast path": backends.mha.get_fastpath_enabled(),
        "attention": [
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ],
        "cudnn": [backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic],
        "products": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "warnings": (list(warnings.filters), warnings.showwarning),
    }


def test_switches_and_warnings_of_the_process_stay(tmp_path):
    def fit(number, failures):
        try:
            callbacks = [
                lt.BiLipschitzMonitor(max_overhead=None),
                lt.PersistenceMonitor(max_overhead=None, every_n_train_steps=4),
                lt.SharpnessMonitor(max_overhead=None, every_n_train_steps=4),
                lt.TopologicalRateControl(),
            ]
            trainer = pl.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, callbacks=callbacks, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path / str(number),
            )  # fmt: skip
            trainer.fit(Classifier(), loader())
            assert all(callback.history for callback in callbacks[:3])
        except BaseException as error:
            failures.append(error)

    before = switches()
    for _ in range(PAIRS):
        failures = []
        threads = [threading.Thread(target=fit, args=(number, failures)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert switches() == before
