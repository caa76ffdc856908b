"""A real MLflow server that is not there, comes, goes and comes back."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from torchrl_logo.record import MLflowRun, deliver_spools
from torchrl_logo.record.sqlite_store import make_sqlite_store
from torchrl_logo.record.tracking_server import answers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning")]


class Server:
    """``mlflow server`` on loopback, of one store that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None
        make_sqlite_store(folder / "mlflow.db")

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **settings, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        until = time.monotonic() + 120
        while not answers(self.uri):
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.kill()


def read(server: Server, key: str, experiment: str = "tests") -> tuple[str, list, dict, list]:
    """Status, all points of the metric, parameters and files of the one run of a key."""
    client = MlflowClient(f"sqlite:///{server.folder}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], f"tags.`torchrl_logo.run_key` = '{key}'")
    assert len(runs) == 1, "one run, and no second one"
    points = client.get_metric_history(runs[0].info.run_id, "loss")
    files = sorted(
        file.relative_to(server.folder / "artifacts").as_posix().split("artifacts/", 1)[1]
        for file in (server.folder / "artifacts").rglob("*")
        if file.is_file() and runs[0].info.run_id in str(file)
    )
    steps = sorted((point.step, point.value) for point in points)
    return runs[0].info.status, steps, runs[0].data.params, files


def test_nothing_is_lost_or_doubled(server: Server, tmp_path, monkeypatch) -> None:
    common = {"tracking_uri": server.uri, "runs_dir": tmp_path, "flush_interval": 0.0}
    (tmp_path / "weights.txt").write_text("weights")

    # Not there at the start: an error within seconds, or on without it, as was chosen.
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="does not answer.*when_unreachable='offline'"):
        MLflowRun("tests", **common)
    assert time.monotonic() - began < 10
    with pytest.warns(RuntimeWarning, match="kept in"):
        run = MLflowRun("tests", run_key="main", when_unreachable="offline", **common)
    assert run.run_id == "offline-main"
    run.log_hparams({"lr": 0.1})
    run.log_dataset("data", "0123")
    run.log_artifact(tmp_path / "weights.txt", "checkpoints")
    for step in range(5):
        run.log_scalar("loss", float(step), step=step)

    # A run that ends before the server comes.
    with MLflowRun("tests", run_key="short", when_unreachable="offline", **common) as short:
        short.log_scalar("loss", 7.0, step=0)
    ended = time.time()

    # It comes.
    server.start()
    run.log_scalar("loss", 5.0, step=5)
    assert not run.run_id.startswith("offline-")
    status, steps, params, files = read(server, "main")
    assert (status, steps) == ("RUNNING", [(i, float(i)) for i in range(6)])
    assert params == {"lr": "0.1", "dataset": "data", "dataset_hash": "0123"}
    assert files == ["checkpoints/weights.txt"]
    assert deliver_spools(tmp_path / "spool") == 1
    assert read(server, "short")[:2] == ("FINISHED", [(0, 7.0)])
    client = MlflowClient(f"sqlite:///{server.folder}/mlflow.db")
    end = next(
        r for r in client.search_runs(["1"]) if r.data.metrics == {"loss": 7.0}
    ).info.end_time
    assert end <= ended * 1000, "when it ended, not when that was delivered"

    # An answer gets lost on its way: the store has the batch, and nobody here knows.
    write = run.mlflow_client.log_batch

    def lose_the_answer(*args, **kwargs) -> None:
        write(*args, **kwargs)
        monkeypatch.setattr(run.mlflow_client, "log_batch", write)
        raise requests.exceptions.ConnectionError("lost")

    monkeypatch.setattr(run.mlflow_client, "log_batch", lose_the_answer)
    run.log_scalar("loss", 6.0, step=6)
    assert [kind for kind, _ in run._delivery.waiting] == ["metrics"]

    # It is killed: training goes on, and does not wait.
    server.kill()
    began = time.monotonic()
    for step in range(7, 20):
        run.log_scalar("loss", float(step), step=step)
    run.log_dict("notes.json", {"a": 1})
    assert time.monotonic() - began < 5
    # The process dies, too; the next one repeats what came after its checkpoint.
    atexit.unregister(run._end_at_exit)
    run._delivery.spool.close()
    again = MLflowRun("tests", run_key="main", when_unreachable="offline", **common)
    for step in range(15, 25):
        again.log_scalar("loss", float(step), step=step)
    assert read(server, "main")[1] == [(i, float(i)) for i in range(7)]

    # It comes back.
    server.start()
    again.finish()
    status, steps, _, files = read(server, "main")
    assert (status, steps) == ("FINISHED", [(i, float(i)) for i in range(25)])
    assert files == ["checkpoints/weights.txt", "notes.json"]
    assert not list((tmp_path / "spool").glob("*.jsonl"))
