from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.data import collect
from torchrl_logo.envs.vmas import VmasTeamEnv

LENGTHS = [3, 5, 9, 2]


class CountingTeam(EnvBase):
    """Simulation ``i`` terminates after ``LENGTHS[i]`` steps; what it shows is (i, step)."""

    def __init__(self, discrete: bool = False, max_steps: int | None = 10) -> None:
        super().__init__(batch_size=[len(LENGTHS)], device="cpu")
        self.max_steps, self.discrete = max_steps, discrete
        envs = len(LENGTHS)
        agents = Composite(observation=Unbounded((envs, 2, 2)), shape=(envs, 2))
        if discrete:
            agents["action_mask"] = Categorical(2, shape=(envs, 2, 3), dtype=torch.bool)
            action = Categorical(3, shape=(envs, 2))
        else:
            action = Bounded(-2.0, 2.0, shape=(envs, 2, 1))
        self.observation_spec = Composite(agents=agents, state=Unbounded((envs, 2)), shape=(envs,))
        self.action_spec = Composite(
            agents=Composite(action=action, shape=(envs, 2)), shape=(envs,)
        )
        self.reward_spec = Unbounded((envs, 1))
        flag = Categorical(2, shape=(envs, 1), dtype=torch.bool)
        names = ("done", "terminated", "truncated")
        self.done_spec = Composite({n: flag.clone() for n in names}, shape=(envs,))

    def _show(self) -> TensorDict:
        state = torch.stack([torch.arange(len(LENGTHS)), self.count], -1).float()  # [E, 2]
        agents = {"observation": state.unsqueeze(1).expand(-1, 2, -1).clone()}
        if self.discrete:
            # Agent a may not take action (step + a) % 3.
            forbidden = (self.count.unsqueeze(-1) + torch.arange(2)) % 3
            agents["action_mask"] = ~torch.nn.functional.one_hot(forbidden, 3).bool()
        terminated = (self.count >= torch.tensor(LENGTHS)).unsqueeze(-1)
        return TensorDict(
            {
                "agents": TensorDict(agents, [len(LENGTHS), 2]),
                "state": state,
                "terminated": terminated,
                "truncated": torch.zeros_like(terminated),
                "done": terminated.clone(),
            },
            [len(LENGTHS)],
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDict:
        self.count = torch.zeros(len(LENGTHS), dtype=torch.int64)
        return self._show()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.count = self.count + 1
        out = self._show()
        return out.set("reward", self.count.unsqueeze(-1).float())

    def _set_seed(self, seed: int | None) -> None:
        pass


def _act(value: float):
    def policy(tensordict: TensorDictBase) -> TensorDictBase:
        action = torch.full((*tensordict.batch_size, 2, 1), value)
        tensordict["agents", "loc"] = action
        return tensordict.set(("agents", "action"), action)

    return policy


def test_whole_episodes_with_their_true_next_steps():
    dataset = collect(CountingTeam(), _act(0.5), sum(LENGTHS))
    assert dataset.episode_lengths.tolist() == LENGTHS
    data = dataset.data
    simulation, step = data["episode"], data["step"]
    assert step.tolist() == [s for n in LENGTHS for s in range(n)]
    # What the environment shows before and after each step, at episode ends too.
    assert torch.equal(data["state"], torch.stack([simulation, step], -1).float())
    assert torch.equal(data["next", "state"], torch.stack([simulation, step + 1], -1).float())
    assert torch.equal(data["next", "reward"], (step + 1).float().unsqueeze(-1))
    assert dataset.returns.tolist() == [n * (n + 1) / 2 for n in LENGTHS]
    assert data["next", "terminated"].sum() == 4 and not data["next", "truncated"].any()


def test_only_the_keys_of_the_layout_are_kept():
    data = collect(CountingTeam(), _act(0.0), 1).data
    assert {"/".join(k) if isinstance(k, tuple) else k for k in data.keys(True, True)} == {
        "agents/observation",
        "agents/action",
        "state",
        "episode",
        "step",
        "next/agents/observation",
        "next/state",
        "next/reward",
        "next/done",
        "next/terminated",
        "next/truncated",
    }


def test_frames_are_rounded_up_to_whole_episodes():
    assert collect(CountingTeam(), None, 1).episode_lengths.tolist() == [3]
    assert collect(CountingTeam(), None, 4).episode_lengths.tolist() == [3, 5]
    # A second round of resets begins when all have finished: short episodes are no more
    # frequent than long ones.
    dataset = collect(CountingTeam(), None, 2 * sum(LENGTHS) + 1)
    assert dataset.episode_lengths.tolist() == [*LENGTHS, *LENGTHS, LENGTHS[0]]
    assert dataset.data["episode"].unique().tolist() == list(range(9))


def test_a_running_episode_is_cut_at_the_limit_and_marked_truncated():
    dataset = collect(CountingTeam(max_steps=None), None, 14, max_steps=4)
    assert dataset.episode_lengths.tolist() == [3, 4, 4, 2, 3]
    ends = torch.tensor([s.stop - 1 for s in dataset.episode_slices])
    truncated = dataset.data["next", "truncated"].squeeze(-1)
    assert truncated[ends].tolist() == [False, True, True, False, False]
    assert truncated.sum() == truncated[ends].sum()
    with pytest.raises(ValueError, match="max_steps"):
        collect(CountingTeam(max_steps=None), None, 10)


def test_mixtures_keep_their_shares():
    dataset = collect(CountingTeam(), [(_act(-1.0), 3.0), (_act(2.0), 1.0)], 76)
    action = dataset.data["agents", "action"][:, 0, 0]
    assert set(action.tolist()) == {-1.0, 2.0}
    assert (action == -1.0).sum() == 57 and (action == 2.0).sum() == 19
    assert dataset.metadata.episodes == 16
    shares = [p["share"] for p in dataset.metadata.provenance["policies"]]
    assert shares == [0.75, 0.25]


def test_random_actions_are_uniform_among_the_available_ones():
    dataset = collect(CountingTeam(discrete=True), None, 1900, seed=0)
    mask, action = dataset.data["agents", "action_mask"], dataset.data["agents", "action"]
    assert mask.gather(-1, action.unsqueeze(-1)).all()
    taken = torch.nn.functional.one_hot(action, 3).double().mean((0, 1))
    expected = (mask / mask.sum(-1, keepdim=True)).mean((0, 1)).double()
    assert torch.allclose(taken, expected, atol=5 * (0.25 / action.numel()) ** 0.5)


def test_the_seed_decides_the_data_and_nothing_else():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    env = VmasTeamEnv("balance", num_envs=4, max_steps=10)
    first = collect(env, None, 40, seed=3).metadata.hash
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    env.rollout(3)
    assert collect(env, None, 40, seed=3).metadata.hash == first
    assert collect(env, None, 40, seed=4).metadata.hash != first


@pytest.mark.parametrize("scenario", ["balance", "transport"])
def test_simulators_data_are_what_the_simulator_showed(scenario):
    env = VmasTeamEnv(scenario, num_envs=3, max_steps=15)
    dataset = collect(env, None, 3, seed=5)
    env.set_seed(5)
    shown = env.reset()
    for row in range(len(dataset)):
        assert torch.equal(dataset.data["state"][row], shown["state"][0])
        action = dataset.data["agents", "action"][row]
        shown["agents", "action"] = action.expand(3, *action.shape)
        step = env.step(shown)["next"]
        assert torch.equal(dataset.data["next", "state"][row], step["state"][0])
        for key in ("reward", "terminated", "truncated"):
            assert torch.equal(dataset.data["next", key][row], step[key][0])
        shown = step.exclude("reward")
    assert step["done"][0]
    assert dataset.spec.task == f"vmas/{scenario}"


def test_bad_arguments_are_refused_before_anything_runs(tmp_path):
    env = CountingTeam()
    with pytest.raises(ValueError, match="frames must be a positive integer, found 0"):
        collect(env, None, 0)
    with pytest.raises(ValueError, match="positive shares"):
        collect(env, [(None, 1.0), (None, 0.0)], 10)
    with pytest.raises(ValueError, match="positive shares"):
        collect(env, [], 10)
    with pytest.raises(FileExistsError):
        collect(env, None, 10, root=tmp_path)
    assert not hasattr(env, "count")
