"""Does the signal map find damage, and are its probabilities true? ROC-AUC of planted damage, and calibration.

    python tools/experiments/signal_report.py cifar10 tokens/val -n 1000 --out signal

Damage: in each of n token grids, k random tokens are replaced by other codes, or a square of tokens by the same square
of another image; the AUC is that of 1 - P(signal) over all tokens of all grids, a tie counting one half.
Calibration: tokens are noised as in training, at level 0.1 ... 0.9; P(signal) at that level is compared with what was
left clean. The expected calibration error is the mean of |share - probability| over 15 bins, weighted by their counts.

Writes signal.json, signal.md and signal.png.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.glauber import add_noise, uniform_noise
from ggm_image.io.files import write_json, write_text
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
REPLACED = (1, 4, 16)
PATCH_SIDES = (2, 4)
BINS = 15


def roc_auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve by ranks (Mann-Whitney); 0.5 is chance."""
    ranks, n = rankdata(score), int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def reliability(probability: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Mean probability, share of truth and count in bins of equal width."""
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    rows = []
    for k in range(BINS):
        inside = which == k
        if inside.any():
            rows.append(
                {
                    "probability": float(probability[inside].mean()),
                    "share": float(truth[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
    return rows


def calibration_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error of the bins of `reliability`."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["probability"] - row["share"]) for row in rows) / total


def replace_tokens(
    tokens: Int64[Tensor, "n l"], k: int, codebook_size: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "n l"], Bool[Tensor, "n l"]]:
    """k random tokens of each grid become other codes; and where."""
    chosen = torch.rand(tokens.shape, generator=generator).argsort(1) < k
    other = (tokens + torch.randint(1, codebook_size, tokens.shape, generator=generator)) % codebook_size
    return torch.where(chosen, other, tokens), chosen


def paste_patch(
    tokens: Int64[Tensor, "n l"], height: int, width: int, side: int, generator: torch.Generator
) -> tuple[Int64[Tensor, "n l"], Bool[Tensor, "n l"]]:
    """A random square of each grid comes from the next image; tokens that happen to agree are not damage."""
    n = len(tokens)
    top = torch.randint(0, height - side + 1, (n, 1), generator=generator)
    left = torch.randint(0, width - side + 1, (n, 1), generator=generator)
    row, column = torch.arange(height * width) // width, torch.arange(height * width) % width
    inside = (row >= top) & (row < top + side) & (column >= left) & (column < left + side)
    damaged = torch.where(inside, tokens.roll(1, 0), tokens)
    return damaged, damaged != tokens


def judge(
    model: Model, tokens: Int64[Tensor, "n l"], labels: Int64[Tensor, " n"] | None, level: float, block: int
) -> Float[Tensor, "n l"]:
    """P(signal) of many grids."""
    return model.signal_of_tokens(tokens.unflatten(1, model.grid), labels, level=level, block=block).flatten(1)


def measure_damage(
    model: Model, tokens: Int64[Tensor, "n l"], labels: Int64[Tensor, " n"], level: float, block: int, seed: int
) -> list[dict[str, Any]]:
    height, width = model.grid
    codes, rows = model.tokenizer.codebook_size, []
    generator = torch.Generator().manual_seed(seed)
    cases = [
        (f"{k} random token{'s' if k > 1 else ''}", *replace_tokens(tokens, k, codes, generator)) for k in REPLACED
    ]
    cases += [
        (f"{s} x {s} tokens of another image", *paste_patch(tokens, height, width, s, generator))
        for s in PATCH_SIDES
        if s <= min(height, width)
    ]
    for name, damaged, where in cases:
        found = {
            "auc": roc_auc(1 - judge(model, damaged, None, level, block).flatten().numpy(), where.flatten().numpy())
        }
        if model.class_names:
            told = judge(model, damaged, labels, level, block)
            found["auc_with_class"] = roc_auc(1 - told.flatten().numpy(), where.flatten().numpy())
        rows.append({"damage": name, "damaged_tokens": int(where.sum()), **found})
    return rows


def measure_calibration(model: Model, tokens: Int64[Tensor, "n l"], block: int, seed: int) -> list[dict[str, Any]]:
    noise = uniform_noise(model.tokenizer.codebook_size)
    rows = []
    for level in LEVELS:
        generator = torch.Generator().manual_seed(seed)
        clean = torch.rand(tokens.shape, generator=generator) < level
        noisy = torch.where(clean, tokens, add_noise(tokens, torch.zeros(1, 1), noise, generator=generator))
        bins = reliability(judge(model, noisy, None, level, block).flatten().double().numpy(), clean.flatten().numpy())
        rows.append({"level": level, "calibration_error": calibration_error(bins), "bins": bins})
    return rows


def table(result: dict[str, Any]) -> str:
    lines = ["| damage | damaged tokens | ROC-AUC | with the class |", "| --- | --- | --- | --- |"]
    for row in result["damage"]:
        told = f"{row['auc_with_class']:.3f}" if "auc_with_class" in row else ""
        lines.append(f"| {row['damage']} | {row['damaged_tokens']} | {row['auc']:.3f} | {told} |")
    lines += ["", "| level | expected calibration error |", "| --- | --- |"]
    lines += [f"| {row['level']} | {row['calibration_error']:.4f} |" for row in result["calibration"]]
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the diagram needs matplotlib", "not installed", "pip install 'ggm-image[plots]'") from error

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="calibrated")
    for row in result["calibration"][::2]:
        bins = [entry for entry in row["bins"] if entry["count"] >= 50]
        axes.plot(
            [b["probability"] for b in bins],
            [b["share"] for b in bins],
            marker=".",
            label=f"level {row['level']}, error {row['calibration_error']:.3f}",
        )
    axes.set(xlabel="P(signal) by the model", ylabel="share that is signal", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("tokens", type=click.Path(path_type=Path))
@click.option("-n", "count", type=click.IntRange(2), default=1000, show_default=True, help="Token grids.")
@click.option("--level", default=0.9, show_default=True, help="Level at which damage is looked for.")
@click.option("--block", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="signal", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    model_name: str, tokens: Path, count: int, level: float, block: int, seed: int, out: Path, device: str
) -> None:
    model = load_model(model_name, device=device)
    cache = TokenCache.open(tokens)
    if cache.manifest.tokenizer_sha256 != model.tokenizer.sha256:
        raise UserError("the tokens are of another tokenizer", cache.manifest.tokenizer_name, "encode them again")
    rows = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    grids, labels = cache.tokens(rows).flatten(1), cache.labels(rows)
    result = {
        "model": model.name,
        "model_sha256": model.sha256,
        "grids": len(rows),
        "level": level,
        "block": block,
        "seed": seed,
        "damage": measure_damage(model, grids, labels, level, block, seed),
        "calibration": measure_calibration(model, grids, block, seed),
    }
    write_json(out.with_suffix(".json"), result)
    write_text(out.with_suffix(".md"), table(result))
    plot(result, out.with_suffix(".png"))
    click.echo(table(result), nl=False)


if __name__ == "__main__":
    raise SystemExit(run(main))
