"""The categorical distribution over available actions."""

from __future__ import annotations

import math

import pytest
import torch
from torchrl.modules import MaskedCategorical as TorchRLMaskedCategorical

from torchrl_logo.modules import MaskedCategorical


def make(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 2, 5)).to(dtype)
    mask = torch.rand(6, 2, 5) < 0.5
    mask[..., 3] = True
    return logits, mask


def test_numbers_are_torchrls() -> None:
    logits, mask = make()
    mine, theirs = MaskedCategorical(logits, mask), TorchRLMaskedCategorical(logits, mask=mask)
    for action in torch.arange(5):
        action = action.expand(6, 2)
        torch.testing.assert_close(mine.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(mine.entropy(), theirs.entropy())
    assert (mine.deterministic_sample == theirs.probs.argmax(-1)).all()
    assert (mine.mode == theirs.mode).all()


def test_probabilities_are_those_of_available_actions() -> None:
    logits, mask = make(torch.float64)
    dist = MaskedCategorical(logits, mask)
    for b in range(6):
        for i in range(2):
            weights = [
                math.exp(x) if m else 0.0
                for x, m in zip(logits[b, i].tolist(), mask[b, i], strict=True)
            ]
            shares = [w / sum(weights) for w in weights]
            assert dist.probs[b, i].tolist() == pytest.approx(shares, rel=1e-5)
            entropy = -sum(p * math.log(p) for p in shares if p > 0)
            assert dist.entropy()[b, i].item() == pytest.approx(entropy, rel=1e-5, abs=1e-6)
            for a, share in enumerate(shares):
                found = dist.log_prob(torch.full((6, 2), a))[b, i].item()
                assert found == pytest.approx(math.log(share) if share else -math.inf, rel=1e-5)


def test_draws_are_available_and_follow_the_probabilities() -> None:
    logits, mask = make()
    dist = MaskedCategorical(logits, mask)
    drawn = dist.sample(torch.Size([20_000]))
    frequency = torch.nn.functional.one_hot(drawn, 5).double().mean(0)
    assert (frequency[~mask] == 0).all()
    torch.testing.assert_close(frequency, dist.probs.double(), atol=0.02, rtol=0)
    assert mask.gather(-1, dist.deterministic_sample.unsqueeze(-1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_not_available_has_no_gradient(dtype: torch.dtype) -> None:
    logits, mask = make(dtype)
    mask[0] = False  # an agent without any action, as in padding
    logits.requires_grad_()
    dist = MaskedCategorical(logits, mask)
    entropy, log_prob = dist.entropy(), dist.log_prob(torch.zeros(6, 2))
    assert entropy.isfinite().all() and not dist.probs.isnan().any()
    assert ((log_prob == -math.inf) == ~mask[..., 0]).all()
    (entropy.sum() + log_prob.sum()).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert (logits.grad[~mask] == 0).all() and (logits.grad[mask] != 0).any()
    changed = torch.where(mask, logits, logits.detach() + 50)
    again = MaskedCategorical(changed, mask)
    assert (again.entropy() == entropy).all() and (
        again.log_prob(torch.full((6, 2), 3)) == (dist.log_prob(torch.full((6, 2), 3)))
    ).all()


def test_expanded() -> None:
    dist = MaskedCategorical(*make())
    wide = dist.expand(torch.Size([4, 6, 2]))
    action = torch.randint(5, (4, 6, 2))
    torch.testing.assert_close(wide.log_prob(action), dist.log_prob(action))


def test_compiled_without_breaks_and_without_values() -> None:
    logits, mask = make()

    def compute(logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        dist = MaskedCategorical(logits, mask)
        drawn = dist.sample()
        return drawn, dist.log_prob(drawn), dist.entropy(), dist.deterministic_sample

    torch._dynamo.reset()
    compiled = torch.compile(compute, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    expected = compute(logits, mask)
    torch.manual_seed(1)
    for found, value in zip(compiled(logits, mask), expected, strict=True):
        torch.testing.assert_close(found, value)
    assert all(v.device.type == "meta" for v in compute(logits.to("meta"), mask.to("meta")))


def test_bad_masks_are_refused() -> None:
    logits, mask = make()
    with pytest.raises(ValueError, match="mask of bool, found torch.int64"):
        MaskedCategorical(logits, mask.long())
    with pytest.raises(ValueError, match=r"shape \(6, 2, 5\), found \(6, 1, 5\)"):
        MaskedCategorical(logits, mask[:, :1])
