"""Figures in every logger, by what it can do; the real clients where they are installed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import DummyLogger, Logger

import lightning_topo as lt

PNG = b"\x89PNG"


def monitors():
    return [lt.BiLipschitzMonitor(max_overhead=None), lt.PersistenceMonitor(max_overhead=None)]


def fit(trainer, classifier, data, logger, callbacks=None):
    made = trainer(monitors() if callbacks is None else callbacks, logger=logger, max_epochs=1)
    made.fit(classifier(), data())
    return made


class Client:
    """Records what a client is asked to do."""

    def __init__(self):
        self.calls = []


def logger_of(experiment, **attributes):
    class Own(Logger):
        name = version = "own"

        def __init__(self):
            super().__init__()
            self.__dict__.update(attributes)

        @property
        def experiment(self):
            return experiment

        def log_metrics(self, metrics, step=None):
            pass

        def log_hyperparams(self, params, *args, **kwargs):
            pass

    return Own()


class CometLike(Client):
    def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
        self.calls.append((figure_name, type(figure).__name__, step))


class MLflowLike(Client):
    def log_figure(self, run_id, figure, artifact_file, *, save_kwargs=None):
        self.calls.append((artifact_file, type(figure).__name__, run_id))


class NeptuneLike(Client):
    def __getitem__(self, path):
        def append(value, step=None):
            self.calls.append((path, type(value).__name__, step))

        return SimpleNamespace(append=append)

    def upload_files(self, *args):
        raise AssertionError("not asked for")


@pytest.mark.parametrize(
    ("client", "overview", "last"),
    [
        (CometLike, "lightning_topo/overview", 12),
        (MLflowLike, "figures/lightning_topo/overview/step_00000012.png", "run"),
        (NeptuneLike, "lightning_topo/overview", 12),
    ],
)
def test_clients_of_other_loggers(client, overview, last, classifier, trainer, data):
    made = client()
    fit(trainer, classifier, data, logger_of(made, run_id="run"))
    assert (overview, "Figure", last) in made.calls
    assert any("topology/net.0/cloud" in call[0] for call in made.calls)
    assert all(call[1] == "Figure" for call in made.calls)


def test_csv_logger_has_figures_beside_its_metrics(classifier, trainer, data, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(trainer, classifier, data, logger)
    folder = Path(logger.log_dir) / "figures"
    assert (folder / "lightning_topo" / "overview" / "step_00000012.png").read_bytes().startswith(PNG)
    assert {path.name for path in (folder / "topology" / "net.0" / "cloud").iterdir()} == {
        "step_00000000.png",
        "step_00000012.png",
    }


def test_no_figures_where_none_are_wanted(classifier, trainer, data, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path)
    callbacks = [
        lt.BiLipschitzMonitor(max_overhead=None, figures=False),
        lt.PersistenceMonitor(max_overhead=None, figures=False),
    ]
    fit(trainer, classifier, data, logger, callbacks)
    assert not (Path(logger.log_dir) / "figures").exists()


def test_loggers_without_figures_are_left_alone(classifier, trainer, data, recorder):
    fit(trainer, classifier, data, [recorder, DummyLogger()])
    assert len(recorder.series("bilipschitz.criticality")) == 12


def test_a_logger_that_fails_at_a_figure_ends_no_run(classifier, trainer, data, recorder):
    class Failing(CometLike):
        def log_figure(self, figure_name=None, figure=None, overwrite=False, step=None):
            raise ConnectionError("no route to host")

    made = trainer(monitors(), logger=[logger_of(Failing()), recorder], max_epochs=1)
    with pytest.warns(UserWarning, match="could not give figures to Own .ConnectionError: no route to host"):
        made.fit(classifier(), data())
    assert made.global_step == 12
    assert len(recorder.series("bilipschitz.criticality")) == 12


@pytest.mark.filterwarnings("ignore")  # of the clients' own
def test_weights_and_biases(classifier, trainer, data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    alarm = lt.TopologicalAlarm(max_criticality=1e-9, n_updates=1)
    fit(trainer, classifier, data, logger, [*monitors(), alarm])
    logger.experiment.finish()
    pictures = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("files/media/images/**/*.png")]
    assert any("lightning_topo/overview" in name for name in pictures)
    assert any("topology/net.0/cloud" in name for name in pictures)
    (transactions,) = tmp_path.rglob("*.wandb")
    written = transactions.read_bytes()
    assert b"bilipschitz/criticality" in written
    assert b"Neurons are at risk" in written


@pytest.mark.filterwarnings("ignore")
def test_mlflow(classifier, trainer, data, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    logger = pl.loggers.MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/store.db", artifact_location=str(tmp_path))
    fit(trainer, classifier, data, logger)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/store.db")
    listed = [found.path for found in client.list_artifacts(logger.run_id, "figures/lightning_topo/overview")]
    assert listed == ["figures/lightning_topo/overview/step_00000012.png"]
    assert "bilipschitz/criticality" in client.get_run(logger.run_id).data.metrics
    assert next(tmp_path.rglob("overview/step_00000012.png")).read_bytes().startswith(PNG)


@pytest.mark.filterwarnings("ignore")
def test_comet_offline(classifier, trainer, data, tmp_path):
    comet = pytest.importorskip("comet_ml")
    experiment = comet.OfflineExperiment(
        offline_directory=str(tmp_path), project_name="test", auto_output_logging=False, log_code=False
    )
    fit(trainer, classifier, data, logger_of(experiment))
    experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    import zipfile

    with zipfile.ZipFile(archive) as files:
        assert b"lightning_topo/overview" in files.read("messages.json")
