"""The description of a task that components are held to."""

from __future__ import annotations

import json

import pytest
import torch
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded

from torchrl_logo.data import TaskSpec
from torchrl_logo.envs import make_env

SIZES = {"n_agents": 2, "observation_size": 3, "state_size": 4, "action_size": 2}
CONTINUOUS = TaskSpec(**SIZES, action_low=(-1.0, 0.0), action_high=(1.0, 2.0), task="a/b")
DISCRETE = TaskSpec(**SIZES, discrete=True, observation_sizes=(3, 1))


class Specs:
    """As much of an environment as :meth:`TaskSpec.from_env` reads."""

    batch_size = torch.Size([5])

    def __init__(self, action: object, drop: str = "") -> None:
        agents = Composite(observation=Unbounded((5, 2, 3)), shape=(5, 2))
        entries = {"agents": agents, "state": Unbounded((5, 4))}
        entries.pop(drop, None)
        self.full_observation_spec = Composite(entries, shape=(5,))
        joint = Composite(agents=Composite(action=action, shape=(5, 2)), shape=(5,))
        self.full_action_spec = Composite(shape=(5,)) if drop == "action" else joint


def test_from_env_reads_sizes_and_bounds() -> None:
    low = torch.tensor([-1.0, 0.0]).expand(5, 2, 2)
    high = torch.tensor([1.0, 2.0]).expand(5, 2, 2)
    found = TaskSpec.from_env(Specs(Bounded(low, high)))
    assert found == TaskSpec(**SIZES, action_low=(-1.0, 0.0), action_high=(1.0, 2.0))
    found = TaskSpec.from_env(Specs(Categorical(7, shape=(5, 2))))
    assert found == TaskSpec(**{**SIZES, "action_size": 7}, discrete=True)
    unbounded = TaskSpec.from_env(Specs(Unbounded((5, 2, 2))))
    assert unbounded.action_low == (-float("inf"),) * 2


def test_from_a_real_env() -> None:
    found = TaskSpec.from_env(make_env("vmas/transport", num_envs=2))
    assert found == TaskSpec(
        n_agents=4,
        observation_size=11,
        state_size=36,  # a goal, a package and four agents of six numbers each
        action_size=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        max_steps=200,
        task="vmas/transport",
    )


@pytest.mark.parametrize(
    ("drop", "key"),
    [
        ("state", "'state'"),
        ("agents", "('agents', 'observation')"),
        ("action", "('agents', 'action')"),
    ],
)
def test_env_without_a_key_of_the_layout(drop: str, key: str) -> None:
    specs = Specs(Unbounded((5, 2, 2)), drop=drop)
    with pytest.raises(KeyError) as error:
        TaskSpec.from_env(specs)
    assert f"The environment has no entry {key}; found" in error.value.args[0]


def test_actions_of_another_kind() -> None:
    with pytest.raises(ValueError, match="OneHot"):
        TaskSpec.from_env(Specs(OneHot(4, shape=(5, 2, 4))))
    low = -torch.ones(5, 2, 2)
    high = torch.ones(5, 2, 2)
    high[:, 1] = 2
    with pytest.raises(ValueError, match="same action bounds"):
        TaskSpec.from_env(Specs(Bounded(low, high)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_agents": 0}, "n_agents must be a positive integer, found 0"),
        ({"state_size": 1.5}, "state_size must be a positive integer, found 1.5"),
        ({"action_low": (0.0,)}, "action_low needs 2 values, found 1"),
        ({"discrete": True}, "action_low needs 0 values, found 2"),
        ({"observation_sizes": (3, 3, 3)}, "observation_sizes needs 2 values.*found 3"),
    ],
)
def test_bad_sizes(change: dict, message: str) -> None:
    good = {**SIZES, "action_low": (-1.0, -1.0), "action_high": (1.0, 1.0)}
    with pytest.raises(ValueError, match=message):
        TaskSpec(**{**good, **change})


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
def test_survives_json(spec: TaskSpec) -> None:
    assert TaskSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_unknown_and_missing_fields() -> None:
    with pytest.raises(ValueError, match=r"Unknown TaskSpec fields \['colour'\]"):
        TaskSpec.from_dict({**DISCRETE.to_dict(), "colour": 1})
    fields = DISCRETE.to_dict()
    del fields["state_size"]
    with pytest.raises(TypeError, match="state_size"):
        TaskSpec.from_dict(fields)


def test_specs_have_the_layouts_shapes() -> None:
    action = CONTINUOUS.action_spec()
    assert action.is_in(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
    assert not action.is_in(torch.tensor([[1.1, 0.0], [0.0, 0.0]]))
    assert DISCRETE.action_spec().is_in(torch.tensor([0, 1]))
    assert not DISCRETE.action_spec().is_in(torch.tensor([0, 2]))
    shapes = {key: tuple(leaf.shape) for key, leaf in DISCRETE.observation_spec().items(True, True)}
    assert shapes == {
        ("agents", "observation"): (2, 3),
        ("agents", "action_mask"): (2, 2),
        "state": (4,),
        "step": (1,),
    }
    assert ("agents", "action_mask") not in CONTINUOUS.observation_spec().keys(True, True)


def test_match_names_what_differs() -> None:
    CONTINUOUS.require_match(CONTINUOUS, "It")
    same_sizes = TaskSpec.from_dict({**CONTINUOUS.to_dict(), "task": None, "max_steps": 9})
    CONTINUOUS.require_match(same_sizes, "It")
    other = TaskSpec.from_dict({**CONTINUOUS.to_dict(), "task": "a/c", "state_size": 9})
    with pytest.raises(ValueError) as error:
        CONTINUOUS.require_match(other, "The thing")
    assert str(error.value) == (
        "The thing belongs to another task: state_size: expected 4, found 9; "
        "task: expected 'a/b', found 'a/c'. Take one of the same task, or make what uses it for "
        "this one."
    )
