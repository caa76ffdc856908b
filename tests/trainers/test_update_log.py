from __future__ import annotations

import pytest
import torch

from torchrl_logo.trainers.update_log import UpdateLog


class Batches:
    """A logger that takes several figures at a time."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, dict(values)))


class OneByOne:
    """A logger as TorchRL's simplest ones."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int]] = []

    def log_scalar(self, name: str, value: float, step: int) -> None:
        self.calls.append((name, value, step))


def test_figures_go_to_the_logger_at_their_update_and_once() -> None:
    logger = Batches()
    log = UpdateLog(logger, interval=10)
    log.add({"a": torch.tensor(1.0), "b": 2.0})
    log.add({"a": torch.tensor(3.0)})
    assert not log.is_due(9) and log.is_due(10)
    log.flush(10)
    log.flush(11)
    assert logger.calls == [(10, {"a": 3.0, "b": 2.0})], "the latest counts; nothing twice"
    assert not log.is_due(20) and log.is_due(21), "counted from the last flush"


def test_a_logger_of_single_figures() -> None:
    logger = OneByOne()
    log = UpdateLog(logger, interval=10)
    log.add({"a": 1, "b": 2})
    log.flush(5)
    assert logger.calls == [("a", 1.0, 5), ("b", 2.0, 5)]


@pytest.mark.parametrize("pending", [{}, {"a": torch.tensor(0.25)}])
def test_a_state_goes_on_as_if_nothing_had_happened(pending) -> None:
    def begin() -> UpdateLog:
        log = UpdateLog(None, interval=10)
        log.add({"a": 1 / 3})
        log.flush(10)
        log.add(pending)
        return log

    straight, cut = begin(), begin()
    resumed = UpdateLog(None, interval=10)
    resumed.load_state_dict(cut.state_dict())
    for log in (straight, resumed):
        assert not log.is_due(19) and log.is_due(20)
        log.add({"b": 2.0})
        log.flush(20)
    assert resumed.history == straight.history
    assert resumed.history["a"][0] == (10, 1 / 3), "in double precision"
