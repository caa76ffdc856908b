"""Next actions against a walk over the rows, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import DatasetError, OfflineDataset, TaskSpec, add_next_actions

LENGTHS = {7: 3, 2: 1, 5: 4}
SPEC = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)


def make_data(discrete: bool = False) -> TensorDict:
    """Three episodes: truncated, terminated, and one that was cut."""
    torch.manual_seed(0)
    rows = sum(LENGTHS.values())
    episode = torch.cat([torch.full((n,), e) for e, n in LENGTHS.items()])
    step = torch.cat([torch.arange(n) for n in LENGTHS.values()])
    observation, state = torch.randn(rows + 1, 2, 3), torch.randn(rows + 1, 4)
    action = torch.randint(5, (rows, 2)) if discrete else torch.rand(rows, 2, 1) * 2 - 1
    truncated = (torch.arange(rows) == 2).unsqueeze(-1)
    terminated = (torch.arange(rows) == 3).unsqueeze(-1)
    following = {
        "agents": {"observation": observation[1:]},
        "state": state[1:],
        "reward": torch.randn(rows, 1),
        "done": truncated | terminated,
        "terminated": terminated,
        "truncated": truncated,
    }
    agents = {"observation": observation[:-1], "action": action}
    data = {"agents": agents, "state": state[:-1], "episode": episode, "step": step}
    return TensorDict({**data, "next": following}, [rows])


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_next_actions_are_the_following_rows(discrete: bool) -> None:
    data = make_data(discrete)
    before = data.clone()
    found = add_next_actions(data)
    assert (data == before).all() and set(data.keys(True)) == set(before.keys(True))
    rows = list(zip(data["episode"].tolist(), data["step"].tolist(), strict=True))
    for row, (episode, step) in enumerate(rows):
        recorded = (episode, step + 1) in rows
        source = rows.index((episode, step + 1)) if recorded else row
        assert torch.equal(found["next", "agents", "action"][row], data["agents", "action"][source])
        assert found["next", "action_recorded"][row].tolist() == [recorded]
    assert found["next", "action_recorded"].sum() == len(rows) - len(LENGTHS)


def test_datasets_can_be_remade_with_them() -> None:
    dataset = OfflineDataset.from_transitions(make_data(), SPEC)
    extended = OfflineDataset.from_transitions(add_next_actions(dataset), dataset.spec)
    assert ("next", "agents", "action") not in dataset.data.keys(True)
    batch = extended.sample_sequences(16, 2)
    assert torch.equal(batch[:, 0]["next", "agents", "action"], batch[:, 1]["agents", "action"])
    assert batch[:, 0]["next", "action_recorded"].all()


def test_keys_can_be_renamed() -> None:
    data, expected = make_data(), add_next_actions(make_data())
    data.rename_key_(("agents", "action"), "move")
    found = add_next_actions(data, action_key="move", recorded_key=("agents", "known"))
    assert torch.equal(found["next", "move"], expected["next", "agents", "action"])
    assert torch.equal(found["next", "agents", "known"], expected["next", "action_recorded"])


def test_bad_data_are_refused() -> None:
    data = make_data()
    with pytest.raises(DatasetError, match=r"'agents/action': expected an entry, found no such"):
        add_next_actions(data.exclude(("agents", "action")))
    with pytest.raises(DatasetError, match=r"expected one batch dimension \[B\], found \[2, 4\]"):
        add_next_actions(data.reshape(2, 4))
    with pytest.raises(DatasetError, match="expected contiguous episodes"):
        add_next_actions(data[torch.tensor([0, 1, 3, 2])])
    with pytest.raises(DatasetError, match="'step': expected 1 in row 1, found 2"):
        add_next_actions(data[torch.tensor([0, 2, 3])])
