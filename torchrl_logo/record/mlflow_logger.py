"""TorchRL's MLflow logger, with runs that end, continue and live side by side."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import math
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torchrl.record.loggers import Logger
from torchrl.record.loggers.common import _make_metrics_safe
from torchrl.record.loggers.mlflow import MLFlowLogger

from torchrl_logo.file_locks import hold_lock
from torchrl_logo.record.spool import Spool
from torchrl_logo.record.tracking_server import answers, be_impatient, is_server, was_lost
from torchrl_logo.record.video import write_video
from torchrl_logo.whole_files import explain_write_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["MLflowRun", "deliver_spools"]

# MLflow's own limits on one request.
_MAX_METRICS_PER_BATCH = 1000
_MAX_PARAMS_PER_BATCH = 100
_MAX_DIGEST_LENGTH = 36

_RUN_KEY_TAG = "torchrl_logo.run_key"
_SPOOLS = "spool"  # in the runs' folder

_VERSIONED = ("torchrl-logo", "torch", "torchrl", "tensordict", "vmas", "mlflow")


class MLflowRun(MLFlowLogger):
    """One MLflow run behind TorchRL's :class:`~torchrl.record.loggers.Logger` interface.

    It differs from :class:`~torchrl.record.loggers.mlflow.MLFlowLogger`, which it subclasses, in
    what training runs need of it:

    - metrics are collected and written in batches, since MLflow takes 10 to 30 ms for one metric
      and for a thousand; a scalar given as a tensor is read only when its batch is written, so
      that logging does not wait for the device;
    - the run ends: ``FINISHED`` after a ``with`` block, ``FAILED`` if an exception leaves it,
      ``KILLED`` on a keyboard interrupt; likewise when the interpreter exits without
      :meth:`close`;
    - it speaks to its own run by id and never to MLflow's process-wide "active run", so that any
      number of runs can exist one after the other, side by side or nested;
    - ``run_id``, or the state dict that :class:`torchrl.checkpoint.Checkpoint` stores, continues
      the same run;
    - training does not depend on a server: what it does not take is kept on the disk and delivered
      when it is back, once and in order, by this object or by a later one with the same
      ``run_key`` or ``run_id``; :func:`deliver_spools` does so for runs that have ended;
    - by default it needs no server: metrics go to a sqlite database in ``runs_dir`` and files to
      a folder beside it. Otherwise the environment's ``MLFLOW_TRACKING_URI`` is followed.

    Versions of the packages that decide results are kept as tags (``version.torch`` ...).

    Args:
        exp_name (str): name of the MLflow experiment that the run belongs to; made if missing.

    Keyword Args:
        run_name (str, optional): name of the run. Defaults to one that MLflow invents.
        run_id (str, optional): an earlier run to continue.
        run_key (str, optional): a name that is the run's own. If the experiment has a run of that
            name it is continued as one that was cut off: a metric is not written again at a step
            where the store has it. Otherwise a run is started under that name.
        parent_run_id (str, optional): a run to show this one under.
        tracking_uri (str, optional): the MLflow store. Defaults to ``MLFLOW_TRACKING_URI`` if that
            is set, else to ``sqlite:///<runs_dir>/mlflow.db``.
        runs_dir (str or Path): folder of the default store. Defaults to ``"runs"``.
        artifact_location (str, optional): URI of the files of a new experiment. Defaults to the
            folder ``artifacts`` beside a sqlite store, else to what the store decides.
        tags (dict, optional): tags of the run.
        video_fps (int): frames per second of videos. Defaults to ``15``.
        flush_interval (float): a batch of metrics is written at the first call that comes so many
            seconds after the last write. Defaults to ``5.0``.
        when_unreachable (str): what to do if the store is a server that does not answer *at the
            start*: ``"raise"``, or go on ``"offline"`` until it answers; the run is then made
            later, and until then its ``run_id`` begins with ``"offline-"``. A server that is lost
            later never stops training. Defaults to ``"raise"``.
        lock_timeout (float): seconds to wait for another process that opens the same sqlite
            store. Defaults to ``300.0``.

    Raises:
        ValueError: if ``run_id`` is not in the store.
        ConnectionError: if the server does not answer and ``when_unreachable`` is ``"raise"``.
        TimeoutError: if another process opens the store for longer than ``lock_timeout``.
        OSError: if the disk of a sqlite store is full or read-only.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     uri = f"sqlite:///{folder}/mlflow.db"
        ...     with MLflowRun("docs", tracking_uri=uri) as run:
        ...         run.log_hparams({"loss": {"alpha": 5.0}})
        ...         for step in range(3):
        ...             _ = run.log_metrics({"loss_value": 1.0 / (1 + step)}, step=step)
        ...     stored = run.mlflow_client.get_run(run.run_id)
        ...     stored.info.status, stored.data.params, round(stored.data.metrics["loss_value"], 2)
        ('FINISHED', {'loss.alpha': '5.0'}, 0.33)
    """

    def __init__(
        self,
        exp_name: str = "torchrl-logo",
        *,
        run_name: str | None = None,
        run_id: str | None = None,
        run_key: str | None = None,
        parent_run_id: str | None = None,
        tracking_uri: str | None = None,
        runs_dir: str | Path = "runs",
        artifact_location: str | None = None,
        tags: Mapping[str, Any] | None = None,
        video_fps: int = 15,
        flush_interval: float = 5.0,
        when_unreachable: str = "raise",
        lock_timeout: float = 300.0,
    ) -> None:
        if when_unreachable not in ("raise", "offline"):
            raise ValueError(
                f"when_unreachable must be 'raise' or 'offline', found {when_unreachable!r}."
            )
        if tracking_uri is None:
            tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or None
        if tracking_uri is None:
            tracking_uri = f"sqlite:///{Path(runs_dir).resolve()}/mlflow.db"
        self.tracking_uri = tracking_uri
        self.when_unreachable = when_unreachable
        self.lock_timeout = lock_timeout
        self.video_fps = video_fps
        self.video_log_counter = 0
        self.flush_interval = flush_interval
        self.status: str | None = None  # None while the run goes on
        self._requested_id = run_id
        if is_server(tracking_uri) and run_id is None and run_key is None:
            # By its key a run is found that was made by a request without an answer.
            run_key = uuid.uuid4().hex
        self._run_key = run_key
        # name -> steps that a continued run has already
        self._recorded: dict[str, set[int]] = {}
        self._stored: dict[str, set[int]] = {}  # those of them that are in the store
        self._run_name = run_name
        self._artifact_location = artifact_location
        self._tags = {key: str(value) for key, value in (tags or {}).items()}
        if parent_run_id is not None:
            self._tags["mlflow.parentRunId"] = parent_run_id
        if run_key is not None:
            self._tags[_RUN_KEY_TAG] = run_key
        # [(name, value, milliseconds, step)], values still on their device
        self._buffer: list[tuple[str, Any, int, int]] = []
        self._offline = False
        self._last_try = -math.inf
        self._pause = flush_interval
        self._end_time: int | None = None
        key = run_id or re.sub(r"[^\w-]", "_", run_key or "")
        header = {
            "exp_name": exp_name,
            "tracking_uri": tracking_uri,
            "run_id": run_id,
            "run_key": run_key,
            "run_name": run_name,
            "artifact_location": artifact_location,
            "tags": self._tags,
        }
        spools = Path(runs_dir) / _SPOOLS
        self._spool = Spool(spools, key, header) if is_server(tracking_uri) else None
        self._last_flush = time.monotonic()
        # Not MLFlowLogger.__init__: it would redirect the whole process to this run's store.
        Logger.__init__(self, exp_name=exp_name, log_dir=str(Path(runs_dir)))
        atexit.register(self._end_at_exit)

    # -- the run ---------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """MLflow's id of this run."""
        return self.experiment.info.run_id

    @property
    def id(self) -> str:
        """MLflow's id of the experiment, as :class:`MLFlowLogger` names it."""
        return self.experiment.info.experiment_id

    @property
    def ui_command(self) -> str:
        """The command that serves MLflow's pages on this run's store.

        For a store that is a server already, its address.
        """
        if self.tracking_uri.startswith(("http://", "https://")):
            return self.tracking_uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.tracking_uri)}"

    def _create_experiment(self) -> Run:
        from mlflow import MlflowClient

        sqlite_path = _sqlite_path(self.tracking_uri)
        if sqlite_path is None:
            self.mlflow_client: MlflowClient = MlflowClient(self.tracking_uri)
            return self._start_run() if self._spool is None else self._reach_server()
        # The first client of a sqlite store makes its tables, which two processes must not do
        # at the same time.
        if self._artifact_location is None:
            self._artifact_location = (sqlite_path.parent / "artifacts").resolve().as_uri()
        with self._explain_errors():
            sqlite_path.parent.mkdir(parents=True, exist_ok=True)
            lock = f"{sqlite_path}.lock"
            with hold_lock(lock, self.lock_timeout, f"the MLflow store {sqlite_path}"):
                _make_sqlite_store(sqlite_path)
                self.mlflow_client = MlflowClient(self.tracking_uri)
                return self._start_run()

    def _reach_server(self) -> Run:
        """Starts the run on a server, or makes do without if that is wanted."""
        assert self._spool is not None
        for kind, content in self._spool.entries:  # that an earlier process left
            if kind == "metrics":
                for name, _, _, step in content:
                    self._recorded.setdefault(name, set()).add(step)
        kept = {name: set(steps) for name, steps in self._recorded.items()}
        try:
            if not answers(self.tracking_uri):
                raise ConnectionError(f"The MLflow server {self.tracking_uri} does not answer.")
            with be_impatient():
                run = self._start_run()
        except Exception as error:
            if not was_lost(error):
                raise
            if self.when_unreachable == "raise":
                self._spool.close()
                raise ConnectionError(
                    f"The MLflow server {self.tracking_uri} does not answer. Start it, or go on "
                    "without it: MLflowRun(when_unreachable='offline')."
                ) from error
            self._go_offline()
            info = SimpleNamespace(run_id=f"offline-{self._spool.path.stem}", experiment_id="")
            return SimpleNamespace(info=info)  # type: ignore[return-value]
        for name, steps in kept.items():
            self._recorded.setdefault(name, set()).update(steps)
        return run

    def _go_offline(self) -> None:
        assert self._spool is not None
        if not self._offline:
            warnings.warn(
                f"The MLflow server {self.tracking_uri} does not answer. What is logged is kept "
                f"in {self._spool.path} and delivered when it is back.",
                RuntimeWarning,
                stacklevel=4,
            )
        self._offline = True
        self._last_try = time.monotonic()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Names the disk where MLflow or sqlite say that it is full or read-only."""
        path = _sqlite_path(self.tracking_uri) or Path(self.tracking_uri)
        with explain_write_errors("the MLflow run", path):
            try:
                yield
            except Exception as error:
                text = str(error)
                for number, sign in (
                    (errno.ENOSPC, "disk is full"),
                    (errno.EROFS, "readonly database"),
                    (errno.EROFS, "unable to open database file"),
                    (errno.EIO, "disk I/O error"),
                ):
                    if sign in text and not isinstance(error, OSError):
                        why = f"Cannot write the MLflow run: {sign}"
                        raise OSError(number, why, str(path)) from error
                raise

    # -- sending -----------------------------------------------------------------------------------

    def _send(self, kind: str, content: Any) -> None:
        """Writes an entry to the store, or keeps it if the store is a server that is away."""
        if self._spool is None:
            with self._explain_errors():
                self._write(kind, content)
            return
        if self._spool.entries or self._offline:  # in order
            self._keep(kind, content)
            self._deliver()
            return
        try:
            with be_impatient():
                self._write(kind, content)
        except Exception as error:
            if not was_lost(error):
                raise
            self._keep(kind, content)
            self._go_offline()

    def _keep(self, kind: str, content: Any) -> None:
        assert self._spool is not None
        if kind == "artifact":
            content = {**content, "path": self._spool.keep_file(Path(content["path"]))}
        self._spool.append(kind, content)

    def _deliver(self) -> None:
        """Sends what was kept, if the server is back; it is asked only now and then."""
        assert self._spool is not None
        waited = time.monotonic() - self._last_try
        if waited < self._pause:
            return
        began = time.monotonic()
        reached = answers(self.tracking_uri)
        self._last_try = time.monotonic()
        # A server that lets others wait is asked less often: at most a tenth of the time is lost.
        self._pause = max(self.flush_interval, 10 * (self._last_try - began))
        if not reached:
            self._offline = True
            return
        sent = 0
        try:
            with be_impatient():
                if self.run_id.startswith("offline-"):
                    self.experiment = self._start_run()
                for kind, content in self._spool.entries:
                    self._write(kind, content)
                    sent += 1
        except Exception as error:
            if not was_lost(error):
                raise
            self._go_offline()
        else:
            self._offline = False
        finally:
            if sent:
                self._spool.drop(sent)

    def _write(self, kind: str, content: Any) -> None:
        """Writes one entry; once or several times is the same."""
        from mlflow.entities import Metric

        client, run_id = self.mlflow_client, self.run_id
        if kind == "metrics":
            # A store leaves out what it has: same name, step, time and value.
            metrics = [
                Metric(name, value, milliseconds, step)
                for name, value, milliseconds, step in content
                if step not in self._stored.get(name, ())
            ]
            if metrics:
                client.log_batch(run_id, metrics=metrics)
        elif kind == "params":
            self._write_params(content)
        elif kind == "tags":
            self._write_tags(run_id, content)
        elif kind == "dataset":
            self._write_dataset(**content)
        elif kind == "dict":
            client.log_dict(run_id, content["content"], content["name"])
        elif kind == "artifact":
            path, folder = Path(content["path"]), content["folder"]
            if path.is_dir():
                target = "/".join(part for part in (folder, path.name) if part)
                client.log_artifacts(run_id, str(path), target)
            else:
                client.log_artifact(run_id, str(path), folder)
        else:
            client.set_terminated(run_id, content["status"], end_time=content["time"])

    def _start_run(self) -> Run:
        if self._requested_id is not None:
            run = self._continue_run(self._requested_id)
        else:
            experiment = self._find_experiment()
            found = self._find_run(experiment)
            if found is not None:
                run = self._continue_run(found)
                self._recorded = self._read_recorded(run)
                self._stored = {name: set(steps) for name, steps in self._recorded.items()}
            else:
                # With its tags at once: a run that is cut off here can be found by its key.
                run = self.mlflow_client.create_run(
                    experiment, run_name=self._run_name, tags=self._tags
                )
        self._write_tags(run.info.run_id, {**_read_versions(), **self._tags})
        return run

    def _continue_run(self, run_id: str) -> Run:
        from mlflow.exceptions import MlflowException

        try:
            run = self.mlflow_client.get_run(run_id)
        except MlflowException as error:
            if was_lost(error):
                raise
            raise ValueError(
                f"run_id {run_id!r} cannot be continued: it is not in {self.tracking_uri}."
            ) from error
        self.mlflow_client.update_run(run_id, status="RUNNING")
        return run

    def _find_run(self, experiment: str) -> str | None:
        """Returns the id of the run that was started under this object's key, if there is one."""
        if self._run_key is None:
            return None
        key = self._run_key.replace("'", "")
        found = self.mlflow_client.search_runs([experiment], f"tags.`{_RUN_KEY_TAG}` = '{key}'")
        return found[0].info.run_id if found else None

    def _read_recorded(self, run: Run) -> dict[str, set[int]]:
        """Returns the steps at which a run has each of its metrics."""
        return {
            name: {
                point.step for point in self.mlflow_client.get_metric_history(run.info.run_id, name)
            }
            for name in run.data.metrics
        }

    def _find_experiment(self) -> str:
        """Returns the id of the experiment of this name, which is made if it is missing."""
        from mlflow.exceptions import MlflowException

        found = self.mlflow_client.get_experiment_by_name(self.exp_name)
        if found is None:
            try:
                return self.mlflow_client.create_experiment(
                    self.exp_name, artifact_location=self._artifact_location
                )
            except MlflowException:
                # Somebody else made it in the meantime, on a server that no file lock guards.
                found = self.mlflow_client.get_experiment_by_name(self.exp_name)
                if found is None:
                    raise
        return found.experiment_id

    def finish(self, status: str = "FINISHED") -> None:
        """Writes what is still held back and ends the run. Later calls do nothing.

        Args:
            status (str): ``"FINISHED"``, ``"FAILED"`` or ``"KILLED"``.
        """
        if self.status is not None:
            return
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status must be FINISHED, FAILED or KILLED, found {status!r}.")
        try:
            self.flush()
        finally:
            self._last_try = -math.inf
            ended = int(time.time() * 1000) if self._end_time is None else self._end_time
            self._send("end", {"status": status, "time": ended})
            self.status = status
            if self._spool is not None:
                if self._spool.entries:
                    warnings.warn(
                        f"The MLflow server {self.tracking_uri} is still away. When it is back, "
                        f"deliver_spools({str(self._spool.path.parent)!r}) gives it this run.",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                self._spool.close()
            self._service_shutdown = True
            atexit.unregister(self._end_at_exit)

    def shutdown(self, timeout: float | None = None) -> None:
        """Ends the run as ``FINISHED``."""
        del timeout
        self.finish()

    def _end_at_exit(self) -> None:
        # The interpreter keeps here the exception that it is about to die of, if any.
        error = getattr(sys, "last_value", None)
        with contextlib.suppress(Exception):  # there is nobody left to handle it
            self.finish(_status_after(None if error is None else type(error)))

    def __enter__(self) -> MLflowRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self.status is None:
            self.set_tags({"error": f"{type(error).__name__}: {error}"})
        self.finish(_status_after(kind))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(exp_name={self.exp_name!r}, run_id={self.run_id!r}, "
            f"tracking_uri={self.tracking_uri!r}, status={self.status or 'RUNNING'})"
        )

    # -- metrics ---------------------------------------------------------------------------------

    def log_scalar(self, name: str, value: Any, step: int | None = None) -> None:
        """Holds one metric until its batch is written.

        Args:
            name (str): name of the metric.
            value (float or Tensor): a number, or a tensor of one element on any device.
            step (int, optional): the metric's step. Defaults to ``0``.

        Raises:
            ValueError: if the value is not one number.
            RuntimeError: if the run has ended.
        """
        self._hold({name: value}, step)
        self._flush_if_due()

    def log_metrics(
        self,
        metrics: dict[str, Any] | TensorDictBase,
        step: int | None = None,
        *,
        keys_sep: str = "/",
    ) -> dict[str, Any]:
        """Holds several metrics of one step until their batch is written.

        Args:
            metrics (dict or TensorDictBase): names and values; each value is one number.
            step (int, optional): the metrics' step. Defaults to ``0``.

        Keyword Args:
            keys_sep (str): joins the nested keys of a TensorDict.

        Returns:
            The metrics as Python numbers.

        Raises:
            ValueError: if a value is not one number.
            RuntimeError: if the run has ended.
        """
        numbers = _make_metrics_safe(metrics, keys_sep=keys_sep)
        self._hold(numbers, step)
        self._flush_if_due()
        return numbers

    def _hold(self, metrics: Mapping[str, Any], step: int | None) -> None:
        self._require_running()
        milliseconds = int(time.time() * 1000)
        held = []
        for name, value in metrics.items():
            if int(step or 0) in self._recorded.get(name, ()):
                continue
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                # A copy, since the caller may go on writing into its tensor.
                value = value.detach().clone()
            elif not _is_number(value):
                raise ValueError(
                    f"metric {name!r} must be one number, found {_describe(value)}. "
                    "Log an array as a figure, a histogram or an artifact."
                )
            held.append((name, value, milliseconds, int(step or 0)))
        self._buffer += held

    def _flush_if_due(self) -> None:
        waited = time.monotonic() - self._last_flush
        if len(self._buffer) >= _MAX_METRICS_PER_BATCH or waited >= self.flush_interval:
            self.flush()

    def flush(self, timeout: float | None = None) -> None:
        """Writes all metrics that are held back."""
        del timeout
        self._last_flush = time.monotonic()
        if self._spool is not None and self._spool.entries and not self._buffer:
            self._deliver()
        while self._buffer:
            held = self._buffer[:_MAX_METRICS_PER_BATCH]
            # One transfer from the device for the whole batch.
            values = _make_metrics_safe({str(i): entry[1] for i, entry in enumerate(held)})
            metrics = [
                [name, float(values[str(i)]), milliseconds, step]
                for i, (name, _, milliseconds, step) in enumerate(held)
            ]
            self._send("metrics", metrics)
            # Only now: what could not be written is tried again by the next call.
            del self._buffer[: len(held)]

    # -- what the run is -------------------------------------------------------------------------

    def log_hparams(self, cfg: Any) -> None:
        """Stores the run's parameters.

        MLflow never changes a parameter. When a run is continued with another value, the first
        one stays and the new one becomes the tag ``changed.<name>``.

        Args:
            cfg (dict or DictConfig): parameters; nested names are joined by dots.
        """
        self._require_running()
        if not isinstance(cfg, Mapping):
            from omegaconf import OmegaConf

            cfg = OmegaConf.to_container(cfg, resolve=True)
        self._send("params", {name: str(value) for name, value in _flatten(cfg)})

    def _write_params(self, given: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        stored = self.mlflow_client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in given.items() if name not in stored]
        for start in range(0, len(new), _MAX_PARAMS_PER_BATCH):
            self.mlflow_client.log_batch(
                self.run_id, params=new[start : start + _MAX_PARAMS_PER_BATCH]
            )
        changed = {
            f"changed.{name}": value
            for name, value in given.items()
            if stored.get(name, value) != value
        }
        self._write_tags(self.run_id, changed)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags of the run, over those of the same names."""
        self._require_running()
        self._send("tags", {key: str(value) for key, value in tags.items()})

    def _write_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            entities = [RunTag(key, value) for key, value in tags.items()]
            self.mlflow_client.log_batch(run_id, tags=entities)

    def log_dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str = "",
        context: str = "training",
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Records which data the run used, as one of MLflow's dataset inputs and as parameters.

        Args:
            name (str): the dataset's name, for instance ``"vmas/balance-medium-replay"``.
            digest (str): its hash. The parameter ``dataset_hash`` holds all of it, the dataset
                input the 36 characters that MLflow has room for.

        Keyword Args:
            source (str): where it came from: a path, a URL, a command.
            context (str): what the run used it for.
            profile (dict, optional): facts about it, such as sizes and return statistics.
        """
        self._require_running()
        described = {
            "name": name,
            "digest": digest[:_MAX_DIGEST_LENGTH],
            "source": json.dumps({"uri": source}),
            "profile": json.dumps(dict(profile or {}), default=str),
        }
        self._send("dataset", {"described": described, "context": context})
        self.log_hparams({"dataset": name, "dataset_hash": digest})

    def _write_dataset(self, described: Mapping[str, str], context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(source_type="local", **described)
        tag = InputTag("mlflow.data.context", context)
        self.mlflow_client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [tag])])

    # -- files -----------------------------------------------------------------------------------

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Stores a file, or a folder with all that is in it.

        Args:
            path (str or Path): the file or folder.
            folder (str, optional): where to put it among the run's artifacts. A folder keeps its
                own name below that.

        Raises:
            FileNotFoundError: if there is nothing at ``path``.
        """
        self._require_running()
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no file to log at {path}")
        self._send("artifact", {"path": str(path), "folder": folder})

    def log_dict(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores a dictionary as the JSON (or YAML) file ``name``."""
        self._require_running()
        plain = json.loads(json.dumps(dict(content), default=str))
        self._send("dict", {"name": name, "content": plain})

    def log_figure(self, name: str, figure: Figure, step: int | None = None) -> None:
        """Stores a matplotlib figure as ``figures/<name>.png``.

        Args:
            name (str): name of the figure.
            figure (matplotlib.figure.Figure): the figure.
            step (int, optional): becomes a part of the file's name, so that figures of other
                steps are kept.
        """
        self._require_running()
        target = PurePosixPath("figures", f"{_file_name(name, step)}.png")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / target.name
            figure.savefig(path)
            self.log_artifact(path, str(target.parent))

    def log_histogram(self, name: str, data: Sequence, **kwargs: Any) -> None:
        """Stores a histogram as a figure.

        Args:
            name (str): name of the histogram.
            data (Tensor or sequence): the values, of any shape.
            **kwargs: ``step`` (int) and ``bins`` (int or sequence) are understood.
        """
        from torchrl_logo.record.plots import plot_histogram

        step, bins = kwargs.pop("step", None), kwargs.pop("bins", 50)
        if kwargs:
            raise TypeError(f"log_histogram takes step and bins, found also {sorted(kwargs)}.")
        figure = plot_histogram(torch.as_tensor(data), name=name, bins=bins)
        self.log_figure(name, figure, step=step)

    def log_video(
        self, name: str, video: torch.Tensor, step: int | None = None, **kwargs: Any
    ) -> None:
        """Stores a video as ``videos/<name>.mp4`` (H.264, which browsers play).

        Args:
            name (str): name of the video.
            video (Tensor): uint8 frames ``[T, 3, H, W]``; of ``[N, T, 3, H, W]`` the last video
                is taken, as TorchRL's recorder does.
            step (int, optional): becomes a part of the file's name.
            **kwargs: ``fps`` (int), frames per second. Defaults to ``self.video_fps``.
        """
        fps = kwargs.pop("fps", self.video_fps)
        if kwargs:
            raise TypeError(f"log_video takes step and fps, found also {sorted(kwargs)}.")
        self._require_running()
        if video.ndim == 5:
            video = video[-1]  # [N, T, C, H, W] -> [T, C, H, W]
        target = PurePosixPath("videos", f"{_file_name(name, step)}.mp4")
        with tempfile.TemporaryDirectory() as folder:
            path = write_video(Path(folder) / target.name, video, fps=fps)
            self.log_artifact(path, str(target.parent))
        self.video_log_counter += 1

    # -- checkpoints -----------------------------------------------------------------------------

    def _checkpoint_state(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "video_log_counter": self.video_log_counter}

    def _load_checkpoint_state(self, state_dict: Mapping[str, Any]) -> None:
        """Continues the run that the state belongs to.

        The run that this object has started in the meantime is removed if nothing was measured
        in it.
        """
        run_id = state_dict.get("run_id", self.run_id)
        offline = any(name.startswith("offline-") for name in (run_id, self.run_id))
        if run_id != self.run_id and not offline:
            self._require_running()
            started = self.mlflow_client.get_run(self.run_id)
            if self._buffer or started.data.metrics or self._requested_id is not None:
                raise RuntimeError(
                    f"the state continues run {run_id}, but this logger is already at work on run "
                    f"{self.run_id}. Load the state before metrics are logged."
                )
            self.experiment = self._continue_run(run_id)
            self._write_tags(run_id, _read_versions())
            self.mlflow_client.delete_run(started.info.run_id)
        self.video_log_counter = state_dict.get("video_log_counter", self.video_log_counter)

    def _require_running(self) -> None:
        if self.status is not None:
            raise RuntimeError(
                f"run {self.run_id} has ended ({self.status}). "
                f"MLflowRun(run_id={self.run_id!r}, ...) continues it."
            )


