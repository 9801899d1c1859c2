"""Settings of the whole suite, real processes for the tests that need several, and a laboratory for the finder's."""

import os
import pickle
import socket
import sys
import time
import traceback
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger

from . import small

torch.set_num_threads(1)  # the suite runs in one process a core


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _enter(function, args, rank, count, port, results):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "RANK": rank}
    os.environ.update({key: str(value) for key, value in (environment | {"WORLD_SIZE": count}).items()})
    try:
        results.put((rank, pickle.dumps(function(rank, *args)), None))  # tensors by value, not in shared memory
        code = 0
    except BaseException:
        results.put((rank, pickle.dumps(None), traceback.format_exc()))
        code = 1
    results.close()
    results.join_thread()
    sys.stdout.flush()
    os._exit(code)  # whatever threads of torch.distributed are left


class Processes:
    """Forks real processes, and never waits for them longer than ``timeout`` seconds."""

    def __init__(self, timeout=180):
        self.timeout = timeout

    def outcomes(self, count, function, *args):
        """What ``function(rank, *args)`` returned in each process (None where it failed), and the tracebacks."""
        context = get_context("fork")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        results = context.Queue()
        running = [
            context.Process(target=_enter, args=(function, args, rank, count, port, results)) for rank in range(count)
        ]
        for process in running:
            process.start()
        returned, failed = [None] * count, [None] * count
        deadline = time.monotonic() + self.timeout
        try:
            for _ in running:
                rank, value, failure = results.get(timeout=max(0.1, deadline - time.monotonic()))
                returned[rank], failed[rank] = pickle.loads(value), failure
            for process in running:
                process.join(max(0.1, deadline - time.monotonic()))
            assert not any(process.is_alive() for process in running), "a process did not end"
        finally:
            for process in running:
                if process.is_alive():
                    process.kill()
        return returned, failed

    def __call__(self, count, function, *args):
        """What ``function(rank, *args)`` returned in each process; none may fail."""
        returned, failed = self.outcomes(count, function, *args)
        assert not any(failed), "\n".join(filter(None, failed))
        return returned


@pytest.fixture
def processes():
    """Call as ``processes(2, function, *args)``."""
    return Processes()


class Classifier(small.Classifier):
    """Counts its steps in a plain attribute and a buffer as well, and remembers the hooks that were called."""

    def __init__(self, optimizer=None, lr=0.05, dropout=0.0):
        super().__init__(optimizer or (lambda model: torch.optim.SGD(model.parameters(), lr=model.lr)), dropout)
        self.lr = lr
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.events = []
        self.last = None

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].sum().item())
        self.calls += 1
        self.last = batch_idx
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.events.append("validation")

    def on_train_start(self):
        self.events.append("on_train_start")

    def on_train_end(self):
        self.events.append("on_train_end")


class RecordingLogger(Logger):
    """Keeps what it is given."""

    name = version = "recording"
    experiment = None

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **kwargs):
        self.rows.append("hyperparams")

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


class Recorder(pl.Callback):
    """Counts every hook that the Trainer calls."""

    def __init__(self):
        self.calls = []

    def setup(self, trainer, pl_module, stage):
        self.calls.append("setup")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.calls.append(("batch", batch_idx))

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.calls.append("zero_grad")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.calls.append("step")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.calls.append("save")

    def on_exception(self, trainer, pl_module, exception):
        self.calls.append("exception")

    def teardown(self, trainer, pl_module, stage):
        self.calls.append("teardown")


def build(model, *args, **kwargs):
    """A model whose initial weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model(*args, **kwargs)


@pytest.fixture
def lab(tmp_path, recwarn):
    """The names above; warnings of Lightning about few workers and short logging intervals are not the subject."""
    torch.manual_seed(7)
    return SimpleNamespace(
        Classifier=Classifier,
        RecordingLogger=RecordingLogger,
        Recorder=Recorder,
        data=small.data,
        loader=small.loader,
        trainer=lambda **kwargs: small.trainer(tmp_path, **kwargs),
        model=lambda *args, cls=Classifier, **kwargs: build(cls, *args, **kwargs),
    )
