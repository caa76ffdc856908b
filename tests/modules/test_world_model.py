"""The contract that all world models share, and what each adds to it."""

from __future__ import annotations

import pathlib

import pytest
import torch
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from torchrl_logo.data import TaskSpec
from torchrl_logo.modules import (
    EnsembleWorldModel,
    JointWorldModel,
    LOGOWorldModel,
    WorldModel,
    read_on_scales,
)
from torchrl_logo.weight_files import save_weights

MODELS = [LOGOWorldModel, JointWorldModel, EnsembleWorldModel]
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


def make_data(spec: TaskSpec, *batch: int, device: str = "cpu") -> TensorDict:
    """Random transitions; the third state feature never changes, padding is zero."""
    n = spec.n_agents
    sizes = torch.tensor(spec.observation_sizes, device=device).unsqueeze(-1)
    present = torch.arange(spec.observation_size, device=device) < sizes
    data = TensorDict(batch_size=batch, device=device)
    for root in ((), ("next",)):
        shape = (*batch, n, spec.observation_size)
        data.set((*root, "agents", "observation"), torch.randn(shape, device=device) * present)
        state = torch.randn(*batch, spec.state_size, device=device)
        state[..., 2] = 7.0
        data.set((*root, "state"), state)
        if spec.discrete:
            mask = torch.rand(*batch, n, spec.action_size, device=device) < 0.5
            data.set((*root, "agents", "action_mask"), mask)
    if spec.discrete:
        action = torch.randint(spec.action_size, (*batch, n), device=device)
    else:
        action = torch.rand(*batch, n, spec.action_size, device=device) * 2 - 1
    data.set(("agents", "action"), action)
    data.set(("next", "reward"), torch.randn(*batch, 1, device=device))
    data.set(("next", "terminated"), torch.rand(*batch, 1, device=device) < 0.2)
    return data


def make_model(model_class: type[WorldModel], spec: TaskSpec = CONTINUOUS) -> WorldModel:
    torch.manual_seed(0)
    model = model_class(spec, hidden_size=16)  # type: ignore[call-arg]
    model.fit_normalizers(make_data(spec, 200))
    return model


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)], ids=str)
@pytest.mark.parametrize("model_class", MODELS)
def test_contract(model_class: type[WorldModel], batch: tuple[int, ...], spec: TaskSpec) -> None:
    model = make_model(model_class, spec)
    inputs = make_data(spec, *batch).select(*model.in_keys)
    before = inputs.clone()
    out = model(inputs.clone())
    found = set(out.keys(True, True)) - set(before.keys(True, True))
    assert found == set(model.out_keys)
    assert (out.select(*model.in_keys) == before).all()
    for key, shape, dtype in (
        (("next", "agents", "observation"), (spec.n_agents, 4), torch.float32),
        (("next", "state"), (5,), torch.float32),
        (("next", "reward"), (1,), torch.float32),
        (("next", "terminated"), (1,), torch.bool),
        (("next", "done"), (1,), torch.bool),
        ("uncertainty", (1,), torch.float32),
    ):
        assert out[key].shape == (*batch, *shape), key
        assert out[key].dtype == dtype, key
    assert (out["uncertainty"] >= 0).all()
    assert (out["uncertainty"] > 0).all() == model.has_uncertainty
    # What is constant in the data stays so; what is padded stays zero.
    assert torch.equal(out["next", "state"][..., 2], torch.full(batch, 7.0))
    padded = ~model.observation_mask.bool().expand_as(out["next", "agents", "observation"])
    assert (out["next", "agents", "observation"][padded] == 0).all()
    if spec.discrete:
        assert out["next", "agents", "action_mask"].dtype == torch.bool


@pytest.mark.parametrize("model_class", MODELS)
def test_batched_and_single_predictions_agree(model_class: type[WorldModel]) -> None:
    model = make_model(model_class)
    data = make_data(CONTINUOUS, 2, 3).select(*model.in_keys)
    together, alone = model(data.clone()), model(data[1, 2].clone())
    torch.testing.assert_close(together["next", "state"][1, 2], alone["next", "state"])
    torch.testing.assert_close(together["uncertainty"][1, 2], alone["uncertainty"])


@pytest.mark.parametrize("model_class", MODELS)
def test_save_and_load(model_class: type[WorldModel], tmp_path: pathlib.Path) -> None:
    model = make_model(model_class)
    model.save(tmp_path / "model.pt")
    loaded = model_class.load(tmp_path / "model.pt")
    data = make_data(CONTINUOUS, 7).select(*model.in_keys)
    assert loaded.spec == model.spec and loaded.is_fitted
    for key in model.out_keys:
        assert torch.equal(model(data.clone())[key], loaded(data.clone())[key])
    other = JointWorldModel if model_class is LOGOWorldModel else LOGOWorldModel
    with pytest.raises(ValueError, match=model_class.__name__):
        other.load(tmp_path / "model.pt")