def deliver_spools(folder: str | Path = "runs/spool") -> int:
    """Gives servers that are back what ended runs have kept for them.

    A run that ended by itself gets the status it ended with, one that was killed ``KILLED``.

    Args:
        folder (str or Path): ``spool`` in the runs' folder. Defaults to ``"runs/spool"``.

    Returns:
        Number of runs that were delivered. Runs that are still going on deliver for themselves.

    Raises:
        ConnectionError: if a server does not answer.
        ValueError: if a file is damaged.
    """
    delivered = 0
    for path in sorted(Path(folder).glob("*.jsonl")):
        header, _ = Spool.read(path)
        try:
            run = MLflowRun(**header, runs_dir=path.parent.parent)
        except TimeoutError:  # its process is alive
            continue
        assert run._spool is not None
        ends = [content for kind, content in run._spool.entries if kind == "end"]
        if ends:
            run._end_time = ends[-1]["time"]
        run.finish(ends[-1]["status"] if ends else "KILLED")
        delivered += not run._spool.entries
    return delivered


def _sqlite_path(tracking_uri: str) -> Path | None:
    """Returns the database file of a sqlite store, or None for another kind of store."""
    prefix = "sqlite:///"
    return Path(tracking_uri[len(prefix) :]) if tracking_uri.startswith(prefix) else None


def _make_sqlite_store(path: Path) -> None:
    """Makes a new store's tables aside, so that one that is cut off here is no store yet."""
    if path.exists():
        return
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    unfinished = path.with_name(f".{path.name}.unfinished")
    for file in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        file.unlink(missing_ok=True)
    engine = create_sqlalchemy_engine(f"sqlite:///{unfinished}")
    _initialize_tables(engine)
    engine.dispose()
    unfinished.replace(path)


def _status_after(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


def _read_versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            versions[f"version.{name}"] = version(name)
    return versions


def _flatten(cfg: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in cfg.items():
        name = f"{prefix}{key}"
        flat += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return flat


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {tuple(shape)}"


def _file_name(name: str, step: int | None) -> str:
    """Returns a name that is one file on every system; slashes stay, as folders."""
    clean = re.sub(r"[^\w\-./ ]+", "_", name).strip("/.")
    return clean if step is None else f"{clean}_step_{step:08}"
