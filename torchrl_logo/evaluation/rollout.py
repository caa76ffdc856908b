"""Runs a final policy in a real environment and scores it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import (
    Compose,
    EnvBase,
    ExplorationType,
    InitTracker,
    TransformedEnv,
    set_exploration_type,
)
from torchrl.modules.utils import get_primers_from_module

from torchrl_logo.argument_checks import require_positive_integers, require_seed, require_type
from torchrl_logo.evaluation.statistics import bootstrap_interval

if TYPE_CHECKING:
    from torchrl_logo.data.reference_returns import ReferenceReturns

__all__ = ["Evaluation", "carry_states", "evaluate"]

# Steps after which an environment that does not say how long its episodes are is given up.
_DEFAULT_MAX_STEPS = 10_000
_WON = "battle_won"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Returns of whole episodes of one policy.

    Attributes:
        returns: undiscounted team return of each episode, ``[episodes]`` f32, on CPU.
        lengths: steps of each episode, ``[episodes]`` i64, on CPU.
        reference: returns of the task's random and expert policies, if they are known.
        task: name of the task, if it has one.
        won: whether each episode was won, ``[episodes]`` bool, on CPU, if the environment says
            (SMAX and SMAC do).

    Examples:
        >>> from torchrl_logo.data.reference_returns import ReferenceReturns
        >>> evaluation = Evaluation(
        ...     returns=torch.tensor([10.0, 30.0]),
        ...     lengths=torch.tensor([100, 100]),
        ...     reference=ReferenceReturns(random=0.0, expert=40.0),
        ... )
        >>> evaluation.mean, evaluation.normalized
        (20.0, 50.0)
        >>> evaluation.normalized_returns
        tensor([25., 75.])
    """

    returns: torch.Tensor
    lengths: torch.Tensor
    reference: ReferenceReturns | None = None
    task: str | None = None
    won: torch.Tensor | None = None

    @cached_property
    def win_rate(self) -> float | None:
        """Share of the episodes that were won, if the environment says."""
        return None if self.won is None else float(self.won.float().mean())

    @cached_property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @cached_property
    def normalized(self) -> float | None:
        """Mean score, ``100 * (R - R_random) / (R_expert - R_random)``, if both are known."""
        return None if self.reference is None else self.reference.normalize(self.mean)

    @cached_property
    def normalized_returns(self) -> torch.Tensor | None:
        """Score of each episode, ``[episodes]``, if the task has reference returns."""
        return None if self.reference is None else self.reference.normalize(self.returns)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% bootstrap interval of the mean return over the episodes (of this one policy).

        It says nothing about other training seeds: for those see
        :func:`~torchrl_logo.evaluation.summarize`.

        Raises:
            ValueError: if there is only one episode, or a return is not finite.
        """
        return bootstrap_interval(self.returns.numpy())

    @cached_property
    def normalized_interval(self) -> tuple[float, float] | None:
        """:attr:`interval` in normalised scores, if the task has reference returns."""
        if self.reference is None:
            return None
        low, high = (self.reference.normalize(end) for end in self.interval)
        return low, high


def evaluate(
    policy: Callable[[TensorDictBase], TensorDictBase],
    task_or_env: str | EnvBase,
    *,
    episodes: int = 64,
    seed: int = 0,
    reference: ReferenceReturns | None = None,
    max_steps: int | None = None,
) -> Evaluation:
    """Runs a policy for whole episodes, deterministically and without gradients.

    All episodes run as one batch of simulations (in several rounds if the environment has fewer
    simulations than ``episodes``). The first episode of each simulation counts and nothing after
    it, so that short episodes are not over-represented.

    A policy with memory (:func:`~torchrl_logo.modules.make_recurrent_gaussian_actor`, or any
    module whose primers TorchRL finds) starts each episode without memories: what marks first
    steps and carries its states is added to the environment, where it has neither.

    Evaluating does not perturb training: the random state of the process and the policy's (and
    its submodules') training mode are put back afterwards. With the same seed, the policy meets
    the same start states, if the environment is deterministic given its seed.

    Args:
        policy (callable): reads observations from a TensorDict and writes actions to it, as
            TorchRL's policies do. Modules run in ``eval()`` mode.
        task_or_env (str or EnvBase): a name that :func:`torchrl_logo.envs.make_env` takes (the
            simulations then run on the policy's device), or an environment with a team reward
            ``"reward"`` ``[*, 1]``, which is reset and left at some state.

    Keyword Args:
        episodes (int): number of episodes. Defaults to ``64``.
        seed (int): of the environment. Defaults to ``0``.
        reference (ReferenceReturns, optional): constants of the normalised score. Defaults to
            those that the package has for the task.
        max_steps (int, optional): longest episode. Defaults to twice the environment's
            ``max_steps``, or to 10,000 if it has no such attribute.

    Raises:
        ValueError: if ``episodes`` is not positive, or the environment has no team reward.
        RuntimeError: if an episode does not end within ``max_steps``.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> def stand_still(tensordict):
        ...     action = torch.zeros(*tensordict.shape, 4, 2)
        ...     return tensordict.set(("agents", "action"), action)
        >>> evaluation = evaluate(stand_still, "vmas/transport", episodes=4)
        >>> evaluation.lengths
        tensor([200, 200, 200, 200])
    """
    if isinstance(policy, type):
        raise TypeError(
            f"policy must act on a TensorDict, found the class {policy.__name__}: pass a policy "
            "that was made of it."
        )
    if not callable(policy):
        raise TypeError(
            f"policy must act on a TensorDict, found {policy!r} ({type(policy).__name__}): pass a "
            "trained policy, or TrainedPolicy.load(path)."
        )
    require_type(task_or_env, (str, EnvBase), "task_or_env", "torchrl_logo.envs.make_env")
    require_positive_integers(episodes=episodes)
    require_seed(seed)
    policy_device = _find_device(policy)
    with _keep_random_state(policy_device, task_or_env):
        if isinstance(task_or_env, str):
            from torchrl_logo.envs import make_env

            env = make_env(task_or_env, num_envs=episodes, device=policy_device, seed=seed)
        else:
            env = task_or_env
        try:
            _require_team_reward(env)
            tells_wins = _WON in env.observation_spec.keys(True, True)
            limit = _find_limit(env, max_steps)
            rounds = -(-episodes // env.batch_size.numel())
            env.set_seed(seed)
            torch.manual_seed(seed)
            remembering = carry_states(env, policy)
            with (
                torch.no_grad(),
                set_exploration_type(ExplorationType.DETERMINISTIC),
                _evaluation_mode(policy),
            ):
                runs = [_run_episodes(remembering, policy, limit) for _ in range(rounds)]
        finally:
            if isinstance(task_or_env, str):
                env.close()
    task = task_or_env if isinstance(task_or_env, str) else getattr(env, "task", None)
    if reference is None and isinstance(task, str):
        from torchrl_logo.data.reference_returns import reference_returns

        reference = reference_returns(task)
    return Evaluation(
        returns=torch.cat([returns for returns, _, _ in runs])[:episodes].cpu(),
        lengths=torch.cat([lengths for _, lengths, _ in runs])[:episodes].cpu(),
        reference=reference,
        task=task,
        won=torch.cat([won for _, _, won in runs])[:episodes].cpu() if tells_wins else None,
    )


def _run_episodes(
    env: EnvBase, policy: Callable[[TensorDictBase], TensorDictBase], limit: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns, lengths and victories, ``[E]``, of the first episode of each simulation."""
    simulations = env.batch_size.numel()
    tensordict = env.reset()
    running = torch.ones(simulations, dtype=torch.bool, device=tensordict["done"].device)
    returns = torch.zeros(simulations, device=running.device)
    lengths = torch.zeros(simulations, dtype=torch.int64, device=running.device)
    won = torch.zeros_like(running)
    for _ in range(limit):
        # Simulations that are done go on with another episode, which does not count.
        stepped, tensordict = env.step_and_maybe_reset(policy(tensordict))
        reward = stepped["next", "reward"].reshape(simulations)
        returns += torch.where(running, reward, 0.0)
        lengths += running
        victory = stepped["next"].get(_WON, None)
        if victory is not None:
            won |= running & victory.reshape(simulations)
        running &= ~stepped["next", "done"].reshape(simulations)
        if not running.any():
            return returns, lengths, won
    raise RuntimeError(
        f"{int(running.sum())} of {simulations} episodes did not end within {limit} steps: the "
        "environment must terminate or truncate them, or evaluate needs a larger max_steps."
    )


def carry_states(env: EnvBase, policy: object) -> EnvBase:
    """The environment with the states of a policy with memory, or as it is without one.

    Args:
        env (EnvBase): is not changed.
        policy (callable): a module, whose primers TorchRL finds, or anything else.
    """
    if not isinstance(policy, nn.Module):
        return env
    primers = get_primers_from_module(policy, warn=False)
    if primers is None:
        return env
    # what the environment has already is not added twice; nothing is added to it itself
    found = set(env.observation_spec.keys(True, True))
    added = TransformedEnv(env, auto_unwrap=False)
    if "is_init" not in found:
        added.append_transform(InitTracker())
    for primer in primers if isinstance(primers, Compose) else [primers]:
        if not found.intersection(primer.primers.keys(True, True)):
            added.append_transform(primer.clone())
    return added


def _require_team_reward(env: EnvBase) -> None:
    keys = env.reward_keys
    expected = torch.Size([*env.batch_size, 1])
    if "reward" not in keys or env.full_reward_spec["reward"].shape != expected:
        found = {key: list(env.full_reward_spec[key].shape) for key in keys}
        raise ValueError(
            f"evaluate needs a team reward, key 'reward' of shape {list(expected)}; the "
            f"environment has {found}."
        )


def _find_limit(env: EnvBase, max_steps: int | None) -> int:
    if max_steps is None:
        own = getattr(env, "max_steps", None)
        # Simulators differ in whether the reset or the last step counts.
        return _DEFAULT_MAX_STEPS if own is None else 2 * int(own)
    if max_steps < 1:
        raise ValueError(f"max_steps must be positive, found {max_steps!r}.")
    return max_steps


def _find_device(policy: object) -> torch.device:
    if isinstance(policy, nn.Module):
        for tensor in (*policy.parameters(), *policy.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def _keep_random_state(device: torch.device, task_or_env: str | EnvBase) -> Iterator[None]:
    """Puts back the random state of the process, and of the devices that are used."""
    devices = {device}
    if not isinstance(task_or_env, str) and task_or_env.device is not None:
        devices.add(torch.device(task_or_env.device))
    cuda = [d for d in devices if d.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        yield


@contextlib.contextmanager
def _evaluation_mode(policy: object) -> Iterator[None]:
    modules = list(policy.modules()) if isinstance(policy, nn.Module) else []
    modes = [module.training for module in modules]
    if isinstance(policy, nn.Module):
        policy.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
