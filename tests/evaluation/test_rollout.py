"""evaluate() in an environment whose returns are known by hand."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import (
    Compose,
    EnvBase,
    ExplorationType,
    InitTracker,
    TensorDictPrimer,
    TransformedEnv,
    exploration_type,
    set_exploration_type,
)
from torchrl.modules.utils import get_primers_from_module

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.reference_returns import ReferenceReturns
from torchrl_logo.envs import make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.evaluation.statistics import bootstrap_interval
from torchrl_logo.modules import make_recurrent_gaussian_actor


class CountingEnv(EnvBase):
    """Simulation ``i`` ends after ``lengths[i]`` steps; the reward is the action's first value.

    After its first episode a simulation pays 1000 a step, which must not be counted.
    """

    def __init__(self, lengths, *, reward_shape=(1,), max_steps=None):
        super().__init__(batch_size=[len(lengths)])
        self.lengths = torch.tensor(lengths)
        self.resets = torch.zeros(len(lengths), dtype=torch.int64)
        self.start = torch.zeros(len(lengths))
        self.seeds = []
        if max_steps is not None:
            self.max_steps = max_steps
        n = len(lengths)
        self.observation_spec = Composite(
            state=Unbounded((n, 1)), step=Unbounded((n,), dtype=torch.int64), shape=(n,)
        )
        self.action_spec = Unbounded((n, 2, 1))
        self.reward_spec = Unbounded((n, *reward_shape))
        flag = Binary(1, shape=(n, 1), dtype=torch.bool)
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), shape=(n,))

    def _set_seed(self, seed):
        self.seeds.append(seed)

    def _observe(self, done):
        return TensorDict(
            {
                "state": self.start.unsqueeze(-1),
                "step": self.step_count.clone(),
                "done": done,
                "terminated": done.clone(),
            },
            self.batch_size,
        )

    def _reset(self, tensordict=None, **kwargs):
        mask = torch.ones(self.batch_size, dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict.keys():
            mask = tensordict["_reset"].reshape(self.batch_size)
        if mask.all():
            self.step_count = torch.zeros(self.batch_size, dtype=torch.int64)
            self.resets.zero_()
            self.start = torch.rand(self.batch_size)
        self.step_count = torch.where(mask, 0, self.step_count)
        self.resets += mask
        return self._observe(torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        self.step_count = self.step_count + 1
        done = (self.step_count >= self.lengths).unsqueeze(-1)
        reward = tensordict["action"][:, 0]
        reward = torch.where(self.resets.unsqueeze(-1) > 1, 1000.0, reward)
        return self._observe(done).set("reward", reward.expand(self.reward_spec.shape).clone())


class Policy(nn.Module):
    """Acts 1 in evaluation, deterministically, without gradients; otherwise its reward is -1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(1).eval()

    def forward(self, state):
        right = (
            not self.training
            and not self.dropout.training
            and exploration_type() is ExplorationType.DETERMINISTIC
            and not torch.is_grad_enabled()
        )
        torch.rand(3)  # a policy that draws must not disturb training either
        return torch.full((*state.shape[:-1], 2, 1), 1.0 if right else -1.0) * self.scale


def make_policy():
    return TensorDictModule(Policy(), in_keys=["state"], out_keys=["action"])


def test_first_episode_of_each_simulation_counts():
    evaluation = evaluate(make_policy(), CountingEnv([3, 7, 1, 5]), episodes=4)
    assert evaluation.lengths.tolist() == [3, 7, 1, 5]
    assert evaluation.returns.tolist() == [3.0, 7.0, 1.0, 5.0]
    assert evaluation.mean == 4.0
    assert evaluation.interval == bootstrap_interval([3.0, 7.0, 1.0, 5.0])
    assert evaluation.interval[0] < 4.0 < evaluation.interval[1]
    assert evaluation.normalized is evaluation.normalized_returns is None
    assert evaluation.normalized_interval is None


