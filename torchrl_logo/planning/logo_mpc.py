"""Model-predictive control of a team, guided by its policy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import ExplorationType
from torchrl.envs.utils import exploration_type
from torchrl.modules import MPCPlannerBase

from torchrl_logo.argument_checks import MissingKeyError
from torchrl_logo.envs.imagined import ImaginedEnv
from torchrl_logo.modules.accumulated_uncertainty import recover_step_uncertainty
from torchrl_logo.planning.candidates import (
    CategoricalCandidates,
    GaussianCandidates,
    Guide,
)
from torchrl_logo.planning.horizon_value import HorizonValue

__all__ = ["LOGOMPC", "Plan"]


class Plan(NamedTuple):
    """What a planner decided.

    Attributes:
        action: the joint action to take, ``[*, N, d_a]`` or ``[*, N]``.
        score: score of the best candidate, ``[*, 1]``.
        uncertainty: the model's uncertainty summed along the best candidate, ``[*, 1]``.
        planned: whether the action is the plan's and not the fallback's, ``[*, 1]`` bool.
    """

    action: torch.Tensor
    score: torch.Tensor
    uncertainty: torch.Tensor
    planned: torch.Tensor


class LOGOMPC(MPCPlannerBase):
    r"""Searches the world model for a better joint action than the policy's, at each real step.

    From the current state, ``num_candidates`` rollouts of ``planning_horizon`` steps are imagined:
    by the policy, by draws from it, and with noise around it. The best ``num_elites`` of all so
    far are kept and new candidates are drawn around them, ``iterations`` times in all (the
    cross-entropy method; with a ``temperature``, elites weigh by their scores, as in MPPI). The
    score of a candidate is

    .. math::

        \sum_{t<T} \gamma^t r_t + \gamma^T Q(s_T, \pi(o_T)) - \lambda \sum_{t<T} u_t

    where sums stop at a predicted termination, beyond which there is no value either; without a
    ``value_network`` there is no value at all. What is taken is the first joint action of the best
    candidate, and, on a tie, the policy's own: its deterministic rollout is the first candidate.
    How candidates are made is in :class:`~torchrl_logo.planning.GaussianCandidates` and
    :class:`~torchrl_logo.planning.CategoricalCandidates`.

    Reads ``("agents", "observation")`` ``[*, N, d_o]``, ``"state"`` ``[*, d_s]`` and, for discrete
    actions, ``("agents", "action_mask")`` ``[*, N, A]``; writes ``("agents", "action")``. All
    environments and candidates are imagined in one batch; nothing waits for the device.

    Planning reads the global state, which decentralised agents may lack. Then they act by
    ``fallback``, on their own observations: all of them where ``"state"`` is missing, and in single
    rows where the state, or every candidate's future, is not finite, or where the best candidate
    is more uncertain than ``max_uncertainty``.

    Under deterministic exploration the noise is the same in each row and at each call, drawn from
    ``seed`` once: the planner is a function of what it reads. Otherwise it comes from PyTorch's
    global generator. No gradient is recorded.

    Args:
        env (ImaginedEnv): the world model's environment, made with ``batch_size=()``; its horizon
            must reach ``planning_horizon``.
        policy (TensorDictModuleBase): guides the search; reads observations and masks, and writes
            the joint action. Without memory.

    Keyword Args:
        planning_horizon (int): steps that are imagined, ``T``. Defaults to ``5``.
        num_candidates (int): rollouts in each iteration. Defaults to ``64``.
        num_elites (int): candidates that the next iteration is drawn around. Defaults to ``8``.
        iterations (int): Defaults to ``3``.
        gamma (float): discount, :math:`\gamma`. Defaults to ``0.99``.
        uncertainty_penalty (float): :math:`\lambda`, in units of reward by uncertainty. Defaults
            to ``0.0``.
        value_network (TensorDictModuleBase, optional): a centralised critic that writes
            ``"state_action_value"`` ``[*, 1]``, or, with ``mixer_network``, a network of the
            agents' utilities.
        mixer_network (TensorDictModuleBase, optional): mixes utilities into the team's value.
        value_key (NestedKey, optional): where the value is written, if not by the names of
            :class:`~torchrl_logo.planning.HorizonValue`.
        reward_scale (float): what rewards were multiplied by when the critic was trained, by which
            its values are divided. :class:`~torchrl_logo.trainers.OfflineTrainer` scales rewards,
            unless told otherwise. Defaults to ``1.0``.
        temperature (float, optional): elites weigh :math:`\propto \exp(score / temperature)`.
            Defaults to ``None``: all elites weigh the same.
        execute (str): ``"best"``, or ``"mean"`` for the weighted mean of the elites' first
            actions (continuous actions only). Defaults to ``"best"``.
        policy_share (float): continuous actions: share of first candidates that are draws from
            the policy, the others being its action with noise. Defaults to ``0.5``.
        noise_scale (float): continuous: standard deviation of that noise in halves of the
            action's range; discrete: share of uniformly drawn actions. Defaults to ``0.3``.
        min_std (float): continuous: least standard deviation around elites, in the same unit.
            Defaults to ``0.05``.
        elite_share (float): discrete: share of the elites' frequencies in what later candidates
            are drawn from. Defaults to ``0.7``.
        fallback (TensorDictModuleBase, optional): how agents act without a plan; must not read the
            state. Defaults to ``policy``.
        max_uncertainty (float, optional): above this sum of uncertainty along the best candidate,
            the fallback acts. Defaults to ``None``: no limit.
        seed (int): of the noise under deterministic exploration. Defaults to ``0``.

    Raises:
        TypeError: if ``env`` is not an :class:`~torchrl_logo.envs.ImaginedEnv`.
        ValueError: if a number is out of its range, the environment has a batch size or too short
            a horizon, or a module reads a key that is not there.

    Examples:
        >>> from torchrl_logo.data import TaskSpec
        >>> from torchrl_logo.modules import JointWorldModel, make_gaussian_actor
        >>> spec = TaskSpec(n_agents=2, observation_size=3, state_size=4, action_size=1,
        ...                 action_low=(-1.0,), action_high=(1.0,))
        >>> starts = TensorDict({"agents": {"observation": torch.zeros(10, 2, 3)},
        ...                      "state": torch.zeros(10, 4)}, batch_size=[10])
        >>> env = ImaginedEnv(JointWorldModel(spec, hidden_size=8), starts, batch_size=())
        >>> policy = make_gaussian_actor(spec, hidden_sizes=(8,))
        >>> planner = LOGOMPC(env, policy, planning_horizon=3, num_candidates=16)
        >>> planner(starts.clone())["agents", "action"].shape
        torch.Size([10, 2, 1])
    """

    def __init__(
        self,
        env: ImaginedEnv,
        policy: TensorDictModuleBase,
        *,
        planning_horizon: int = 5,
        num_candidates: int = 64,
        num_elites: int = 8,
        iterations: int = 3,
        gamma: float = 0.99,
        uncertainty_penalty: float = 0.0,
        value_network: TensorDictModuleBase | None = None,
        mixer_network: TensorDictModuleBase | None = None,
        value_key: NestedKey | None = None,
        reward_scale: float = 1.0,
        temperature: float | None = None,
        execute: str = "best",
        policy_share: float = 0.5,
        noise_scale: float = 0.3,
        min_std: float = 0.05,
        elite_share: float = 0.7,
        fallback: TensorDictModuleBase | None = None,
        max_uncertainty: float | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(env, ImaginedEnv):
            raise TypeError(f"env must be an ImaginedEnv, found {type(env).__name__}.")
        if env.batch_size:
            raise ValueError(
                "env must be made with batch_size=(), since environments times candidates are "
                f"imagined at once; found {tuple(env.batch_size)}."
            )
        counts = {
            "planning_horizon": planning_horizon,
            "num_candidates": num_candidates,
            "num_elites": num_elites,
            "iterations": iterations,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, found {count}.")
        if num_elites > num_candidates:
            raise ValueError(
                f"num_elites must not exceed num_candidates ({num_candidates}), found {num_elites}."
            )
        if env.horizon < planning_horizon:
            raise ValueError(
                f"The environment's horizon must reach planning_horizon ({planning_horizon}), "
                f"found {env.horizon}."
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie within (0, 1], found {gamma}.")
        if not 0 <= policy_share <= 1:
            raise ValueError(f"policy_share must lie within [0, 1], found {policy_share}.")
        for name, amount in (
            ("uncertainty_penalty", uncertainty_penalty),
            ("noise_scale", noise_scale),
            ("min_std", min_std),
        ):
            if not amount >= 0:
                raise ValueError(f"{name} must not be negative, found {amount}.")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature must be positive, found {temperature}.")
        model = env.world_model
        if execute not in ("best", "mean"):
            raise ValueError(f"execute must be 'best' or 'mean', found {execute!r}.")
        if execute == "mean" and model.spec.discrete:
            raise ValueError("execute='mean' needs continuous actions; the task's are discrete.")
        if mixer_network is not None and value_network is None:
            raise ValueError("mixer_network needs a value_network of the agents' utilities.")
        keys = model.tensor_keys
        local_keys = [keys.observation]
        if model.spec.discrete:
            local_keys.append(keys.action_mask)
        fallback = policy if fallback is None else fallback
        for name, module in (("policy", policy), ("fallback", fallback)):
            unknown = [key for key in module.in_keys if key not in local_keys]
            if unknown:
                raise ValueError(f"{name} must read only {local_keys}; it reads {unknown}.")
            if keys.action not in module.out_keys:
                raise ValueError(
                    f"{name} must write {keys.action!r}; it writes {list(module.out_keys)}."
                )
        super().__init__(env, action_key=keys.action)
        # The base class reads all that the environment observes: also the imagined step's index
        # and uncertainty, which no real environment has.
        self.in_keys = [*local_keys, keys.state]
        self.policy = policy
        self.fallback = fallback
        self.planning_horizon = planning_horizon
        self.num_candidates = num_candidates
        self.num_elites = num_elites
        self.iterations = iterations
        self.gamma = gamma
        self.uncertainty_penalty = uncertainty_penalty
        self.temperature = temperature
        self.execute = execute
        self.max_uncertainty = max_uncertainty
        self.horizon_value = (
            None
            if value_network is None
            else HorizonValue(
                value_network,
                model,
                mixer_network=mixer_network,
                value_key=value_key,
                reward_scale=reward_scale,
            )
        )
        self.candidates: GaussianCandidates | CategoricalCandidates
        if model.spec.discrete:
            self.candidates = CategoricalCandidates(
                policy, model, noise_scale=noise_scale, elite_share=elite_share
            )
        else:
            self.candidates = GaussianCandidates(
                policy,
                model,
                num_candidates=num_candidates,
                policy_share=policy_share,
                noise_scale=noise_scale,
                min_std=min_std,
            )
        # Drawn on the cpu, so that a seed means the same on every device.
        generator = torch.Generator().manual_seed(seed)
        noise = self._draw_noise(1, device=torch.device("cpu"), generator=generator)
        self.register_buffer("noise", noise.to(env.device), persistent=False)

    noise: torch.Tensor

    def _draw_noise(
        self, rows: int, *, device: torch.device, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Noise ``[I, T, rows, K, N, ...]``; none for candidate 0."""
        noise = self.candidates.draw_noise(
            (self.iterations, self.planning_horizon, rows, self.num_candidates),
            device=device,
            generator=generator,
        )
        noise[:, :, :, 0] = 0
        return noise

    def forward(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None
    ) -> TensorDictBase:
        """Writes the joint action.

        The base class's own method projects a tensor onto the environment's action spec, which is
        a composite where the action key is nested, and makes the host wait to see whether the
        action lies within it; here it does by construction.

        Raises:
            KeyError: if an observation or a mask is missing.
        """
        return self._write_to_tensordict(tensordict, (self.planning(tensordict),), tensordict_out)

    def planning(self, tensordict: TensorDictBase) -> torch.Tensor:
        """The joint action to take, ``[*, N, d_a]`` or ``[*, N]``: the plan's or the fallback's."""
        keys = self.env.world_model.tensor_keys
        for key in self.in_keys:
            if key != keys.state and tensordict.get(key, None) is None:
                raise MissingKeyError(
                    f"LOGOMPC reads {key!r}, which is missing; found "
                    f"{sorted(map(str, tensordict.keys(True, True)))}."
                )
        if tensordict.get(keys.state, None) is None:
            with torch.no_grad():
                return self._fall_back(tensordict)
        return self.plan(tensordict).action

    @torch.no_grad()
    def plan(self, tensordict: TensorDictBase) -> Plan:
        """Plans from the states in ``tensordict`` ``[*]``, which is not written to.

        Raises:
            KeyError: if the state, an observation or a mask is missing.
        """
        batch = tensordict.batch_size
        rows = batch.numel()
        if exploration_type() in (ExplorationType.DETERMINISTIC, ExplorationType.MODE):
            noise = self.noise
        else:
            noise = self._draw_noise(rows, device=self.env.device)
        start = self._make_start(tensordict, rows)
        actions, scores, uncertainty, usable = self._imagine(start, noise[0], None)
        for index in range(self.iterations):
            # Sorted stably, not by topk(): of equals, the first is the policy's own candidate.
            order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.num_elites]
            actions = _take(actions, order)
            scores, uncertainty = _take(scores, order), _take(uncertainty, order)
            usable = _take(usable, order)
            weights = self._weigh(scores, usable)
            if index + 1 < self.iterations:
                guide = self.candidates.refine(actions, weights)
                fresh = self._imagine(start, noise[index + 1], guide)
                # Elites stay in the race: the best score never falls.
                actions = torch.cat([actions, fresh[0]], 1)
                scores = torch.cat([scores, fresh[1]], 1)
                uncertainty = torch.cat([uncertainty, fresh[2]], 1)
                usable = torch.cat([usable, fresh[3]], 1)
        if self.execute == "mean":
            shape = (*weights.shape, *[1] * (actions.ndim - 3))
            action = (weights.reshape(shape) * actions[:, :, 0]).sum(1)
        else:
            action = actions[:, 0, 0]
        # A model may heed nothing of a state, but none of it may be missing.
        state = tensordict.get(self.env.world_model.tensor_keys.state)
        planned = usable[:, :1] & state.reshape(rows, -1).isfinite().all(-1, keepdim=True)  # [B, 1]
        if self.max_uncertainty is not None:
            planned = planned & (uncertainty[:, :1] <= self.max_uncertainty)
        action = action.reshape(*batch, *action.shape[1:])
        planned = planned.reshape(*batch, 1)
        choose = planned.reshape(*batch, *[1] * (action.ndim - len(batch)))
        return Plan(
            action=torch.where(choose, action, self._fall_back(tensordict)),
            score=scores[:, :1].reshape(*batch, 1),
            uncertainty=uncertainty[:, :1].reshape(*batch, 1),
            planned=planned,
        )

    def _fall_back(self, tensordict: TensorDictBase) -> torch.Tensor:
        keys = self.env.world_model.tensor_keys
        return self.fallback(tensordict.select(*self.fallback.in_keys)).get(keys.action)

    def _make_start(self, tensordict: TensorDictBase, rows: int) -> TensorDictBase:
        """The current states, once for each candidate, ``[B, K]``."""
        dims = tensordict.ndim
        start = TensorDict(batch_size=(rows, self.num_candidates), device=self.env.device)
        for key in self.in_keys:
            value = tensordict.get(key)
            value = value.reshape(rows, 1, *value.shape[dims:])
            start.set(key, value.expand(rows, self.num_candidates, *value.shape[2:]))
        # Not reset(), which looks at flags on the host.
        return self.env._reset(start, set_state=True)

    def _imagine(
        self, start: TensorDictBase, noise: torch.Tensor, guide: Guide | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Imagines and scores candidates.

        Args:
            start (TensorDictBase): ``[B, K]``.
            noise (torch.Tensor): ``[T, B or 1, K, N, ...]``.
            guide (tuple of Tensors, optional): what the elites so far suggest.

        Returns:
            Actions ``[B, K, T, N, ...]``, scores and summed uncertainty ``[B, K]``, and whether a
            candidate may be chosen ``[B, K]``.
        """
        env, keys = self.env, self.env.world_model.tensor_keys
        current = start
        zero = torch.zeros_like(start.get(keys.uncertainty))  # [B, K, 1]
        score, total, value = zero, zero, zero
        running = torch.ones_like(zero, dtype=torch.bool)
        usable = running
        actions = []
        for step in range(self.planning_horizon):
            action = self.candidates.propose(current, noise[step], guide, step)
            actions.append(action)
            # Not step(), which checks the step again and again.
            following = env._step(current.copy().set(keys.action, action))
            doubt = following.get(keys.uncertainty)
            if env.accumulate:
                doubt = recover_step_uncertainty(current.get(keys.uncertainty), doubt)
            gain = self.gamma**step * following.get(keys.reward)
            score = torch.where(running, score + gain, score)
            total = torch.where(running, total + doubt, total)
            # Truncated before its time: the future is not finite, or leaves an agent no action.
            broken = (
                following.get("truncated")
                & ~following.get("terminated")
                & (following.get("step") < env.horizon)
            )
            usable = usable & ~(running & broken)
            running = running & ~following.get("terminated") & ~broken
            current = following
        if self.horizon_value is not None:
            value = self.horizon_value(current, self.candidates.act(current))
            value = torch.where(running, self.gamma**self.planning_horizon * value, 0.0)
        score = score + value - self.uncertainty_penalty * total
        usable = usable & score.isfinite()
        # The least number and not infinity, so that differences of scores stay numbers.
        score = torch.where(usable, score, torch.finfo(score.dtype).min)
        return torch.stack(actions, 2), score.squeeze(-1), total.squeeze(-1), usable.squeeze(-1)

    def _weigh(self, scores: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
        """Weights ``[B, E]`` of the elites; all zero where none is usable."""
        weights = usable.to(scores.dtype)
        if self.temperature is not None:
            weights = weights * ((scores - scores[:, :1]) / self.temperature).exp()
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)


def _take(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows of ``[B, K, ...]`` by indices ``[B, E]``."""
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2))
    return values.gather(1, index.expand(*order.shape, *values.shape[2:]))
