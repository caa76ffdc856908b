"""MaMuJoCo tasks, many simulators in one process, in the package's layout."""

from __future__ import annotations

import difflib
import itertools
import pathlib
import re
import tempfile
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_logo.optional_dependencies import require

__all__ = ["TASK_PREFIX", "MaMuJoCoTeamEnv", "available_tasks", "build_env"]

#: What the names of these tasks begin with.
TASK_PREFIX = "mamujoco"

# Robots by the names of their tasks: the scenario of gymnasium-robotics and how it splits it.
# Not Pusher, whose joints it sorts by a name that some share, so that what agents observe is
# ordered differently each time, and not CoupledHalfCheetah, which does not run on MuJoCo 4.
_ROBOTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "halfcheetah": ("HalfCheetah", ("2x3", "6x1")),
    "hopper": ("Hopper", ("3x1",)),
    "ant": ("Ant", ("2x4", "2x4d", "4x2")),
    "walker2d": ("Walker2d", ("2x3",)),
    "swimmer": ("Swimmer", ("2x1",)),
    "humanoid": ("Humanoid", ("9|8",)),
    "humanoidstandup": ("HumanoidStandup", ("9|8",)),
    "reacher": ("Reacher", ("2x1",)),
}

# Robots that are built with as many segments as a task asks for, <agents>x<segments of each>,
# and the ones that are listed.
_MANY_SEGMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "swimmer": ("ManySegmentSwimmer", ("10x2",)),
    "manysegmentant": ("ManySegmentAnt", ("2x3",)),
}
_SEGMENTS = re.compile(r"[1-9]\d*x[1-9]\d*")

# What the contract of environments is tested on: one that terminates, with observations of
# different sizes, and one that does not.
CONTRACT_TASKS = ("mamujoco/hopper_3x1", "mamujoco/halfcheetah_2x3")

# Walker2d clips the velocities in its state, but not those that the agents observe.
_UNCLIPPED_VELOCITIES = {"Walker2d"}

# What agents of these observe is not all in the state, or not at the places that
# gymnasium-robotics gives: each observation is built by its own function.
_NOT_INDEXED = {"ManySegmentAnt", "Reacher"}

_unseeded = itertools.count()  # environments of this process that were made without a seed


