"""The examples run as a user runs them, and assert what they claim."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # the suite runs in one process a core
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
def test_quickstart(tmp_path):
    done = run("quickstart.py", "--epochs", "4", "--log-dir", "logs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tensorboard --logdir logs" in done.stdout
    assert (tmp_path / "logs" / "neurons.png").stat().st_size > 10_000
    assert len(list((tmp_path / "logs").glob("lr=*/events*"))) == 3


@pytest.mark.timeout(600)
def test_find_lr(tmp_path):
    done = run("find_lr.py", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "lr_find.png").stat().st_size > 10_000