@pytest.mark.parametrize("model_class", MODELS)
def test_renamed_keys(model_class: type[WorldModel]) -> None:
    model = make_model(model_class)
    data = make_data(CONTINUOUS, 4).select(*model.in_keys)
    expected = model(data.clone())
    model.set_keys(state=("world", "state"), reward="team_reward")
    renamed = model(data.rename_key_("state", ("world", "state")))
    assert torch.equal(renamed["next", "world", "state"], expected["next", "state"])
    assert torch.equal(renamed["next", "team_reward"], expected["next", "reward"])
    with pytest.raises(ValueError, match="'rewards' is not an accepted key"):
        model.set_keys(rewards="r")


def test_bad_inputs_are_named() -> None:
    model = make_model(LOGOWorldModel)
    data = make_data(CONTINUOUS, 4)
    with pytest.raises(KeyError, match=r"reads .*state.* missing"):
        model(data.exclude("state"))
    with pytest.raises(ValueError, match=r"\(4, 3, 2\), found \(4, 3, 1\)"):
        model(data.clone().set(("agents", "action"), torch.zeros(4, 3, 1)))


@pytest.mark.parametrize("model_class", MODELS)
def test_termination_starts_at_the_data_s_odds(model_class: type[WorldModel]) -> None:
    model = model_class(CONTINUOUS, hidden_size=8)  # type: ignore[call-arg]
    data = make_data(CONTINUOUS, 1000)
    data["next", "terminated"] = torch.arange(1000).unsqueeze(-1) < 10
    model.fit_normalizers(data)
    torch.testing.assert_close(
        model.termination_bias.sigmoid().flatten()[0], torch.tensor(0.0105), atol=1e-4, rtol=0
    )


def test_padding_does_not_enter_the_observations_constants() -> None:
    model = LOGOWorldModel(CONTINUOUS, hidden_size=8)
    data = make_data(CONTINUOUS, 300)
    data["agents", "observation"] += 5 * model.observation_mask
    model.fit_normalizers(data)
    present = data["agents", "observation"][:, [0, 2], 3]  # the second agent has 3 features
    torch.testing.assert_close(model.observation_normalizer.mean[3], present.mean())
    torch.testing.assert_close(
        model.observation_normalizer.scale[3], present.std(correction=0), atol=1e-4, rtol=1e-4
    )


def test_local_to_global_parts_compose_to_the_whole() -> None:
    torch.manual_seed(0)
    model = LOGOWorldModel(CONTINUOUS, hidden_size=16, carry="local")
    model.fit_normalizers(make_data(CONTINUOUS, 200))
    data = make_data(CONTINUOUS, 6).select(*model.in_keys)
    whole = model(data.clone())
    parts = model.predict_state_directly(model.deduce_global(model.predict_local(data.clone())))
    for key in (("next", "agents", "observation"), ("next", "state"), ("next", "reward")):
        torch.testing.assert_close(parts[key], whole[key], atol=1e-5, rtol=1e-5)
    # The uncertainty is the geometric mean of two errors in deviations of the state: the paths'
    # distance, over changing features, and what the direct encoder's head expects.
    gap = parts["next", "state_direct"] - parts["next", "state"]
    changing = [0, 1, 3, 4]
    distance = (gap / model.state_normalizer.scale)[:, changing].square().mean(-1, keepdim=True)
    inputs = [model.state_normalizer.normalize(data["state"]), data["agents", "action"].flatten(1)]
    code = F.silu(model.direct_encoder(torch.cat(inputs, -1)))
    steps = torch.zeros(6, 5)
    steps[:, changing] = (gap / model.state_delta_normalizer.scale)[:, changing].abs()
    log_ratio = model.error_head(torch.cat([code, (1 + 10 * steps).log()], -1))
    typical = (model.state_delta_normalizer.scale / model.state_normalizer.scale)[changing]
    expected = typical.square().mean() * log_ratio.exp()
    torch.testing.assert_close(
        whole["uncertainty"], (distance * expected) ** 0.25, atol=1e-4, rtol=1e-3
    )
    with pytest.raises(KeyError, match="predict_local first"):
        model.deduce_global(data.clone())