class WinningEnv(CountingEnv):
    """Simulations of an even length are won at their end, and all in their second episode."""

    def __init__(self, lengths):
        super().__init__(lengths)
        n = len(lengths)
        self.observation_spec["battle_won"] = Binary(1, shape=(n, 1), dtype=torch.bool)

    def _observe(self, done):
        observed = super()._observe(done)
        over = done if isinstance(done, torch.Tensor) else torch.zeros(len(self.lengths)).bool()
        won = over.reshape(-1) & (self.lengths % 2 == 0) | (self.resets > 1)
        return observed.set("battle_won", won.unsqueeze(-1))


def test_victories_of_the_first_episode_count():
    evaluation = evaluate(make_policy(), WinningEnv([2, 5, 4, 3]), episodes=4)
    assert evaluation.won.tolist() == [True, False, True, False]
    assert evaluation.win_rate == 0.5
    assert evaluate(make_policy(), CountingEnv([2, 3]), episodes=2).win_rate is None


@pytest.mark.parametrize(
    ("episodes", "lengths"), [(2, [3, 7]), (5, [3, 7, 1, 3, 7]), (7, [3, 7, 1, 3, 7, 1, 3])]
)
def test_rounds_make_up_the_number_of_episodes(episodes, lengths):
    evaluation = evaluate(make_policy(), CountingEnv([3, 7, 1]), episodes=episodes)
    assert evaluation.lengths.tolist() == lengths
    assert evaluation.returns.tolist() == lengths


def test_scores_by_the_reference():
    reference = ReferenceReturns(random=-1.0, expert=9.0)
    evaluation = evaluate(make_policy(), CountingEnv([3, 7, 1, 5]), episodes=4, reference=reference)
    assert evaluation.normalized == pytest.approx(50.0)
    torch.testing.assert_close(evaluation.normalized_returns, torch.tensor([40.0, 80, 20, 60]))
    low, high = evaluation.interval
    assert evaluation.normalized_interval == pytest.approx((10 * (low + 1), 10 * (high + 1)))


def test_training_goes_on_as_if_nothing_had_happened():
    policy, env = make_policy(), CountingEnv([3, 2])
    modes = [module.training for module in policy.modules()]
    assert True in modes and False in modes
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate(policy, env, episodes=2)
    torch.testing.assert_close(torch.rand(2), expected)
    assert [module.training for module in policy.modules()] == modes
    assert torch.is_grad_enabled() and exploration_type() is not ExplorationType.DETERMINISTIC


def test_training_mode_returns_after_an_error():
    policy = make_policy()
    with pytest.raises(RuntimeError, match="did not end"):
        evaluate(policy, CountingEnv([3, 200]), episodes=2, max_steps=10)
    assert policy.training and policy.module.dropout.training


def test_same_seed_same_start_states():
    env, policy = CountingEnv([2, 2]), make_policy()
    starts = []
    for seed in (0, 0, 1):
        evaluate(policy, env, episodes=2, seed=seed)
        starts.append(env.start.clone())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


def test_plain_callable_is_a_policy():
    def act(tensordict):
        return tensordict.set("action", torch.full((2, 2, 1), 0.5))

    assert evaluate(act, CountingEnv([4, 2]), episodes=2).returns.tolist() == [2.0, 1.0]


def test_episode_without_end_is_an_error():
    message = "1 of 2 episodes did not end within 10 steps"
    with pytest.raises(RuntimeError, match=message):
        evaluate(make_policy(), CountingEnv([3, 200], max_steps=5), episodes=2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="episodes must be a positive integer, found 0"):
        evaluate(make_policy(), CountingEnv([3]), episodes=0)
    with pytest.raises(ValueError, match=r"shape \[2, 1\].*\[2, 3\]"):
        evaluate(make_policy(), CountingEnv([3, 4], reward_shape=(3,)), episodes=2)
    with pytest.raises(ValueError, match="max_steps must be positive"):
        evaluate(make_policy(), CountingEnv([3]), episodes=1, max_steps=0)
    with pytest.raises(ValueError, match="no_such_task"):
        evaluate(make_policy(), "vmas/no_such_task")


