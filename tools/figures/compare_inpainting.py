"""Which way to fill holes is best? Ways to use the known tokens, and ways to hide the seam, on real images.

    python tools/figures/compare_inpainting.py cifar10 cifar10/val --features features.pt -n 1000 --out inpainting

Ways to use the known tokens, each with the same number of network calls:

- `level 1, blocks`: known tokens at level 1, two sweeps of fixed blocks over the unknown ones;
- `level 1, signal`: the same, one sweep of most signal first and a revising one;
- `re-noised`: at each step known tokens are noised to the level of the current sweep (as in RePaint, arXiv 2201.09865),
  on the schedule of the first;
- `one sweep`: known tokens at level 1, masked filling in one sweep of fixed blocks;
- `one sweep, signal`: the same, most signal first (MaskGIT's decoding).

Ten images share a hole (`make_masks.py`); each has its true class, no guidance. FD and class accuracy are those of
the filled images on the feature network, `psnr` is against the hidden original inside the hole, `feature distance`
the mean distance of features of filled and original image over that of two different originals.

Ways to hide the seam, on the same tokens: paste, feather, tokens of the border re-encoded from the pasted image,
and `blend_seam`. `seam` is the mean step of grey values across the hole's border over that in the original: 1 is
invisible. Writes OUT.json and OUT.md.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from make_masks import make_mask
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.glauber import heat_bath, sample_codes, uniform_noise
from ggm_image.image.blending import blend_seam, composite
from ggm_image.image.io import to_pil
from ggm_image.image.masks import fill_unknown, known_tokens, token_mask
from ggm_image.image.preprocess import preprocess
from ggm_image.io.files import write_json, write_text
from ggm_image.metrics.extract_features import extract_features
from ggm_image.metrics.feature_extractors import Extractor, load_extractor
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.image_sets import ImageFileSet
from ggm_image.pipelines.base import autocast, image_generator
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.runtime.progress import progress
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import Schedule

MASKS = ("centre", "half", "strokes", "scattered")
WAYS = ("level 1, blocks", "level 1, signal", "re-noised", "one sweep", "one sweep, signal")
SHARED = 10
"""Images with the same hole: they share every network call."""
CHOSEN = "level 1, signal"
SEAMS = ("paste", "feather 1", "feather 2", "border re-encoded", "matched border")


@torch.inference_mode()
def renoised(
    model: Model,
    known: Int64[Tensor, "b l"],
    labels: Int64[Tensor, " b"],
    settings: Settings,
    indices: list[int],
    seed: int,
) -> Int64[Tensor, "b l"]:
    """The chain of `sampler.sample`, but known tokens follow their own noising backwards; one hole for all rows."""
    height, width = model.grid
    sites_total, codes = height * width, model.tokenizer.codebook_size
    noise = uniform_noise(codes)
    unknown = known[0] < 0
    whole = Schedule.round_robin(height, width, sweeps=settings.sweeps, block=settings.block)
    schedule = whole.restricted(unknown)
    blocks, widest = len(schedule.blocks), len(schedule.blocks[0])
    generators = [image_generator(seed, k) for k in indices]
    count = 2 * sites_total + len(schedule.steps) * widest
    uniforms = torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators])
    when, first, draws = uniforms.split([sites_total, sites_total, len(schedule.steps) * widest], dim=1)
    noisy = sample_codes(
        noise.log().expand(*first.shape, -1), first
    )  # a known token is this while `when` exceeds the level
    x = noisy.clone()
    denoiser = model.denoiser(height, width)
    for t in reversed(range(len(schedule.steps))):
        sites = schedule.steps[t].sites
        levels = schedule.levels(t)
        current = schedule.sweep_levels[t // blocks]
        levels = torch.where(unknown, levels, current)
        x = torch.where(unknown, x, torch.where(when <= current, known, noisy))
        with autocast(model.device, model.half):
            logits = denoiser(x.index_fill(1, sites, codes), levels.expand_as(x), sites, labels)
        log_probs = heat_bath(logits.float(), levels[sites], noise)
        x[:, sites] = sample_codes(log_probs, draws[:, t * widest : t * widest + len(sites)])
    return torch.where(unknown, x, known)


def settings_of(way: str, unknown: int, calls: int) -> Settings:
    """The sampler of a way, with so many calls for so many unknown sites."""
    sweeps = 1 if way.startswith("one sweep") else 2
    return Settings(
        order="signal" if "signal" in way else "schedule", sweeps=sweeps, block=-(-unknown * sweeps // calls)
    )


def fill(
    model: Model,
    way: str,
    pixels: UInt8[Tensor, "n 3 h w"],
    holes: list[Bool[np.ndarray, "h w"]],
    labels: list[int],
    calls: int,
    seed: int,
) -> Int64[Tensor, "n rows columns"]:
    """Token grids of filled images; images whose unknown tokens agree are sampled together."""
    height, width = model.grid
    unknown = [token_mask(mask, model.tokenizer.downscale) for mask in holes]
    tokens = model.encode(torch.stack([fill_unknown(p, mask) for p, mask in zip(pixels, holes, strict=True)]))
    known = torch.stack([known_tokens(row, u) for row, u in zip(tokens, unknown, strict=True)])
    patterns: dict[bytes, list[int]] = {}
    for k, u in enumerate(unknown):
        patterns.setdefault(u.numpy().tobytes(), []).append(k)
    result = torch.empty(len(pixels), height, width, dtype=torch.int64)
    for group in progress(patterns.values(), total=len(patterns), unit="mask", label=way):
        settings = settings_of(way, int(unknown[group[0]].sum()), calls)
        for start in range(0, len(group), model.kernel_batch):
            part = group[start : start + model.kernel_batch]
            if way == "re-noised":
                told = torch.tensor([labels[k] for k in part])
                result[part] = renoised(model, known[part], told, settings, part, seed).view(-1, height, width)
                continue
            result[part] = model.sample_tokens(
                [labels[k] for k in part],
                seed=seed + part[0],
                settings=settings,
                known=known[part],
                batch=len(part),
            )
    return result


def border_pairs(mask: Bool[np.ndarray, "h w"]) -> list[tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """Pixels inside and their neighbours outside the hole."""
    pairs = []
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        rows, columns = np.nonzero(mask)
        y, x = rows + dy, columns + dx
        there = (y >= 0) & (y < mask.shape[0]) & (x >= 0) & (x < mask.shape[1])
        rows, columns, y, x = rows[there], columns[there], y[there], x[there]
        outside = ~mask[y, x]
        pairs.append(((rows[outside], columns[outside]), (y[outside], x[outside])))
    return pairs


def seam_step(image: UInt8[Tensor, "3 h w"], mask: Bool[np.ndarray, "h w"]) -> tuple[float, int]:
    """Sum of absolute steps of grey values across the border, and their number."""
    grey = image.double().mean(0).numpy()
    steps = [np.abs(grey[a] - grey[b]) for a, b in border_pairs(mask)]
    return float(sum(s.sum() for s in steps)), sum(len(s) for s in steps)


def hide_seam(
    model: Model,
    how: str,
    known: UInt8[Tensor, "3 h w"],
    sampled: UInt8[Tensor, "3 h w"],
    mask: Bool[np.ndarray, "h w"],
) -> UInt8[Tensor, "3 h w"]:
    """The filled image."""
    cell = model.tokenizer.downscale
    if how == "matched border":
        return blend_seam(known, sampled, mask, reach=cell)
    image = to_pil(fill_unknown(known, mask))  # nobody knows what lies under the mask: feather into what is beside it
    if how == "border re-encoded":
        pasted = torch.where(torch.from_numpy(mask), sampled, known)
        sampled = model.decode(model.encode(pasted[None]))[0]
    feather = int(how.split()[1]) if how.startswith("feather") else 0
    return torch.from_numpy(np.array(composite(image, to_pil(sampled), mask, feather=feather))).permute(2, 0, 1)


def psnr_inside(
    results: UInt8[Tensor, "n 3 h w"], originals: UInt8[Tensor, "n 3 h w"], holes: Bool[np.ndarray, "n h w"]
) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all holes."""
    inside = torch.from_numpy(holes)[:, None].expand_as(results)
    error = (results.double() - originals.double())[inside].square().mean()
    return float(10 * torch.log10(255**2 / error))


