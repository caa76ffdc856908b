"""SMAX battles, against JaxMARL's own simulator."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_logo.data import TaskSpec
from torchrl_logo.data.metadata import record_versions
from torchrl_logo.envs import make_env
from torchrl_logo.envs.smax import SMAXTeamEnv, _compile, available_tasks, build_env

jax = pytest.importorskip("jax")
pytest.importorskip("jaxmarl")

# One map and one number of simulations in all tests: each other would compile for seconds.
MAP, NUM_ENVS = "2s3z", 3


@pytest.fixture(scope="module")
def env() -> SMAXTeamEnv:
    return make_env(f"smax/{MAP}", num_envs=NUM_ENVS, seed=5)


def charge(step) -> torch.Tensor:
    """Shoots the first enemy in range, and moves east where there is none."""
    mask = step["agents", "action_mask"]
    shoots = mask[..., 5:].any(-1)
    action = torch.where(shoots, 5 + mask[..., 5:].int().argmax(-1), 1)
    return torch.where(mask[..., 1], action, 4)  # the dead stop


def own_step(simulator):
    """The simulator's own step of one battle, compiled."""

    @jax.jit
    def run(key, state, action):
        actions = {name: action[i] for i, name in enumerate(simulator.agents)}
        observations, state, rewards, _, _ = simulator.step_env(key, state, actions)
        return observations, state, rewards, simulator.get_avail_actions(state)

    return run


def require_same(step, index: int, simulator, observations, state, available) -> None:
    """Observations, masks and the state are the simulator's."""
    names = simulator.agents
    # Compiled for a batch, sums are taken in another order.
    np.testing.assert_allclose(
        step["agents", "observation"][index].numpy(),
        np.stack([observations[name] for name in names]),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        step["state"][index].numpy(), observations["world_state"], rtol=1e-5, atol=1e-6
    )
    mask = np.stack([available[name] for name in names]).astype(bool)
    np.testing.assert_array_equal(step["agents", "action_mask"][index].numpy(), mask)
    assert step["step"][index].item() == int(state.state.step)


def test_episodes_are_the_simulators_own(env: SMAXTeamEnv) -> None:
    """Up to the ends of two episodes: observations, masks, state, reward, ends and wins."""
    simulator = _compile(MAP, NUM_ENVS).simulator
    run = own_step(simulator)
    env.set_seed(5)
    step = env.reset()
    index = 1
    key = jax.random.fold_in(jax.random.PRNGKey(5), index)
    key, own = jax.random.split(key)
    observations, state = simulator.reset(own)
    available = simulator.get_avail_actions(state)
    require_same(step, index, simulator, observations, state, available)
    ended = 0
    for _ in range(250):
        action = charge(step)
        step["agents", "action"] = action
        after, step = env.step_and_maybe_reset(step)
        key, own = jax.random.split(key)
        observations, state, rewards, available = run(own, state, action[index].numpy())
        following = after["next"]
        require_same(following, index, simulator, observations, state, available)
        np.testing.assert_allclose(
            following["reward"][index].item(), rewards["ally_0"], rtol=1e-5, atol=1e-6
        )
        alive = np.asarray(state.state.unit_alive)
        allies, enemies = alive[:5].any(), alive[5:].any()
        assert following["done"][index].item() == bool(state.state.done)
        assert following["terminated"][index].item() == (not (allies and enemies))
        assert following["battle_won"][index].item() == (allies and not enemies)
        if state.state.done:
            ended += 1
            key, own = jax.random.split(key)
            observations, state = simulator.reset(own)
            available = simulator.get_avail_actions(state)
            require_same(step, index, simulator, observations, state, available)
            if ended == 2:
                break
    assert ended == 2


def change_units(env: SMAXTeamEnv, **fields) -> None:
    """Overwrites what the simulator knows of all simulations."""
    simulation = env._current["simulation"]
    units = simulation.state.replace(**fields)
    env._current = env._current | {"simulation": simulation.replace(state=units)}


