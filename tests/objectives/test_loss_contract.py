"""TorchRL's contract of losses, for every loss that the folder has.

A loss that is added to the folder fails here until a file in ``loss_cases`` says how to make it.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictSequential
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Independent, Normal
from torchrl.objectives import HardUpdate, LossModule, SoftUpdate

from tests.objectives.loss_cases import Case, find_cases
from torchrl_logo import objectives
from torchrl_logo.data import TaskSpec
from torchrl_logo.objectives.world_model import WorldModelLoss

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
ROWS = 12
MASK = ("agents", "action_mask")
NEXT_MASK = ("next", "agents", "action_mask")
#: Bases, which cannot be called.
ABSTRACT = {WorldModelLoss}
CASES = find_cases()
ALL = [
    pytest.param(case, id=f"{loss.__name__}-{name}")
    for loss, cases in CASES.items()
    for name, case in cases.items()
]
POLICIES = [param for param in ALL if param.values[0].is_policy]
MASKED = [param for param in POLICIES if param.values[0].spec.discrete]
WITH_TARGETS = [param for param in ALL if param.values[0].targets]


def find_losses() -> set[type[LossModule]]:
    found = set()
    for module in pkgutil.iter_modules(objectives.__path__, f"{objectives.__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        found |= {
            member
            for member in members
            if inspect.isclass(member)
            and issubclass(member, LossModule)
            and member.__module__ == module.name
            and not inspect.isabstract(member)
        }
    return found - ABSTRACT


def make_batch(spec: TaskSpec, device: str = "cpu") -> TensorDict:
    torch.manual_seed(1)
    n, ended = spec.n_agents, torch.arange(ROWS).unsqueeze(-1) % 3
    agents = {"observation": torch.randn(ROWS, n, 3)}
    following: dict[str, Any] = {"observation": torch.randn(ROWS, n, 3)}
    if spec.discrete:
        action = torch.randint(spec.action_size, (ROWS, n))
        mask = torch.rand(ROWS, n, spec.action_size) < 0.6
        agents |= {"action": action, "action_mask": mask.scatter(-1, action.unsqueeze(-1), True)}
        following["action_mask"] = torch.rand(ROWS, n, spec.action_size) < 0.6
    else:
        agents["action"] = torch.rand(ROWS, n, spec.action_size) * 2 - 1
    outcome = {"reward": torch.randn(ROWS, 1), "done": ended > 0, "terminated": ended == 2}
    # what the data do next, for losses that bootstrap on it
    following["action"] = agents["action"].flip(0)
    outcome["action_recorded"] = torch.ones_like(ended, dtype=torch.bool)
    batch = {
        "agents": agents,
        "state": torch.randn(ROWS, 4),
        "imagined": torch.arange(ROWS).unsqueeze(-1) > 7,
        "next": {"agents": following, "state": torch.randn(ROWS, 4), **outcome},
    }
    return TensorDict(batch, [ROWS]).to(device)


def make(case: Case, **kwargs: Any) -> LossModule:
    torch.manual_seed(0)
    return case.make(**kwargs)


def compute(loss: LossModule, batch: TensorDict, seed: int = 2) -> TensorDict:
    torch.manual_seed(seed)
    return loss(batch)


def assert_same(found: TensorDict, expected: TensorDict) -> None:
    assert set(found.keys()) == set(expected.keys())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_every_loss_has_a_case() -> None:
    assert find_losses() == set(CASES)
    assert {loss.__name__ for loss in CASES} <= set(objectives.__all__)


@pytest.mark.parametrize("case", ALL)
def test_keys_are_what_is_read_and_written(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    batch.pop("imagined")
    out = compute(loss, batch)
    assert set(out.keys()) == set(loss.out_keys)
    assert_same(compute(loss, batch.select(*loss.in_keys, strict=True)), out)
    for key in loss.in_keys:
        with pytest.raises(KeyError, match=key if isinstance(key, str) else key[-1]):
            loss(batch.exclude(key))


KEYS = [
    pytest.param(case, field.name, id=f"{loss.__name__}-{name}-{field.name}")
    for loss, cases in CASES.items()
    for name, case in cases.items()
    for field in dataclasses.fields(loss._AcceptedKeys)
    # masks belong to discrete actions
    if field.name != "action_mask" or case.spec.discrete
]


#: What networks write, and is not in the batch.
WRITTEN = {
    "state_action_value",
    "action_value",
    "local_value",
    "global_value",
    "state_value",
    "chosen_action_value",
    "mixing_weight",
    "logits",
    "latent",
    "latent_loc",
    "latent_scale",
}


@pytest.mark.parametrize(("case", "name"), KEYS)
def test_keys_can_be_renamed(case: Case, name: str) -> None:
    loss, batch = make(case), make_batch(case.spec)
    batch["priority_weight"] = torch.linspace(0.1, 2, ROWS)
    expected = compute(loss, batch)
    old = getattr(loss.tensor_keys, name)
    new = f"renamed_{name}" if isinstance(old, str) else (*old[:-1], f"renamed_{name}")
    renamed = batch.clone()
    places = [place for place in (renamed, renamed["next"]) if place.get(old, None) is not None]
    for place in places:
        place.rename_key_(old, new)
    assert places or name in WRITTEN
    again = make(case, keys={name: new})
    again.set_keys(**{name: new})
    assert_same(compute(again, renamed), expected)


@pytest.mark.parametrize("case", ALL)
def test_unknown_keys_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        make(case).set_keys(nothing="x")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("case", ALL)
def test_reductions(case: Case, weighted: bool) -> None:
    batch, weights = make_batch(case.spec), torch.ones(ROWS)
    if weighted:
        weights = torch.linspace(0, 2, ROWS)
        batch["priority_weight"] = weights
    mean, none, total = (
        compute(make(case, reduction=name), batch) for name in ("mean", "none", "sum")
    )
    assert none.batch_size == batch.batch_size and mean.batch_size == torch.Size([])
    for key in mean.keys():
        if key.startswith("loss_"):
            assert none[key].shape == (ROWS,)
            torch.testing.assert_close(none[key].sum(), total[key])
            torch.testing.assert_close(none[key].sum() / weights.sum(), mean[key])
    if weighted:
        # scaling all weights changes nothing under the mean
        assert_same(compute(make(case), batch.set("priority_weight", 7 * weights)), mean)
        ignoring = make(case)
        ignoring.use_prioritized_weights = False
        without = compute(make(case), batch.exclude("priority_weight"))
        assert_same(compute(ignoring, batch), without)


@pytest.mark.parametrize("case", ALL)
def test_sequences_are_batches(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    with_time = make(case, reduction="none")(batch.reshape(3, 4))
    for key in loss.out_keys:
        assert with_time[key].shape[:2] == (3, 4)


@pytest.mark.parametrize("case", POLICIES)
def test_outputs_can_be_selected(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    every = compute(loss, batch)
    key = [key for key in loss.out_keys if key.startswith("loss_")][-1]
    loss.select_out_keys(key)
    chosen = compute(loss, batch)
    assert loss.out_keys == [key] and set(chosen.keys()) == {key}
    torch.testing.assert_close(chosen[key], every[key])


@pytest.mark.parametrize("case", POLICIES)
def test_plain_tensors(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    batch.pop("imagined")
    expected = compute(loss, batch)
    arguments = {key if isinstance(key, str) else "_".join(key): batch[key] for key in loss.in_keys}
    torch.manual_seed(2)
    found = loss(**arguments)
    found = found if isinstance(found, tuple) else (found,)
    for key, value in zip(loss.out_keys, found, strict=True):
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("case", ALL)
def test_state_dict_round_trip(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    torch.manual_seed(5)
    other = case.make()
    compute(other, batch)  # whatever is cached must not outlive the loading
    assert (compute(other, batch)[loss.out_keys[0]] != compute(loss, batch)[loss.out_keys[0]]).all()
    other.load_state_dict(loss.state_dict())
    assert_same(compute(other, batch), compute(loss, batch))


@pytest.mark.parametrize("case", ALL)
def test_optimizer_steps_reach_every_output(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    before = compute(loss, batch)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    sum(value for key, value in before.items() if key.startswith("loss_")).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    optimizer.step()
    after = compute(loss, batch)
    for key in loss.out_keys:
        if key.startswith("loss_"):
            assert after[key] != before[key], key


def network_and_target(loss: LossModule, case: Case) -> tuple[TensorDictParams, TensorDictParams]:
    return getattr(loss, f"{case.targets}_params"), getattr(loss, f"target_{case.targets}_params")


@pytest.mark.parametrize("case", WITH_TARGETS)
def test_targets_follow(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    compute(loss, batch)
    soft = SoftUpdate(loss, tau=0.25)
    network, target = network_and_target(loss, case)
    network.data.add_(1.0)
    expected = target.data + 0.25 * (network.data - target.data)
    before = compute(loss, batch)[case.target_output]
    soft.step()
    for key, value in target.items(True, True):
        torch.testing.assert_close(value, expected[key])
    assert compute(loss, batch)[case.target_output] != before

    loss = make(case)
    hard = HardUpdate(loss, value_network_update_interval=2)
    network, target = network_and_target(loss, case)
    network.data.add_(1.0)
    same = []
    for _ in range(3):
        hard.step()
        pairs = zip(network.values(True, True), target.values(True, True), strict=True)
        same.append(all(torch.equal(a, b) for a, b in pairs))
    assert same == [False, False, True]


@pytest.mark.parametrize("case", POLICIES)
def test_parameters_can_be_reset(case: Case) -> None:
    loss = make(case)
    networks = [name for name, _ in loss.named_children() if name.endswith("_network_params")]
    assert networks
    before = {name: parameter.clone() for name, parameter in loss.named_parameters()}
    loss.reset_parameters_recursive()
    for name, parameter in loss.named_parameters():
        if name.split(".")[0] in networks:
            assert (parameter != before[name]).any(), name
            assert parameter.requires_grad and parameter.isfinite().all()
    loss.zero_grad()
    assert all(value.isfinite().all() for value in compute(loss, make_batch(case.spec)).values())


def fix_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes draws the same in each row and for each agent."""

    def same_normal(shape: Any, dtype: torch.dtype, device: Any) -> torch.Tensor:
        noise = torch.linspace(-1, 1, shape[-1], dtype=dtype, device=device)
        return noise.expand(shape)

    def same_uniform(shape: Any, **kwargs: Any) -> torch.Tensor:
        return torch.linspace(0.1, 0.9, shape[-1], **kwargs).expand(shape)

    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", same_normal)
    monkeypatch.setattr(torch, "rand", same_uniform)


