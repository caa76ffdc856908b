"""Collects offline datasets: whole episodes of behaviour policies in an environment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import Categorical
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from torchrl_logo.argument_checks import (
    MissingKeyError,
    require_positive_integers,
    require_seed,
    require_type,
)
from torchrl_logo.data.dataset import OfflineDataset, require_absent
from torchrl_logo.data.reference_returns import reference_returns
from torchrl_logo.data.task_spec import TaskSpec
from torchrl_logo.data.validation import count_row_bytes, layout_shapes
from torchrl_logo.whole_files import require_room

__all__ = ["Policy", "collect"]

#: What acts: reads a step's TensorDict and writes ``("agents", "action")`` into it.
Policy = Callable[[TensorDictBase], TensorDictBase]


def collect(
    env: EnvBase,
    policy: Policy | None | Sequence[tuple[Policy | None, float]],
    frames: int,
    *,
    quality: str | None = None,
    seed: int | None = None,
    root: str | Path | None = None,
    max_steps: int | None = None,
    provenance: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Collects whole episodes in an environment of the package's layout.

    All simulations of the environment are reset together and run until each has finished its
    first episode, then reset again. Simulations that finish early wait for the others instead of
    starting over, so that short episodes are not over-represented. Episodes are taken in the
    order of the simulations until there are ``frames`` transitions or more. Policies act
    stochastically (:attr:`~torchrl.envs.ExplorationType.RANDOM`).

    Only the layout's keys are kept. ``("next", ...)`` is the true next step at episode ends, and
    an episode's last row has ``done`` set.

    Args:
        env (EnvBase): for instance from :func:`torchrl_logo.envs.make_env`; the larger its
            batch, the faster.
        policy (callable, None, or sequence): as :meth:`~torchrl.envs.EnvBase.rollout` takes
            it: a TensorDict module, or a function of one argument named ``tensordict``.
            ``None`` takes uniformly random (available) actions. A sequence of
            ``(policy, share)`` pairs collects that share of ``frames`` with each policy, in
            their order; shares are relative.
        frames (int): transitions to collect, rounded up to whole episodes (of each policy).

    Keyword Args:
        quality (str, optional): how good the behaviour is, for the metadata.
        seed (int, optional): with the same seed, the same policies and an environment that is
            deterministic given its seed, the data (and their hash) are the same. The random
            state of the process is left as it was. Defaults to none: the environment goes on
            from its current random state, and policies draw from the process' one.
        root (str or Path, optional): folder to save the dataset in, which must not exist.
            Defaults to temporary files that end with the process.
        max_steps (int, optional): longest episode; needed if the environment has no
            ``max_steps`` attribute. An episode that is still running then is truncated.
        provenance (dict, optional): further facts for the metadata.
        batch_size (int, optional): transitions in a sample.
        device (torch.device or str): where the dataset lies. Defaults to ``"cpu"``.

    Raises:
        ValueError: if ``frames`` or a share is not positive, or the longest episode is unknown.
        KeyError: if the environment lacks a key of the layout.
        DatasetError: if the collected data break the layout (see
            :func:`~torchrl_logo.data.validate_layout`).
        FileExistsError: if ``root`` exists.
        OSError: if the disk is full or read-only, mostly before anything is collected.

    Examples:
        >>> from torchrl_logo.envs import make_env
        >>> env = make_env("vmas/transport", num_envs=4)
        >>> dataset = collect(env, None, 500, quality="random", seed=0)
        >>> len(dataset), dataset.metadata.episodes  # 500 rounded up to 3 episodes of 200 steps
        (600, 3)
        >>> dataset.metadata.hash == collect(env, None, 500, seed=0).metadata.hash
        True
    """
    require_type(env, EnvBase, "env", "torchrl_logo.envs.make_env")
    require_positive_integers(frames=frames)
    if seed is not None:
        require_seed(seed)
    if root is not None:
        require_absent(Path(root))
    if isinstance(policy, str):
        raise TypeError(
            f"policy must act on a TensorDict, found the name {policy!r}: pass "
            "load_behaviour_policy(task, name) for a shipped policy, None for random actions."
        )
    mixture = list(policy) if isinstance(policy, Sequence) else [(policy, 1.0)]
    shares = [share for _, share in mixture]
    if not mixture or min(shares) <= 0:
        raise ValueError(f"collect needs policies with positive shares, found shares {shares}.")
    limit = max_steps if max_steps is not None else getattr(env, "max_steps", None)
    if limit is None:
        raise ValueError("The environment has no max_steps attribute: pass collect(max_steps=...).")
    spec = TaskSpec.from_env(env)
    if root is not None:
        require_room("the dataset", root, frames * count_row_bytes(spec))

    parts: list[TensorDictBase] = []
    episodes = 0
    with _seeded(env, seed), torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        for actor, share in mixture:
            missing = frames * share / sum(shares)
            while missing > 0:
                act = _RandomPolicy(env) if actor is None else actor
                part = _run_round(env, act, missing, limit, spec)
                part["episode"] += episodes
                episodes = int(part["episode"][-1]) + 1
                missing -= len(part)
                parts.append(part)
    data = torch.cat(parts)
    if provenance is None:
        provenance = {}
    record = {
        "source": "collection",
        "seed": seed,
        "num_envs": env.batch_size.numel(),
        "policies": [
            {"policy": "random" if p is None else type(p).__name__, "share": s / sum(shares)}
            for p, s in mixture
        ],
    }
    return OfflineDataset.from_transitions(
        data,
        spec,
        quality=quality,
        reference_returns=None if spec.task is None else reference_returns(spec.task),
        provenance={**record, **provenance},
        root=root,
        batch_size=batch_size,
        device=device,
    )


