"""What every loss of policies must stand: low precision, data it cannot learn from, bad networks.

Losses are found as in the contract's tests. ``tests/objectives/test_loss_contract.py`` has the
rest of what TorchRL asks of a loss.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import nn
from torch.distributions import Independent, Normal
from torchrl.objectives import LossModule

from tests.objectives.loss_cases import CONTINUOUS, DISCRETE, Case
from tests.objectives.test_loss_contract import ALL, POLICIES, compute, make, make_batch

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
DISCRETE_POLICIES = [param for param in POLICIES if param.values[0].spec.discrete]
MASK = ("agents", "action_mask")


def backward(loss: LossModule, out: TensorDictBase) -> dict[str, torch.Tensor]:
    loss.zero_grad()
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    return {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", ALL)
def test_the_batch_is_left_as_it_was(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    given = batch.clone()
    compute(loss, given)
    assert set(given.keys(True, True)) == set(batch.keys(True, True))
    assert (given == batch).all()


@pytest.mark.parametrize("case", POLICIES)
def test_resetting_reaches_targets(case: Case) -> None:
    loss = make(case)
    learnt = [
        (name, *(key if isinstance(key, tuple) else (key,)))
        for name, params in loss.named_children()
        if name.endswith("_network_params") and not name.startswith("target_")
        for key, value in params.items(True, True)
        if isinstance(value, nn.Parameter)
    ]
    assert learnt
    for name, *key in learnt:
        for held in (name, f"target_{name}"):
            if (params := getattr(loss, held, None)) is not None:
                params.data[tuple(key)].add_(1000.0)
    loss.reset_parameters_recursive()
    for name, *key in learnt:
        for held in (name, f"target_{name}"):
            if (params := getattr(loss, held, None)) is not None:
                assert (params.data[tuple(key)].abs() < 100).all(), (held, key)


@pytest.mark.parametrize("case", ALL)
def test_half_precision_is_near_full_precision(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    expected = compute(loss, batch)
    expected_gradients = backward(loss, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute(loss, batch)
    gradients = backward(loss, found)
    for key, value in expected.items():
        if key.startswith("loss_"):
            torch.testing.assert_close(found[key].float(), value, rtol=0.05, atol=0.05)
    assert set(gradients) == set(expected_gradients)
    ours, theirs = (
        torch.cat([g[name].flatten().float() for name in sorted(g)])
        for g in (gradients, expected_gradients)
    )
    assert ours.isfinite().all()
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.97


@pytest.mark.parametrize("case", DISCRETE_POLICIES)
def test_actions_that_are_never_available_have_no_influence(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    last = case.spec.action_size - 1
    for place in (batch, batch["next"]):
        place[MASK][..., last] = False
        place[MASK][..., 0] = True
        place["agents", "action"][place["agents", "action"] == last] = 0
    before = compute(loss, batch)
    gradients = backward(loss, before)
    # the last of five actions' outputs, of networks and of their targets, and nothing else
    changed = 0
    for name, value in [*loss.named_parameters(), *loss.named_buffers()]:
        for dim in range(value.ndim):
            if value.shape[dim] == case.spec.action_size:
                part = value.data.select(dim, last)
                part += torch.linspace(500, 1000, part.numel()).view(part.shape)
                changed += 1
                if name in gradients:
                    assert (gradients[name].select(dim, last) == 0).all(), name
    assert changed
    after = compute(loss, batch)
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    for name, gradient in backward(loss, after).items():
        assert torch.equal(gradient, gradients[name]), name


@pytest.mark.parametrize("case", POLICIES)
def test_actions_of_the_other_kind_are_refused(case: Case) -> None:
    other = CONTINUOUS if case.spec.discrete else DISCRETE
    loss, batch = make(case), make_batch(case.spec)
    action, foreign = batch["agents", "action"], make_batch(other)["agents", "action"]
    # as the other kind has them, and with the right shape but the wrong type
    wrong_type = action.float() if case.spec.discrete else action.long()
    for bad in (foreign, wrong_type):
        for place in (batch, batch["next"]):
            place["agents", "action"] = bad
        with pytest.raises(ValueError, match=rf"^{type(loss).__name__}.*\('agents', 'action'\)"):
            loss(batch)


def find_written(loss: LossModule) -> list[tuple[str, Any]]:
    """The loss's networks, and what each is called for; actors may be asked for distributions."""
    return [
        (name, key)
        for name, network in loss.__dict__.items()
        if name.endswith("_network") and isinstance(network, nn.Module)
        for key in network.out_keys
        if not isinstance(network, ProbabilisticTensorDictSequential)
    ]


WRITTEN = [
    pytest.param(*param.values, name, key, id=f"{param.id}-{name}-{key}")
    for param in POLICIES
    for name, key in find_written(make(*param.values))
]


@pytest.mark.parametrize("change", ["wider", "fewer dimensions"])
@pytest.mark.parametrize(("case", "name", "key"), WRITTEN)
def test_network_outputs_of_wrong_shapes_are_refused(
    case: Case, name: str, key: Any, change: str
) -> None:
    loss, batch = make(case), make_batch(case.spec)

    def spoil(module: nn.Module, args: Any, out: TensorDictBase) -> TensorDictBase:
        value = out.get(key)
        return out.set(key, torch.cat([value, value], -1) if change == "wider" else value[..., 0])

    handle = getattr(loss, name).register_forward_hook(spoil)
    with pytest.raises(ValueError, match=f"^{type(loss).__name__} expected") as error:
        loss(batch)
    assert repr(key) in str(error.value) and "found" in str(error.value)
    handle.remove()
    loss(batch)


ACTORS = [
    pytest.param(*param.values, name, id=f"{param.id}-{name}")
    for param in POLICIES
    for name, network in make(*param.values).__dict__.items()
    if isinstance(network, ProbabilisticTensorDictSequential)
]


@pytest.mark.parametrize(("case", "name"), ACTORS)
def test_actors_of_another_task_are_refused(case: Case, name: str) -> None:
    loss, batch = make(case), make_batch(case.spec)
    actor, key = getattr(loss, name), ("agents", "action")
    if case.spec.discrete:
        # its masked distribution may be the one that says it
        logits = ("agents", "logits")
        actor[0].register_forward_hook(
            lambda _, args, out: out.set(logits, torch.cat([out[logits], out[logits]], -1))
        )
        with pytest.raises(ValueError, match="expected") as error:
            loss(batch)
        assert "(12, 2, 5)" in str(error.value) and "(12, 2, 10)" in str(error.value)
        return

    def widen(_: Any, args: Any, out: TensorDictBase) -> TensorDictBase:
        return out.set(key, torch.cat([out[key], out[key]], -1))

    def make_wide(tensordict: TensorDictBase) -> Independent:
        mean = torch.zeros(*tensordict.batch_size, case.spec.n_agents, 2 * case.spec.action_size)
        return Independent(Normal(mean, torch.ones_like(mean)), 1)

    # some losses ask for the action, some for the distribution
    actor.register_forward_hook(widen)
    actor.get_dist = make_wide
    with pytest.raises(ValueError, match=f"^{type(loss).__name__} expected") as error:
        loss(batch)
    for part in (repr(key), "(12, 2, 2)", "(12, 2, 4)"):
        assert part in str(error.value)