def test_battles_are_won(env: SMAXTeamEnv) -> None:
    """Against enemies that the first shot kills."""
    env.set_seed(0)
    step = env.reset()
    health = env._current["simulation"].state.unit_health
    change_units(env, unit_health=health.at[:, 5:].set(1.0))
    for _ in range(60):
        step["agents", "action"] = charge(step)
        step = env.step(step)["next"]
        won = step["battle_won"]
        if won.any():
            break
    assert won.any()
    assert step["terminated"][won].all() and not step["truncated"][won].any()
    assert (step["reward"][won] >= 1.0).all() and (step["reward"][~won] < 1.0).all()


def test_time_runs_out(env: SMAXTeamEnv) -> None:
    """At the step at which it does in the simulator, and that is no termination."""
    env.set_seed(0)
    step, truncated = env.reset(), []
    limit = env._battle.simulator.max_steps
    change_units(env, step=env._current["simulation"].state.step + limit - 1)
    for _ in range(2):
        step["agents", "action"] = torch.full((NUM_ENVS, 5), 4)
        step = env.step(step)["next"].exclude("reward")
        truncated.append(step["truncated"].flatten().tolist())
    assert truncated == [[False] * NUM_ENVS, [True] * NUM_ENVS]
    assert step["done"].all() and not step["terminated"].any() and not step["battle_won"].any()
    assert step["step"].flatten().tolist() == [env.max_steps] * NUM_ENVS == [101] * NUM_ENVS


def test_specs(env: SMAXTeamEnv) -> None:
    check_env_specs(env)


def test_random_actions_are_available(env: SMAXTeamEnv) -> None:
    rollout = env.rollout(40, break_when_any_done=False)
    mask = rollout["agents", "action_mask"]
    assert not mask.all()
    assert mask.gather(-1, rollout["agents", "action"].unsqueeze(-1)).all()


def test_environments_of_the_same_size_compile_once(env: SMAXTeamEnv) -> None:
    compiled: list[str] = []

    def record(event: str, duration: float, **kwargs: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    env.rollout(2, break_when_any_done=False)
    jax.monitoring.register_event_duration_secs_listener(record)
    try:
        jax.jit(lambda x: x * 3.0)(2.0)
        assert len(compiled) == 1  # it counts
        again = build_env(MAP, num_envs=NUM_ENVS, seed=1)
        step = again.reset()
        for _ in range(3):
            step["agents", "action"] = charge(step)
            step = again.step(step)["next"].exclude("reward")
        step = again.reset(step.set("_reset", torch.tensor([[False], [True], [False]])))
        step["agents", "action"] = charge(step)
        again.step(step)
        assert len(compiled) == 1
    finally:
        jax.monitoring.clear_event_listeners()
    assert again._battle is env._battle


def test_a_partial_reset_leaves_the_others_alone(env: SMAXTeamEnv) -> None:
    other = build_env(MAP, num_envs=NUM_ENVS, seed=2)
    env.set_seed(2)
    step, untouched = env.reset(), other.reset()
    for _ in range(3):
        step["agents", "action"] = untouched["agents", "action"] = charge(step)
        step = env.step(step)["next"].exclude("reward")
        untouched = other.step(untouched)["next"].exclude("reward")
    mask = torch.tensor([[False], [True], [False]])
    step = env.reset(step.set("_reset", mask))
    assert step["step"].flatten().tolist() == [3, 0, 3]
    keep = [0, 2]
    for _ in range(3):
        for key in ("state", ("agents", "observation"), ("agents", "action_mask")):
            assert torch.equal(step[key][keep], untouched[key][keep])
        assert not torch.equal(step["state"][1], untouched["state"][1])
        step["agents", "action"], untouched["agents", "action"] = charge(step), charge(untouched)
        step = env.step(step)["next"].exclude("reward")
        untouched = other.step(untouched)["next"].exclude("reward")


def test_restarts_ahead_are_those_that_are_asked_for(env: SMAXTeamEnv) -> None:
    """Battles that ended are restarted as TorchRL still handles the step, or when it asks."""

    def play(ahead: bool) -> tuple[torch.Tensor, list[int]]:
        env.set_seed(3)
        torch.manual_seed(0)
        step, seen, found = env.reset(), [], []
        for _ in range(90):
            env._restarts_ahead = ahead
            following, step = env.step_and_maybe_reset(env.rand_action(step))
            seen.append(torch.cat([following["next", "state"], step["state"]], -1))
            found.append(int(following["next", "done"].sum()))
        return torch.stack(seen), found

    ahead, ends = play(True)
    asked, _ = play(False)
    assert sum(ends) > NUM_ENVS
    torch.testing.assert_close(ahead, asked, rtol=0, atol=0)


def test_a_restart_ahead_is_dropped_where_another_is_asked_for(env: SMAXTeamEnv) -> None:
    env.set_seed(3)
    torch.manual_seed(0)
    step = env.reset()
    env._restarts_ahead = True  # as after a reset of the battles that ended
    while not step["done"].any():
        step = env.step(env.rand_action(step))["next"]
    assert env._restarted is not None and not step["done"].all()
    again = env.reset(step.set("_reset", torch.ones_like(step["done"])))
    assert env._restarted is None
    assert not again["done"].any() and (again["step"] == 0).all()


def test_seeds_reproduce(env: SMAXTeamEnv) -> None:
    def start(seed: int) -> torch.Tensor:
        env.set_seed(seed)
        return torch.stack([env.reset()["state"], env.reset()["state"]])

    first = start(0)
    assert torch.equal(first, start(0))
    assert not torch.equal(first, start(1))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0, 0], first[0, 1])
    assert torch.equal(build_env(MAP, num_envs=NUM_ENVS, seed=0).reset()["state"], first[0])