def test_carried_observations() -> None:
    data = make_data(CONTINUOUS, 6)
    residual, decoded, local = (make_model(LOGOWorldModel) for _ in range(3))
    decoded.carry, local.carry = "decoded", "local"  # type: ignore[assignment]
    a, b = (m(data.select(*m.in_keys)) for m in (decoded, local))
    assert torch.equal(a["next", "state"], b["next", "state"])
    expected = local.predict_local(data.select(*local.in_keys))["next", "agents", "observation"]
    assert torch.equal(b["next", "agents", "observation"], expected)
    # A decoded observation depends on the next state alone.
    state_n = decoded.state_normalizer.normalize(a["next", "state"])
    expected = decoded.observation_normalizer.denormalize(decoded.decode(state_n))
    expected = expected * decoded.observation_mask
    torch.testing.assert_close(a["next", "agents", "observation"], expected)
    # What the decoder missed of the last observation is kept in part: none, a half, all of it.
    residual.persistence_logit.data[:, 0] = -100.0
    residual.persistence_logit.data[:, 2] = 100.0
    c = residual(data.select(*residual.in_keys))["next", "agents", "observation"]
    start = decoded.decode(decoded.state_normalizer.normalize(data["state"]))
    missed = data["agents", "observation"] - decoded.observation_normalizer.denormalize(start)
    kept = expected + torch.tensor([0.0, 0.5, 1.0, 0.5])[: expected.shape[-1]] * missed
    torch.testing.assert_close(c, kept * decoded.observation_mask)
    with pytest.raises(ValueError, match="carry"):
        LOGOWorldModel(CONTINUOUS, carry="state")  # type: ignore[arg-type]


def test_observations_that_are_linear_in_the_state_are_decoded_exactly() -> None:
    spec = TaskSpec(2, 3, 4, 1, action_low=(-1.0,), action_high=(1.0,))
    data = make_data(spec, 300)
    state = data["state"]
    # A part of the state, a relative place, and a product that no line goes through.
    observation = data["agents", "observation"]
    observation[:, 0] = torch.stack([state[:, 0], state[:, 1] - state[:, 3] + 5, state[:, 0]], -1)
    observation[:, 1] = torch.stack([state[:, 3], 2 * state[:, 0], state[:, 0] * state[:, 1]], -1)
    torch.manual_seed(0)
    model = LOGOWorldModel(spec, hidden_size=16)
    model.fit_normalizers(data)
    normal = model.state_normalizer.normalize(data["state"])
    decoded = model.observation_normalizer.denormalize(model.decode(normal))
    error = (decoded - observation).abs().amax(0)
    assert error.flatten()[:5].max() < 1e-4 and error[1, 2] > 0.1
    # What is left to the network is the spread of the rest, of the least-squares fit in float64.
    columns = torch.cat([state[:, [0, 1, 3]], torch.ones(300, 1)], -1).double()
    target = model.observation_normalizer.normalize(observation)[:, 1, 2].double()
    fit = columns @ torch.linalg.lstsq(columns, target.unsqueeze(-1)).solution
    rest = (target - fit.squeeze(-1)).std(correction=0)
    torch.testing.assert_close(model.decoder_rest[-1].double(), rest, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decoder_rest[:-1], torch.zeros(5), atol=1e-5, rtol=0.0)


