"""Losses of mixed values in plain loops: the parts that they share, and data to try them on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from torchrl_logo.data import TaskSpec
from torchrl_logo.objectives.mixed_value import MixedValueLoss

ROWS, ACTIONS, EMBED = 7, 3, 4


def make_spec(n_agents: int) -> TaskSpec:
    return TaskSpec(
        n_agents=n_agents, observation_size=3, state_size=4, action_size=ACTIONS, discrete=True
    )


def make_batch(n_agents: int = 2, rows: int = ROWS) -> TensorDict:
    """Rows that go on, that are truncated and that are terminated; each agent can act."""
    torch.manual_seed(1)
    kind = torch.arange(rows).unsqueeze(-1) % 3

    def observe() -> dict[str, Any]:
        mask = torch.rand(rows, n_agents, ACTIONS) < 0.6
        mask.scatter_(-1, torch.randint(ACTIONS, (rows, n_agents, 1)), True)
        agents = {"observation": torch.randn(rows, n_agents, 3).double(), "action_mask": mask}
        return {"agents": agents, "state": torch.randn(rows, 4).double()}

    outcome = {"reward": torch.randn(rows, 1).double(), "done": kind > 0, "terminated": kind == 2}
    batch = TensorDict({**observe(), "next": {**observe(), **outcome}}, [rows])
    mask = batch["agents", "action_mask"]
    batch["agents", "action"] = (torch.rand(mask.shape) * mask).argmax(-1)
    return batch


def dense(weight: Tensor, bias: Tensor, x: list[float]) -> list[float]:
    rows = zip(weight.tolist(), bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in rows]


class Team:
    """The values of a team's actions, from the weights of its networks alone."""

    def __init__(self, utility_params: Any, mixer_params: Any) -> None:
        layers = {str(key): value for key, value in utility_params.items(True, True)}
        self.utility = [layers[key].detach() for key in sorted(layers)]
        self.mixer = {
            key[1:]: value.detach()
            for key, value in mixer_params.items(True, True)
            if value.numel()
        }

    def utilities(self, observation: Tensor) -> list[list[float]]:
        bias, weight, last_bias, last_weight = self.utility
        out = []
        for agent in observation.tolist():
            hidden = [max(h, 0.0) for h in dense(weight, bias, agent)]
            out.append(dense(last_weight, last_bias, hidden))
        return out

    def mix(self, values: list[float], state: Tensor) -> float:
        if not self.mixer:
            return sum(values)
        x = state.tolist()

        def layer(*name: str) -> list[float]:
            return dense(self.mixer[(*name, "weight")], self.mixer[(*name, "bias")], x)

        first, hidden = layer("hyper_w_1"), layer("hyper_b_1")
        for i, value in enumerate(values):
            for e in range(EMBED):
                hidden[e] += abs(first[i * EMBED + e]) * value
        hidden = [h if h > 0 else math.exp(h) - 1 for h in hidden]
        total = sum(abs(w) * h for w, h in zip(layer("hyper_w_final"), hidden, strict=True))
        offset = [max(h, 0.0) for h in layer("V", "0")]
        return (
            total + dense(self.mixer["V", "2", "weight"], self.mixer["V", "2", "bias"], offset)[0]
        )

    def total(self, row: TensorDict, action: Iterable[int]) -> float:
        values = self.utilities(row["agents", "observation"])
        return self.mix([values[i][a] for i, a in enumerate(action)], row["state"])


def available(row: TensorDict) -> list[list[int]]:
    """The available actions of each agent."""
    mask = row["agents", "action_mask"].tolist()
    return [[a for a, is_open in enumerate(agent) if is_open] for agent in mask]


def joint_actions(row: TensorDict) -> list[tuple[int, ...]]:
    return list(itertools.product(*available(row)))


def greedy(team: Team, row: TensorDict) -> list[int]:
    values = team.utilities(row["agents", "observation"])
    return [max(open_, key=values[i].__getitem__) for i, open_ in enumerate(available(row))]


def teams(loss: MixedValueLoss) -> tuple[Team, Team]:
    """The learning team and the delayed one."""
    return (
        Team(loss.action_value_network_params, loss.mixer_network_params),
        Team(loss.target_action_value_network_params, loss.target_mixer_network_params),
    )


def td_loss(team: Team, delayed: Team, row: TensorDict) -> float:
    following = row["next"]
    bootstrap = delayed.total(following, greedy(team, following))
    ended = float(following["terminated"])
    target = float(following["reward"]) + 0.99 * (1 - ended) * bootstrap
    return (team.total(row, row["agents", "action"].tolist()) - target) ** 2 / 2


def weighted_mean(values: list[float], batch: TensorDict, *, real: bool = False) -> float:
    """Over all rows, or over those that are not imagined."""
    weight = batch.get("priority_weight", torch.ones(len(batch))).tolist()
    if real and "imagined" in batch.keys():
        weight = [0.0 if row["imagined"] else w for w, row in zip(weight, batch, strict=True)]
    return sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)