@pytest.mark.parametrize("case", ALL)
def test_order_of_rows_does_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, batch = make(case), make_batch(case.spec)
    batch["priority_weight"] = torch.linspace(0.1, 2, ROWS)
    fix_draws(monkeypatch)
    order = torch.arange(ROWS).flip(0).roll(5)
    assert_same(compute(loss, batch[order]), compute(loss, batch))


@pytest.mark.parametrize("case", [p for p in POLICIES if p.values[0].compiles_alone])
def test_compiled_without_breaks(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    eager = compute(loss, batch)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert_same(compute(compiled, batch), eager)


@pytest.mark.parametrize("case", POLICIES)
def test_nothing_looks_at_values(case: Case) -> None:
    loss, batch = make(case, device="meta"), make_batch(case.spec, "meta")
    out = loss(batch.set("priority_weight", torch.ones(ROWS, device="meta")))
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


@pytest.mark.parametrize("case", POLICIES)
def test_devices_are_not_mixed(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)

    def fake(value: torch.Tensor) -> torch.Tensor:
        return torch.empty(value.shape, dtype=value.dtype, device="cuda:0")

    with FakeTensorMode(allow_non_fake_inputs=True):
        # TensorDictParams.cuda() keeps real tensors, so they are put in by hand.
        for name, module in loss._modules.items():
            if isinstance(module, TensorDictParams):
                params = TensorDictParams(module.data.apply(fake), no_convert=True)
                loss._modules[name] = params
            elif module is not None:
                module.cuda()
        for store in (loss._buffers, loss._parameters):
            for name, value in store.items():
                store[name] = fake(value) if store is loss._buffers else nn.Parameter(fake(value))
        tensors = {key: fake(value) for key, value in batch.items(True, True)}
        out = loss(TensorDict(tensors, [ROWS], device="cuda:0"))
        assert all(value.device.type == "cuda" for value in out.values())


@pytest.mark.parametrize("case", ALL)
def test_negative_weights_are_refused(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    batch["priority_weight"] = torch.ones(ROWS)
    batch["priority_weight"][3] = 0  # a row may count for nothing
    assert compute(loss, batch)[loss.out_keys[0]].isfinite()
    for bad in (-0.1, float("nan")):
        batch["priority_weight"][3] = bad
        with pytest.raises(RuntimeError, match=f"^{type(loss).__name__} .*'priority_weight'"):
            loss(batch)


@pytest.mark.parametrize("case", MASKED)
def test_agents_without_available_actions_are_refused(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    without = batch.clone()
    without[MASK][4, 1] = False
    message = rf"^{type(loss).__name__} .*\('agents', 'action_mask'\), found an agent without one"
    with pytest.raises(RuntimeError, match=message):
        loss(without)
    # a padded step may have none
    without["collector", "mask"] = torch.arange(ROWS).unsqueeze(-1) != 4
    without["agents", "action"][4] = 0
    loss(without)


@pytest.mark.parametrize("case", MASKED)
def test_only_after_a_termination_may_actions_be_missing(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    if NEXT_MASK not in loss.in_keys:
        pytest.skip("does not read what is available next")
    batch[NEXT_MASK][2] = False
    assert batch["next", "terminated"][2]
    assert all(value.isfinite().all() for value in compute(loss, batch).values())
    for row in (0, 1):  # which goes on, and which is truncated
        without = batch.clone()
        without[NEXT_MASK][row, 0] = False
        with pytest.raises(RuntimeError, match=r"\('next', 'agents', 'action_mask'\)"):
            loss(without)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", POLICIES)
def test_losses_are_proportional_to_weights(case: Case, reduction: str) -> None:
    # under the mean scaling all of them changes nothing, see test_reductions
    batch = make_batch(case.spec)
    batch["priority_weight"] = torch.linspace(0, 2, ROWS)
    once = compute(make(case, reduction=reduction), batch)
    batch["priority_weight"] *= 7
    found = compute(make(case, reduction=reduction), batch)
    for key, value in once.items():
        expected = 7 * value if key.startswith("loss_") else value
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-5)


def losses_and_gradient(loss: LossModule, batch: TensorDict) -> tuple[TensorDict, torch.Tensor]:
    """What the loss writes, and the gradient of the sum of its losses as one vector."""
    loss.zero_grad()
    out = compute(loss, batch)
    sum(value for key, value in out.items() if key.startswith("loss_")).backward()
    gradients = [parameter.grad.flatten().float() for parameter in loss.parameters()]
    return out.detach(), torch.cat(gradients)


def leave_one_action(batch: TensorDict) -> None:
    """Makes the data's actions the only available ones."""
    for place in (batch["agents"], batch["next", "agents"]):
        action = place["action"].unsqueeze(-1)
        place["action_mask"] = torch.zeros_like(place["action_mask"]).scatter(-1, action, True)


@pytest.mark.parametrize("case", POLICIES)
def test_half_precision_does_not_overflow(case: Case) -> None:
    batches = [make_batch(case.spec)]
    if case.spec.discrete:
        batches.append(batches[0].clone())
        leave_one_action(batches[1])
    for batch in batches:
        expected, full_gradient = losses_and_gradient(make(case), batch)
        with torch.autocast("cpu", torch.bfloat16):
            found, gradient = losses_and_gradient(make(case), batch)
        # bfloat16 has 8 significant bits, of which sums over draws and layers lose some
        for key, value in expected.items():
            torch.testing.assert_close(found[key].float(), value, rtol=0.05, atol=0.05)
        assert gradient.isfinite().all()
    # the last batch leaves no choice that rounding could make another one
    assert (gradient - full_gradient).norm() <= 0.1 * full_gradient.norm()


@pytest.mark.parametrize("case", MASKED)
def test_unavailable_actions_count_for_nothing(case: Case) -> None:
    loss, batch, last = make(case), make_batch(case.spec), case.spec.action_size - 1
    for place in (batch["agents"], batch["next", "agents"]):
        place["action"].clamp_(max=last - 1)
        place["action_mask"].scatter_(-1, place["action"].unsqueeze(-1), True)
        place["action_mask"][..., last] = False
    expected, gradient = losses_and_gradient(loss, batch)
    # networks that write something for each action end in a bias of that size
    tensors = dict([*loss.named_parameters(), *loss.named_buffers()])
    ends = {
        name: tensor
        for name, tensor in tensors.items()
        if name.endswith("bias") and tensor.shape[-1] == case.spec.action_size
    }
    assert any(tensor.requires_grad for tensor in ends.values())
    for value in (-1e3, 1e3):
        for name, tensor in ends.items():
            if tensor.requires_grad:
                assert (tensor.grad[..., last] == 0).all(), name
            tensor.data[..., last] = value
        found, again = losses_and_gradient(loss, batch)
        assert_same(found, expected)
        torch.testing.assert_close(again, gradient)
    # as it would if it were available
    batch["agents", "action_mask"][..., last] = True
    batch[NEXT_MASK][..., last] = True
    found = losses_and_gradient(loss, batch)[0]
    assert any((found[key] != value).any() for key, value in expected.items())


def forget_order(loss: LossModule, spec: TaskSpec) -> None:
    """Makes centralised critics and mixers, which tell agents apart by their places, not do so."""
    n_agents, action_size = spec.n_agents, 2
    blocks = [spec.state_size, n_agents * spec.observation_size, n_agents * action_size]
    for name, tensor in [*loss.named_parameters(), *loss.named_buffers()]:
        network, value = name.removeprefix("target_").split("_network")[0], tensor.data
        if network == "qvalue" and value.shape[-1] == sum(blocks):
            for block in value.split(blocks, -1)[1:]:
                agents = block.unflatten(-1, (n_agents, -1))
                agents.copy_(agents.mean(-2, keepdim=True).expand_as(agents))
        elif ".hyper_w_1." in name:
            agents = value.unflatten(0, (n_agents, -1))
            agents.copy_(agents.mean(0, keepdim=True).expand_as(agents))
        elif network == "mixer" and value.shape[0] == n_agents + 1:
            value[:n_agents] = value[:n_agents].mean(0, keepdim=True)


@pytest.mark.parametrize("case", POLICIES)
def test_order_of_agents_does_not_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, batch = make(case), make_batch(case.spec)
    forget_order(loss, case.spec)
    fix_draws(monkeypatch)
    expected, gradient = losses_and_gradient(loss, batch)
    for place in (batch, batch["next"]):
        place["agents"] = place["agents"].apply(lambda value: value.flip(1))
    found, again = losses_and_gradient(loss, batch)
    assert_same(found, expected)
    shared = torch.cat(
        [
            torch.full((parameter.numel(),), name.startswith(("qvalue", "mixer")))
            for name, parameter in loss.named_parameters()
        ]
    ).logical_not()
    torch.testing.assert_close(again[shared], gradient[shared], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", POLICIES)
def test_actions_of_the_other_kind_are_refused(case: Case) -> None:
    loss, batch = make(case), make_batch(case.spec)
    agents = (ROWS, case.spec.n_agents)
    wrong = (
        [torch.rand(agents), torch.rand(*agents, 2)]
        if case.spec.discrete
        else [torch.randint(2, agents), torch.randint(2, (*agents, 2))]
    )
    for action in wrong:
        other = batch.clone()
        other["agents", "action"] = action
        with pytest.raises(ValueError, match=r"'action'\).*found"):
            loss(other)


NETWORKS = [
    pytest.param(*param.values, child.removesuffix("_params"), id=f"{param.id}-{child}")
    for param in POLICIES
    for child, _ in make(param.values[0]).named_children()
    if child.endswith("_network_params") and not child.startswith("target_")
]


@pytest.mark.parametrize("fault", ["missing", "wider", "agents"])
@pytest.mark.parametrize(("case", "name"), NETWORKS)
def test_networks_that_write_something_else_are_refused(
    case: Case, name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, batch = make(case), make_batch(case.spec)
    network = getattr(loss, name)
    if isinstance(network, ProbabilisticTensorDictSequential) and fault != "agents":
        pytest.skip("what a distribution is made of is the actor's own")
    while isinstance(network, TensorDictSequential):
        network = network[0]
    forward = network.forward

    def write_something_else(*args: Any, **kwargs: Any) -> TensorDict:
        out = forward(*args, **kwargs)
        for key in network.out_keys:
            value = out.pop(key)
            if fault == "wider":
                out[key] = torch.cat([value, value], -1)
            elif fault == "agents" and isinstance(key, tuple):
                out[key] = torch.cat([value, value[..., :1, :]], -2)  # one agent too many
            elif fault == "agents":
                out[key] = value.unsqueeze(-2).expand(*value.shape[:-1], 2, 1)  # not the team's
        return out

    monkeypatch.setattr(network, "forward", write_something_else)
    error, message = (KeyError, "to write") if fault == "missing" else (ValueError, "found")
    with pytest.raises(error, match=f"expected .*{message}"):
        loss(batch)


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
