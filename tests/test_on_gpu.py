"""Every path of training on a GPU: the numbers of the CPU, and no wait for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import CudaGraphModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.objectives import LossModule, SoftUpdate

from tests.objectives.loss_cases import Case
from tests.objectives.test_loss_contract import ALL, fix_draws, make, make_batch
from tests.trainers.test_data_parallel import make_dataset
from torchrl_logo.envs import ImaginedEnv
from torchrl_logo.modules import LOGOWorldModel, make_gaussian_actor
from torchrl_logo.trainers import OfflineTrainer, WorldModelTrainer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:No target network updater")]
DEVICE = "cuda"
ALONE = [param for param in ALL if param.values[0].compiles_alone]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raises where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def list_trained(loss: LossModule) -> list[nn.Parameter]:
    return [p for p in loss.parameters() if p.requires_grad]


def make_update(
    loss: LossModule, batch: TensorDict, call: Callable[[TensorDict], TensorDict] | None = None
) -> Callable[[], None]:
    """An update as trainers make it."""
    call = loss if call is None else call
    parameters = list_trained(loss)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=True)
    has_targets = any(name.startswith("target_") for name, _ in loss.named_parameters())
    target_updater = SoftUpdate(loss, tau=0.1) if has_targets else None

    def update() -> None:
        losses = call(batch)
        torch.stack([v for k, v in losses.items() if k.startswith("loss_")]).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        if target_updater is not None:
            target_updater.step()

    return update


def flatten(loss: LossModule) -> torch.Tensor:
    return torch.cat([value.detach().flatten().cpu() for value in list_trained(loss)])


@pytest.mark.parametrize("case", ALL)
def test_updates_are_those_of_the_cpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [make(case), make(case, device=DEVICE)]
    losses[1].load_state_dict(losses[0].state_dict())
    batches = [make_batch(case.spec, device) for device in ("cpu", DEVICE)]
    fix_draws(monkeypatch)
    figures = []
    for loss, batch in zip(losses, batches, strict=True):
        figures.append(loss(batch).detach().cpu())
        make_update(loss, batch)()
    for key, value in figures[0].items():
        torch.testing.assert_close(figures[1][key], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flatten(losses[1]), flatten(losses[0]), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", ALL)
def test_updates_wait_for_nothing(case: Case) -> None:
    loss = make(case, device=DEVICE)
    update = make_update(loss, make_batch(case.spec, DEVICE))
    before = flatten(loss)
    update()  # the first call makes the optimiser's state
    with no_waiting():
        update()
    assert (flatten(loss) != before).any()


@pytest.mark.parametrize("case", ALONE)
def test_compiled_updates_as_a_cuda_graph(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many updates, recorded and replayed, end where eager ones do."""
    losses = [make(case, device=DEVICE) for _ in range(2)]
    losses[1].load_state_dict(losses[0].state_dict())
    batch = make_batch(case.spec, DEVICE)
    fix_draws(monkeypatch)
    torch._dynamo.reset()
    eager = make_update(losses[0], batch)
    compiled = make_update(losses[1], batch, torch.compile(losses[1], fullgraph=True))
    graphed = CudaGraphModule(compiled, warmup=3)
    for _ in range(8):
        eager()
        graphed()
    torch.testing.assert_close(flatten(losses[1]), flatten(losses[0]), rtol=1e-2, atol=1e-3)


def make_model(device: str) -> LOGOWorldModel:
    torch.manual_seed(0)
    model = LOGOWorldModel(make_dataset().spec, hidden_size=16)
    with torch.no_grad():
        model.termination_bias.fill_(-10.0)
    return model.to(device)


def make_imagined(device: str) -> ImaginedEnv:
    starts = make_dataset().data.select(("agents", "observation"), "state").clone()
    return ImaginedEnv(make_model(device), starts.to(device), batch_size=8, horizon=5, seed=0)


def test_imagined_steps_are_those_of_the_cpu_and_wait_for_nothing() -> None:
    rollouts = {}
    start = make_imagined("cpu").reset()
    for device in ("cpu", DEVICE):
        env = make_imagined(device)
        step = env.reset(start.to(device))
        generator = torch.Generator().manual_seed(0)
        steps = []
        for number in range(4):
            action = torch.rand(8, 2, 1, generator=generator) * 2 - 1
            step.set(("agents", "action"), action.to(device))
            waiting = no_waiting() if number and device == DEVICE else contextlib.nullcontext()
            with waiting:
                made, step = env.step_and_maybe_reset(step)
            steps.append(made["next"].select("state", "reward", "uncertainty").cpu())
        rollouts[device] = torch.stack(steps)
    for key, value in rollouts["cpu"].items():
        torch.testing.assert_close(rollouts[DEVICE][key], value, rtol=1e-3, atol=1e-4)


def test_collectors_stay_on_the_gpu() -> None:
    env = make_imagined(DEVICE)
    actor = make_gaussian_actor(make_dataset().spec, hidden_sizes=(16,), device=DEVICE)
    collector = Collector(
        env, actor, frames_per_batch=40, total_frames=80, auto_register_policy_transforms=False
    )
    batches = list(collector)
    collector.shutdown()
    assert [batch.numel() for batch in batches] == [40, 40]
    assert {v.device.type for batch in batches for v in batch.values(True, True)} == {DEVICE}


@pytest.mark.parametrize("method", ["bc", "macql", "logo"])
def test_trainers(method: str) -> None:
    dataset = make_dataset()
    common = {"steps": 6, "batch_size": 32, "progress_bar": False, "device": DEVICE}
    model = None
    if method == "logo":
        model = LOGOWorldModel(dataset.spec, hidden_size=16).to(DEVICE)
        WorldModelTrainer(
            model, dataset, steps=6, batch_size=32, evaluation_interval=3, progress_bar=False
        ).train()
    result = OfflineTrainer(
        method, dataset, world_model=model, hidden_sizes=(16,), eval_interval=0, **common
    ).train()
    assert {p.device.type for p in result.policy.parameters()} == {DEVICE}
    assert all(p.isfinite().all() for p in result.policy.parameters())