def test_local_model_does_not_grow_with_the_team() -> None:
    def count(n_agents: int) -> int:
        spec = TaskSpec(n_agents, 4, 5, 2, action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
        parts = ("local_",)
        model = LOGOWorldModel(spec, hidden_size=16)
        return sum(p.numel() for k, p in model.named_parameters() if k.startswith(parts))

    assert count(2) == count(50)


def test_agents_are_told_apart() -> None:
    spec = TaskSpec(100, 4, 5, 2, action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
    identity = LOGOWorldModel(spec, hidden_size=4).identity
    distance = torch.cdist(identity, identity) + 10 * torch.eye(100)
    assert distance.min() > 0.1


@pytest.mark.parametrize("target", [2_000, 50_000, 251_622])
def test_joint_model_matches_a_number_of_parameters(target: int) -> None:
    model = JointWorldModel(CONTINUOUS, match_parameters=target)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / target - 1) < 0.05


def test_ensemble_equals_its_members_run_one_by_one() -> None:
    model = make_model(EnsembleWorldModel)
    data = make_data(CONTINUOUS, 6).select(*model.in_keys)
    changes = []
    for m in range(model.members):
        single = JointWorldModel(CONTINUOUS, hidden_size=16)
        for mine, theirs in zip(
            [x for x in single.network if isinstance(x, torch.nn.Linear)],
            [x for x in model.network if hasattr(x, "weight")],
            strict=True,
        ):
            mine.weight.data = theirs.weight.data[m].T
            mine.bias.data = theirs.bias.data[m]
        state_n = model.state_normalizer.normalize(data["state"])
        changes.append(single.predict_heads(state_n, data["agents", "action"]).state_delta)
    stacked = torch.stack(changes)
    assert (stacked.std(0) > 0).all()  # members differ from the start
    out = model(data)
    expected = data["state"] + model.state_delta_normalizer.denormalize(stacked.mean(0))
    torch.testing.assert_close(out["next", "state"], expected)
    deviation = (stacked - stacked.mean(0))[..., [0, 1, 3, 4]]
    torch.testing.assert_close(
        out["uncertainty"], deviation.square().mean((0, 2)).sqrt().unsqueeze(-1)
    )


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("model_class", MODELS)
def test_devices_are_not_mixed(model_class: type[WorldModel], spec: TaskSpec) -> None:
    model = model_class(spec, hidden_size=8, device="meta")  # type: ignore[call-arg]
    keys = model.in_keys
    out = model(make_data(spec, 4).select(*keys).to("meta"))
    assert out["next", "state"].device.type == "meta"

    model = model_class(spec, hidden_size=8)  # type: ignore[call-arg]
    inputs = make_data(spec, 4).select(*keys)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_model = model.cuda()
        tensors = {
            k: torch.empty(v.shape, dtype=v.dtype, device="cuda:0")
            for k, v in inputs.items(True, True)
        }
        out = fake_model(TensorDict(tensors, [4], device="cuda:0"))
        assert mode is not None and out["next", "state"].device.type == "cuda"


def test_forward_compiles_without_breaks() -> None:
    model = make_model(LOGOWorldModel)
    data = make_data(CONTINUOUS, 6).select(*model.in_keys)
    with torch.no_grad():
        eager = model(data.clone())
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(data.clone())
    for key in model.out_keys:
        torch.testing.assert_close(compiled[key], eager[key])


@pytest.mark.parametrize("value", [["2.0"], [[2.0]], [2.0] * 100_000, -1, 10**9, {}])
def test_an_architecture_that_cannot_be_is_refused(value: object, tmp_path: pathlib.Path) -> None:
    model = make_model(LOGOWorldModel)
    model.config["frequencies"] = value
    path = tmp_path / "model.pt"
    model.save(path)
    with pytest.raises(ValueError, match="another frequencies of a LOGOWorldModel"):
        LOGOWorldModel.load(path)


def test_weights_of_another_version_are_refused(tmp_path: pathlib.Path) -> None:
    model = make_model(LOGOWorldModel)
    path = tmp_path / "model.pt"
    # As before the decoder had a linear share and there were gates.
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("decoder_")}
    config = {k: v for k, v in model.config.items() if k != "gates"}
    content = {"class": "LOGOWorldModel", "spec": model.spec.to_dict()}
    save_weights({**content, "config": config, "state_dict": weights}, path, what="a model")
    with pytest.raises(ValueError, match=r"'decoder_matrix'.*found none.*is trained again"):
        LOGOWorldModel.load(path)


def test_outcomes_are_judged_from_agents_and_from_pairs() -> None:
    torch.manual_seed(0)
    spec = TaskSpec(3, 4, 5, 2, action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
    model = LOGOWorldModel(spec, hidden_size=16)
    data = make_data(spec, 50)
    model.fit_normalizers(data)
    observation, action = data["agents", "observation"], data["agents", "action"]
    change = data["next", "agents", "observation"] - observation
    normalized = model.observation_normalizer.normalize
    agents = model.describe_agents(normalized(observation), action)
    delta = model.observation_delta_normalizer.normalize(change)
    alone, together = model._encode_places(agents, delta, action)

    following = normalized(observation + change)
    scales = (2.0, 4.0, 8.0, 16.0)
    encode = model.outcome_agent_encoder
    assert model.outcome_pair_encoder is not None
    for row in range(3):
        expected = torch.zeros(2, 2)
        for i in range(3):
            read = read_on_scales(following[row, i], scales)
            expected[0] += F.silu(encode(torch.cat([read, action[row, i]])))
            for j in range(i + 1, 3):
                read = read_on_scales(following[row, i] - following[row, j], scales)
                expected[1] += F.silu(model.outcome_pair_encoder(read))
        found = torch.stack([alone[row], together[row]])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("agents", "limit", "pairs"), [(3, 3, True), (3, 2, False), (1, 9, False)])
def test_pairs_are_left_out_of_large_teams(agents: int, limit: int, pairs: bool) -> None:
    spec = TaskSpec(agents, 4, 5, 2, action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
    model = LOGOWorldModel(spec, hidden_size=16, max_pairs=limit)
    assert (model.outcome_pair_encoder is not None) == pairs
    assert model(make_data(spec, 5))["next", "reward"].shape == (5, 1)


@pytest.mark.parametrize("agents", [1, 10, 100])
def test_one_class_predicts_for_teams_of_any_size(agents: int) -> None:
    spec = TaskSpec(agents, 4, 5, 2, action_low=(-1.0,) * 2, action_high=(1.0,) * 2)
    model = LOGOWorldModel(spec, hidden_size=16)
    out = model(make_data(spec, 2))
    assert out["next", "agents", "observation"].shape == (2, agents, 4)
    assert out["uncertainty"].isfinite().all()
