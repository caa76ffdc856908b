"""Runs in a real sqlite store, read back with MLflow's own client."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from tensordict import TensorDict
from torchrl.record.loggers import Logger
from torchrl.record.loggers.mlflow import MLFlowLogger

from torchrl_logo.record import MLflowRun, plot_histogram


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    # One store for the module: making its tables takes seconds.
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri: str) -> MlflowClient:
    return MlflowClient(uri)


@pytest.fixture
def start(uri: str) -> Callable[..., MLflowRun]:
    runs: list[MLflowRun] = []

    def start_run(*args, **kwargs) -> MLflowRun:
        runs.append(MLflowRun(*(args or ("tests",)), tracking_uri=uri, **kwargs))
        return runs[-1]

    yield start_run
    for run in runs:
        run.finish()


def history(client: MlflowClient, run: MLflowRun, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.run_id, name)]


def artifacts(client: MlflowClient, run: MLflowRun, folder: str | None = None) -> list[str]:
    return [item.path for item in client.list_artifacts(run.run_id, folder)]


class TestEndOfRun:
    def test_finished_and_usable_as_a_torchrl_logger(self, start, client) -> None:
        with start() as run:
            assert isinstance(run, MLFlowLogger) and isinstance(run, Logger)
            assert client.get_run(run.run_id).info.status == "RUNNING"
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert not run.is_alive
        run.close()  # a second end changes nothing
        assert run.status == "FINISHED"

    @pytest.mark.parametrize(
        ("error", "status"),
        [(ZeroDivisionError("0/0"), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    )
    def test_an_exception_marks_the_run_and_goes_on(self, start, client, error, status) -> None:
        with pytest.raises(type(error)), start() as run:
            run.log_scalar("loss", 1.0, step=3)
            raise error
        stored = client.get_run(run.run_id)
        assert stored.info.status == status
        assert stored.data.tags["error"] == f"{type(error).__name__}: {error}"
        assert history(client, run, "loss") == [(3, 1.0)], "metrics before the error are kept"

    def test_an_ended_run_refuses_more(self, start) -> None:
        run = start()
        run.close()
        for call in (
            lambda: run.log_scalar("loss", 1.0),
            lambda: run.log_metrics({"loss": 1.0}),
            lambda: run.log_hparams({"a": 1}),
            lambda: run.log_artifact(__file__),
        ):
            with pytest.raises(RuntimeError, match=r"has ended \(FINISHED\)"):
                call()

    @pytest.mark.parametrize(
        ("dying_of", "status"),
        [(None, "FINISHED"), (ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")],
    )
    def test_left_open_at_exit(self, start, client, monkeypatch, dying_of, status) -> None:
        run = start(flush_interval=1e9)
        run.log_scalar("loss", 2.0)
        monkeypatch.setattr(sys, "last_value", dying_of, raising=False)
        run._end_at_exit()
        stored = client.get_run(run.run_id)
        assert (stored.info.status, stored.data.metrics) == (status, {"loss": 2.0})

    @pytest.mark.slow
    def test_a_script_that_dies_without_closing_its_run(self, uri, client) -> None:
        script = f"""
        from torchrl_logo.record import MLflowRun
        run = MLflowRun("tests", tracking_uri={uri!r}, flush_interval=1e9)
        run.log_scalar("loss", 2.0, step=1)
        print(run.run_id, flush=True)
        raise ValueError("died")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
        )
        assert "ValueError: died" in done.stderr
        stored = client.get_run(done.stdout.split()[-1])
        assert (stored.info.status, stored.data.metrics) == ("FAILED", {"loss": 2.0})


