"""The paper's experiments: their parts against known truths, and the short run with the claims that it asserts."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_topo.functional import betti_at_scale

FOLDER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture
def paper(monkeypatch):
    """The scripts' modules, which find each other as scripts do."""
    monkeypatch.syspath_prepend(FOLDER)
    return __import__


@pytest.mark.parametrize(
    ("cloud", "scale", "betti"),
    [
        (lambda setups: setups.figure_eight(), 0.04, (1, 2, 0)),
        (lambda setups: setups.two_circles(), 0.04, (2, 2, 0)),
        (lambda setups: setups.double_torus(1024, torch.Generator().manual_seed(0)), 0.08, (1, 2, 0)),
        (lambda setups: setups.sphere(1024, 794, torch.Generator().manual_seed(0)), 0.25, (1, 0, 1)),
    ],
    ids=["figure-eight", "two circles", "double torus", "sphere"],
)
def test_clouds_have_the_topology_of_their_name(paper, cloud, scale, betti):
    assert betti_at_scale(cloud(paper("setups")), scale) == betti


def test_rotation_keeps_lengths_and_orientation(paper):
    rotation = paper("setups").rotation(0.6, 0.3, 1.1).double()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("p", "q"), [(1, 2), (1, 4), (2, 3), (3, 5)])
def test_crossings_of_lissajous_curves(paper, p, q):
    t = 2 * math.pi * (np.arange(2000) + 0.3) / 2000
    curve = np.stack([np.cos(p * t + 0.4), np.cos(q * t)], axis=1)
    assert paper("neurons_r2").crossings(curve, 1) == 2 * p * q - p - q


def test_crossings_between_two_circles(paper):
    t = 2 * math.pi * np.arange(300) / 300
    circle = np.stack([np.cos(t), np.sin(t)], axis=1)
    crossings = paper("neurons_r2").crossings
    assert crossings(np.concatenate([circle, circle + np.array([0.7, 0.1])]), 2) == 2
    assert crossings(np.concatenate([circle, circle + np.array([2.5, 0.1])]), 2) == 0


def test_updates_are_permutation_equivariant_save_the_counter_example(paper):
    results = paper("equivariance").check_all()
    assert {result.optimizer: result.holds for result in results} == {
        "GD": True,
        "momentum": True,
        "Adam": True,
        "AdamW": True,
        "GD with noise of its own for each index": False,
    }


def test_reads_mnist_files(paper, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 784), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes(16) + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes(8) + bytes([7, 0, 9]))
    x, y, _ = paper("real_networks").images(tmp_path)
    np.testing.assert_allclose(x.numpy(), images / 255, rtol=1e-6)
    assert y.tolist() == [7, 0, 9]


def test_says_what_is_missing_from_the_data_folder(paper, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz"):
        paper("real_networks").images(tmp_path)


@pytest.mark.timeout(600)  # a minute on two free cores
def test_the_short_run_asserts_its_claims(tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / "run_all.py", "--fast", "--output", tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    verdicts = {cells[1].strip(): cells[2].strip() for cells in (row.split("|") for row in rows)}
    assert verdicts["neurons in R²: below η* a curve keeps its self-crossings"] == "**holds**"
    assert verdicts["neurons in R²: above η* it is folded over itself"] == "**holds**"
    assert verdicts["The callback's Betti numbers are those of gudhi's Rips complex at every epoch"] == "**holds**"
    for name in ("neurons_r2_clouds", "neurons_r3_clouds", "real_networks_betti"):
        assert (tmp_path / f"{name}.png").stat().st_size < 150_000