class Judge:
    """Features of originals and of filled images."""

    def __init__(
        self, extractor: Extractor, reference: ImageSource, originals: UInt8[Tensor, "n 3 h w"], labels: list[int]
    ) -> None:
        self.extractor, self.labels = extractor, labels
        self.reference = extract_features(ImageFileSet(reference), extractor, label="reference").statistics
        self.originals = self.features(originals)[0]
        self.scale = float(np.linalg.norm(self.originals - np.roll(self.originals, 1, 0), axis=1).mean())

    def features(self, images: UInt8[Tensor, "n 3 h w"]) -> tuple[np.ndarray, np.ndarray | None]:
        found, seen = [], []
        for part in images.split(100):
            inputs = [self.extractor.prepare(image) for image in part]
            found.append(self.extractor.run(self.extractor.network, inputs))
            if self.extractor.logits is not None:
                seen.append(self.extractor.run(self.extractor.logits, inputs).argmax(axis=1))
        return np.concatenate(found), np.concatenate(seen) if seen else None

    def __call__(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float | None]:
        features, seen = self.features(images)
        statistics = FeatureStatistics.empty(self.reference.dimension)
        statistics.update(features)
        return {
            "distance": round(frechet_distance(statistics, self.reference), 4),
            "class_accuracy": None if seen is None else round(float((seen == np.array(self.labels)).mean()), 4),
            "feature_distance": round(float(np.linalg.norm(features - self.originals, axis=1).mean()) / self.scale, 4),
        }


