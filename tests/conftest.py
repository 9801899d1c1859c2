"""Settings of the whole suite, and real processes for the tests that need several."""

import os
import pickle
import socket
import sys
import time
import traceback
from multiprocessing import get_context

import pytest
import torch

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

    def __init__(self, timeout=60):
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
