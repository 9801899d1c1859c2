"""The paper's experiments: their parts against known truths, and the short run with the claims that it asserts."""

import argparse
import gzip
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_topo.callbacks.bi_lipschitz_monitor import BiLipschitzRecord
from lightning_topo.callbacks.persistence_monitor import PersistenceRecord
from lightning_topo.callbacks.sharpness_monitor import SharpnessRecord
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


@pytest.fixture
def mnist():
    """Five images and their labels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 28, 28), dtype=np.uint8), rng.integers(0, 10, 5, dtype=np.uint8)


def idx(array):
    """The IDX format: 0, 0, 8 (unsigned byte), number of dimensions, sizes in four bytes, most significant first."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder, mnist, *, packed):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), mnist, strict=True):
        path = folder / f"{name}.gz" if packed else folder / name
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


@pytest.mark.parametrize("form", ["idx", "idx.gz", "npz"])
def test_reads_mnist_files(paper, tmp_path, mnist, form):
    if form == "npz":
        np.savez(tmp_path / "mnist.npz", x_train=mnist[0], y_train=mnist[1])
    else:
        write_idx(tmp_path / "MNIST" / "raw", mnist, packed=form == "idx.gz")
    x, y, what = paper("real_networks").images(tmp_path)
    np.testing.assert_allclose(x.numpy(), mnist[0].reshape(5, 784) / 255, rtol=1e-6)
    assert y.tolist() == mnist[1].tolist()
    assert "5 images of" in what
    assert what.endswith(f"in {tmp_path.name}")


def test_takes_an_installed_set_where_none_is_named(paper, tmp_path, mnist, monkeypatch):
    networks = paper("real_networks")
    monkeypatch.setattr(networks, "PACKAGED", tmp_path)

    def chosen(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_all.py", "--output", str(tmp_path / "out"), *arguments])
        return networks.arguments_with_data(argparse.ArgumentParser()).data_dir

    assert chosen() is None
    write_idx(tmp_path, mnist, packed=True)
    assert chosen() == tmp_path
    assert chosen("--fast") is None
    assert chosen("--data-dir", "elsewhere") == Path("elsewhere")


def test_refuses_what_is_not_mnist(paper, tmp_path, mnist):
    images = paper("real_networks").images
    with pytest.raises(FileNotFoundError, match=r"mnist\.npz"):
        images(tmp_path)
    write_idx(tmp_path, (mnist[0][:, :8, :8], mnist[1]), packed=False)
    with pytest.raises(ValueError, match=r"\(5, 8, 8\)"):
        images(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="IDX file"):
        images(tmp_path)


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_trains_on_the_files_of_the_data_folder(tmp_path, mnist):
    write_idx(tmp_path / "data", tuple(np.concatenate([array] * 300) for array in mnist), packed=True)
    arguments = ["--fast", "--processes", "1", "--data-dir", tmp_path / "data", "--output", tmp_path / "out"]
    done = run("real_networks.py", *arguments)
    assert "Images: 1,500 images of train-images-idx3-ubyte.gz in data" in done.stdout
    assert (tmp_path / "out" / "real_networks_betti.png").exists()


def made_up_run(paper, lr, criticalities, betti, end):
    """A run of the figure-eight that measured what is given."""
    common, setups = paper("common"), paper("setups")
    start = setups.figure_eight(64).numpy()
    records = [BiLipschitzRecord(k, "hidden", lr, 1 - c, 1 + c, 1.0, c, lr / c, 0) for k, c in enumerate(criticalities)]
    topology = [
        PersistenceRecord(k, "hidden", b, (), (), (), (1, 2), 0.0, 2.0, 0.04, 64, 64) for k, b in enumerate(betti)
    ]
    sharpness = [SharpnessRecord(k, 1 / lr, lr) for k in range(len(betti))]
    experiment = common.Experiment("figure-eight", "small", paper("neurons_r2").task, "GD", lr, 2, 0, 0.04)
    losses = np.ones(len(criticalities))
    return common.Run(experiment, records, topology, sharpness, losses, start, end(start), (3, 2), 1.0)


def test_verdicts_are_counted_from_the_runs(paper):
    def merged(points):
        return points[0] + 0 * points

    kept = made_up_run(paper, 0.1, [0.1, 0.9], [(1, 2, 0), (1, 2, 0)], np.copy)
    changed = made_up_run(paper, 0.2, [0.1, 0.9], [(1, 2, 0), (1, 1, 0)], np.copy)
    broken = made_up_run(paper, 0.3, [0.1, 2.0], [(1, 2, 0), (1, 0, 0)], merged)
    table = paper("claims").claims({"neurons_r2": [kept, changed, broken]}, [], [])
    found = {claim.text: (claim.verdict, claim.numbers) for claim in table}
    assert found["neurons in R²: κ < 1 throughout at the rates called small"] == (
        "partly",
        "2 of 3 runs; not GD 0.3 (8)",
    )
    assert found["neurons in R²: κ ≥ 1 at the rates called large"] == ("not checked", "no such run")
    assert found["neurons in R²: below η* a curve keeps its self-crossings"] == ("holds", "2 of 2 runs")
    assert found["neurons in R²: below η* the Betti numbers at 0.04·diameter never change"][0] == "partly"
    assert found["neurons in R²: above η* they become simpler (their sum falls)"] == ("holds", "1 of 1 runs")
    assert found["Expressivity: above η* neurons merge (more than 5% fewer apart at 0.001·diameter)"][0] == "holds"
    assert found["Expressivity: below η* it does not"] == ("does not hold", "0 of 2 runs")
    assert found["neurons in R²: runs below η* distort the neurons less than any run above"][0] == "holds"
    # 1/λmax is η: below η* = η/κ where κ < 1.
    assert found["1/λmax is at most η* = 1/K of the same update (GD)"][1].startswith("5 of 6 measurements")


@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute on two free cores
def test_the_short_run_asserts_its_claims(tmp_path):
    run("run_all.py", "--fast", "--output", tmp_path)
    rows = [line for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    verdicts = {cells[1].strip(): cells[2].strip() for cells in (row.split("|") for row in rows)}
    assert verdicts["neurons in R²: below η* a curve keeps its self-crossings"] == "**holds**"
    assert verdicts["neurons in R²: above η* it is folded over itself"] == "**holds**"
    for part in ("neurons in R²", "neurons in R³", "real networks"):
        assert verdicts[f"{part}: runs below η* distort the neurons less than any run above"] == "**holds**"
    assert verdicts["The callback's Betti numbers are those of gudhi's Rips complex at every epoch"] == "**holds**"
    for name in ("neurons_r2_clouds", "neurons_r3_clouds", "real_networks_betti"):
        assert (tmp_path / f"{name}.png").stat().st_size < 150_000
