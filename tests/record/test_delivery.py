"""Delivery to a store that a list plays; test_lost_server.py has a real server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchrl_logo.record import delivery
from torchrl_logo.record.delivery import Delivery
from torchrl_logo.record.spool import Spool

URI = "http://127.0.0.1:1"


class ListedRun:
    """Stands for a StoredRun: what arrives is listed, and ``away`` loses every call."""

    def __init__(self) -> None:
        self.tracking_uri = URI
        self.steps: dict[str, set[int]] = {}
        self.run: Any = None
        self.away = False
        self.arrived: list[tuple[str, Any]] = []

    @property
    def run_id(self) -> str:
        return self.run.info.run_id

    def start(self) -> None:
        self._answer()
        self.run = SimpleNamespace(info=SimpleNamespace(run_id="a1"))
        self.steps = {"loss": {0}}

    def write(self, kind: str, content: Any) -> None:
        self._answer()
        self.arrived.append((kind, content))

    def _answer(self) -> None:
        if self.away:
            raise ConnectionError("away")


@pytest.fixture
def stored(monkeypatch) -> ListedRun:
    run = ListedRun()
    monkeypatch.setattr(delivery, "answers", lambda uri: not run.away)
    # Time stands still, so that no try is put off.
    monkeypatch.setattr(delivery, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return run


def point(step: int) -> list:
    return [["loss", float(step), 1000 + step, step]]


pytestmark = pytest.mark.filterwarnings("ignore:The MLflow server")


def test_order_is_kept_across_a_loss(stored, tmp_path) -> None:
    sender = Delivery(stored, Spool(tmp_path, "one", {}), interval=0.0)
    sender.reach_server("raise")
    sender.send("metrics", point(1))
    stored.away = True
    for step in (2, 3):
        sender.send("metrics", point(step))
    assert [content for _, content in sender.waiting] == [point(2), point(3)]
    stored.away = False
    sender.send("metrics", point(4))
    assert [content for _, content in stored.arrived] == [point(i) for i in (1, 2, 3, 4)]
    assert not sender.waiting


def test_a_run_that_began_offline_is_made_when_the_server_is_there(stored, tmp_path) -> None:
    stored.away = True
    sender = Delivery(stored, Spool(tmp_path, "one", {}), interval=0.0)
    with pytest.raises(ConnectionError, match="when_unreachable='offline'"):
        sender.reach_server("raise")
    sender.reach_server("offline")
    assert (stored.run_id, sender.has_run) == ("offline-one", False)
    sender.send("tags", {"a": "b"})
    stored.away = False
    sender.deliver()
    assert (stored.run_id, sender.has_run) == ("a1", True)
    assert stored.arrived == [("tags", {"a": "b"})]


def test_steps_that_an_earlier_process_kept_are_known_also_after_their_delivery(
    stored, tmp_path
) -> None:
    stored.away = True
    first = Delivery(stored, Spool(tmp_path, "one", {}), interval=0.0)
    first.reach_server("offline")
    first.send("metrics", point(1))
    first.spool.close()
    again = Delivery(stored, Spool(tmp_path, "one", {}), interval=0.0)
    again.reach_server("offline")
    assert again.has_metric("loss", 1) and not again.has_metric("loss", 0)
    stored.away = False
    again.deliver()
    assert again.has_metric("loss", 0), "the store has it"
    assert again.has_metric("loss", 1), "just delivered"
    assert not again.has_metric("loss", 2)


def test_a_store_that_is_no_server_raises(stored) -> None:
    stored.away = True
    with pytest.raises(ConnectionError):
        Delivery(stored, None, interval=0.0).send("tags", {})


def test_files_are_copied_since_the_caller_may_delete_them(stored, tmp_path) -> None:
    file = tmp_path / "weights.txt"
    file.write_text("weights")
    sender = Delivery(stored, Spool(tmp_path, "one", {}), interval=0.0)
    sender.reach_server("raise")
    stored.away = True
    sender.send("artifact", {"path": str(file), "folder": None})
    file.unlink()
    ((_, kept),) = sender.waiting
    assert Path(kept["path"]).read_text() == "weights"