def test_steps_do_not_change_what_was_written_before(env: SMAXTeamEnv) -> None:
    first = env.reset()
    kept = first.clone()
    env.rollout(2)
    assert (first == kept).all()
    first["state"].zero_()  # nor do we change what JAX takes to be constant
    assert np.asarray(env._current["state"]).any()


def test_actions_that_are_not_available_are_refused(env: SMAXTeamEnv) -> None:
    step = env.reset()
    assert not step["agents", "action_mask"][1, 2, 9]  # enemies are out of range at first
    step["agents", "action"] = torch.full((NUM_ENVS, 5), 4)
    for wrong in (9, 10, -1):
        step["agents", "action"][1, 2] = wrong
        with pytest.raises(ValueError, match=f"agent 2 in simulation 1 is {wrong}; available"):
            env.step(step)


def test_the_task_is_described(env: SMAXTeamEnv) -> None:
    spec = TaskSpec.from_env(env)
    assert (spec.n_agents, spec.observation_size, spec.state_size) == (5, 127, 120)
    assert (spec.action_size, spec.discrete, spec.max_steps) == (10, True, 101)
    assert spec.task == "smax/2s3z"
    assert {"jax", "jaxmarl"} <= set(record_versions())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("3s_vs_5z", (3, 101, 96, 10)),
        ("5m_vs_6m", (5, 140, 132, 11)),
        ("6h_vs_8z", (6, 179, 168, 13)),
    ],
)
def test_other_maps_have_their_published_sizes(name: str, sizes: tuple[int, ...]) -> None:
    spec = TaskSpec.from_env(build_env(name))
    found = (spec.n_agents, spec.observation_size, spec.state_size, spec.action_size)
    assert found == sizes


def test_maps_are_jaxmarls() -> None:
    from jaxmarl.environments.smax.smax_env import MAP_NAME_TO_SCENARIO

    assert {f"smax/{name}" for name in MAP_NAME_TO_SCENARIO} == set(available_tasks())


def test_unknown_maps_name_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match="no map '5m_vs_7m'. Nearest: smax/5m_vs_6m") as error:
        make_env("smax/5m_vs_7m")
    assert all(task in str(error.value) for task in available_tasks())


def test_num_envs_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1, found 0"):
        SMAXTeamEnv(MAP, num_envs=0)


def test_a_missing_simulator_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jaxmarl.environments.smax.smax_env", None)
    with pytest.raises(ImportError, match=r"pip install torchrl-logo\[smax\]"):
        build_env("27m_vs_30m")
