"""Two processes that share each batch, against one that has all of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import distributed, multiprocessing

from torchrl_logo.data import OfflineDataset, TaskSpec
from torchrl_logo.modules import LOGOWorldModel
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer
from torchrl_logo.trainers.data_parallel import average_gradients, take_share

SPEC = TaskSpec(
    n_agents=2,
    observation_size=2,
    state_size=3,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)
PROCESSES = 2
UPDATES = 10
# A mean over rows; with draws; with draws and a spread, or a mean, over the batch.
POLICIES = ("bc", "mabcq", "omar", "macql", "cfcql", "matd3bc")


def make_dataset() -> OfflineDataset:
    generator = torch.Generator().manual_seed(0)
    episodes, length = 20, 10

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand((episodes, *shape), generator=generator) * 1.8 - 0.9

    observation, state = draw(length + 1, 2, 2), draw(length + 1, 3)
    last = (torch.arange(length) == length - 1).expand(episodes, length).unsqueeze(-1)
    data = {
        "agents": {"observation": observation[:, :-1], "action": draw(length, 2, 1)},
        "state": state[:, :-1],
        "episode": torch.arange(episodes).unsqueeze(-1).expand(episodes, length),
        "step": torch.arange(length).expand(episodes, length),
        "next": {
            "agents": {"observation": observation[:, 1:]},
            "state": state[:, 1:],
            "reward": draw(length, 1),
            "done": last,
            "terminated": torch.zeros_like(last),
            "truncated": last.clone(),
        },
    }
    rows = TensorDict(data, [episodes, length]).reshape(-1).contiguous()
    return OfflineDataset.from_transitions(rows, SPEC)


def train(data_parallel: bool) -> dict[str, Any]:
    """The weights after a few updates of a world model and of policies, and their losses."""
    dataset, settings = make_dataset(), {"progress_bar": False, "data_parallel": data_parallel}
    torch.manual_seed(0)
    model = LOGOWorldModel(SPEC, hidden_size=16)
    WorldModelTrainer(
        model, dataset, steps=UPDATES, batch_size=32, evaluation_interval=5, horizon=3, **settings
    ).train()
    found = {"model": torch.cat([p.detach().flatten() for p in model.parameters()])}
    for method in POLICIES:
        result = OfflineTrainer(
            method, dataset, steps=UPDATES, batch_size=32, log_interval=5, hidden_sizes=(16,),
            eval_interval=0, **settings,
        ).train()  # fmt: skip
        weights = [p.detach().flatten() for p in result.policy.parameters()]
        found[method] = torch.cat(weights) if weights else torch.zeros(0)
        for name, history in result.history.items():
            if name.startswith("loss_"):
                found[f"{method} {name}"] = torch.tensor([value for _, value in history])
    return found


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    torch.save(train(True), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    multiprocessing.start_processes(
        run_process, (str(tmp_path),), nprocs=PROCESSES, start_method="spawn"
    )
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    alone = train(False)
    for name, expected in alone.items():
        if " loss_" in name:
            # each process logs the loss of its share
            assert not torch.allclose(found[0][name], found[1][name]), name
            value = torch.stack([part[name] for part in found]).mean(0)
        else:
            assert torch.equal(found[0][name], found[1][name]), name
            value = found[0][name]
        torch.testing.assert_close(
            value, expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture
def group(tmp_path: Path):
    """A process group of this process alone."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_parameters_without_gradient_are_left_out(group: None) -> None:
    with_gradient, without = (torch.nn.Parameter(torch.ones(2, 3)) for _ in range(2))
    (with_gradient * torch.arange(3.0)).sum().backward()
    average_gradients([without, with_gradient])
    assert without.grad is None
    assert with_gradient.grad.tolist() == [[0.0, 1.0, 2.0]] * 2
    assert take_share(torch.arange(4)).tolist() == [0, 1, 2, 3]


def test_what_cannot_be_shared_is_refused(group: None, tmp_path: Path) -> None:
    dataset = make_dataset()
    common = {"steps": 5, "progress_bar": False, "data_parallel": True}
    with pytest.raises(ValueError, match="no checkpoint_dir"):
        OfflineTrainer("bc", dataset, checkpoint_dir=tmp_path / "run", **common)
    with pytest.raises(ValueError, match="no world model, found 'logo'"):
        OfflineTrainer("logo", dataset, **common)


def test_without_a_process_group_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        OfflineTrainer("bc", make_dataset(), steps=5, progress_bar=False, data_parallel=True)