class TestMetrics:
    def test_all_kinds_of_values_arrive(self, start, client) -> None:
        with start() as run:
            moving = torch.tensor([1.5], requires_grad=True)
            run.log_scalar("tensor", moving, step=1)
            with torch.no_grad():
                moving.fill_(9.0)  # the value at the time of logging counts
            run.log_scalar("int", 3)
            numbers = run.log_metrics({"a/b": torch.tensor(2.0), "nan": math.nan}, step=2)
            nested = TensorDict({"loss": {"actor": torch.tensor(0.5)}})
            assert run.log_metrics(nested, step=4) == {"loss/actor": 0.5}
        assert numbers["a/b"] == 2.0 and isinstance(numbers["a/b"], float)
        assert history(client, run, "tensor") == [(1, 1.5)]
        assert history(client, run, "int") == [(0, 3.0)]
        assert history(client, run, "a/b") == [(2, 2.0)]
        assert history(client, run, "loss/actor") == [(4, 0.5)]
        assert math.isnan(client.get_run(run.run_id).data.metrics["nan"])

    def test_written_in_batches(self, start, client, monkeypatch) -> None:
        run = start(flush_interval=1e9)
        sizes = []
        write = run.mlflow_client.log_batch

        def count(run_id, metrics=(), **kwargs):
            sizes.append(len(metrics))
            return write(run_id, metrics=metrics, **kwargs)

        monkeypatch.setattr(run.mlflow_client, "log_batch", count)
        for step in range(1300):
            run.log_scalar("loss", float(step), step=step)
        assert sizes == [1000], "a full batch is written at once"
        run.flush_interval = 0.0
        run.log_scalar("loss", 1300.0, step=1300)
        assert sizes == [1000, 301], "the interval is over"
        run.flush()
        assert sizes == [1000, 301], "nothing to write, nothing written"
        assert history(client, run, "loss") == [(i, float(i)) for i in range(1301)]

    def test_what_could_not_be_written_is_kept(self, start, client, monkeypatch) -> None:
        run = start(flush_interval=1e9)
        run.log_scalar("loss", 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(run.mlflow_client, "log_batch", lambda *a, **k: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.flush()
        run.flush()
        assert history(client, run, "loss") == [(0, 1.0)]

    @pytest.mark.parametrize(
        ("value", "found"),
        [(torch.zeros(2, 3), r"Tensor \(2, 3\)"), ("0.5", "str"), (None, "NoneType")],
    )
    def test_what_is_not_one_number_is_refused(self, start, client, value, found) -> None:
        run = start()
        with pytest.raises(ValueError, match=f"metric 'q' must be one number, found {found}"):
            run.log_scalar("q", value)
        with pytest.raises(ValueError, match="metric 'q' must be one number"):
            run.log_metrics({"good": 1.0, "q": value})
        run.close()
        assert client.get_run(run.run_id).data.metrics == {}, "nothing of a bad call is kept"


class TestSeveralRuns:
    def test_side_by_side_nested_and_beside_mlflows_own(self, start, client, uri) -> None:
        before = mlflow.get_tracking_uri()
        parent = start("tests-parallel", run_name="parent")
        children = [
            start("tests-parallel", run_name=f"seed{i}", parent_run_id=parent.run_id)
            for i in range(2)
        ]
        for step in range(2):
            for i, child in enumerate(children):
                child.log_scalar("loss", 10.0 * i + step, step=step)
        children[0].close()
        children[1].log_scalar("loss", 12.0, step=2)
        children[1].close()
        assert history(client, children[0], "loss") == [(0, 0.0), (1, 1.0)]
        assert history(client, children[1], "loss") == [(0, 10.0), (1, 11.0), (2, 12.0)]
        assert client.get_run(parent.run_id).info.status == "RUNNING"
        for i, child in enumerate(children):
            stored = client.get_run(child.run_id)
            assert stored.info.run_name == f"seed{i}"
            assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
        assert len({child.id for child in children} | {parent.id}) == 1
        assert mlflow.active_run() is None
        assert mlflow.get_tracking_uri() == before


class TestContinuing:
    def test_by_run_id(self, start, client) -> None:
        with start() as first:
            first.log_hparams({"steps": 10, "seed": 0})
            first.log_scalar("loss", 1.0, step=1)
        with start(run_id=first.run_id) as second:
            assert second.run_id == first.run_id
            assert client.get_run(first.run_id).info.status == "RUNNING"
            second.log_hparams({"steps": 20, "seed": 0, "new": True})
            second.log_scalar("loss", 0.5, step=2)
        stored = client.get_run(first.run_id)
        assert history(client, first, "loss") == [(1, 1.0), (2, 0.5)]
        assert stored.data.params == {"steps": "10", "seed": "0", "new": "True"}
        assert stored.data.tags["changed.steps"] == "20"
        assert "changed.seed" not in stored.data.tags
        assert stored.info.status == "FINISHED"

    def test_unknown_run_id_is_refused(self, start) -> None:
        with pytest.raises(ValueError, match="'0123abc' cannot be continued: it is not in sqlite"):
            start(run_id="0123abc")

    def test_by_state_dict(self, start, client) -> None:
        first = start("tests-resume")
        first.log_scalar("loss", 1.0, step=1)
        state = first.state_dict()
        assert history(client, first, "loss") == [(1, 1.0)], "a checkpoint has all before it"
        first.finish("KILLED")

        second = start("tests-resume")
        second.log_hparams({"seed": 0})
        abandoned = second.run_id
        second.load_state_dict(state)
        assert second.run_id == first.run_id
        second.log_scalar("loss", 0.5, step=2)
        second.close()
        assert history(client, first, "loss") == [(1, 1.0), (2, 0.5)]
        assert client.get_run(abandoned).info.lifecycle_stage == "deleted"
        assert [r.info.run_id for r in client.search_runs([first.id])] == [first.run_id]

    def test_state_is_not_loaded_over_work_done(self, start) -> None:
        state = start().state_dict()
        second = start()
        second.log_scalar("loss", 1.0)
        with pytest.raises(RuntimeError, match="Load the state before metrics are logged"):
            second.load_state_dict(state)


class TestDescription:
    def test_params_tags_versions_and_dataset(self, start, client) -> None:
        digest = "d" * 64
        with start(tags={"method": "logo"}, run_name="balance-logo") as run:
            run.log_hparams({"loss": {"alpha": 5.0, "layers": [64, 64]}, "task": "vmas/balance"})
            run.log_hparams({f"p{i}": i for i in range(150)})  # more than one request holds
            run.log_dataset(
                "vmas/balance-expert", digest, source="collect", profile={"frames": 2000}
            )
        stored = client.get_run(run.run_id)
        params, tags = stored.data.params, stored.data.tags
        assert params["loss.alpha"] == "5.0" and params["loss.layers"] == "[64, 64]"
        assert params["p149"] == "149"
        assert params["dataset"] == "vmas/balance-expert" and params["dataset_hash"] == digest
        assert tags["method"] == "logo"
        assert tags["version.torch"].startswith(torch.__version__.split("+")[0])
        assert {"version.torchrl", "version.tensordict", "version.torchrl-logo"} <= set(tags)
        (used,) = stored.inputs.dataset_inputs
        assert (used.dataset.name, used.dataset.digest) == ("vmas/balance-expert", digest[:36])
        assert used.dataset.profile == '{"frames": 2000}'
        assert [(t.key, t.value) for t in used.tags] == [("mlflow.data.context", "training")]

    def test_omegaconf(self, start, client) -> None:
        from omegaconf import OmegaConf

        cfg = OmegaConf.create({"lr": 1e-3, "twice": "${lr}"})
        with start() as run:
            run.log_hparams(cfg)
        assert client.get_run(run.run_id).data.params == {"lr": "0.001", "twice": "0.001"}


class TestFiles:
    def test_files_folders_figures_and_json(self, start, client, tmp_path) -> None:
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "policy.bin").write_bytes(b"weights")
        with start() as run:
            run.log_artifact(tmp_path / "checkpoint", "checkpoints")
            run.log_artifact(tmp_path / "checkpoint" / "policy.bin")
            run.log_dict("result.json", {"logo": 1.0})
            run.log_figure("returns", plot_histogram(torch.zeros(3), name="x"), step=7)
            run.log_histogram("eval/returns", [1.0, 2.0, 2.0])
            with pytest.raises(FileNotFoundError, match="nowhere"):
                run.log_artifact(tmp_path / "nowhere")
        assert sorted(artifacts(client, run)) == [
            "checkpoints",
            "figures",
            "policy.bin",
            "result.json",
        ]
        assert artifacts(client, run, "checkpoints/checkpoint") == [
            "checkpoints/checkpoint/policy.bin"
        ]
        assert artifacts(client, run, "figures/eval") == ["figures/eval/returns.png"]
        png = download_artifacts(
            run_id=run.run_id,
            artifact_path="figures/returns_step_00000007.png",
            tracking_uri=run.tracking_uri,
        )
        assert Path(png).read_bytes().startswith(b"\x89PNG")

    def test_video(self, start, client) -> None:
        video = torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8)
        with start() as run:
            run.log_video("team/balance", video, step=0, fps=5)
            run.log_video("final", video[0])
            with pytest.raises(ValueError, match="uint8"):
                run.log_video("bad", video[0].float())
        assert run.video_log_counter == 2
        assert artifacts(client, run, "videos") == ["videos/final.mp4", "videos/team"]
        assert artifacts(client, run, "videos/team") == ["videos/team/balance_step_00000000.mp4"]


