"""The planner, mostly in worlds whose best plan is known by heart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import MPCPlannerBase

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import ImaginedEnv, make_env
from torchrl_logo.evaluation import evaluate
from torchrl_logo.modules import (
    LOGOWorldModel,
    Prediction,
    WorldModel,
    make_categorical_actor,
    make_centralized_critic,
    make_gaussian_actor,
    make_mixer,
)
from torchrl_logo.planning import LOGOMPC

OBSERVATION, ACTION, MASK = (("agents", name) for name in ("observation", "action", "action_mask"))
CONTINUOUS = TaskSpec(
    n_agents=2,
    observation_size=1,
    state_size=1,
    action_size=1,
    action_low=(-1.0,),
    action_high=(1.0,),
)
DISCRETE = TaskSpec(n_agents=2, observation_size=1, state_size=1, action_size=3, discrete=True)

# (state [*, 1], joint action) -> next state, reward, whether it ends, uncertainty, each [*, 1]
Rule = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]


class KnownWorld(WorldModel):
    """A world by a rule. Each agent observes the state; masks are a function of it."""

    def __init__(self, spec: TaskSpec, rule: Rule, mask: Callable | None = None) -> None:
        super().__init__(spec)
        self.config = {}
        self.rule = rule
        self.mask = mask or (lambda state: torch.ones(*state.shape[:-1], 2, 3, dtype=torch.bool))
        self.broken_masks = 0

    @property
    def termination_bias(self) -> torch.Tensor:
        return torch.zeros(1)

    def predict(
        self, state: torch.Tensor, observation: torch.Tensor, action: torch.Tensor
    ) -> Prediction:
        logit = None
        following, reward, ends, uncertainty = self.rule(state, action)
        if self.spec.discrete:
            available = self.mask(state).gather(-1, action.unsqueeze(-1))
            self.broken_masks += int((~available).sum())
            logit = self.mask(following).float() - 0.5
        return Prediction(
            state=following,
            observation=following.unsqueeze(-2).expand(*following.shape[:-1], 2, 1),
            reward=reward,
            termination_logit=ends.float() - 0.5,
            action_mask_logit=logit,
            uncertainty=uncertainty,
        )


def observe(state: list[float], model: WorldModel | None = None) -> TensorDict:
    tensor = torch.tensor(state).unsqueeze(-1)
    agents = {"observation": tensor.unsqueeze(-2).expand(-1, 2, 1).clone()}
    if isinstance(model, KnownWorld) and model.spec.discrete:
        agents["action_mask"] = model.mask(tensor)
    return TensorDict({"agents": agents, "state": tensor}, [len(state)])


def plan_in(model: WorldModel, policy: object, **kwargs: object) -> LOGOMPC:
    env = ImaginedEnv(
        model,
        observe([0.0], model),
        batch_size=(),
        clamp_margin=None,
        accumulate=bool(kwargs.pop("accumulate", True)),
    )
    return LOGOMPC(env, policy, **kwargs)


def make_still_policy() -> TensorDictModule:
    """Always the action zero."""
    return TensorDictModule(torch.zeros_like, in_keys=[OBSERVATION], out_keys=[ACTION])


def make_first_policy() -> TensorDictModule:
    """Always the first action, heedless of masks."""
    return TensorDictModule(
        lambda o: torch.zeros(o.shape[:-1], dtype=torch.int64, device=o.device),
        in_keys=[OBSERVATION],
        out_keys=[ACTION],
    )


def nothing(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like)


@pytest.fixture(autouse=True)
def deterministic() -> object:
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        yield


COST = 0.5


def regulate(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """s' = s + a_1 + a_2, reward -(s')^2 - COST (a_1^2 + a_2^2)."""
    following = state + action.sum(-2)
    reward = -following.square() - COST * action.square().sum(-2)
    return following, reward, nothing(state).bool(), nothing(state)


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("execute", ["best", "mean"])
def test_finds_the_linear_quadratic_optimum(temperature: float | None, execute: str) -> None:
    # Riccati backwards, both agents alike: u = -(1 + p) s / (2 (1 + p) + COST).
    p, gains = 0.0, []
    for _ in range(3):
        gain = (1 + p) / (2 * (1 + p) + COST)
        gains.append(gain)
        p = (1 + p) * (1 - 2 * gain) ** 2 + 2 * COST * gain**2
    planner = plan_in(
        KnownWorld(CONTINUOUS, regulate),
        make_still_policy(),
        planning_horizon=3,
        num_candidates=1024,
        num_elites=32,
        iterations=12,
        gamma=1.0,
        min_std=0.01,
        temperature=temperature,
        execute=execute,
    )
    states = [1.5, -0.8, 0.0]
    plan = planner.plan(observe(states))
    expected = -gains[-1] * torch.tensor(states).reshape(3, 1, 1).expand(3, 2, 1)
    torch.testing.assert_close(plan.action, expected, atol=0.03, rtol=0)
    cost = -p * torch.tensor(states).square().unsqueeze(-1)
    torch.testing.assert_close(plan.score, cost, atol=5e-3, rtol=0)
    assert (plan.score <= cost + 1e-5).all()  # nothing is better than the best


def test_weighted_means_of_elites_are_the_formulas() -> None:
    def pay(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return state, action.sum(-2), nothing(state).bool(), nothing(state)

    kwargs = dict(
        planning_horizon=1,
        num_candidates=6,
        num_elites=4,
        iterations=1,
        policy_share=0.0,
        noise_scale=0.3,
        execute="mean",
    )
    model = KnownWorld(CONTINUOUS, pay)
    planner = plan_in(model, make_still_policy(), **kwargs)
    actions = (0.3 * planner.noise[0, 0, 0]).clamp(-1, 1)  # [K, N, d_a]
    assert (actions[0] == 0).all() and (actions[1:] != 0).all()
    scores = actions.sum((1, 2))
    best = scores.argsort(descending=True)[:4]
    torch.testing.assert_close(planner.plan(observe([0.0])).action[0], actions[best].mean(0))
    weights = (scores[best] / 0.2).softmax(0).reshape(4, 1, 1)
    planner = plan_in(model, make_still_policy(), temperature=0.2, **kwargs)
    torch.testing.assert_close(
        planner.plan(observe([0.0])).action[0], (weights * actions[best]).sum(0)
    )


def treasure(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """In state 0, (0, 0) pays 1; (1, 1) leads to state 1, where (2, 2) pays 10; then state 2."""
    together = [(action == k).all(-1, keepdim=True) for k in range(3)]
    reward = 1.0 * ((state == 0) & together[0]) + 10.0 * ((state == 1) & together[2])
    following = torch.where((state == 0) & together[1], 1.0, 2.0)
    return following, reward, nothing(state).bool(), nothing(state)


@pytest.mark.parametrize(("horizon", "action", "score"), [(1, 0, 1.0), (2, 1, 9.0)])
def test_sees_two_steps_ahead_where_greed_fails(horizon: int, action: int, score: float) -> None:
    model = KnownWorld(DISCRETE, treasure)
    planner = plan_in(
        model,
        make_first_policy(),
        planning_horizon=horizon,
        num_candidates=2048,
        gamma=0.9,
        noise_scale=0.9,
    )
    plan = planner.plan(observe([0.0, 0.0], model))
    assert plan.action.tolist() == [[action, action]] * 2
    torch.testing.assert_close(plan.score, torch.full((2, 1), score))


def test_reweights_around_elites() -> None:
    # In each of 4 steps both agents must take the last action, which the policy does not: 64 draws
    # with probability 0.3 / 3 each do not find it; around elites they do.
    def climb(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        reward = (action == 2).float().sum(-1, keepdim=True)
        return state, reward, nothing(state).bool(), nothing(state)

    model = KnownWorld(DISCRETE, climb)
    scores = []
    for iterations in (1, 8):
        planner = plan_in(
            model,
            make_first_policy(),
            planning_horizon=4,
            gamma=1.0,
            iterations=iterations,
            elite_share=0.9,
        )
        scores.append(float(planner.plan(observe([0.0], model)).score))
    assert scores[0] < 6
    assert scores[1] == 8


def gamble(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Both agents' action 2 pays 2 a step and is uncertain by 5; all else pays 1 and is certain."""
    risky = (action == 2).all(-1, keepdim=True)
    return state, 1.0 + risky, nothing(state).bool(), 5.0 * risky


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize(("penalty", "risks", "score"), [(0.0, True, 6.0), (0.3, False, 3.0)])
def test_penalty_keeps_from_uncertain_rewards(
    penalty: float, risks: bool, score: float, accumulate: bool
) -> None:
    model = KnownWorld(DISCRETE, gamble)
    planner = plan_in(
        model,
        make_first_policy(),
        planning_horizon=3,
        num_candidates=256,
        iterations=5,
        gamma=1.0,
        noise_scale=0.9,
        uncertainty_penalty=penalty,
        accumulate=accumulate,
    )
    plan = planner.plan(observe([0.0], model))
    assert bool((plan.action == 2).all()) is risks
    torch.testing.assert_close(plan.score, torch.tensor([[score]]))
    torch.testing.assert_close(plan.uncertainty, torch.tensor([[15.0 if risks else 0.0]]))


