"""When the policy is evaluated while it learns, and what is written then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.objectives import LossModule
from torchrl.trainers import Trainer

from torchrl_logo.envs.vmas import VmasTeamEnv
from torchrl_logo.evaluation import evaluate
from torchrl_logo.trainers import NoCollection, evaluation_hook
from torchrl_logo.trainers.evaluation_hook import EvaluationHook


class Nothing(LossModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        return TensorDict({"loss": self.weight.square()})


def make_trainer(updates_per_batch: int, updates: int) -> Trainer:
    loss = Nothing()
    trainer = Trainer(
        collector=NoCollection(updates_per_batch),
        total_frames=updates,
        frame_skip=1,
        optim_steps_per_batch=updates_per_batch,
        loss_module=loss,
        optimizer=torch.optim.SGD(loss.parameters(), lr=0.1),
        progress_bar=False,
    )
    trainer.register_op("process_optim_batch", lambda batch: TensorDict())
    return trainer


def make_policy() -> TensorDictModule:
    return TensorDictModule(
        torch.nn.Linear(16, 2, bias=False),
        in_keys=[("agents", "observation")],
        out_keys=[("agents", "action")],
    )


@pytest.mark.parametrize(
    ("updates_per_batch", "interval", "due"),
    [(5, 10, [10, 20, 30]), (5, 30, [30]), (5, 7, [10, 20, 30]), (10, 1, [10, 20, 30])],
)
def test_due_updates(
    updates_per_batch: int, interval: int, due: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the batch of updates in which the interval since the last one passed."""
    trainer = make_trainer(updates_per_batch, 30)
    calls = []

    def record(policy: object, task: object, **kwargs: object) -> SimpleNamespace:
        calls.append((trainer._optim_count, policy, task, kwargs))
        return SimpleNamespace(mean=1.0, normalized=None, win_rate=None)

    monkeypatch.setattr(evaluation_hook, "evaluate", record)
    policy = make_policy()
    EvaluationHook(policy, "vmas/balance", interval=interval, episodes=3, seed=8).register(trainer)
    trainer.train()
    assert [count for count, *_ in calls] == due
    assert all(rest == [policy, "vmas/balance", {"episodes": 3, "seed": 8}] for _, *rest in calls)


def test_figures_are_those_of_the_evaluation() -> None:
    env = VmasTeamEnv("balance", num_envs=2, max_steps=3)
    policy = make_policy()
    with torch.no_grad():
        policy.module.weight.mul_(0.1)
    hook = EvaluationHook(policy, env, interval=4, episodes=4, seed=3)
    trainer = SimpleNamespace(
        _optim_count=3,
        register_op=lambda *args: None,
        register_module=lambda *args: None,
    )
    hook.register(trainer)
    assert hook() is None
    trainer._optim_count = 4
    figures = hook()
    expected = evaluate(policy, env, episodes=4, seed=3)
    assert expected.returns.std() > 0
    assert figures["eval/return"] == pytest.approx(expected.mean)
    assert figures["eval/normalized"] == pytest.approx(expected.normalized)
    assert figures["log_pbar"] is True
    assert hook() is None


def test_task_without_references_has_no_normalised_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluation_hook,
        "evaluate",
        lambda *a, **k: SimpleNamespace(mean=2.0, normalized=None, win_rate=None),
    )
    trainer = make_trainer(5, 5)
    hook = EvaluationHook(make_policy(), "vmas/wheel", interval=5)
    hook.register(trainer)
    trainer._optim_count = 5
    assert hook() == {"eval/return": 2.0, "log_pbar": True}


def test_next_evaluation_survives_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluation_hook,
        "evaluate",
        lambda *a, **k: SimpleNamespace(mean=2.0, normalized=None, win_rate=None),
    )
    hook = EvaluationHook(make_policy(), "vmas/wheel", interval=10)
    trainer = make_trainer(5, 5)
    hook.register(trainer)
    trainer._optim_count = 10
    assert hook() is not None
    resumed = EvaluationHook(make_policy(), "vmas/wheel", interval=10)
    resumed.load_state_dict(hook.state_dict())
    trainer = make_trainer(5, 5)
    resumed.register(trainer)
    trainer._optim_count = 19
    assert resumed() is None
    trainer._optim_count = 20
    assert resumed() is not None


def test_bad_interval() -> None:
    with pytest.raises(ValueError, match="interval must be at least 1, found 0"):
        EvaluationHook(make_policy(), "vmas/wheel", interval=0)
