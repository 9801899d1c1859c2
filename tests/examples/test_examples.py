"""The examples run as a user runs them, and assert what they claim."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the suite runs in one process a core
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart(tmp_path):
    done = run("quickstart.py", "--epochs", "4", "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir logs" in done.stdout
    assert (tmp_path / "logs" / "neurons.png").stat().st_size > 10_000
    assert len(list((tmp_path / "logs").glob("*/events*"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_find_lr(tmp_path):
    done = run("find_lr.py", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "lr_find.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_step_clipping(tmp_path):
    done = run("step_clipping.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "16 η*" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_learning_rate(tmp_path):
    done = run("no_learning_rate.py", "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "logs").glob("with*/lr=*/events*"))) == 8
    assert (tmp_path / "logs" / "no_learning_rate.png").stat().st_size > 10_000


@pytest.mark.timeout(600)
def test_merge_neurons(tmp_path):
    done = run("merge_neurons.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "net.0: 256 units -> " in done.stdout


def many_processes(strategy, accelerator, devices, cwd):
    output = cwd / f"{strategy}.json"
    options = ["--strategy", strategy, "--accelerator", accelerator, "--devices", str(devices), "--output", str(output)]
    done = run("many_processes.py", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_processes(tmp_path):
    expected = many_processes("one", "cpu", 1, tmp_path)
    assert many_processes("fsdp2", "cpu", 2, tmp_path) == pytest.approx(expected, rel=5e-3)


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp1", "fsdp2"])
def test_many_gpus(strategy, tmp_path):
    """Over nccl, on as many devices as there are (1, 2 or 4: they share a batch)."""
    devices = max(n for n in (1, 2, 4) if n <= torch.cuda.device_count())
    if strategy == "fsdp1" and devices == 1:
        pytest.skip("FSDP1 shards nothing in a world of one")
    expected = many_processes("one", "cuda", 1, tmp_path)
    assert many_processes(strategy, "cuda", devices, tmp_path) == pytest.approx(expected, rel=5e-3)