class TestStore:
    def test_default_is_a_database_with_the_files_beside_it(
        self, tmp_path, monkeypatch, uri
    ) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # The tables of an existing store, since making them takes seconds.
        runs_dir = tmp_path / "runs"
        runs_dir.mkdir()
        (runs_dir / "mlflow.db").write_bytes(Path(uri.removeprefix("sqlite:///")).read_bytes())
        monkeypatch.chdir(tmp_path)
        with MLflowRun("default-store") as run:
            run.log_dict("a.json", {})
        assert run.tracking_uri == f"sqlite:///{runs_dir}/mlflow.db"
        assert run.tracking_uri in run.ui_command
        assert [p.name for p in runs_dir.glob("artifacts/**/a.json")] == ["a.json"]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["runs"], "nothing anywhere else"

    def test_environment_names_the_store(self, uri, monkeypatch, client) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with MLflowRun("from-environment", runs_dir="not-made") as run:
            pass
        assert client.get_run(run.run_id).info.status == "FINISHED"
        assert not Path("not-made").exists()


def test_a_run_that_was_cut_off_is_found_by_its_key_and_has_each_metric_once(start, client) -> None:
    cut = start(run_key="one")
    cut.log_metrics({"loss": 1.0}, step=1)
    cut.log_metrics({"loss": 2.0}, step=2)
    cut.flush()
    again = start(run_key="one")
    other = start(run_key="two")
    assert again.run_id == cut.run_id and other.run_id != cut.run_id
    for step in (2, 3):
        again.log_metrics({"loss": float(step), "new": 0.0}, step=step)
    again.flush()
    assert history(client, again, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history(client, again, "new") == [(2, 0.0), (3, 0.0)]
