"""TorchRL's MLflow logger, with runs that end, continue and live side by side."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torchrl.record.loggers import Logger
from torchrl.record.loggers.common import _make_metrics_safe
from torchrl.record.loggers.mlflow import MLFlowLogger

from torchrl_logo.record.delivery import Delivery, is_offline_id
from torchrl_logo.record.spool import Spool
from torchrl_logo.record.sqlite_store import (
    explain_store_errors,
    find_sqlite_file,
    hold_sqlite_store,
)
from torchrl_logo.record.stored_run import StoredRun
from torchrl_logo.record.tracking_server import is_server
from torchrl_logo.record.video import write_video

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["MLflowRun", "deliver_spools"]

# MLflow's own limits on one request, and on a dataset's hash.
_MAX_METRICS_PER_BATCH = 1000
_MAX_DIGEST_LENGTH = 36

_SPOOLS = "spool"  # in the runs' folder


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
        if is_server(tracking_uri) and run_id is None and run_key is None:
            # By its key a run is found that was made by a request without an answer.
            run_key = uuid.uuid4().hex
        tags = {key: str(value) for key, value in (tags or {}).items()}
        if parent_run_id is not None:
            tags["mlflow.parentRunId"] = parent_run_id
        identity: dict[str, Any] = {
            "exp_name": exp_name,
            "tracking_uri": tracking_uri,
            "run_id": run_id,
            "run_key": run_key,
            "run_name": run_name,
            "artifact_location": artifact_location,
            "tags": tags,
        }
        spool = None
        if is_server(tracking_uri):
            key = run_id or re.sub(r"[^\w-]", "_", run_key or "")
            spool = Spool(Path(runs_dir) / _SPOOLS, key, identity)
        self._stored = StoredRun(**identity)
        self._delivery = Delivery(self._stored, spool, flush_interval)
        # [(name, value, milliseconds, step)], values still on their device
        self._buffer: list[tuple[str, Any, int, int]] = []
        self._end_time: int | None = None
        self._last_flush = time.monotonic()
        # Not MLFlowLogger.__init__: it would redirect the whole process to this run's store.
        Logger.__init__(self, exp_name=exp_name, log_dir=str(Path(runs_dir)))
        atexit.register(self._end_at_exit)

    # -- the run ---------------------------------------------------------------------------------

    @property
    def mlflow_client(self) -> MlflowClient:
        """MLflow's own client of the run's store."""
        return self._stored.client

    @property
    def run_id(self) -> str:
        """MLflow's id of this run."""
        return self._stored.run_id

    @property
    def id(self) -> str:
        """MLflow's id of the experiment, as :class:`MLFlowLogger` names it."""
        assert self.experiment is not None
        return self.experiment.info.experiment_id

    @property
    def experiment(self) -> Run | None:
        """The run as MLflow describes it; TorchRL's loggers have it under this name."""
        return self._stored.run

    @experiment.setter
    def experiment(self, run: Run | None) -> None:
        self._stored.run = run

    @property
    def ui_command(self) -> str:
        """The command that serves MLflow's pages on this run's store.

        For a store that is a server already, its address.
        """
        if is_server(self.tracking_uri):
            return self.tracking_uri
        return f"mlflow ui --backend-store-uri {shlex.quote(self.tracking_uri)}"

    def _create_experiment(self) -> Run | None:
        path = find_sqlite_file(self.tracking_uri)
        if path is not None:
            if self._stored.artifact_location is None:
                self._stored.artifact_location = (path.parent / "artifacts").resolve().as_uri()
            with (
                explain_store_errors(self.tracking_uri),
                hold_sqlite_store(path, self.lock_timeout),
            ):
                self._stored.connect()
                self._stored.start()
        else:
            self._stored.connect()
            if is_server(self.tracking_uri):
                self._delivery.reach_server(self.when_unreachable)
            else:
                self._stored.start()
        return self._stored.run

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
            ended = int(time.time() * 1000) if self._end_time is None else self._end_time
            self._delivery.end({"status": status, "time": ended})
            self.status = status
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
            if self._delivery.has_metric(name, int(step or 0)):
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
        if self._delivery.waiting and not self._buffer:
            self._delivery.deliver()
        while self._buffer:
            held = self._buffer[:_MAX_METRICS_PER_BATCH]
            # One transfer from the device for the whole batch.
            values = _make_metrics_safe({str(i): entry[1] for i, entry in enumerate(held)})
            metrics = [
                [name, float(values[str(i)]), milliseconds, step]
                for i, (name, _, milliseconds, step) in enumerate(held)
            ]
            self._delivery.send("metrics", metrics)
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
        self._delivery.send("params", {name: str(value) for name, value in _flatten(cfg)})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags of the run, over those of the same names."""
        self._require_running()
        self._delivery.send("tags", {key: str(value) for key, value in tags.items()})

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
        self._delivery.send("dataset", {"described": described, "context": context})
        self.log_hparams({"dataset": name, "dataset_hash": digest})

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
        self._delivery.send("artifact", {"path": str(path), "folder": folder})

    def log_dict(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores a dictionary as the JSON (or YAML) file ``name``."""
        self._require_running()
        plain = json.loads(json.dumps(dict(content), default=str))
        self._delivery.send("dict", {"name": name, "content": plain})

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
        if run_id != self.run_id and self._delivery.has_run and not is_offline_id(run_id):
            self._require_running()
            started = self.mlflow_client.get_run(self.run_id)
            if self._buffer or started.data.metrics or self._stored.requested_id is not None:
                raise RuntimeError(
                    f"the state continues run {run_id}, but this logger is already at work on run "
                    f"{self.run_id}. Load the state before metrics are logged."
                )
            self._stored.move_to(run_id)
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
        ends = [content for kind, content in run._delivery.waiting if kind == "end"]
        if ends:
            run._end_time = ends[-1]["time"]
        run.finish(ends[-1]["status"] if ends else "KILLED")
        delivered += not run._delivery.waiting
    return delivered


def _status_after(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


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
