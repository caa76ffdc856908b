"""One run in an MLflow store: found or made, continued, and written to."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_logo.record.tracking_server import was_lost

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["StoredRun"]

# MLflow's own limit on one request.
_MAX_PARAMS_PER_BATCH = 100

_RUN_KEY_TAG = "torchrl_logo.run_key"
_VERSIONED = ("torchrl-logo", "torch", "torchrl", "tensordict", "vmas", "mlflow")


class StoredRun:
    """A run as its MLflow store has it, reached by its id and never by MLflow's "active run".

    Writing an entry once or several times is the same, so that one whose answer was lost can be
    written again.

    Args:
        exp_name (str): the experiment, which is made if it is missing.
        tracking_uri (str): the store.

    Keyword Args:
        run_id (str, optional): an earlier run to continue.
        run_key (str, optional): a name that is the run's own, by which it is found again.
        run_name (str, optional): the name that MLflow shows.
        artifact_location (str, optional): URI of the files of a new experiment.
        tags (dict): tags of the run.
    """

    def __init__(
        self,
        exp_name: str,
        tracking_uri: str,
        *,
        run_id: str | None,
        run_key: str | None,
        run_name: str | None,
        artifact_location: str | None,
        tags: Mapping[str, str],
    ) -> None:
        self.exp_name = exp_name
        self.tracking_uri = tracking_uri
        self.requested_id = run_id
        self.run_key = run_key
        self.run_name = run_name
        self.artifact_location = artifact_location
        self.tags = dict(tags) if run_key is None else {**tags, _RUN_KEY_TAG: run_key}
        self.run: Run | None = None
        # name -> steps at which a run that is continued by its key had the metric
        self.steps: dict[str, set[int]] = {}

    def connect(self) -> None:
        """Makes the client; a sqlite store must be held meanwhile."""
        from mlflow import MlflowClient

        self.client: MlflowClient = MlflowClient(self.tracking_uri)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, which must have been started."""
        assert self.run is not None
        return self.run.info.run_id

    def start(self) -> None:
        """Finds the run by its id or key, or makes it.

        Raises:
            ValueError: if a run is asked for by an id that is not in the store.
        """
        if self.requested_id is not None:
            self.move_to(self.requested_id)
            return
        experiment = self._find_experiment()
        found = self._find_run(experiment)
        if found is not None:
            self._continue(found)
            self.steps = self._read_steps()
        else:
            # With its tags at once: a run that is cut off here can be found by its key.
            self.run = self.client.create_run(experiment, run_name=self.run_name, tags=self.tags)
        self._write_tags({**_read_versions(), **self.tags})

    def move_to(self, run_id: str) -> None:
        """Continues another run in this one's place.

        Raises:
            ValueError: if it is not in the store.
        """
        self._continue(run_id)
        self._write_tags({**_read_versions(), **self.tags})

    def _continue(self, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.run = self.client.get_run(run_id)
        except MlflowException as error:
            if was_lost(error):
                raise
            raise ValueError(
                f"run_id {run_id!r} cannot be continued: it is not in {self.tracking_uri}."
            ) from error
        self.client.update_run(run_id, status="RUNNING")

    def _find_run(self, experiment: str) -> str | None:
        """Returns the id of the run that was started under this object's key, if there is one."""
        if self.run_key is None:
            return None
        key = self.run_key.replace("'", "")
        found = self.client.search_runs([experiment], f"tags.`{_RUN_KEY_TAG}` = '{key}'")
        return found[0].info.run_id if found else None

    def _read_steps(self) -> dict[str, set[int]]:
        assert self.run is not None
        return {
            name: {point.step for point in self.client.get_metric_history(self.run_id, name)}
            for name in self.run.data.metrics
        }

    def _find_experiment(self) -> str:
        """Returns the id of the experiment of this name, which is made if it is missing."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.exp_name)
        if found is None:
            try:
                return self.client.create_experiment(
                    self.exp_name, artifact_location=self.artifact_location
                )
            except MlflowException:
                # Somebody else made it in the meantime, on a server that no file lock guards.
                found = self.client.get_experiment_by_name(self.exp_name)
                if found is None:
                    raise
        return found.experiment_id

    # -- entries ---------------------------------------------------------------------------------

    def write(self, kind: str, content: Any) -> None:
        """Writes one entry.

        Args:
            kind (str): ``"metrics"``, ``"params"``, ``"tags"``, ``"dataset"``, ``"dict"``,
                ``"artifact"`` or ``"end"``.
            content (dict or list): what JSON can hold of it; of metrics a list of
                ``[name, value, milliseconds, step]``.
        """
        if kind == "metrics":
            self._write_metrics(content)
        elif kind == "params":
            self._write_params(content)
        elif kind == "tags":
            self._write_tags(content)
        elif kind == "dataset":
            self._write_dataset(**content)
        elif kind == "dict":
            self.client.log_dict(self.run_id, content["content"], content["name"])
        elif kind == "artifact":
            self._write_artifact(Path(content["path"]), content["folder"])
        else:
            self.client.set_terminated(self.run_id, content["status"], end_time=content["time"])

    def _write_metrics(self, points: list) -> None:
        from mlflow.entities import Metric

        # A store leaves out what it has: same name, step, time and value.
        metrics = [
            Metric(name, value, milliseconds, step)
            for name, value, milliseconds, step in points
            if step not in self.steps.get(name, ())
        ]
        if metrics:
            self.client.log_batch(self.run_id, metrics=metrics)

    def _write_params(self, given: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        stored = self.client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in given.items() if name not in stored]
        for start in range(0, len(new), _MAX_PARAMS_PER_BATCH):
            batch = new[start : start + _MAX_PARAMS_PER_BATCH]
            self.client.log_batch(self.run_id, params=batch)
        changed = {
            f"changed.{name}": value
            for name, value in given.items()
            if stored.get(name, value) != value
        }
        self._write_tags(changed)

    def _write_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            entities = [RunTag(key, value) for key, value in tags.items()]
            self.client.log_batch(self.run_id, tags=entities)

    def _write_dataset(self, described: Mapping[str, str], context: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(source_type="local", **described)
        tag = InputTag("mlflow.data.context", context)
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [tag])])

    def _write_artifact(self, path: Path, folder: str | None) -> None:
        if path.is_dir():
            target = "/".join(part for part in (folder, path.name) if part)
            self.client.log_artifacts(self.run_id, str(path), target)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)


def _read_versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            versions[f"version.{name}"] = version(name)
    return versions
