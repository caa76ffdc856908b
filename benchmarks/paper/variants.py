"""Ablations: what is changed of a method, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["VARIANTS", "Variant", "named_variants"]

# The terms of the LOGO model's loss that are on by default; a test compares them with the loss.
_MODEL_TERMS = (
    "local",
    "regularizer",
    "reward",
    "termination",
    "reconstruction",
    "persistence",
    "direct",
    "error",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change of a method, which otherwise keeps its own settings.

    Attributes:
        settings: arguments of the trainer.
        world_model: kind of the model to imagine with: ``"logo"``, ``"joint"``, ``"ensemble"``,
            or ``"simulator"``, the real dynamics; the method's own if it is not given.
        without_model: trains on the data alone.
        model_loss: coefficients of the world model's loss.
        judge: kind of the model whose uncertainty is used, if not the imagining one's.
        threshold_scale: the sampler's ``C``, in units of what is measured on the data.
        log_odds: ``C`` over the sampler's temperature, the logarithm of how much more often a
            certain transition is drawn than an unknown one.
    """

    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    world_model: str | None = None
    without_model: bool = False
    model_loss: dict[str, float] = dataclasses.field(default_factory=dict)
    judge: str | None = None
    threshold_scale: float | None = None
    log_odds: float | None = None


_UNIFORM: dict[str, Any] = {"uncertainty_weights": False}

# What the centralised critic reads and adds up, beside the one that all methods have.
_CRITICS = {f"critic-{kind}": Variant({"critic": kind}) for kind in ("state", "additive")}

VARIANTS: dict[str, dict[str, Variant]] = {
    "logo": {
        "uniform": Variant({**_UNIFORM, "reward_penalty": 0.0}),
        "no-synthetic": Variant(without_model=True),
        # what a perfect model would give
        "real-dynamics": Variant(world_model="simulator"),
        "reward-penalty": Variant({**_UNIFORM, "reward_penalty": 1.0}),
        "reward-penalty-0.3": Variant({**_UNIFORM, "reward_penalty": 0.3}),
        **{f"horizon-{n}": Variant({"horizon": n}) for n in (1, 5, 10, 15, 25)},
        **{f"real-{share}": Variant({"real_fraction": share}) for share in (0.25, 0.5, 0.75)},
        "uncertainty-ensemble": Variant(judge="ensemble"),
        **{f"C-{scale}": Variant(threshold_scale=scale) for scale in (0.3, 3.0)},
        **{f"log-odds-{odds}": Variant(log_odds=odds) for odds in (1.0, 6.0)},
        **{f"without-{term}": Variant(model_loss={term: 0.0}) for term in _MODEL_TERMS},
        # the paper's loss of the deduction from true changes, which is off by default
        "with-state": Variant(model_loss={"state": 0.1}),
        **_CRITICS,
    },
    # The paper's motivating figure: one policy learning, three models.
    "macql": {
        **{
            f"{kind}-model": Variant(_UNIFORM, world_model=kind)
            for kind in ("joint", "ensemble", "logo")
        },
        **_CRITICS,
    },
}


def named_variants() -> list[tuple[str, str]]:
    """All pairs of method and variant, with the methods that they are compared with.

    ``logo-mpc`` is the ablation of planning, ``logo`` itself that of weighted sampling.
    """
    pairs = [("logo", ""), ("macql", ""), ("logo-mpc", "")]
    return pairs + [(method, name) for method, names in VARIANTS.items() for name in names]
