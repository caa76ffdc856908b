"""The imagined environment, mostly over a world whose dynamics are known by heart."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import ImaginedEnv, imagined, make_env
from torchrl_logo.modules import LOGOWorldModel, Prediction, WorldModel

CONTINUOUS = TaskSpec(
    n_agents=2,
    observation_size=3,
    state_size=4,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)
DISCRETE = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=5, discrete=True)


class CountingModel(WorldModel):
    """The state grows by 1 a step; terminates above ``end``; unsure by 0.5 a step."""

    def __init__(self, spec: TaskSpec, end: float = float("inf")) -> None:
        super().__init__(spec)
        self.config = {}
        self.end = end
        self.weight = torch.nn.Parameter(torch.ones(()))

    @property
    def termination_bias(self) -> torch.Tensor:
        return torch.zeros(1)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        following = state + self.weight
        one = following[..., :1]
        mask = None
        if self.spec.discrete:
            # Even actions only.
            mask = torch.arange(5, device=state.device).remainder(2).sub(0.5).neg()
            mask = mask.expand(*observation.shape[:-1], 5)
        return Prediction(
            state=following,
            observation=observation + self.weight,
            reward=one * 10,
            termination_logit=one - self.end,
            action_mask_logit=mask,
            uncertainty=torch.full_like(one, 0.5),
        )


def make_starts(spec: TaskSpec = CONTINUOUS, rows: int = 50) -> TensorDict:
    """Row i starts at state 100 i, with an observation of -i."""
    index = torch.arange(rows, dtype=torch.float32)
    starts = TensorDict(
        {
            "agents": {"observation": -index.view(-1, 1, 1).expand(-1, 2, 3).clone()},
            "state": (100 * index).unsqueeze(-1).expand(-1, 4).clone(),
        },
        [rows],
    )
    if spec.discrete:
        starts["agents", "action_mask"] = torch.ones(rows, 2, 5, dtype=torch.bool)
    return starts


def make_imagined(spec: TaskSpec = CONTINUOUS, end: float = float("inf"), **kwargs) -> ImaginedEnv:
    kwargs = {"batch_size": 6, "seed": 0, **kwargs}
    return ImaginedEnv(CountingModel(spec, end), make_starts(spec), **kwargs)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("batch_size", [6, (2, 3), ()], ids=str)
def test_specs(spec: TaskSpec, batch_size: int | tuple[int, ...]) -> None:
    check_env_specs(make_imagined(spec, batch_size=batch_size))


def test_specs_equal_the_real_environment_s() -> None:
    real = make_env("vmas/balance", num_envs=4, seed=0)
    model = LOGOWorldModel.from_env(real, hidden_size=8)
    starts = torch.stack([real.reset()] * 2).reshape(-1)
    env = ImaginedEnv(model, starts, batch_size=4)
    check_env_specs(env)
    for name in ("full_action_spec", "full_reward_spec", "full_done_spec"):
        assert getattr(env, name) == getattr(real, name), name
    observation = env.observation_spec.clone()
    del observation["uncertainty"]
    assert observation == real.observation_spec


def test_steps_follow_the_model() -> None:
    env = make_imagined(clamp_margin=None, horizon=10)
    rollout = env.rollout(4, auto_reset=True)
    start = rollout["state"][:, 0]
    assert (start % 100 == 0).all() and (rollout["step"][:, 0] == 0).all()
    for t in range(4):
        assert torch.equal(rollout["next", "state"][:, t], start + t + 1)
        observation = rollout["next", "agents", "observation"][:, t]
        expected = (-start[:, :3] / 100 + t + 1)[:, None].expand(6, 2, 3)
        torch.testing.assert_close(observation, expected)
        assert torch.equal(rollout["next", "reward"][:, t], 10 * (start[:, :1] + t + 1))
    assert rollout["next", "step"][0].flatten().tolist() == [1, 2, 3, 4]
    # Four steps of 0.5 each: the root of the sum of their squares, of which older ones fade.
    expected = 0.5 * torch.tensor([0.85**t for t in range(4)]).cumsum(0).sqrt()
    torch.testing.assert_close(rollout["next", "uncertainty"][0].flatten(), expected)
    single = make_imagined(accumulate=False).rollout(3)
    assert single["next", "uncertainty"].unique().tolist() == [0.5]


def test_horizon_truncates_and_rows_are_drawn_anew() -> None:
    env = make_imagined(horizon=3, clamp_margin=None)
    rollout = env.rollout(7, break_when_any_done=False)
    truncated = rollout["next", "truncated"].squeeze(-1)
    assert truncated[0].tolist() == [False, False, True, False, False, True, False]
    assert not rollout["next", "terminated"].any()
    assert torch.equal(rollout["next", "done"], rollout["next", "truncated"])
    # The step after the end starts at a dataset's state again, with nothing accumulated.
    assert (rollout["state"][:, 3] % 100 == 0).all()
    assert (rollout["uncertainty"][:, 3] == 0).all() and (rollout["step"][:, 3] == 0).all()


def test_only_ended_rows_are_reset() -> None:
    # Rows end where their state exceeds 100 k + 2 for a known rule.
    def ends(transition: TensorDict) -> torch.Tensor:
        first = transition["state"][..., :1] < 2500
        return first & (transition["next", "state"][..., :1] % 100 >= 2)

    env = make_imagined(termination=ends, clamp_margin=None, batch_size=64)
    rollout = env.rollout(5, break_when_any_done=False)
    low = rollout["state"][:, 0, 0] < 2500
    assert low.any() and (~low).any()
    assert rollout["next", "terminated"][low, 1].all()
    assert not rollout["next", "done"][~low, 1].any()
    assert (rollout["state"][low, 2] % 100 == 0).all()
    assert (rollout["state"][~low, 2] % 100 == 2).all()


def test_learnt_termination_ends_rows() -> None:
    env = make_imagined(end=2000.0)
    step = env.step(env.rand_action(env.reset()))
    expected = step["next", "state"][:, :1] > 2000
    assert torch.equal(step["next", "terminated"], expected)
    with pytest.raises(ValueError, match="termination must return"):
        bad = make_imagined(termination=lambda td: td["next", "terminated"].squeeze(-1))
        bad.step(bad.rand_action(bad.reset()))


def test_given_start_states_are_taken_in_any_shape() -> None:
    env = make_imagined(clamp_margin=None, batch_size=())
    given = TensorDict(
        {"agents": {"observation": torch.rand(2, 5, 2, 3)}, "state": torch.rand(2, 5, 4)}, [2, 5]
    )
    given["step"] = torch.full((2, 5, 1), 77)
    kept = given.clone()
    for kwargs in ({}, {"set_state": True}):
        reset = env.reset(given.clone(), **kwargs)
        assert torch.equal(reset["state"], kept["state"])
        assert (reset["step"] == 0).all() and (reset["uncertainty"] == 0).all()
        following = env.step(env.rand_action(reset))["next", "state"]
        torch.testing.assert_close(following, kept["state"] + 1)
    drawn = env.reset(given.clone(), set_state=False)
    assert (drawn["state"] % 100 == 0).all()


def test_draws_are_seeded_uniform_and_leave_the_dataset_alone() -> None:
    starts = make_starts(rows=10)
    before = starts.clone()
    env = ImaginedEnv(CountingModel(CONTINUOUS), starts, batch_size=20_000)
    env.set_seed(3)
    first = env.reset()["state"]
    torch.manual_seed(99)
    env.set_seed(3)
    assert torch.equal(env.reset()["state"], first)
    assert not torch.equal(env.reset()["state"], first)
    counts = torch.bincount((first[:, 0] / 100).long(), minlength=10).double()
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 27.9  # 0.1% point at 9 degrees of freedom
    env.rollout(3)
    assert (starts == before).all()


def test_clamped_to_the_range_of_the_training_data() -> None:
    env = make_imagined(clamp_margin=0.0, horizon=100)
    env.world_model.state_normalizer.fit(torch.tensor([[0.0] * 4, [4902.0] * 4]))
    given = make_starts()[-6:].set("state", torch.full((6, 4), 4900.0))
    state = env.rollout(5, auto_reset=False, tensordict=env.reset(given))["next", "state"]
    assert state[0, :, 0].tolist() == [4901.0, 4902.0, 4902.0, 4902.0, 4902.0]


def test_rows_that_are_not_finite_end_and_are_left_to_see() -> None:
    class Breaking(CountingModel):
        def predict(self, *args: torch.Tensor) -> Prediction:
            out = super().predict(*args)
            return out._replace(state=torch.where(args[0] > 2000, torch.inf, out.state))

    env = ImaginedEnv(Breaking(CONTINUOUS), make_starts(), batch_size=64, seed=0)
    env.world_model.state_normalizer.fit(torch.rand(5, 4) * 5000)
    rollout = env.rollout(3, break_when_any_done=False)
    broken = rollout["state"][:, 0, 0] > 2000
    assert broken.any() and (~broken).any()
    assert rollout["next", "truncated"][broken, 0].all()
    assert rollout["next", "state"][broken, 0].isinf().all()
    assert not rollout["next", "done"][~broken, 0].any()
    assert rollout["state"].isfinite().all()


def test_masks_are_passed_on_and_an_agent_without_action_ends_the_row() -> None:
    env = make_imagined(DISCRETE)
    rollout = env.rollout(3)
    expected = torch.tensor([True, False, True, False, True])
    assert (rollout["next", "agents", "action_mask"] == expected).all()

    class Stuck(CountingModel):
        def predict(self, *args: torch.Tensor) -> Prediction:
            out = super().predict(*args)
            logit = out.action_mask_logit
            return out._replace(action_mask_logit=None if logit is None else logit.abs().neg())

    stuck = ImaginedEnv(Stuck(DISCRETE), make_starts(DISCRETE), batch_size=4)
    step = stuck.step(stuck.rand_action(stuck.reset()))
    assert not step["next", "agents", "action_mask"].any()  # none is invented
    assert step["next", "truncated"].all()


def test_random_actions_keep_to_the_predicted_masks() -> None:
    env = make_imagined(DISCRETE, horizon=2)
    rollout = env.rollout(20, break_when_any_done=False)
    masks, actions = rollout["agents", "action_mask"], rollout["agents", "action"]
    assert not masks.all()
    assert masks.gather(-1, actions.unsqueeze(-1)).all()
    # Where nothing forbids them, at the starts, odd actions are drawn too.
    assert set(actions[rollout["step"].squeeze(-1) == 0].flatten().tolist()) == set(range(5))
    # A row that is drawn anew has its own mask, and the others keep theirs.
    step = env.step(env.rand_action(env.reset()))["next"]
    reset = torch.zeros(env.batch_size, dtype=torch.bool)
    reset[0] = True
    env.reset(step.set("_reset", reset.unsqueeze(-1)))
    mask = env.full_action_spec["agents", "action"].mask
    assert mask[0].all() and (mask[1:] == torch.tensor([True, False, True, False, True])).all()


def test_runs_in_a_collector() -> None:
    env = make_imagined(horizon=5, clamp_margin=None)
    collector = Collector(env, None, frames_per_batch=60, total_frames=180)
    batches = list(collector)
    collector.shutdown()
    assert [b.numel() for b in batches] == [60, 60, 60]
    steps = torch.cat([b["step"] for b in batches], 1)[0].flatten()
    assert steps.tolist() == [0, 1, 2, 3, 4] * 6
    assert not any(b.requires_grad for b in batches)


def test_gradients_only_on_request() -> None:
    for grad in (False, True):
        env = make_imagined(grad=grad)
        reward = env.rollout(3)["next", "reward"].sum()
        assert reward.requires_grad == grad


def test_mismatches_are_refused() -> None:
    model = CountingModel(CONTINUOUS)
    with pytest.raises(KeyError, match="state"):
        ImaginedEnv(model, make_starts().exclude("state"), batch_size=2)
    wrong = make_starts().set("state", torch.zeros(50, 7))
    with pytest.raises(ValueError, match=r"another task.*state.*\(50, 7\)"):
        ImaginedEnv(model, wrong, batch_size=2)
    with pytest.raises(KeyError, match="action_mask"):
        ImaginedEnv(CountingModel(DISCRETE), make_starts(), batch_size=2)
    with pytest.raises(ValueError, match="horizon"):
        ImaginedEnv(model, make_starts(), batch_size=2, horizon=0)

    class Silent(CountingModel):
        def forward(self, tensordict: TensorDict) -> TensorDict:
            return super().forward(tensordict).exclude(("next", "reward"))

    env = ImaginedEnv(Silent(CONTINUOUS), make_starts(), batch_size=2)
    with pytest.raises(KeyError, match="reward"):
        env.step(env.rand_action(env.reset()))


def test_a_step_needs_no_host_and_mixes_no_devices() -> None:
    inputs = make_starts().set("step", torch.zeros(50, 1, dtype=torch.int64))
    inputs["uncertainty"] = torch.zeros(50, 1)
    inputs["agents", "action"] = torch.zeros(50, 2, 1)
    env = ImaginedEnv(LOGOWorldModel(CONTINUOUS, hidden_size=8), make_starts(), batch_size=50)
    with FakeTensorMode(allow_non_fake_inputs=True):
        env.world_model.cuda()
        env._device = torch.device("cuda:0")
        tensors = {
            k: torch.empty(v.shape, dtype=v.dtype, device="cuda:0")
            for k, v in inputs.items(True, True)
        }
        out = env._step(TensorDict(tensors, [50], device="cuda:0"))
        assert all(v.device.type == "cuda" for v in out.values(True, True))


def test_a_step_compiles_without_breaks() -> None:
    model = LOGOWorldModel(CONTINUOUS, hidden_size=8)
    model.state_normalizer.fit(make_starts()["state"])
    env = ImaginedEnv(model, make_starts(), batch_size=4, seed=0)
    inputs = env.rand_action(env.reset())
    eager = env._step(inputs)
    compiled = torch.compile(env._step, fullgraph=True, backend="aot_eager")(inputs)
    for key, value in eager.items(True, True):
        torch.testing.assert_close(compiled[key], value)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("batch_size", [(23,), (6, 5), (1, 40)])
def test_many_rows_are_predicted_in_blocks(spec, batch_size, monkeypatch) -> None:
    torch.manual_seed(0)
    model = LOGOWorldModel(spec, hidden_size=8)
    sizes = []
    forward = model.forward

    def count(inputs):
        sizes.append(inputs.numel())
        return forward(inputs)

    monkeypatch.setattr(model, "forward", count)
    steps = []
    for at_once in (10_000, 14):
        monkeypatch.setattr(imagined, "_AGENTS_AT_ONCE", at_once)
        env = ImaginedEnv(model, make_starts(spec), batch_size=batch_size, seed=0)
        torch.manual_seed(1)
        steps.append(env.step(env.rand_action(env.reset())))
    assert sizes[0] == env.batch_size.numel()
    # whole rows of the first dimension, of 7 rows (14 agents) where they are as fine as that
    assert sum(sizes[1:]) == sizes[0]
    assert max(sizes[1:]) <= max(7, sizes[0] // batch_size[0])
    torch.testing.assert_close(*steps)
