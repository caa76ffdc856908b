"""Known rules for the end of an episode, read off predicted states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_logo.envs.vmas import VmasTeamEnv, build_env

__all__ = ["TerminationRule", "known_termination", "tasks_with_known_termination"]

#: Tells of a step's TensorDict ``[*]``, which has its next state, what ended: ``[*, 1]`` bool.
TerminationRule = Callable[[TensorDictBase], torch.Tensor]

# Robots fall where a feature of their state leaves its range (gymnasium, version 5): the state
# holds the positions without the horizontal place of the body, then the velocities.
_INFINITY = float("inf")
_HEALTHY_RANGES: dict[str, dict[int, tuple[float, float]]] = {
    "hopper": {0: (0.7, _INFINITY), 1: (-0.2, 0.2)},
    "walker2d": {0: (0.8, 2.0), 1: (-1.0, 1.0)},
    "ant": {0: (0.2, 1.0)},
    "halfcheetah": {},
    "swimmer": {},
}
# Beyond these a hopper's other features are unhealthy as well.
_HOPPER_LIMIT = 100.0

_MPE_TASKS = ("simple_spread", "simple_reference", "simple_speaker_listener")


def tasks_with_known_termination() -> list[str]:
    """Names of the tasks, or beginnings of names ending in ``*``, that a rule is known for.

    Examples:
        >>> tasks_with_known_termination()[:2]
        ['mamujoco/ant*', 'mamujoco/halfcheetah*']
    """
    return sorted(
        [f"mamujoco/{robot}*" for robot in _HEALTHY_RANGES]
        + [f"vmas/{scenario}" for scenario in (*_VMAS_RULES, "wheel")]
        + [f"mpe/{scenario}*" for scenario in _MPE_TASKS]
        + ["smax/*"]
    )


def known_termination(task: str) -> TerminationRule:
    """The rule by which the simulator itself ends a task, for :class:`ImaginedEnv`.

    The rules are those of the simulators at their default settings, and are tested against them.

    Args:
        task (str): a task's name, see :func:`tasks_with_known_termination`.

    Returns:
        A function of a transition ``[*]`` that reads ``("next", "state")`` ``[*, d_s]`` and
        returns bool ``[*, 1]``, without a gradient.

    Raises:
        ValueError: if no rule is known for the task.

    Examples:
        >>> from tensordict import TensorDict
        >>> has_fallen = known_termination("mamujoco/hopper_3x1")
        >>> state = torch.zeros(2, 11)
        >>> state[:, 0] = torch.tensor([1.2, 0.5])  # height of the body
        >>> has_fallen(TensorDict({"next": {"state": state}}, [2]))
        tensor([[False],
                [ True]])
    """
    family, _, name = task.partition("/")
    if family == "mamujoco" and name.partition("_")[0] in _HEALTHY_RANGES:
        return _robot_rule(name.partition("_")[0])
    if family == "mpe" and name.removesuffix("_discrete") in _MPE_TASKS:
        return never_ends
    if family == "smax":
        return _battle_rule(name)
    if family == "vmas" and name in _VMAS_RULES:
        return _VmasRule(name)
    if task == "vmas/wheel":
        return never_ends
    raise ValueError(
        f"No rule is known for the end of {task!r}; there are rules for "
        f"{tasks_with_known_termination()}. Leave termination=None to have the model predict it."
    )


def never_ends(transition: TensorDictBase) -> torch.Tensor:
    """The rule of tasks that only time ends: ``False``, ``[*, 1]``."""
    state = transition.get(("next", "state"))
    return torch.zeros(*state.shape[:-1], 1, dtype=torch.bool, device=state.device)


def _robot_rule(robot: str) -> TerminationRule:
    ranges = _HEALTHY_RANGES[robot]
    if not ranges:
        return never_ends

    def has_fallen(transition: TensorDictBase) -> torch.Tensor:
        state = transition.get(("next", "state"))
        healthy = state.isfinite().all(-1)
        for feature, (low, high) in ranges.items():
            value = state[..., feature]
            # Gymnasium's ant may be at its limits, the others may not.
            inside = (
                (value >= low) & (value <= high)
                if robot == "ant"
                else (value > low) & (value < high)
            )
            healthy = healthy & inside
        if robot == "hopper":
            healthy = healthy & (state[..., 1:].abs() < _HOPPER_LIMIT).all(-1)
        return ~healthy.unsqueeze(-1)

    return has_fallen


def _battle_rule(map_name: str) -> TerminationRule:
    """A side is dead: the state begins with each unit's features, its health the first of them."""
    from torchrl_logo.envs.smax import build_simulator

    simulator = build_simulator(map_name)
    allies, units = int(simulator.num_allies), int(simulator.num_allies + simulator.num_enemies)
    features = len(simulator.own_features)

    def is_over(transition: TensorDictBase) -> torch.Tensor:
        state = transition.get(("next", "state"))
        health = state[..., : units * features].unflatten(-1, (units, features))[..., 0]
        alive = health > 0
        both = alive[..., :allies].any(-1) & alive[..., allies:].any(-1)
        return ~both.unsqueeze(-1)

    return is_over


class _VmasRule:
    """Asks a scenario about entities that stand where states say, any number of rows at once."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self._env: VmasTeamEnv | None = None

    @torch.no_grad()
    def __call__(self, transition: TensorDictBase) -> torch.Tensor:
        state = transition.get(("next", "state"))
        if self._env is None or self._env.device != state.device:
            self._env = build_env(self.scenario, device=state.device, seed=0)
            self._env.reset()
        scenario = self._env._env.scenario
        parts = state.reshape(-1, state.shape[-1]).split(6, -1)
        for entity, values in zip(scenario.world.entities, parts, strict=True):
            # Past the setters, which insist on the world's own number of rows.
            entity.state._pos = values[:, :2]
            entity.state._rot = values[:, 4:5]
        return _VMAS_RULES[self.scenario](scenario).reshape(*state.shape[:-1], 1)


def _has_fallen_or_arrived(scenario: Any) -> torch.Tensor:
    world, package = scenario.world, scenario.package
    fallen = world.is_overlapping(scenario.line, scenario.floor)
    fallen = fallen | world.is_overlapping(package, scenario.floor)
    return fallen | world.is_overlapping(package, package.goal)


def _have_arrived(scenario: Any) -> torch.Tensor:
    arrived = [scenario.world.is_overlapping(p, p.goal) for p in scenario.packages]
    return torch.stack(arrived, -1).all(-1)


_VMAS_RULES: dict[str, Callable[[Any], torch.Tensor]] = {
    "balance": _has_fallen_or_arrived,
    "transport": _have_arrived,
    "navigation": lambda scenario: scenario.done(),
}
