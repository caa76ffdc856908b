"""A task that needs memory: what pays at the end was shown at the beginning.

Each agent sees one of two cues in its first step, and nothing but the time from then on. It may
only wait until the last step, at which the team gets 1 if each agent plays its cue, and 0 if not.
Whoever acts on the last observation alone is right in one of four episodes.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict

from torchrl_logo.data import OfflineDataset, TaskSpec

STEPS, N = 5, 2
WAIT = 2
SPEC = TaskSpec(n_agents=N, observation_size=3, state_size=1, action_size=3, discrete=True)


def make_cues() -> torch.Tensor:
    """All combinations of the agents' cues, ``[4, N]``."""
    return torch.cartesian_prod(torch.arange(2), torch.arange(2))


def make_episodes(cues: torch.Tensor, last_actions: torch.Tensor) -> TensorDict:
    """Episodes ``[E, T]`` in the package's layout, of cues and last actions ``[E, N]``."""
    count = len(cues)
    observation = torch.zeros(count, STEPS + 1, N, 3)
    observation[:, 0, :, :2] = torch.nn.functional.one_hot(cues, 2).float()
    observation[..., 2] = (torch.arange(STEPS + 1) / STEPS)[:, None]
    mask = torch.zeros(count, STEPS + 1, N, 3, dtype=torch.bool)
    mask[..., WAIT] = True
    mask[:, STEPS - 1] = torch.tensor([True, True, False])
    action = torch.full((count, STEPS, N), WAIT)
    action[:, -1] = last_actions
    state = (torch.arange(STEPS + 1) / STEPS).expand(count, -1).unsqueeze(-1)
    last = torch.arange(STEPS).expand(count, -1).unsqueeze(-1) == STEPS - 1
    paid = (last_actions == cues).all(-1)[:, None, None] & last
    return TensorDict(
        {
            "agents": {
                "observation": observation[:, :-1],
                "action": action,
                "action_mask": mask[:, :-1],
            },
            "state": state[:, :-1],
            "episode": torch.arange(count).unsqueeze(-1).expand(-1, STEPS),
            "step": torch.arange(STEPS).expand(count, -1),
            "next": {
                "agents": {"observation": observation[:, 1:], "action_mask": mask[:, 1:]},
                "state": state[:, 1:],
                "reward": paid.float(),
                "done": last,
                "terminated": last,
                "truncated": torch.zeros_like(last),
            },
        },
        [count, STEPS],
    )


def make_dataset(*, skilled: bool, episodes: int = 256) -> OfflineDataset:
    """Episodes of a team that plays the cues, or of one that plays anything at the end."""
    generator = torch.Generator().manual_seed(0)
    cues, anything = (torch.randint(2, (episodes, N), generator=generator) for _ in range(2))
    data = make_episodes(cues, cues if skilled else anything)
    return OfflineDataset.from_transitions(data.flatten(0, 1), SPEC)


def make_test() -> TensorDict:
    """One episode ``[4, T]`` of each combination of cues."""
    cues = make_cues()
    episodes = make_episodes(cues, cues)
    return episodes.set("is_init", episodes["step"].unsqueeze(-1) == 0)