def fork(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(0, 0) pays 1 and leads to state -1, (1, 1) pays nothing and leads to state 10."""
    both = (action == 1).all(-1, keepdim=True)
    stay = (action == 0).all(-1, keepdim=True)
    return torch.where(both, 10.0, -1.0), 1.0 * stay, nothing(state).bool(), nothing(state)


@pytest.mark.parametrize(
    ("gamma", "scale", "action", "score"),
    [(0.5, 1.0, 1, 5.0), (0.05, 1.0, 0, 0.95), (0.5, 4.0, 1, 1.25), (0.5, 10.0, 0, 0.95)],
)
def test_values_the_state_at_the_horizon(
    gamma: float, scale: float, action: int, score: float
) -> None:
    model = KnownWorld(DISCRETE, fork)
    # What the policy does there, always (0, 0), is added to the state, times 100.
    critic = TensorDictModule(
        lambda s, a: s + 100.0 * a.sum(-1, keepdim=True),
        in_keys=["state", ACTION],
        out_keys=["state_action_value"],
    )
    planner = plan_in(
        model,
        make_first_policy(),
        planning_horizon=1,
        gamma=gamma,
        noise_scale=0.9,
        value_network=critic,
        reward_scale=scale,
    )
    plan = planner.plan(observe([0.0], model))
    assert plan.action.tolist() == [[action, action]]
    torch.testing.assert_close(plan.score, torch.tensor([[score]]))


def test_mixes_the_best_available_utilities_at_the_horizon() -> None:
    def mask(state: torch.Tensor) -> torch.Tensor:
        # The last action is not available, though the utilities like it best.
        return torch.tensor([True, True, False]).expand(*state.shape[:-1], 2, 3)

    model = KnownWorld(DISCRETE, fork, mask)
    utilities = TensorDictModule(
        lambda o: o + torch.tensor([0.0, 0.5, 100.0]),
        in_keys=[OBSERVATION],
        out_keys=[("agents", "action_value")],
    )
    planner = plan_in(
        model,
        make_first_policy(),
        planning_horizon=1,
        gamma=0.5,
        noise_scale=0.9,
        value_network=utilities,
        mixer_network=make_mixer(DISCRETE, "vdn"),
    )
    plan = planner.plan(observe([0.0], model))
    assert plan.action.tolist() == [[1, 1]]
    torch.testing.assert_close(plan.score, torch.tensor([[0.5 * 2 * 10.5]]))


def test_nothing_counts_after_termination() -> None:
    def quit_early(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(1, 1) pays 2 and ends; were it to go on, each step would pay 50."""
        ends = (action == 1).all(-1, keepdim=True)
        over = state == 1
        reward = torch.where(over, 50.0, 1.0 + ends)
        return torch.where(over | ends, 1.0, 0.0), reward, ends, 1.0 * over

    model = KnownWorld(DISCRETE, quit_early)
    critic = TensorDictModule(
        lambda s: 7.0 + 1000.0 * s, in_keys=["state"], out_keys=["state_value"]
    )
    kwargs = dict(planning_horizon=3, num_candidates=256, gamma=1.0, noise_scale=0.8)
    plan = plan_in(model, make_first_policy(), **kwargs).plan(observe([0.0], model))
    # At best two steps that pay 1, and then the end for 2.
    torch.testing.assert_close(plan.score, torch.tensor([[4.0]]))
    torch.testing.assert_close(plan.uncertainty, torch.tensor([[0.0]]))
    assert plan.action.tolist() != [[1, 1]]
    valued = plan_in(
        model, make_first_policy(), value_network=critic, value_key="state_value", **kwargs
    )
    torch.testing.assert_close(
        valued.plan(observe([0.0], model)).score, torch.tensor([[3.0 + 7.0]])
    )


def test_never_takes_or_imagines_an_unavailable_action() -> None:
    def wander(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        following = (state + action.sum(-1, keepdim=True) + 1).remainder(3)
        # What is forbidden would pay best.
        reward = (action == state.long()).float().sum(-1, keepdim=True)
        return following, reward, nothing(state).bool(), nothing(state)

    def mask(state: torch.Tensor) -> torch.Tensor:
        """In state k, agents lack action k; the second also lacks the one after it."""
        lacks = torch.arange(3) == state.unsqueeze(-1)
        also = torch.arange(3) == (state.unsqueeze(-1) + 1).remainder(3)
        return ~torch.cat([lacks, lacks | also], -2)

    model = KnownWorld(DISCRETE, wander, mask)
    rows = observe([0.0, 1.0, 2.0] * 10, model)
    for kind in (ExplorationType.DETERMINISTIC, ExplorationType.RANDOM):
        for policy in (make_first_policy(), make_categorical_actor(DISCRETE, hidden_sizes=(8,))):
            fallback = make_categorical_actor(DISCRETE, hidden_sizes=(8,))
            planner = plan_in(model, policy, fallback=fallback, iterations=4)
            with set_exploration_type(kind):
                action = planner(rows.clone())[ACTION]
            assert rows[MASK].gather(-1, action.unsqueeze(-1)).all()
    assert model.broken_masks == 0


def make_learned(discrete: bool, **kwargs: object) -> tuple[LOGOMPC, TensorDict]:
    """A planner over an untrained model, and six rows to plan from."""
    torch.manual_seed(0)
    sizes = dict(n_agents=3, observation_size=4, state_size=5, action_size=2)
    bounds = dict(action_low=(-1.0, -2.0), action_high=(1.0, 2.0))
    spec = TaskSpec(**sizes, discrete=True) if discrete else TaskSpec(**sizes, **bounds)
    model = LOGOWorldModel(spec, hidden_size=16)
    agents = {"observation": torch.randn(6, 3, 4)}
    if discrete:
        agents["action_mask"] = torch.rand(6, 3, 2) < 0.5
        agents["action_mask"][..., 0] |= ~agents["action_mask"].any(-1)
    rows = TensorDict({"agents": agents, "state": torch.randn(6, 5)}, [6])
    env = ImaginedEnv(model, rows, batch_size=())
    actor = make_categorical_actor if discrete else make_gaussian_actor
    kwargs = {"num_candidates": 32, **kwargs}
    if not discrete:
        kwargs["value_network"] = make_centralized_critic(spec)
    return LOGOMPC(env, actor(spec, hidden_sizes=(8,)), **kwargs), rows


@pytest.mark.parametrize("discrete", [False, True])
def test_rows_are_planned_each_on_its_own(discrete: bool) -> None:
    planner, rows = make_learned(discrete)
    together = planner.plan(rows)
    for index in range(6):
        alone = planner.plan(rows[index : index + 1])
        torch.testing.assert_close(alone.action[0], together.action[index])
        torch.testing.assert_close(alone.score[0], together.score[index])
    # Any batch shape, none as well.
    torch.testing.assert_close(planner.plan(rows.reshape(2, 3)).action[1, 0], together.action[3])
    torch.testing.assert_close(planner.plan(rows[4]).action, together.action[4])


@pytest.mark.parametrize("discrete", [False, True])
def test_is_a_function_of_its_input_but_for_exploration(discrete: bool) -> None:
    planner, rows = make_learned(discrete)
    before = rows.clone()
    first, second = planner.plan(rows), planner.plan(rows)
    assert torch.equal(first.action, second.action) and torch.equal(first.score, second.score)
    assert (rows == before).all() and not first.action.requires_grad
    with set_exploration_type(ExplorationType.RANDOM):
        torch.manual_seed(1)
        third = planner.plan(rows)
        torch.manual_seed(1)
        fourth = planner.plan(rows)
        fifth = planner.plan(rows)
    assert torch.equal(third.score, fourth.score)
    if not discrete:  # few discrete actions: different draws may find the same plan
        assert not torch.equal(third.score, fifth.score)
        assert not torch.equal(first.score, third.score)


def test_ties_go_to_the_policy() -> None:
    model = KnownWorld(CONTINUOUS, lambda s, a: (s, nothing(s), nothing(s).bool(), nothing(s)))
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(8,))
    rows = observe([0.3, -2.0])
    planner = plan_in(model, actor)
    torch.testing.assert_close(planner(rows.clone())[ACTION], actor(rows.clone())[ACTION])


def test_draws_from_the_policy_follow_its_distribution() -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(CONTINUOUS, hidden_sizes=(8,))
    planner = plan_in(KnownWorld(CONTINUOUS, regulate), actor, num_candidates=4000, policy_share=1)
    start = planner._make_start(observe([0.7]), 1)
    draws = planner.candidates.propose(start, planner.noise[0, 0], None, 0)[0]
    dist = actor.get_dist(observe([0.7]))
    torch.testing.assert_close(draws[0], dist.deterministic_sample[0])
    with set_exploration_type(ExplorationType.RANDOM):
        samples = dist.sample((4000,))[:, 0]
    quantiles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(
        draws[1:].quantile(quantiles, 0), samples.quantile(quantiles, 0), atol=0.06, rtol=0
    )


class TestFallback:
    @staticmethod
    def make(**kwargs: object) -> LOGOMPC:
        def pay(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
            # Uncertain by the state, in each of two steps.
            return state, action.sum(-2), nothing(state).bool(), state.abs()

        half = TensorDictModule(
            lambda o: torch.full_like(o, -0.25), in_keys=[OBSERVATION], out_keys=[ACTION]
        )
        model = KnownWorld(CONTINUOUS, pay)
        return plan_in(model, make_still_policy(), fallback=half, planning_horizon=2, **kwargs)

    def test_without_a_state(self) -> None:
        rows = observe([0.0, 1.0])
        action = self.make()(rows.exclude("state"))[ACTION]
        torch.testing.assert_close(action, torch.full((2, 2, 1), -0.25))
        assert (self.make()(rows)[ACTION] > 0.5).all()

    def test_of_doubtful_rows(self) -> None:
        plan = self.make(max_uncertainty=3.0).plan(observe([1.0, 2.0, -1.5, float("nan")]))
        assert plan.planned.squeeze(-1).tolist() == [True, False, True, False]
        torch.testing.assert_close(plan.action[1::2], torch.full((2, 2, 1), -0.25))
        assert (plan.action[::2] > 0.5).all()
        torch.testing.assert_close(plan.uncertainty[:3, 0], torch.tensor([2.0, 4.0, 3.0]))

    def test_of_a_future_that_is_not_finite(self) -> None:
        def explode(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
            following = torch.where(action.sum(-2) > 0, torch.inf, state)
            return following, action.sum(-2), nothing(state).bool(), nothing(state)

        planner = plan_in(KnownWorld(CONTINUOUS, explode), make_still_policy(), planning_horizon=2)
        plan = planner.plan(observe([0.0]))
        # What pays explodes; of what does not, standing still is best.
        assert plan.action.abs().max() == 0 and plan.planned.all()


def test_refuses_what_cannot_work() -> None:
    model = KnownWorld(CONTINUOUS, regulate)
    policy, starts = make_still_policy(), observe([0.0])
    with pytest.raises(ValueError, match=r"batch_size=\(\)"):
        LOGOMPC(ImaginedEnv(model, starts, batch_size=4), policy)
    with pytest.raises(ValueError, match="horizon must reach planning_horizon"):
        plan_in(model, policy, planning_horizon=16)
    with pytest.raises(ValueError, match="num_elites must not exceed"):
        plan_in(model, policy, num_candidates=4)
    with pytest.raises(ValueError, match="gamma"):
        plan_in(model, policy, gamma=1.5)
    with pytest.raises(ValueError, match="mixer_network needs a value_network"):
        plan_in(model, policy, mixer_network=make_mixer(DISCRETE))
    with pytest.raises(ValueError, match="execute='mean'"):
        plan_in(KnownWorld(DISCRETE, gamble), make_first_policy(), execute="mean")
    central = TensorDictModule(lambda s: s, in_keys=["state"], out_keys=[ACTION])
    with pytest.raises(ValueError, match="fallback must read only"):
        plan_in(model, policy, fallback=central)
    with pytest.raises(ValueError, match="value_network must write 'state_action_value'"):
        plan_in(model, policy, value_network=central)
    with pytest.raises(TypeError, match="ImaginedEnv"):
        LOGOMPC(model, policy)
    with pytest.raises(KeyError, match="observation"):
        plan_in(model, policy)(starts.exclude(OBSERVATION))


@pytest.mark.parametrize("discrete", [False, True])
def test_waits_for_nothing(discrete: bool) -> None:
    # Looks at values on the host raise under fake tensors.
    planner, rows = make_learned(discrete, planning_horizon=1, iterations=2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = rows.apply(mode.from_tensor)
        action = planner(fake)[ACTION]
    assert action.shape == ((6, 3) if discrete else (6, 3, 2))


def test_acts_in_collectors_of_real_environments() -> None:
    env = make_env("vmas/balance", num_envs=2, seed=0)
    model = LOGOWorldModel.from_env(env, hidden_size=16)
    starts = env.reset().select(OBSERVATION, "state")
    policy = make_gaussian_actor(model.spec, hidden_sizes=(8,))
    planner = LOGOMPC(
        ImaginedEnv(model, starts, batch_size=()),
        policy,
        planning_horizon=2,
        num_candidates=4,
        num_elites=2,
        iterations=1,
    )
    assert isinstance(planner, MPCPlannerBase)
    (batch,) = Collector(env, planner, frames_per_batch=8, total_frames=8)
    assert batch[ACTION].shape == (2, 4, 3, 2)
    # What was collected is what the planner does in these states.
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        (batch,) = Collector(
            env,
            planner,
            frames_per_batch=8,
            total_frames=8,
            exploration_type=ExplorationType.DETERMINISTIC,
        )
        expected = planner.plan(batch.select(OBSERVATION, "state")).action
    torch.testing.assert_close(batch[ACTION], expected)


def test_is_evaluated_as_a_policy() -> None:
    model = KnownWorld(CONTINUOUS, regulate)
    planner = plan_in(
        model, make_still_policy(), planning_horizon=1, num_candidates=512, iterations=6
    )
    env = ImaginedEnv(model, observe([1.2]), batch_size=2, horizon=4, clamp_margin=None)
    # One step ahead: u = -s / (2 + COST), again and again.
    state, expected = 1.2, 0.0
    for _ in range(4):
        action = -state / (2 + COST)
        state += 2 * action
        expected -= state**2 + 2 * COST * action**2
    returns = evaluate(planner, env, episodes=2).returns
    torch.testing.assert_close(returns, torch.full((2,), expected), atol=0.01, rtol=0)
    still = evaluate(make_still_policy(), env, episodes=2).returns
    torch.testing.assert_close(still, torch.full((2,), -4 * 1.2**2))