class MaMuJoCoTeamEnv(EnvBase):
    """A MuJoCo robot whose joints are split among agents, as gymnasium-robotics' MaMuJoCo does.

    Several simulators, which share one compiled model, step in one process. Rewards, terminations
    and states are gymnasium's own (version 5 of its robots), and observations are those of
    ``gymnasium_robotics.mamujoco_v1.parallel_env``:

    - ``("agents", "observation")`` is gathered for all simulators and agents at once, out of the
      state, wherever it is part of it; smaller observations are padded with zeros at the end, and
      ``observation_sizes`` holds the true sizes;
    - ``("agents", "action")`` is in the robot's bounds, which MuJoCo enforces and the cost of
      control does not; where agents have different numbers of joints, what the others do not have
      is ignored, and ``action_sizes`` holds the true sizes;
    - ``"state"`` is the single-agent robot's observation, in float32;
    - ``"reward"`` is the robot's reward, which all agents share;
    - ``"terminated"`` is the robot's own end (hoppers, walkers, ants and humanoids that fall),
      ``"truncated"`` the time limit;
    - simulator ``i`` has a random state of its own, made from the seed and ``i``: its episodes do
      not depend on how many others there are, or on when those are reset.

    What MuJoCo computes differs between its versions: data of one do not fit the simulator of
    another.

    Args:
        scenario (str): name of the robot in gymnasium-robotics, for instance ``"HalfCheetah"``.
        configuration (str): how its joints are split, for instance ``"2x3"``.

    Keyword Args:
        num_envs (int): number of simulators. Defaults to ``1``.
        agent_obsk (int): agents observe joints that are at most as far away. Defaults to ``1``.
        max_steps (int, optional): episodes are truncated after this many steps. Defaults to
            gymnasium's limit, 1,000 for most robots.
        seed (int, optional): seed of the simulators' random states. Defaults to another one for
            each environment, made from :func:`torch.initial_seed`.
        device (torch.device, optional): where tensors are written; the simulators run on the CPU.
        task (str, optional): name of the task.

    Raises:
        ImportError: if MuJoCo or gymnasium-robotics is not installed.
        ValueError: if ``num_envs`` or ``max_steps`` is not positive, or ``agent_obsk`` negative.

    Examples:
        >>> env = MaMuJoCoTeamEnv("HalfCheetah", "2x3", num_envs=2, seed=0)  # doctest: +SKIP
        >>> rollout = env.rollout(3)  # doctest: +SKIP
        >>> rollout["agents", "observation"].shape, rollout["state"].shape  # doctest: +SKIP
        (torch.Size([2, 3, 2, 12]), torch.Size([2, 3, 17]))
    """

    batch_locked = True

    def __init__(
        self,
        scenario: str,
        configuration: str,
        *,
        num_envs: int = 1,
        agent_obsk: int = 1,
        max_steps: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = "cpu",
        task: str | None = None,
    ) -> None:
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("agent_obsk", agent_obsk, 0),
            ("max_steps", 1 if max_steps is None else max_steps, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, found {value}.")
        team = _build_team(scenario, configuration, agent_obsk)
        super().__init__(device=device, batch_size=torch.Size([num_envs]))
        self.task = task
        self._team = team
        limit = team.single_agent_env.spec.max_episode_steps if max_steps is None else max_steps
        self._max_steps = int(limit)
        self._simulators = self._clone_simulators(team.single_agent_env.unwrapped, num_envs)
        self._read_actions(team)
        self._read_observations(team, scenario)
        self._features = np.zeros((num_envs, self._width), dtype=np.float32)
        # [E, N, d_o], where observations are built and not gathered
        self._local: np.ndarray | None = None
        if self._gather is None:
            shape = (num_envs, len(self.observation_sizes), max(self.observation_sizes))
            self._local = np.zeros(shape, dtype=np.float32)
        self._steps = np.zeros((num_envs, 1), dtype=np.int64)
        self._terminated = np.zeros((num_envs, 1), dtype=bool)
        self._make_specs()
        if seed is None:
            seed = (torch.initial_seed() + 1_000_003 * next(_unseeded)) % 2**31
        self._set_seed(seed)

    @property
    def n_agents(self) -> int:
        """Number of agents, ``N``."""
        return len(self.action_sizes)

    @property
    def max_steps(self) -> int:
        """The number of steps after which an episode is truncated."""
        return self._max_steps

    @staticmethod
    def _clone_simulators(robot: Any, count: int) -> list[Any]:
        # The model does not change as it is simulated: compiling it (and printing the compiler's
        # warnings) once is enough. All that changes is in the data. copy.copy would build the
        # robot anew, which is how gymnasium pickles it.
        import mujoco

        clones = []
        for _ in range(count):
            clone = object.__new__(type(robot))
            clone.__dict__.update(robot.__dict__, data=mujoco.MjData(robot.model))
            clones.append(clone)
        return clones

    def _read_actions(self, team: Any) -> None:
        """Finds, for each of the robot's actuators, the agent's action that drives it."""
        parts = [[joint.act_ids for joint in part] for part in team.agent_action_partitions]
        self.action_sizes = [len(part) for part in parts]
        width = max(self.action_sizes)
        driver = np.empty(sum(self.action_sizes), dtype=np.int64)
        for agent, part in enumerate(parts):
            driver[part] = agent * width + np.arange(len(part))
        self._driver = driver  # [actuators], into the joint action [N * d_a]
        space = team.single_agent_env.action_space
        self._bounds = float(space.low[0]), float(space.high[0])

    def _read_observations(self, team: Any, scenario: str) -> None:
        """Finds where in the state (and what is beside it) the agents' observations are."""
        agents = team.possible_agents
        self.group_map = {"agents": list(agents)}
        self.observation_sizes = [team.observation_space(name).shape[0] for name in agents]
        robot = team.single_agent_env.unwrapped
        self._state_size = int(robot.observation_space.shape[0])
        self._velocities = 0
        self._gather: np.ndarray | None = None
        if scenario not in _NOT_INDEXED:
            # Columns: the state, velocities that are not clipped, and a zero for the padding.
            first_velocity = robot.observation_structure["qpos"]
            if scenario in _UNCLIPPED_VELOCITIES:
                self._velocities = robot.model.nv
            padding = self._state_size + self._velocities
            shape = (len(agents), max(self.observation_sizes))
            self._gather = np.full(shape, padding, dtype=np.int64)
            for agent, name in enumerate(agents):
                column = np.asarray(team.observation_factorization[name])
                if self._velocities:
                    moved = column + self._state_size - first_velocity
                    column = np.where(column >= first_velocity, moved, column)
                self._gather[agent, : len(column)] = column
        self._width = self._state_size + self._velocities + 1

    def _make_specs(self) -> None:
        device, agents = self.device, self.n_agents
        low, high = self._bounds
        self.observation_spec = Composite(
            agents=Composite(
                observation=Unbounded((agents, max(self.observation_sizes)), device=device),
                shape=(agents,),
                device=device,
            ),
            state=Unbounded((self._state_size,), device=device),
            step=Unbounded((1,), dtype=torch.int64, device=device),
            device=device,
        ).expand(self.batch_size)
        action = Bounded(low, high, shape=(agents, max(self.action_sizes)), device=device)
        self.action_spec = Composite(
            agents=Composite(action=action, shape=(agents,), device=device), device=device
        ).expand(self.batch_size)
        self.reward_spec = Composite(reward=Unbounded((1,), device=device), device=device).expand(
            self.batch_size
        )
        flag = Categorical(2, shape=(1,), dtype=torch.bool, device=device)
        self.done_spec = Composite(
            {name: flag.clone() for name in ("done", "terminated", "truncated")}, device=device
        ).expand(self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        from gymnasium.utils import seeding

        words = np.random.SeedSequence(0 if seed is None else seed)
        self._seeds = [int(w) for w in words.generate_state(len(self._simulators))]
        for simulator, own in zip(self._simulators, self._seeds, strict=True):
            simulator.np_random = seeding.np_random(own)[0]

    def _observe(self, index: int, state: np.ndarray) -> None:
        """Takes the state of one simulator, and what of it is needed beside that."""
        data = self._simulators[index].data
        row = self._features[index]
        row[: self._state_size] = state
        if self._velocities:
            row[self._state_size : -1] = data.qvel
        if self._local is not None:
            for agent, values in enumerate(self._build_observations(data)):
                self._local[index, agent, : len(values)] = values

    def _build_observations(self, data: Any) -> list[np.ndarray]:
        """gymnasium-robotics' own function of each agent's observation."""
        from gymnasium_robotics.envs.multiagent_mujoco.obsk import build_obs

        team = self._team
        return [
            build_obs(
                data, near, team.local_categories, team.mujoco_globals, team.global_categories
            )
            for near in team.k_dicts
        ]

    def _write(self) -> TensorDict:
        """The current step, in tensors of their own."""
        if self._local is not None:
            observation = self._local.copy()
        else:
            observation = self._features[:, self._gather]  # [E, N, d_o]
        truncated = self._steps >= self._max_steps
        agents = TensorDict(
            {"observation": torch.from_numpy(observation)}, batch_size=observation.shape[:2]
        )
        out = TensorDict(
            {
                "agents": agents,
                "state": torch.from_numpy(self._features[:, : self._state_size].copy()),
                "step": torch.from_numpy(self._steps.copy()),
                "terminated": torch.from_numpy(self._terminated.copy()),
                "truncated": torch.from_numpy(truncated),
                "done": torch.from_numpy(self._terminated | truncated),
            },
            batch_size=self.batch_size,
        )
        return out.to(self.device) if self.device is not None else out

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDict:
        reset = None if tensordict is None else tensordict.get("_reset", None)
        if reset is None:
            indices = range(len(self._simulators))
        else:
            indices = reset.reshape(-1).nonzero().flatten().tolist()
        for index in indices:
            state, _ = self._simulators[index].reset()
            self._steps[index] = 0
            self._terminated[index] = False
            self._observe(index, state)
        return self._write()

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = tensordict.get(("agents", "action")).detach().cpu().numpy()  # [E, N, d_a]
        # In double precision, in which the simulator computes the cost of control.
        control = action.reshape(len(action), -1)[:, self._driver].astype(np.float64)
        if not np.isfinite(control).all():
            # MuJoCo would write a file and go on from another state.
            wrong = np.nonzero(~np.isfinite(control).all(-1))[0].tolist()
            raise ValueError(
                f"('agents', 'action') must be finite; it is not in simulators {wrong}."
            )
        reward = np.empty((len(action), 1), dtype=np.float32)
        for index, simulator in enumerate(self._simulators):
            state, reward[index], self._terminated[index], _, _ = simulator.step(control[index])
            self._observe(index, state)
        self._steps += 1
        out = self._write()
        return out.set("reward", torch.from_numpy(reward).to(out.device or "cpu"))

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulators."""
        self._simulators = []
        super().close(raise_if_closed=raise_if_closed)


def _build_team(scenario: str, configuration: str, agent_obsk: int) -> Any:
    """gymnasium-robotics' own environment, which knows the agents' joints."""
    require("mujoco", extra="mamujoco")
    mamujoco = require("gymnasium_robotics", extra="mamujoco").mamujoco_v1
    robot = None
    if scenario.startswith("ManySegment"):
        robot = _build_many_segments(scenario, configuration)
    return mamujoco.parallel_env(
        scenario, configuration, agent_obsk=agent_obsk, gym_env=robot, render_mode=None
    )


def _build_many_segments(scenario: str, configuration: str) -> Any:
    """The robot with that many segments.

    gymnasium-robotics writes its description into its own folder, where it may not be allowed to
    write, and where processes that do the same would delete each other's.
    """
    import gymnasium

    agents, segments = configuration.split("x")
    kind = scenario.removeprefix("ManySegment").lower()
    folder = "gymnasium_robotics.envs.multiagent_mujoco"
    description = require(f"{folder}.many_segment_{kind}", extra="mamujoco")
    with tempfile.TemporaryDirectory() as temporary:
        path = str(pathlib.Path(temporary) / "robot.xml")
        description.gen_asset(n_segs=int(agents) * int(segments), asset_path=path)
        return gymnasium.make(f"{kind.capitalize()}-v5", xml_file=path)


def available_tasks() -> list[str]:
    """Names of the MaMuJoCo tasks, as :func:`torchrl_logo.envs.make_env` takes them.

    Robots with many segments are listed in one size; any other works too.

    Examples:
        >>> available_tasks()[:2]
        ['mamujoco/halfcheetah_2x3', 'mamujoco/halfcheetah_6x1']
    """
    both = [*_ROBOTS.items(), *_MANY_SEGMENTS.items()]
    return [f"{TASK_PREFIX}/{robot}_{split}" for robot, (_, splits) in both for split in splits]


def build_env(
    name: str,
    *,
    num_envs: int = 1,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> MaMuJoCoTeamEnv:
    """Builds the environment of a MaMuJoCo task, in which agents see joints next to their own.

    Args:
        name (str): ``"<robot>_<split>"``, without the ``mamujoco/`` prefix, for instance
            ``"halfcheetah_6x1"``. ``"swimmer_<agents>x<segments>"`` is the swimmer with many
            segments, except for ``"swimmer_2x1"``, the common one.

    Keyword Args:
        num_envs (int): number of simulators that run as one batch.
        device (torch.device or str): where tensors are written; the simulators run on the CPU.
        seed (int, optional): seed of the simulators' random states.

    Raises:
        ValueError: if there is no such robot, or it is not split like that; names the nearest
            tasks and all there are.
        ImportError: if MuJoCo or gymnasium-robotics is not installed; names the extra.

    Examples:
        >>> build_env("hopper_3x1", num_envs=4, seed=1).batch_size  # doctest: +SKIP
        torch.Size([4])
    """
    robot, _, split = name.partition("_")
    scenario, splits = _ROBOTS.get(robot, ("", ()))
    if split not in splits:
        scenario, _ = _MANY_SEGMENTS.get(robot, ("", ()))
        if not scenario or not _SEGMENTS.fullmatch(split):
            tasks = available_tasks()
            near = difflib.get_close_matches(f"{TASK_PREFIX}/{name}", tasks, n=3, cutoff=0.3)
            any_size = " and ".join(f"{r}_<agents>x<segments>" for r in _MANY_SEGMENTS)
            raise ValueError(
                f"MaMuJoCo has no task {name!r}. Nearest: {', '.join(near)}. "
                f"All: {', '.join(tasks)}, and {any_size} of any size."
            )
    return MaMuJoCoTeamEnv(
        scenario,
        split,
        num_envs=num_envs,
        seed=seed,
        device=device,
        task=f"{TASK_PREFIX}/{name}",
    )
