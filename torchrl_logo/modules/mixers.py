"""Mixers: the team's value from the values of the agents' chosen actions."""

from __future__ import annotations

import torch
from tensordict.nn import TensorDictModule
from torchrl.modules import QMixer, VDNMixer

from torchrl_logo.data.task_spec import TaskSpec

__all__ = ["make_mixer"]


def make_mixer(
    spec: TaskSpec,
    kind: str = "qmix",
    *,
    mixing_embed_dim: int = 32,
    device: torch.device | str | None = None,
) -> TensorDictModule:
    """Makes TorchRL's QMIX or VDN mixer in the package's layout.

    Both are monotonic in each agent's value, so that the agents' own best actions are the team's.

    Reads ``("agents", "chosen_action_value")`` ``[*, N, 1]`` and, for QMIX, ``"state"``
    ``[*, d_s]``; writes ``"chosen_action_value"`` ``[*, 1]``.

    Args:
        spec (TaskSpec): the task's sizes.
        kind (str): ``"qmix"`` (Rashid et al. 2018: a non-negative network whose weights come from
            the state) or ``"vdn"`` (Sunehag et al. 2018: the sum). Defaults to ``"qmix"``.

    Keyword Args:
        mixing_embed_dim (int): width of QMIX's hidden layer. Defaults to ``32``.
        device (torch.device, optional): where the parameters are made.

    Raises:
        ValueError: for another kind.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> spec = TaskSpec(n_agents=3, observation_size=4, state_size=6, action_size=5,
        ...                 discrete=True)
        >>> data = TensorDict({("agents", "chosen_action_value"): torch.ones(7, 3, 1),
        ...                    "state": torch.zeros(7, 6)}, [7])
        >>> make_mixer(spec)(data)["chosen_action_value"].shape
        torch.Size([7, 1])
        >>> make_mixer(spec, "vdn")(data)["chosen_action_value"][0]
        tensor([3.])
    """
    local_value = ("agents", "chosen_action_value")
    if kind == "qmix":
        mixer: QMixer | VDNMixer = QMixer(
            state_shape=torch.Size([spec.state_size]),
            mixing_embed_dim=mixing_embed_dim,
            n_agents=spec.n_agents,
            device=device,
        )
        in_keys = [local_value, "state"]
    elif kind == "vdn":
        mixer = VDNMixer(n_agents=spec.n_agents, device=device)
        in_keys = [local_value]
    else:
        raise ValueError(f"make_mixer expected kind 'qmix' or 'vdn', found {kind!r}.")
    return TensorDictModule(mixer, in_keys=in_keys, out_keys=["chosen_action_value"])
