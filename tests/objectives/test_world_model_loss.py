"""Losses of world models against computations that are written out."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import EnsembleWorldModel, JointWorldModel, LOGOWorldModel
from torchrl_logo.objectives.world_model import (
    EnsembleWorldModelLoss,
    JointWorldModelLoss,
    LOGOWorldModelLoss,
    make_world_model_loss,
)

CONTINUOUS = TaskSpec(
    n_agents=3,
    observation_size=4,
    state_size=5,
    action_size=2,
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    observation_sizes=(4, 3, 4),
)
DISCRETE = TaskSpec(n_agents=2, observation_size=4, state_size=5, action_size=6, discrete=True)
PAIRS = [
    (LOGOWorldModel, LOGOWorldModelLoss),
    (JointWorldModel, JointWorldModelLoss),
    (EnsembleWorldModel, EnsembleWorldModelLoss),
]


def make_batch(spec: TaskSpec, size: int = 16) -> TensorDict:
    torch.manual_seed(1)
    n, present = spec.n_agents, torch.ones(spec.n_agents, spec.observation_size)
    for i, width in enumerate(spec.observation_sizes):
        present[i, width:] = 0
    step = {
        "agents": {"observation": torch.randn(size, n, spec.observation_size) * present},
        "state": torch.randn(size, spec.state_size) * 3 + 1,
    }
    following = {
        "agents": {"observation": torch.randn(size, n, spec.observation_size) * present},
        "state": step["state"] + 0.1 * torch.randn(size, spec.state_size),
        "reward": torch.randn(size, 1) * 4,
        "terminated": torch.arange(size).unsqueeze(-1) % 4 == 0,
    }
    if spec.discrete:
        step["agents"]["action"] = torch.randint(spec.action_size, (size, n))
        following["agents"]["action_mask"] = torch.rand(size, n, spec.action_size) < 0.5
    else:
        step["agents"]["action"] = torch.rand(size, n, spec.action_size) * 2 - 1
    return TensorDict({**step, "next": following}, [size])


def make(model_class: type, spec: TaskSpec = CONTINUOUS, **kwargs: float):
    torch.manual_seed(0)
    model = model_class(spec, hidden_size=16)
    batch = make_batch(spec)
    model.fit_normalizers(batch)
    return model, make_world_model_loss(model, **kwargs), batch


def standardise(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    rows = of.reshape(-1, of.shape[-1])
    return (values - rows.mean(0)) / rows.std(0, correction=0)


def test_logo_terms() -> None:
    model, loss, batch = make(
        LOGOWorldModel, reward_loss="l2", direct=0.5, state=0.1, decoded_share=0.0
    )
    spec_mask = model.observation_mask
    out = loss(batch)
    s, s2 = batch["state"], batch["next", "state"]
    o, o2 = batch["agents", "observation"], batch["next", "agents", "observation"]
    a = batch["agents", "action"]
    state = standardise(s, s)
    delta = standardise(s2 - s, s2 - s)
    agents = model.describe_agents(model.observation_normalizer.normalize(o) * spec_mask, a)
    local = model.local_delta(state, agents)
    true_local = model.observation_delta_normalizer.normalize(o2 - o) * spec_mask
    count = 11  # features that the three agents have
    close = torch.testing.assert_close
    close(out["loss_local"], ((local - true_local) ** 2).sum() / (16 * count))
    predicted = model.deduce(state, agents, a, local)
    close(out["loss_regularizer"], ((predicted.state_delta - delta) ** 2).mean())
    true = model.deduce(state, agents, a, true_local)
    close(out["loss_state"], 0.1 * ((true.state_delta - delta) ** 2).mean())
    reward, ended = batch["next", "reward"], batch["next", "terminated"]
    # what an end adds to the reward is taken off before it is standardised
    reward = reward - ended * (reward[ended].mean() - reward[~ended].mean())
    reward = standardise(reward, reward)
    close(out["loss_reward"], ((predicted.reward - reward) ** 2).mean())
    p = predicted.termination_logit.sigmoid()
    d = batch["next", "terminated"]
    close(out["loss_termination"], -torch.where(d, p.log(), (1 - p).log()).mean())
    decoded = model.decode(standardise(s2, s))
    true_next = model.observation_normalizer.normalize(o2) * spec_mask
    close(out["loss_reconstruction"], ((decoded - true_next) ** 2).sum() / (16 * count))
    missed = model.observation_normalizer.normalize(o) * spec_mask - model.decode(state)
    kept = model.persistence * missed - (true_next - decoded)
    close(out["loss_persistence"], (kept**2).sum() / (16 * count))
    code = model.encode_directly(state, a)
    direct = model.direct_delta(state, a)
    close(out["loss_direct"], 0.5 * ((direct - delta) ** 2).mean())
    # The head for errors learns the log of the mean square in variances of the state.
    scale = (s2 - s).std(0, correction=0) / s.std(0, correction=0)
    made = (((predicted.state_delta - delta) * scale) ** 2).mean(-1).log()
    apart = (model.expect_log_error(code, direct, predicted.state_delta)[:, 0] - made).abs()
    assert (apart < 1).any() and (apart > 1).any()
    close(out["loss_error"], 0.1 * torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean())
    assert set(out.keys()) == set(loss.out_keys) and "loss_action_mask" not in out.keys()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_rows_reads_decoded_observations(share: float) -> None:
    model, loss, batch = make(LOGOWorldModel, reduction="none", decoded_share=share)
    found = loss(batch)["loss_regularizer"]
    state_n = model.state_normalizer.normalize(batch["state"])
    decoded = batch.clone()
    decoded["agents", "observation"] = model.observation_normalizer.denormalize(
        model.decode(state_n)
    )
    recorded_loss = LOGOWorldModelLoss(model, reduction="none", decoded_share=0.0)
    recorded = recorded_loss(batch)["loss_regularizer"]
    replaced = recorded_loss(decoded)["loss_regularizer"]
    rows = torch.arange(16) % round(1 / share) == round(1 / share) - 1
    torch.testing.assert_close(found, torch.where(rows, replaced, recorded))
    with pytest.raises(ValueError, match="decoded_share"):
        LOGOWorldModelLoss(model, decoded_share=1.5)


OUTCOME = {"outcome_network", "outcome_agent_encoder", "outcome_pair_encoder"}


@pytest.mark.parametrize(
    ("term", "trained"),
    [
        ("local", {"local_input", "local_state_input", "local_network"}),
        (
            "regularizer",
            {
                "agent_input",
                "agent_delta_input",
                "agent_state_input",
                "agent_encoder",
                "deductive_encoder",
            },
        ),
        ("reward", OUTCOME),
        ("termination", {"termination_network"}),
        ("reconstruction", {"decoder"}),
        ("persistence", {"persistence_logit"}),
        ("direct", {"direct_encoder", "direct_head"}),
        ("error", {"error_head"}),
    ],
)
def test_each_logo_term_trains_its_own_networks(term: str, trained: set[str]) -> None:
    model, loss, batch = make(LOGOWorldModel)
    loss(batch)[f"loss_{term}"].backward()
    found = {
        name.split(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    assert found == trained


def test_joint_terms() -> None:
    model, loss, batch = make(JointWorldModel, observation=2.0)
    out = loss(batch)
    s, delta = batch["state"], batch["next", "state"] - batch["state"]
    heads = model.predict_heads(standardise(s, s), batch["agents", "action"])
    error = heads.state_delta - standardise(delta, delta)
    torch.testing.assert_close(out["loss_state"], (error**2).mean())
    change = batch["next", "agents", "observation"] - batch["agents", "observation"]
    target = model.observation_delta_normalizer.normalize(change) * model.observation_mask
    expected = ((heads.observation_delta - target) ** 2).sum() / (16 * 11)
    torch.testing.assert_close(out["loss_observation"], 2 * expected)
    reward, ended = batch["next", "reward"], batch["next", "terminated"]
    reward = reward - ended * (reward[ended].mean() - reward[~ended].mean())
    gap = (heads.reward - standardise(reward, reward)).abs()
    huber = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
    torch.testing.assert_close(out["loss_reward"], huber.mean())


def test_ensemble_loss_is_the_sum_over_members() -> None:
    model, loss, batch = make(EnsembleWorldModel)
    total = loss(batch)
    summed = dict.fromkeys(total.keys(), 0.0)
    for m in range(model.members):
        single = JointWorldModel(CONTINUOUS, hidden_size=16)
        single.fit_normalizers(batch)
        linear = [x for x in single.network if isinstance(x, torch.nn.Linear)]
        stacked = [x for x in model.network if hasattr(x, "weight")]
        for mine, theirs in zip(linear, stacked, strict=True):
            mine.weight.data, mine.bias.data = theirs.weight.data[m].T, theirs.bias.data[m]
        for key, value in make_world_model_loss(single)(batch).items():
            summed[key] = summed[key] + value
    for key, value in total.items():
        torch.testing.assert_close(value, summed[key])


@pytest.mark.parametrize("model_class", [m for m, _ in PAIRS])
def test_masks_of_discrete_tasks_are_learnt(model_class: type) -> None:
    model, loss, batch = make(model_class, DISCRETE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = loss(batch)["loss_action_mask"].item()
    for _ in range(200):
        optimizer.zero_grad()
        loss(batch)["loss_action_mask"].backward()
        optimizer.step()
    assert loss(batch)["loss_action_mask"].item() < 0.5 * first


@pytest.mark.parametrize(("model_class", "loss_class"), PAIRS)
def test_contract(model_class: type, loss_class: type) -> None:
    model, loss, batch = make(model_class)
    assert type(loss) is loss_class
    mean = loss(batch)
    # Each transition on its own, and weighted.
    each = loss_class(model, reduction="none")(batch)
    assert each.batch_size == batch.batch_size
    summed = loss_class(model, reduction="sum")(batch)
    weights = torch.rand(16)
    weighted = loss(batch.clone().set("priority_weight", weights))
    for key in loss.out_keys:
        torch.testing.assert_close(each[key].mean(), mean[key])
        torch.testing.assert_close(each[key].sum(), summed[key])
        torch.testing.assert_close((each[key] * weights).sum() / weights.sum(), weighted[key])
    # Renamed keys, and missing ones.
    renamed = batch.clone().rename_key_("state", "world")
    renamed["next"].rename_key_("state", "world")
    loss.set_keys(state="world")
    torch.testing.assert_close(loss(renamed)["loss_state"], mean["loss_state"])
    with pytest.raises(KeyError, match="world"):
        loss(batch)
    with pytest.raises(ValueError, match="no terms"):
        loss_class(model, rewards=1.0)
    # Sequences have two batch dimensions.
    loss.set_keys(state=None)
    torch.testing.assert_close(loss(batch.reshape(4, 4))["loss_state"], mean["loss_state"])


def test_wrong_model_is_refused() -> None:
    with pytest.raises(TypeError, match="LOGOWorldModel, found a JointWorldModel"):
        LOGOWorldModelLoss(JointWorldModel(CONTINUOUS, hidden_size=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("model_class", [m for m, _ in PAIRS])
def test_devices_are_not_mixed(model_class: type, spec: TaskSpec) -> None:
    model = model_class(spec, hidden_size=8, device="meta")
    losses = make_world_model_loss(model)(make_batch(spec).to("meta"))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())

    loss, batch = make_world_model_loss(model_class(spec, hidden_size=8)), make_batch(spec)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {
            k: torch.empty(v.shape, dtype=v.dtype, device="cuda:0")
            for k, v in batch.items(True, True)
        }
        losses = loss.cuda()(TensorDict(tensors, batch.batch_size, device="cuda:0"))
        assert all(value.device.type == "cuda" for value in losses.values())


def test_loss_compiles_without_breaks() -> None:
    model, loss, batch = make(LOGOWorldModel)
    eager = loss(batch)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(batch)
    for key in loss.out_keys:
        torch.testing.assert_close(compiled[key], eager[key])


@pytest.mark.parametrize(("model_class", "loss_class"), PAIRS)
def test_an_unrolled_loss_is_the_loss_along_the_models_own_rollout(
    model_class: type, loss_class: type
) -> None:
    logo = model_class is LOGOWorldModel
    kwargs = {"decoded_share": 0.0} if logo else {}
    model, single, batch = make(model_class, **kwargs)
    windows = batch.reshape(4, 4)
    found = loss_class(model, unroll=4, **kwargs)(windows)
    state, observation = windows["state"][:, 0], windows["agents", "observation"][:, 0]
    expected: dict[str, list[torch.Tensor]] = {key: [] for key in found.keys()}
    for t in range(4):
        step = windows[:, t].clone()
        step["state"], step["agents", "observation"] = state, observation
        terms = single(step)
        if logo:
            # Observations are decoded from the state: the local model's changes are the recorded
            # ones, wherever they start from.
            change = windows["next", "agents", "observation"] - windows["agents", "observation"]
            step["next", "agents", "observation"] = observation + change[:, t]
            changed = single(step)
            for key in ("loss_reconstruction", "loss_persistence"):
                changed.set(key, terms[key])
            terms = changed
        for key, value in terms.items():
            expected[key].append(value)
        following = model.predict(state, observation, step["agents", "action"])
        state, observation = following.state, following.observation
    for key, values in expected.items():
        torch.testing.assert_close(found[key], torch.stack(values).mean())
    # A later step's error reaches the first prediction.
    first = windows["state"].clone().requires_grad_()
    windows["state"] = first
    term = "loss_regularizer" if logo else "loss_state"
    loss_class(model, unroll=4, reduction="none", **kwargs)(windows)[term][:, 3].sum().backward()
    assert first.grad is not None
    assert first.grad[:, 0].abs().sum() > 0 and first.grad[:, 1:].eq(0).all()


def test_unrolling_needs_windows_of_its_length() -> None:
    model, _, batch = make(JointWorldModel)
    with pytest.raises(ValueError, match=r"unroll=3 expected windows \[\*, 3\]"):
        JointWorldModelLoss(model, unroll=3)(batch.reshape(4, 4))
    with pytest.raises(ValueError, match="unroll must be at least 1"):
        JointWorldModelLoss(model, unroll=0)


def test_side_predictions_of_a_window_do_not_bend_earlier_states() -> None:
    model, _, batch = make(LOGOWorldModel)
    windows = batch.reshape(4, 4)
    losses = LOGOWorldModelLoss(model, unroll=4, reduction="none")(windows)
    path = [*model.deductive_encoder.parameters()]
    for name in ("local", "direct"):
        loss = losses[f"loss_{name}"][:, 3].sum()
        found = torch.autograd.grad(loss, path, retain_graph=True, allow_unused=True)
        assert all(gradient is None for gradient in found)
    found = torch.autograd.grad(
        losses["loss_regularizer"][:, 3].sum(), [*model.decoder.parameters()]
    )
    assert all(gradient.abs().sum() > 0 for gradient in found)