class _RandomPolicy:
    """Draws uniformly among the (available) actions."""

    def __init__(self, env: EnvBase) -> None:
        self.spec = env.full_action_spec["agents", "action"]

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        mask = tensordict.get(("agents", "action_mask"), None)
        if mask is None or not isinstance(self.spec, Categorical):
            action = self.spec.rand()
        else:
            draw = mask.flatten(0, -2).float().multinomial(1)
            action = draw.squeeze(-1).reshape(mask.shape[:-1])
        return tensordict.set(("agents", "action"), action)


@contextlib.contextmanager
def _seeded(env: EnvBase, seed: int | None) -> Iterator[None]:
    """Seeds the environment and the process, whose random state is put back afterwards."""
    if seed is None:
        yield
        return
    device = torch.device(env.device or "cpu")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        env.set_seed(seed)
        torch.manual_seed(seed)
        yield


def _run_round(
    env: EnvBase, policy: Policy, frames: float, limit: int, spec: TaskSpec
) -> TensorDictBase:
    """One episode a simulation, of which the first ones that make up ``frames``: ``[B]``."""
    rollout = env.rollout(limit, policy, break_when_any_done=False, break_when_all_done=True)
    keys = [k for k in layout_shapes(spec) if k not in ("episode", "step")]
    lacking = [k for k in keys if rollout.get(k, None) is None]
    if lacking:
        raise MissingKeyError(f"The environment's rollouts lack {lacking}.")
    rollout = rollout.select(*keys).cpu()
    rollout = rollout.reshape(-1, rollout.shape[-1])  # [E, T]
    done = rollout["next", "done"].squeeze(-1)
    ends = done.any(-1)  # [E]
    steps = rollout.shape[-1]
    length = torch.where(ends, done.long().argmax(-1) + 1, steps)  # [E], of the first episode
    # An episode that still runs is cut here, and marked so.
    for name in ("truncated", "done"):
        rollout["next", name][:, -1] |= ~ends.unsqueeze(-1)
    wanted = length.cumsum(0) - length < frames  # [E]: before it there are not enough
    step = torch.arange(steps).expand(rollout.shape)
    taken = (step < length.unsqueeze(-1)) & wanted.unsqueeze(-1)  # [E, T]
    part = rollout[taken]  # [B], episode by episode
    part["step"] = step[taken]
    part["episode"] = torch.arange(len(length)).unsqueeze(-1).expand(rollout.shape)[taken]
    return part