def test_task_by_name_matches_torchrls_own_rollout():
    from torchrl_logo.envs import make_env

    def push(tensordict):
        action = torch.ones(*tensordict.shape, 3, 2)
        return tensordict.set(("agents", "action"), action)

    evaluation = evaluate(push, "vmas/balance", episodes=4, seed=5)
    assert evaluation.task == "vmas/balance"
    env = make_env("vmas/balance", num_envs=4, seed=5)
    env.set_seed(5)
    rollout = env.rollout(100, push, break_when_any_done=False, auto_reset=True)
    done = rollout["next", "done"].squeeze(-1)
    first = done.long().cumsum(-1) - done.long() == 0  # up to and with the first end
    reward = rollout["next", "reward"].squeeze(-1)
    torch.testing.assert_close(evaluation.returns, (reward * first).sum(-1))
    assert evaluation.lengths.tolist() == first.sum(-1).tolist()


class Memory(nn.Module):
    """A state that counts the steps that it was carried over, from zero at first steps."""

    def forward(self, state, is_init, count):
        count = torch.where(is_init, 0.0, count) + 1.0
        return count.unsqueeze(-2).expand(-1, 2, 1), count


class CountingPolicy(TensorDictModule):
    """Acts the number of steps that it remembers."""

    def __init__(self):
        super().__init__(
            Memory(), in_keys=["state", "is_init", "count"], out_keys=["action", ("next", "count")]
        )

    def make_tensordict_primer(self):
        return TensorDictPrimer({"count": Unbounded((1,))}, expand_specs=True)


class UnsteadyEnv(CountingEnv):
    """Counts all steps, and not only those of the first episode."""

    def _step(self, tensordict):
        return super()._step(tensordict).set("reward", tensordict["action"][:, 0].clone())


@pytest.mark.parametrize("tracked", [False, True], ids=["plain", "tracked"])
def test_policies_may_remember(tracked):
    env = UnsteadyEnv([3, 7, 1, 5])
    if tracked:
        env = TransformedEnv(env, Compose(InitTracker(), CountingPolicy().make_tensordict_primer()))
    evaluation = evaluate(CountingPolicy(), env, episodes=8)
    # 1 + 2 + ... + length, of episodes that begin without memories
    assert evaluation.returns.tolist() == [6.0, 28.0, 1.0, 15.0] * 2
    assert evaluation.lengths.tolist() == [3, 7, 1, 5] * 2
    keys = set(env.observation_spec.keys(True, True))
    assert keys == {"state", "step"} | ({"is_init", "count"} if tracked else set())


def test_memories_may_be_several():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = CountingPolicy(), CountingPolicy()
            self.second.in_keys[2], self.second.out_keys[1] = "other", ("next", "other")
            self.second.make_tensordict_primer = lambda: TensorDictPrimer(
                {"other": Unbounded((1,))}, expand_specs=True
            )

        def forward(self, tensordict):
            second = self.second(tensordict)["action"].clone()
            return tensordict.set("action", self.first(tensordict)["action"] + second)

    evaluation = evaluate(Both(), UnsteadyEnv([3, 7]), episodes=2)
    assert evaluation.returns.tolist() == [12.0, 56.0]


def test_recurrent_actor_acts_as_in_torchrls_own_rollout():
    torch.manual_seed(0)
    env = make_env("vmas/balance", num_envs=4, seed=5)
    actor = make_recurrent_gaussian_actor(TaskSpec.from_env(env), recurrent_size=6)
    evaluation = evaluate(actor, "vmas/balance", episodes=4, seed=5)
    env.set_seed(5)
    env = TransformedEnv(env, Compose(InitTracker(), get_primers_from_module(actor)))
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        rollout = env.rollout(100, actor, break_when_any_done=False)
    assert (rollout["agents", "recurrent_state"][:, 1:] != 0).any()
    done = rollout["next", "done"].squeeze(-1)
    first = done.long().cumsum(-1) - done.long() == 0
    expected = (rollout["next", "reward"].squeeze(-1) * first).sum(-1)
    torch.testing.assert_close(evaluation.returns, expected)
