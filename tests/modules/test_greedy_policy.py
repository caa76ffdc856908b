"""The greedy policy of learnt action values."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch._subclasses.fake_tensor import FakeTensorMode

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import make_action_value_network, make_greedy_policy

SPEC = TaskSpec(n_agents=3, observation_size=4, state_size=5, action_size=6, discrete=True)
LOWEST = torch.finfo(torch.float32).min


def act(value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What a policy does whose utilities are the observations themselves."""
    network = TensorDictModule(
        lambda x: x, in_keys=[("agents", "observation")], out_keys=[("agents", "action_value")]
    )
    data = TensorDict(
        {"agents": {"observation": value, "action_mask": mask}}, batch_size=value.shape[:-2]
    )
    return make_greedy_policy(network)(data)["agents", "action"]


@pytest.mark.parametrize("batch", [(), (50,), (4, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_agent_takes_its_best_available_action(
    batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    # all below zero, so that a masked value of zero would win
    value = (-1 - torch.rand(*batch, 3, 6)).to(dtype)
    mask = torch.rand(*batch, 3, 6) < 0.4
    mask[..., 5] = True
    action = act(value, mask)
    assert action.shape == (*batch, 3) and action.dtype == torch.int64
    rows = zip(value.view(-1, 6).tolist(), mask.view(-1, 6).tolist(), strict=True)
    expected = [max((v, -i) for i, v in enumerate(row) if free[i]) for row, free in rows]
    assert action.flatten().tolist() == [-index for _, index in expected]


@pytest.mark.parametrize("low", [LOWEST, -float("inf"), float("nan")])
def test_values_that_ran_away_free_no_unavailable_action(low: float) -> None:
    value = torch.tensor([[9.0, 9.0, low, 9.0]])
    mask = torch.tensor([[False, False, True, False]])
    assert act(value, mask).tolist() == [2]


def test_an_agent_without_actions_takes_the_first() -> None:
    value = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    mask = torch.tensor([[False, False, False], [True, False, True]])
    assert act(value, mask).tolist() == [0, 2]


def test_it_follows_the_network_as_it_learns() -> None:
    torch.manual_seed(0)
    network = make_action_value_network(SPEC, hidden_sizes=(7,))
    policy = make_greedy_policy(network)
    data = TensorDict(
        {
            "agents": {
                "observation": torch.randn(8, 3, 4),
                "action_mask": torch.ones(8, 3, 6, dtype=torch.bool),
            }
        },
        [8],
    )
    before = policy(data.clone())
    assert torch.equal(before["agents", "action"], before["agents", "action_value"].argmax(-1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.neg_()
    after = policy(data.clone())
    assert torch.equal(
        after["agents", "action"], network(data.clone())["agents", "action_value"].argmax(-1)
    )
    assert (after["agents", "action"] != before["agents", "action"]).any()


def test_other_keys() -> None:
    network = TensorDictModule(lambda x: x, in_keys=["seen"], out_keys=["worth"])
    policy = make_greedy_policy(
        network, action_value_key="worth", action_mask_key="free", action_key="choice"
    )
    assert set(policy.in_keys) == {"seen", "free"} and set(policy.out_keys) == {"worth", "choice"}
    data = TensorDict(
        {"seen": torch.tensor([[3.0, 1.0]]), "free": torch.tensor([[False, True]])}, []
    )
    assert policy(data)["choice"].tolist() == [1]


def test_it_needs_no_host_and_mixes_no_devices() -> None:
    # reading a value of a fake tensor, or mixing its device with another, is an error
    with FakeTensorMode():
        value = torch.zeros(4, 3, 6, device="cuda")
        mask = torch.ones(4, 3, 6, dtype=torch.bool, device="cuda")
        assert act(value, mask).device.type == "cuda"


def test_without_a_mask_it_is_refused() -> None:
    network = make_action_value_network(SPEC, hidden_sizes=(7,))
    data = TensorDict({("agents", "observation"): torch.zeros(2, 3, 4)}, [2])
    with pytest.raises(KeyError, match="action_mask"):
        make_greedy_policy(network)(data)
