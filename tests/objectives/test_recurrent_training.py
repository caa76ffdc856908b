"""Networks with memory in losses: what they learn from sequences, and their numbers."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import SoftUpdate

from tests.objectives.remembered_cue import SPEC, STEPS, make_cues, make_dataset, make_test
from torchrl_logo.data import TaskSpec, sequence_buffer
from torchrl_logo.modules import (
    make_action_value_network,
    make_categorical_actor,
    make_mixer,
    make_recurrent_action_value_network,
    make_recurrent_categorical_actor,
    make_recurrent_gaussian_actor,
)
from torchrl_logo.objectives import BCLoss, DiscreteCFCQLLoss, DiscreteMACQLLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def train(loss: Any, *, skilled: bool, updates: int, slice_len: int = STEPS) -> None:
    buffer = sequence_buffer(
        make_dataset(skilled=skilled), slice_len=slice_len, batch_size=32, seed=0
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    targets = SoftUpdate(loss, tau=0.05) if isinstance(loss, DiscreteMACQLLoss) else None
    for _ in range(updates):
        out = loss(buffer.sample())
        optimizer.zero_grad()
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        optimizer.step()
        if targets is not None:
            targets.step()


@pytest.mark.parametrize("share_params", [True, False], ids=["shared", "own"])
def test_behaviour_that_remembers_is_cloned(share_params: bool) -> None:
    torch.manual_seed(0)
    last = make_test()[:, -1:]
    log_probs = []
    for make in (make_categorical_actor, make_recurrent_categorical_actor):
        actor = make(SPEC, hidden_sizes=(16,), share_params=share_params)
        loss = BCLoss(actor, action_spec=SPEC.action_spec())
        train(loss, skilled=True, updates=80)
        with torch.no_grad(), set_recurrent_mode(True):
            dist = actor.get_dist(make_test())
        log_probs.append(dist.log_prob(make_test()["agents", "action"])[:, -1:])
    without, remembering = log_probs
    assert without.shape == last["agents", "action"].shape
    # the cues are equally likely, and the memoryless actor cannot tell them apart
    assert without.mean() < -math.log(2) + 0.01
    assert remembering.min() > math.log(0.95)


def test_values_remember_what_pays() -> None:
    torch.manual_seed(0)
    right, values = [], []
    for make in (
        make_action_value_network,
        partial(make_recurrent_action_value_network, recurrent_size=16),
    ):
        network = make(SPEC, hidden_sizes=(16,))
        mixer = make_mixer(SPEC, mixing_embed_dim=16)
        loss = DiscreteMACQLLoss(network, mixer, min_q_weight=0.05, gamma=0.9, num_samples=4)
        train(loss, skilled=False, updates=400)
        data = make_test()
        with torch.no_grad(), set_recurrent_mode(True):
            value = network(data)["agents", "action_value"]
        greedy = value.where(data["agents", "action_mask"], -math.inf).argmax(-1)
        right.append((greedy[:, -1] == make_cues()).all(-1).sum().item())
        loss.reduction = "none"
        values.append(loss(make_test())["pred_value"])
    assert right == [1, 4]
    without, remembering = values
    # without the cue the right actions are worth what chance pays, one quarter
    assert without[:, -1].mean() < 0.4 and remembering[:, -1].min() > 0.5
    # and what they are worth is passed on to the steps in which one waits
    torch.testing.assert_close(remembering[:, :-1], 0.9 * remembering[:, 1:], rtol=0, atol=0.1)


B, T, N = 3, 6, 2
TASK = TaskSpec(n_agents=N, observation_size=3, state_size=4, action_size=4, discrete=True)


def make_batch(dtype: torch.dtype = torch.float64) -> TensorDict:
    """Sequences with ends of both kinds in the middle, at which the next episode begins."""
    torch.manual_seed(1)

    def observe() -> dict[str, Any]:
        mask = torch.rand(B, T, N, 4) < 0.6
        mask[..., 0] = True
        agents = {"observation": torch.randn(B, T, N, 3, dtype=dtype), "action_mask": mask}
        return {"agents": agents, "state": torch.randn(B, T, 4, dtype=dtype)}

    done = torch.zeros(B, T, 1, dtype=torch.bool)
    done[0, 2] = done[1, 3] = done[2, 5] = True
    terminated = done.clone()
    terminated[1, 3] = False
    is_init = torch.zeros_like(done)
    is_init[:, 0] = is_init[0, 3] = is_init[1, 4] = True
    outcome = {
        "reward": torch.randn(B, T, 1, dtype=dtype),
        "done": done,
        "terminated": terminated,
    }
    batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [B, T])
    batch["agents", "action"] = torch.zeros(B, T, N, dtype=torch.int64)
    return batch.set("is_init", is_init)


def make_loss(share_params: bool = True, device: str = "cpu", **kwargs: Any) -> DiscreteMACQLLoss:
    torch.manual_seed(0)
    network = make_recurrent_action_value_network(
        TASK, hidden_sizes=(7,), recurrent_size=5, share_params=share_params, device=device
    )
    return DiscreteMACQLLoss(network, make_mixer(TASK, "vdn"), **kwargs)


@pytest.mark.parametrize("share_params", [True, False], ids=["shared", "own"])
def test_next_values_go_on_from_the_current_state(share_params: bool) -> None:
    batch = make_batch()
    loss = make_loss(share_params, reduction="none", gamma=0.9).double()
    for parameter in loss.target_action_value_network_params.values(True, True):
        parameter.data.mul_(-1.3)
    found = loss(batch)
    network = loss.action_value_network

    def value(params: Any, step: TensorDict, state: torch.Tensor, start: bool) -> TensorDict:
        data = TensorDict(
            {
                ("agents", "observation"): step["agents", "observation"],
                ("agents", "recurrent_state"): state,
                "is_init": torch.tensor([start]),
            },
            [],
        )
        with params.to_module(network), set_recurrent_mode(False):
            return network(data)

    sets = (loss.action_value_network_params, loss.target_action_value_network_params)
    for b in range(B):
        states = [torch.zeros(N, 5, dtype=torch.float64) for _ in sets]
        for t in range(T):
            step = batch[b, t]
            start = bool(step["is_init"])
            out = [value(p, step, s, start) for p, s in zip(sets, states, strict=True)]
            pred = out[0]["agents", "action_value"][:, 0].sum()  # the data's action is 0
            torch.testing.assert_close(found["pred_value"][b, t], pred)
            states = [o["next", "agents", "recurrent_state"] for o in out]
            online, delayed = (
                value(p, step["next"], s, False)["agents", "action_value"]
                for p, s in zip(sets, states, strict=True)
            )
            mask = step["next", "agents", "action_mask"]
            total = 0.0
            for agent in range(N):
                allowed = [a for a in range(4) if mask[agent, a]]
                total += delayed[agent, max(allowed, key=lambda a: online[agent, a].item())]
            going_on = 1.0 - step["next", "terminated"].double()
            target = step["next", "reward"] + 0.9 * going_on * total
            torch.testing.assert_close(found["target_value"][b, t], target.squeeze(-1))
            torch.testing.assert_close(
                found["loss_qvalue"][b, t], 0.5 * (pred - target.squeeze(-1)) ** 2
            )


def test_keys_are_what_is_read() -> None:
    loss, batch = make_loss(), make_batch(torch.float32)
    assert "is_init" in loss.in_keys and ("next", "is_init") not in loss.in_keys
    expected = loss(batch)
    found = loss(batch.select(*loss.in_keys, strict=True))
    torch.testing.assert_close(found.to_dict(), expected.to_dict())
    with pytest.raises(KeyError, match="is_init"):
        loss(batch.exclude("is_init"))


def test_padding_has_no_influence() -> None:
    loss, batch = make_loss(), make_batch(torch.float32)
    expected = loss(batch[:, :4])
    mask = torch.ones(B, T, 1, dtype=torch.bool)
    mask[:, 4:] = False
    # as the buffer pads, with the last step
    batch[:, 4:] = batch[:, 3:4].expand(B, 2)
    batch["collector", "mask"] = mask
    found = loss(batch)
    torch.testing.assert_close(found.to_dict(), expected.to_dict())


def test_every_parameter_learns_and_targets_do_not() -> None:
    loss, batch = make_loss(share_params=False), make_batch(torch.float32)
    out = loss(batch)
    (out["loss_qvalue"] + out["loss_cql"]).backward()
    assert all((p.grad != 0).any() for p in loss.parameters())
    # earlier observations are learnt from: the gradient passes through time
    batch["agents", "observation"].requires_grad_()
    loss.reduction = "none"
    (gradient,) = torch.autograd.grad(
        loss(batch)["loss_qvalue"][2, 4].sum(), batch["agents", "observation"]
    )
    assert (gradient[2, :5] != 0).any(-1).all() and not gradient[2, 5].any()


def test_cfcql_and_its_behaviour_model_remember() -> None:
    loss, batch = make_loss(), make_batch(torch.float32)
    behaviour = make_recurrent_categorical_actor(TASK, hidden_sizes=(7,), recurrent_size=5)
    cfcql = DiscreteCFCQLLoss(
        loss.get_stateful_net("action_value_network"),
        make_mixer(TASK, "vdn"),
        behaviour_network=behaviour,
    )
    found, expected = cfcql(batch), loss(batch)
    for key in ("loss_qvalue", "pred_value", "target_value"):
        torch.testing.assert_close(found[key], expected[key])
    sum(value for key, value in found.items() if key.startswith("loss_")).backward()
    assert all(parameter.grad is not None for parameter in cfcql.parameters())


def test_parameters_can_be_reset() -> None:
    loss, batch = make_loss(share_params=False), make_batch(torch.float32)
    before = {name: parameter.clone() for name, parameter in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        assert (parameter != before[name]).any() and parameter.requires_grad, name
    assert loss(batch)["loss_qvalue"].isfinite()


@pytest.mark.parametrize("share_params", [True, False], ids=["shared", "own"])
def test_nothing_looks_at_values(share_params: bool) -> None:
    loss = make_loss(share_params, device="meta")
    out = loss(make_batch(torch.float32).to("meta"))
    (out["loss_qvalue"] + out["loss_cql"]).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_compiled_without_breaks() -> None:
    loss, batch = make_loss(), make_batch(torch.float32)
    expected = loss(batch)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch).to_dict(), expected.to_dict())


def test_continuous_behaviour_is_scored_with_memory() -> None:
    spec = TaskSpec(
        n_agents=N,
        observation_size=3,
        state_size=4,
        action_size=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
    )
    torch.manual_seed(0)
    actor = make_recurrent_gaussian_actor(spec, hidden_sizes=(8,), recurrent_size=5)
    batch = make_batch(torch.float32)
    batch["agents", "action"] = torch.rand(B, T, N, 2) - 0.5
    loss = BCLoss(actor, action_spec=spec.action_spec(), reduction="none")
    found = loss(batch)["loss_actor"]
    batch["agents", "recurrent_state"] = torch.zeros(B, T, N, 5)
    for b in range(B):
        state = torch.zeros(N, 5)
        for t in range(T):
            step = batch[b, t].clone().set(("agents", "recurrent_state"), state)
            data = actor.module[0](step)
            state = data["next", "agents", "recurrent_state"]
            dist = actor.module[1].get_dist(data)
            log_prob = dist.log_prob(batch["agents", "action"][b, t]).mean()
            torch.testing.assert_close(found[b, t], -log_prob)