def tables(result: dict[str, Any]) -> str:
    lines = ["| mask | known tokens | FD | class accuracy | PSNR in the hole | feature distance |", "| --- " * 6 + "|"]
    for row in result["conditioning"]:
        accuracy = "" if row["class_accuracy"] is None else f"{row['class_accuracy']:.1%}"
        lines.append(
            f"| {row['mask']} | {row['way']} | {row['distance']:.3f} | {accuracy} | {row['psnr']:.2f} dB "
            f"| {row['feature_distance']:.3f} |"
        )
    lines += ["", "| mask | seam hidden by | seam | PSNR in the hole | FD |", "| --- " * 5 + "|"]
    for row in result["seams"]:
        lines.append(
            f"| {row['mask']} | {row['how']} | {row['seam']:.3f} | {row['psnr']:.2f} dB | {row['distance']:.3f} |"
        )
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--features", required=True, help="Feature network, as for `ggm-image fid`.")
@click.option("-n", "count", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--calls", type=click.IntRange(2), default=8, show_default=True, help="Network calls for each hole.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", default="inpainting", show_default=True, help="Path of the outputs, without suffix.")
@click.option("--device", default="cpu", show_default=True)
def main(
    model_name: str, images: Path, features: str, count: int, calls: int, seed: int, out: str, device: str
) -> None:
    model = load_model(model_name, device=device)
    source = open_source(images)
    chosen = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    originals = torch.stack([preprocess(source[k], model.image_size[0]) for k in chosen])
    labels = [model.label(source.class_names[source.labels[k]]) for k in chosen]
    judge = Judge(load_extractor(features, device=device), source, originals, labels)
    height, width = model.image_size
    result: dict[str, Any] = {
        "model_sha256": model.sha256,
        "features_sha256": judge.extractor.sha256,
        "images": count,
        "calls": calls,
        "seed": seed,
        "reference_count": judge.reference.count,
        "conditioning": [],
        "seams": [],
    }
    for mask in MASKS:
        cell = model.tokenizer.downscale
        holes = [make_mask(mask, height, width, seed=seed, index=k // SHARED, cell=cell) for k in range(count)]
        border = sum(map(np.array, (seam_step(p, hole) for p, hole in zip(originals, holes, strict=True))))
        for way in WAYS:
            sampled = model.decode(fill(model, way, originals, holes, labels, calls, seed))
            for how in SEAMS if way == CHOSEN else SEAMS[-1:]:
                filled = torch.stack(
                    [hide_seam(model, how, *row) for row in zip(originals, sampled, holes, strict=True)]
                )
                told = {"psnr": round(psnr_inside(filled, originals, np.stack(holes)), 3), **judge(filled)}
                if way == CHOSEN:
                    steps = sum(map(np.array, (seam_step(p, hole) for p, hole in zip(filled, holes, strict=True))))
                    result["seams"].append(
                        {"mask": mask, "how": how, "seam": round(float(steps[0] / border[0]), 4), **told}
                    )
                if how == SEAMS[-1]:
                    result["conditioning"].append({"mask": mask, "way": way, **told})
                write_json(f"{out}.json", result)
    write_text(f"{out}.md", tables(result))
    click.echo(tables(result), nl=False)


if __name__ == "__main__":
    raise SystemExit(run(main))
