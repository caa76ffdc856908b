"""The loss of MAMBA's world model: KL balancing by hand, sequences with ends, learning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import RecurrentLatentWorldModel
from torchrl_logo.objectives import RecurrentLatentWorldModelLoss
from torchrl_logo.objectives.recurrent_latent_world_model import balanced_kl

SPEC = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)


def make_model(**kwargs: Any) -> RecurrentLatentWorldModel:
    sizes = {"memory_size": 6, "code_groups": 2, "code_classes": 3, "hidden_size": 8}
    torch.manual_seed(0)
    return RecurrentLatentWorldModel(SPEC, **{**sizes, "attention_heads": 2, **kwargs})


def make_batch(*shape: int) -> TensorDict:
    torch.manual_seed(1)
    flag = torch.zeros(*shape, 1, dtype=torch.bool)
    return TensorDict(
        {
            "agents": {
                "observation": torch.randn(*shape, 2, 3),
                "action": torch.rand(*shape, 2, 1) * 2 - 1,
            },
            "state": torch.randn(*shape, 4),
            "next": {
                "agents": {"observation": torch.randn(*shape, 2, 3)},
                "state": torch.randn(*shape, 4),
                "reward": torch.randn(*shape, 1),
                "terminated": flag.clone(),
                "done": flag.clone(),
            },
        },
        shape,
    )


# q = (1/2, 1/2), p = (1/4, 3/4): KL(q || p) = ln(2 / sqrt 3)
HALF, QUARTER = torch.zeros(2), torch.tensor([0.25, 0.75]).log()
DIVERGENCE = math.log(2 / math.sqrt(3))


def test_balanced_kl_by_hand() -> None:
    q, p = HALF.expand(3, 2), QUARTER.expand(3, 2)  # three variables
    for balance in (0.0, 0.3, 0.8, 1.0):
        found = balanced_kl(q, p, balance=balance, free_nats=0.0)
        assert found.item() == pytest.approx(3 * DIVERGENCE)
    # below the free nats the value is theirs
    assert balanced_kl(q, p, balance=0.8, free_nats=0.5).item() == pytest.approx(0.5)
    assert balanced_kl(q, p, balance=0.8, free_nats=0.3).item() == pytest.approx(3 * DIVERGENCE)


def test_balance_shares_the_gradient_and_free_nats_take_it() -> None:
    q, p = HALF.clone()[None].requires_grad_(), QUARTER.clone()[None].requires_grad_()
    balanced_kl(q, p, balance=0.8, free_nats=0.0).backward()
    # to the prior's logits: p - q
    torch.testing.assert_close(p.grad, 0.8 * torch.tensor([[-0.25, 0.25]]))
    # to the posterior's: q (ln(q / p) - KL), with ln(q / p) = (ln 2, ln 2/3)
    side = torch.tensor([[math.log(2), math.log(2 / 3)]])
    torch.testing.assert_close(q.grad, 0.2 * 0.5 * (side - DIVERGENCE))
    q.grad = p.grad = None
    balanced_kl(q, p, balance=0.8, free_nats=0.2).backward()
    assert (q.grad == 0).all() and (p.grad == 0).all()


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_terms_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    loss = RecurrentLatentWorldModelLoss(model, reduction="none", reward_loss="l2", kl=2.0)
    batch = make_batch(5, 4)
    batch["next", "terminated"][:, 2] = batch["next", "done"][:, 2] = True
    drawn = []
    unroll = model.unroll
    monkeypatch.setattr(model, "unroll", lambda *args: drawn.append(unroll(*args)) or drawn[-1])
    out = loss(batch)
    (sequence,) = drawn
    decoded = model.decode(sequence.next_latent)
    q, p = (
        torch.distributions.Categorical(logits=logits)
        for logits in (sequence.posterior_logits, sequence.prior_logits)
    )
    kl = torch.distributions.kl_divergence(q, p).sum(-1).clamp_min(1.0).mean(-1)
    torch.testing.assert_close(out["loss_kl"], 2 * kl)
    following = batch["next"]
    square = (decoded.observation - following["agents", "observation"]).square().mean((-1, -2))
    torch.testing.assert_close(out["loss_observation"], square)
    square = (decoded.state - following["state"]).square().mean(-1)
    torch.testing.assert_close(out["loss_state"], square)
    square = (decoded.reward - following["reward"]).square().squeeze(-1)
    torch.testing.assert_close(out["loss_reward"], square)
    probability = decoded.termination_logit.sigmoid().squeeze(-1)
    right = torch.where(following["terminated"].squeeze(-1), probability, 1 - probability)
    torch.testing.assert_close(out["loss_termination"], -right.log())
    guess = model.action_head(sequence.next_memory)
    square = (guess - batch["agents", "action"]).square().mean((-1, -2))
    torch.testing.assert_close(out["loss_information"], 0.1 * square)


def test_an_end_within_a_sequence_separates_what_it_separates() -> None:
    model = make_model()
    # codes that are always the same, so that draws do not matter
    for head in (model.prior_head, model.posterior_head):
        with torch.no_grad():
            head[-1].weight.mul_(0.01)
            head[-1].bias.copy_(torch.tensor([0.0, 99.0, 0.0]).repeat(2))
    loss = RecurrentLatentWorldModelLoss(model, reduction="none")
    batch = make_batch(3, 6)
    joined = loss(batch)
    batch["next", "done"][:, 3] = True
    parted, tail = loss(batch), loss(batch[:, 4:])
    for key in ("loss_observation", "loss_reward", "loss_state", "loss_information"):
        torch.testing.assert_close(parted[key][:, 4:], tail[key])
        torch.testing.assert_close(parted[key][:, :4], joined[key][:, :4])
        assert not torch.allclose(parted[key][:, 4:], joined[key][:, 4:])


def test_padding_counts_for_nothing() -> None:
    loss, batch = RecurrentLatentWorldModelLoss(make_model()), make_batch(3, 6)
    batch["collector", "mask"] = (torch.arange(6) < 4).expand(3, 6).unsqueeze(-1).clone()

    def compute() -> TensorDict:
        torch.manual_seed(0)
        return loss(batch)

    before = compute()
    for key in (("next", "reward"), ("next", "state")):
        batch[key][:, 4:] += 100.0
    after = compute()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value)


def test_bad_arguments_are_refused() -> None:
    model = make_model()
    for kwargs, message in (
        ({"kl_balance": 1.5}, "kl_balance must lie within 0 and 1, found 1.5"),
        ({"free_nats": -1.0}, "free_nats must not be negative, found -1.0"),
        ({"nothing": 1.0}, "has no terms"),
    ):
        with pytest.raises(ValueError, match=message):
            RecurrentLatentWorldModelLoss(model, **kwargs)
    with pytest.raises(ValueError, match="expected sequences, found batch size"):
        RecurrentLatentWorldModelLoss(model)(make_batch())


def make_relay(sequences: int, steps: int) -> TensorDict:
    """Each agent's first feature is the *other* agent's last action; the second one counts up."""
    action = torch.rand(sequences, steps, 2, 1) * 2 - 1
    phase = torch.rand(sequences, 1, 1, 1) * 6.28 + 0.7 * torch.arange(steps + 1).view(1, -1, 1, 1)
    heard = torch.cat([torch.zeros(sequences, 1, 2, 1), action.flip(-2)], 1)
    turning = torch.cat([phase.sin(), phase.cos()], -1).expand(-1, -1, 2, -1)
    observation = torch.cat([heard, turning], -1)  # [B, T + 1, N, 3]
    batch = make_batch(sequences, steps)
    batch["agents", "action"] = action
    batch["agents", "observation"] = observation[:, :-1]
    batch["next", "agents", "observation"] = observation[:, 1:]
    return batch


def train_on_relay(**kwargs: Any) -> tuple[float, float]:
    """Square errors of one-step predictions, and of predicting no change, per varying feature."""
    model = make_model(memory_size=32, code_groups=8, code_classes=8, hidden_size=32, **kwargs)
    loss = RecurrentLatentWorldModelLoss(model, kl=0.05)
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        losses = loss(make_relay(24, 4))
        sum(losses.values()).backward()
        optimizer.step()
    batch = make_relay(256, 4)
    with torch.no_grad():
        before, after = batch["agents", "observation"], batch["next", "agents", "observation"]
        sequence = model.unroll(before, batch["agents", "action"], after)
        latent = model.imagine_step(sequence.latent, batch["agents", "action"])
        error = model.decode(latent).observation - after
    return error.square().mean().item(), (before - after).square().mean().item()


def test_it_learns_what_other_agents_cause() -> None:
    error, no_change = train_on_relay()
    assert error < 0.25 * no_change
    # what the other agent did, a third of the features of variance 1/3, is lost on deaf agents
    deaf, _ = train_on_relay(attention_layers=0)
    assert deaf > 2 * error and deaf > 0.9 / 9


def test_it_compiles_without_breaks() -> None:
    loss, batch = RecurrentLatentWorldModelLoss(make_model()), make_batch(3, 4)
    torch.manual_seed(2)
    eager = loss(batch)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.manual_seed(2)
    found = compiled(batch)
    for key, value in eager.items():
        torch.testing.assert_close(found[key], value)
