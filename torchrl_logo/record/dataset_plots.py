"""A figure of what is in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from torchrl_logo.data.dataset import OfflineDataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_dataset"]

_DARK, _BLUE, _RED = "#222222", "#30638e", "#d1495b"
_BINS = 40


def plot_dataset(dataset: OfflineDataset) -> Figure:
    """Plots returns, episode lengths, rewards and ends by step, and each agent's actions.

    Args:
        dataset (OfflineDataset): what is shown.

    Returns:
        matplotlib.figure.Figure: the figure.

    Examples:
        >>> from torchrl_logo.data import collect
        >>> from torchrl_logo.envs import make_env
        >>> dataset = collect(make_env("vmas/balance", num_envs=4), None, 400, seed=0)
        >>> [axes.get_xlabel() for axes in plot_dataset(dataset).axes][:4]
        ['return of an episode', 'steps of an episode', 'step', 'step']
    """
    from matplotlib.figure import Figure

    spec, data = dataset.spec, dataset.data.cpu()
    figure = Figure(figsize=(13, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    title = f"{dataset.metadata.task or 'unnamed task'}, {dataset.metadata.quality or 'unknown'}"
    figure.suptitle(f"{title}: {len(dataset):,} transitions", fontsize=12)
    returns, lengths, rewards, ends = top.subplots(1, 4)

    returns.hist(dataset.returns.cpu().numpy(), bins=_BINS, color=_BLUE)
    reference = dataset.metadata.reference_returns
    if reference is not None:
        for name, value in (("random", reference.random), ("expert", reference.expert)):
            returns.axvline(value, color=_DARK, linestyle=":", linewidth=1.2)
            returns.text(
                value,
                0.97,
                name,
                rotation=90,
                fontsize=8,
                ha="right",
                va="top",
                transform=returns.get_xaxis_transform(),
            )
    returns.set_xlabel("return of an episode")
    returns.set_ylabel("episodes")

    length = dataset.episode_lengths.cpu().numpy()
    lengths.hist(
        length, bins=np.arange(0.5, length.max() + 1.5, max(1, length.max() // _BINS)), color=_BLUE
    )
    lengths.set_xlabel("steps of an episode")

    step = (data["step"]).numpy()
    reward = data["next", "reward"].squeeze(-1).double().numpy()
    count = np.bincount(step).clip(1)
    mean = np.bincount(step, reward) / count
    spread = np.sqrt(np.maximum(np.bincount(step, reward**2) / count - mean**2, 0))
    shown = np.arange(len(count))
    rewards.fill_between(shown, mean - spread, mean + spread, color=_BLUE, alpha=0.25, linewidth=0)
    rewards.plot(shown, mean, color=_BLUE)
    rewards.set_xlabel("step")
    rewards.set_ylabel("reward, mean ± std")

    for key, color in (("terminated", _RED), ("truncated", _DARK)):
        at = step[data["next", key].squeeze(-1).numpy()]
        ends.plot(shown, np.bincount(at, minlength=len(count)), color=color, label=key)
    ends.set_xlabel("step")
    ends.set_ylabel("episodes that end")
    ends.legend(fontsize=8)

    action = data["agents", "action"].numpy()
    panels = bottom.subplots(1, spec.n_agents, sharey=True, squeeze=False)[0]
    for agent, axes in enumerate(panels):
        if spec.discrete:
            taken = np.bincount(action[:, agent], minlength=spec.action_size)
            allowed = data["agents", "action_mask"][:, agent].float().mean(0).numpy()
            axes.bar(np.arange(spec.action_size), allowed, color=_DARK, alpha=0.15)
            axes.bar(np.arange(spec.action_size), taken / len(action), color=_BLUE)
            axes.set_xlabel("action (grey: how often available)")
        else:
            for component in range(spec.action_size):
                axes.hist(
                    action[:, agent, component],
                    bins=_BINS,
                    histtype="step",
                    density=True,
                    label=f"component {component}",
                )
            axes.set_xlabel("action")
        axes.set_title(f"agent {agent}", fontsize=10)
    panels[0].set_ylabel("share of steps" if spec.discrete else "density")
    if not spec.discrete:
        panels[-1].legend(fontsize=8)
    return figure
