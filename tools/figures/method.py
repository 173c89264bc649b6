"""The figure of the method's page: forward noise, heat bath, and the binary classifier that equals it.

    python tools/figures/method.py assets/method.svg

Everything in it is computed by the package on an 8 x 8 grid of five codes: the noise by `add_noise` with the `keep` of
a schedule, the classifier by `signal_logit`, the resampled block from pi(a) exp(s(a)). The clean-token distribution is
made up: it prefers the true token.
"""

import click
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.glauber import add_noise, heat_bath, sample_codes, signal_logit, uniform_noise
from ggm_image.schedule import Schedule

# A boat: 0 sky, 1 sea, 2 sail, 3 hull, 4 sun.
BOAT = """
00000044
00020044
00022000
00022200
00022220
03333333
11333331
11111111
"""
COLOURS = ["#a9d4f2", "#2f6fb3", "#f6f1e4", "#a8562a", "#f2b134"]
MASK = "#4a4a4a"
ACCENT = "#c2185b"
SITE = 2 * 8 + 3
"""The site whose classifier is shown: a sail's."""


def toy_clean_logits(x_0: Tensor) -> Tensor:
    """Logits (64, 5) of a denoiser that is right six times of seven."""
    probs = torch.full((len(x_0), len(COLOURS)), 0.15 / (len(COLOURS) - 1))
    return probs.scatter(1, x_0[:, None], 0.85).log()


def show_grid(axes: Axes, tokens: Tensor, title: str, below: str = "", *, sites: Tensor | None = None) -> None:
    axes.imshow(tokens.view(8, 8).numpy(), cmap=ListedColormap([*COLOURS, MASK]), vmin=0, vmax=len(COLOURS))
    axes.set_xticks(torch.arange(0.5, 7.5).tolist(), minor=True)
    axes.set_yticks(torch.arange(0.5, 7.5).tolist(), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_title(title, fontsize=11, pad=5)
    axes.set_xlabel(below, fontsize=10, labelpad=5)
    for site in [] if sites is None else sites.tolist():
        y, x = divmod(site, 8)
        axes.add_patch(Rectangle((x - 0.4, y - 0.4), 0.8, 0.8, fill=False, edgecolor=ACCENT, linewidth=1.4))
    for side in axes.spines.values():
        side.set_visible(False)


def show_bars(axes: Axes, values: Tensor, title: str, *, line: float | None = None, named: str = "") -> None:
    axes.bar(range(len(values)), values.tolist(), color=COLOURS, edgecolor="#333333", linewidth=0.8)
    if line is not None:
        axes.axhline(line, color="#333333", linewidth=1, linestyle="--")
        axes.text(len(values) - 0.45, line + 0.02, named, ha="right", va="bottom", fontsize=10)
    axes.set_title(title, fontsize=11, pad=5)
    axes.set_xticks(range(len(values)), ["sky", "sea", "sail", "hull", "sun"], fontsize=10)
    axes.set_ylim(0, 1)
    axes.tick_params(axis="y", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


@click.command()
@click.argument("out", type=click.Path(dir_okay=False))
def main(out: str) -> None:
    """Draw the figure into OUT, e.g. an .svg file."""
    plt.rcParams.update({"svg.hashsalt": "ggm-image", "mathtext.fontset": "dejavusans"})
    x_0 = torch.tensor([int(code) for code in BOAT.split() for code in code]).view(1, -1)
    noise, generator = uniform_noise(len(COLOURS)), torch.Generator().manual_seed(3)
    schedule = Schedule.round_robin(8, 8, sweeps=2, block=16)
    states = [x_0]
    for step in schedule.steps:
        touched = torch.ones(1, 64)
        touched[:, step.sites] = step.keep
        states.append(add_noise(states[-1], touched, noise, generator=generator))

    figure = plt.figure(figsize=(9.6, 5.6), facecolor="white")
    rows = figure.add_gridspec(2, 1, left=0.03, right=0.985, top=0.885, bottom=0.09, hspace=0.66)
    top = rows[0].subgridspec(1, 5, wspace=0.28)
    for column, t in enumerate((0, 1, 2, 4, 8)):
        sites = schedule.steps[t - 1].sites if t else None
        mean = float(schedule.levels(t).mean())
        axes = figure.add_subplot(top[column])
        show_grid(axes, states[t], f"$x_{t}$", f"mean level {mean:.2f}", sites=sites if t in (1, 2) else None)
    figure.text(
        0.03, 0.955, "Forward: each step replaces some tokens of one block by noise", fontsize=12, weight="bold"
    )

    t = next(t for t, step in enumerate(schedule.steps) if SITE in step.sites.tolist())
    step = schedule.steps[t]
    level = schedule.levels(t)[step.sites]
    clean = toy_clean_logits(x_0[0])[step.sites]
    log_odds = signal_logit(clean, level, step.keep, noise)
    resampled = (noise * log_odds.exp()) / (noise * log_odds.exp()).sum(-1, keepdim=True)
    assert torch.allclose(resampled, heat_bath(clean, level, noise).exp(), atol=1e-6)
    before, masked, after = states[t + 1], states[t + 1].clone(), states[t + 1].clone()
    masked[:, step.sites] = len(COLOURS)
    after[0, step.sites] = sample_codes(resampled.log(), torch.rand(len(step.sites), generator=generator))

    bottom = rows[1].subgridspec(1, 6, width_ratios=[1, 1, 1, 0.12, 1.25, 1.25], wspace=0.3)
    grids = [
        (before, f"$x_{t + 1}$", "noisy"),
        (masked, "mask the block", "network sees the rest"),
        (after, f"$x_{t}$", "resampled from $q$"),
    ]
    for column, (tokens, title, below) in enumerate(grids):
        show_grid(figure.add_subplot(bottom[column]), tokens, title, below, sites=step.sites)
    at_site = log_odds[step.sites.tolist().index(SITE)]
    show_bars(figure.add_subplot(bottom[4]), at_site.sigmoid(), r"P(signal): $\sigma(s(a))$")
    axes = figure.add_subplot(bottom[5])
    heat = resampled[step.sites.tolist().index(SITE)]
    show_bars(axes, heat, r"heat bath: $q\propto\pi\,e^{s}$", line=1 / len(COLOURS), named=r"noise $\pi(a)$")
    figure.text(0.03, 0.445, "Reverse: one step of the heat bath", fontsize=12, weight="bold")
    figure.text(0.575, 0.445, "One site: the classifier is the heat bath", fontsize=12, weight="bold")
    figure.savefig(out, metadata={"Date": None} if out.endswith(".svg") else None)


if __name__ == "__main__":
    raise SystemExit(run(main))
