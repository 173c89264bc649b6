"""Quality against cost: Fréchet distance of a model's samples at many sampler settings, as a table and a curve.

    python tools/experiments/quality_vs_cost.py cifar10 val/ --features features.pt -n 5000 --out quality

Writes quality.json (resumable: settings that are there are not run again), quality.md and quality.png. Every point
uses the same seeds. `--points` chooses settings: a YAML list of sampler settings; the default list covers 8 to 128
calls, with one and with several sweeps, in both orders. `--grid` is a YAML of lists, e.g. `{order: [schedule, signal],
sweeps: [1, 2], block: [8, 16], guidance: [1, 3]}`: every combination, but for those that differ in a setting without
effect. Passes are the network's cost: a guided call is two. Settings in bold are not dominated: none with as few passes
is as good. Several processes share the work if each has its own points and output; `--merge A.json --merge B.json`
then collects them. "class accuracy" is the share of images in which the feature network, where it is a classifier,
sees the class that was asked for, both in alphabetical order.
"""

import itertools
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from experiments import read_results
from omegaconf import OmegaConf

import ggm_image
from ggm_image.cli.main import run
from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.io.files import write_json, write_text
from ggm_image.metrics.extract_features import extract_features
from ggm_image.metrics.feature_extractors import Extractor, load_extractor
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.image_sets import ImageFileSet
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.runtime.progress import progress
from ggm_image.sampler.registry import find_sampler
from ggm_image.sampler.settings import Settings


def default_points(sites: int) -> list[Settings]:
    """One sweep and several sweeps at 8 to 128 calls, in both orders; 2 * sites calls need two sweeps at least."""
    points = []
    for calls in (8, 16, 32, 64, 128):
        for sweeps in (1, 2, 4, 8):
            block = sites * sweeps // calls
            if 1 <= block <= sites // 2 and block * calls == sites * sweeps:
                points.append(Settings(order="schedule", sweeps=sweeps, block=block))
                if sweeps <= 2:
                    points.append(Settings(order="signal", sweeps=sweeps, block=block))
    return points


def every_combination(grid: dict[str, list[Any]], base: Settings | None = None) -> list[Settings]:
    """``base``, the default settings if None, with all combinations of a grid, each once; see `canonical`."""
    entries, found = asdict(base or Settings()), []
    for values in itertools.product(*grid.values()):
        settings = canonical(Settings.of(entries | dict(zip(grid, values, strict=True))))
        if settings not in found:
            found.append(settings)
    return found


def canonical(settings: Settings) -> Settings:
    """The same sampler with every entry at its default that has no effect on it."""
    default = asdict(Settings())
    idle = list(find_sampler(settings.order).unused)
    if settings.sweeps == 1:  # the levels fall from 1 to 0 at once, and nothing is revised
        idle += ["curve", "revise_share"]
    if settings.guidance == 1:
        idle += ["guidance_power"]
    if settings.order == "signal" and settings.first_order != "signal":
        idle += ["confidence_noise"]
    settings = replace(settings, **{name: default[name] for name in idle})
    if settings.sweeps == 1 and settings.first_block:
        settings = replace(settings, block=settings.first_block, first_block=None)
    return settings


def passes(row: dict[str, Any]) -> int:
    """Passes of the network for each image: a guided call is two, unless it is a first one of weight 1."""
    s = row["settings"]
    grows = s["guidance_power"] > 0
    if s["guidance"] == 1 or (s["guidance"] == 0 and not grows):
        return int(row["calls"])
    return int(2 * row["calls"] - (grows and s["order"] == "signal"))


def undominated(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other row beats: as few passes and a smaller distance, or fewer and the same."""
    return [
        row
        for row in results
        if not any(
            passes(other) <= passes(row)
            and other["distance"] <= row["distance"]
            and (passes(other), other["distance"]) != (passes(row), row["distance"])
            for other in results
        )
    ]


def short(settings: Settings) -> str:
    """The settings that are not the default, on one line."""
    default = asdict(Settings())
    shown = {k: v for k, v in asdict(settings).items() if v != default[k] and k not in ("order", "sweeps", "block")}
    return ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in shown.items())


@torch.inference_mode()
def sample_and_score(
    model: Model, settings: Settings, n: int, seed: int, extractor: Extractor, reference: FeatureStatistics
) -> dict[str, Any]:
    """Sample n images (classes in turn) and score them; seconds are of sampling and decoding."""
    statistics = FeatureStatistics.empty(reference.dimension)
    right, seconds = 0, 0.0
    step = 10 * model.kernel_batch
    label = f"{settings.order} {settings.sweeps} x {settings.block}"
    for first in progress(range(0, n, step), total=-(-n // step), unit="batch", label=label):
        count = min(step, n - first)
        start = time.perf_counter()
        images = model.sample(count, seed=seed, settings=settings, first=first)
        seconds += time.perf_counter() - start
        inputs = [extractor.prepare(image) for image in images]
        statistics.update(extractor.run(extractor.network, inputs))
        if extractor.logits is not None:
            seen = extractor.run(extractor.logits, inputs).argmax(axis=1)
            right += int((seen == np.array(model.labels(count, None, first))).sum())
    return {
        "settings": asdict(settings),
        "n": n,
        "calls": settings.calls(model.grid[0] * model.grid[1]),
        "distance": round(frechet_distance(statistics, reference), 4),
        "class_accuracy": round(right / n, 4) if extractor.logits is not None else None,
        "seconds_per_image": round(seconds / n, 5),
    }


def table(results: list[dict[str, Any]], features: str) -> str:
    """Markdown, cheapest first; what is not dominated in bold."""
    best = undominated(results)
    lines = [
        f"| calls | passes | order | sweeps x block | other settings | images | FD ({features}) | class accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(results, key=lambda r: (r["calls"], passes(r), r["settings"]["order"], r["distance"])):
        s = Settings.of(row["settings"])
        distance = f"{row['distance']:.3f}"
        distance = f"**{distance}**" if row in best else distance
        accuracy = "" if row["class_accuracy"] is None else f"{100 * row['class_accuracy']:.1f}%"
        lines.append(
            f"| {row['calls']} | {passes(row)} | {s.order} | {s.sweeps} x {s.block} | {short(s)} "
            f"| {row['n']} | {distance} | {accuracy} |"
        )
    return "\n".join(lines) + "\n"


def pyplot() -> Any:
    """matplotlib's plotting module, drawing into files."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the curve needs matplotlib", "not installed", "pip install 'ggm-image[plots]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot(results: list[dict[str, Any]], features: str, path: Path) -> None:
    """The best distance at each number of calls, one line for each order and one or several sweeps."""
    plt = pyplot()
    lines: dict[str, dict[int, float]] = {}
    for row in results:
        s = row["settings"]
        name = f"{s['order']}, {'one sweep' if s['sweeps'] == 1 else 'several sweeps'}"
        name += f", guidance {'up to ' if s['guidance_power'] else ''}{s['guidance']:g}" if s["guidance"] != 1 else ""
        points = lines.setdefault(name, {})
        points[row["calls"]] = min(points.get(row["calls"], float("inf")), row["distance"])
    figure, axes = plt.subplots(figsize=(8.6, 3.8), layout="constrained")
    for (name, points), marker in zip(sorted(lines.items()), itertools.cycle("osd^vPX*"), strict=False):
        calls = sorted(points)
        axes.plot(calls, [points[c] for c in calls], marker=marker, label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["calls"] for row in results})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlabel("network calls")
    axes.set_ylabel(f"FD ({features})")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--features", required=True, help="Feature network, as for `ggm-image fid`.")
@click.option("--features-name", default=None, help="What to call it in the table.")
@click.option("-n", "count", default=5000, show_default=True, help="Images for each point.")
@click.option("--seed", default=0, show_default=True)
@click.option("--points", type=click.Path(path_type=Path), help="YAML list of sampler settings.")
@click.option("--grid", type=click.Path(path_type=Path), help="YAML of lists of sampler settings.")
@click.option("--merge", type=click.Path(path_type=Path), multiple=True, help="Take over the results of this JSON.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network: slower to start, then faster.")
@click.option("--out", default="quality", show_default=True, help="Path of the outputs, without suffix.")
@click.option("--device", default="cpu", show_default=True)
def main(
    model_name: str,
    reference: Path,
    features: str,
    features_name: str | None,
    count: int,
    seed: int,
    points: Path | None,
    grid: Path | None,
    merge: tuple[Path, ...],
    compiled: bool,
    out: str,
    device: str,
) -> None:
    model = load_model(model_name, device=device, compiled=compiled)
    extractor = load_extractor(features, device=device)
    name = features_name or extractor.name
    real = extract_features(ImageFileSet(open_source(reference)), extractor, label="reference").statistics
    wanted = [] if merge or grid else default_points(model.grid[0] * model.grid[1])
    if points is not None:
        entries: Any = OmegaConf.to_container(OmegaConf.load(points))
        wanted = [Settings.of(entry) for entry in entries]
    if grid is not None:
        lists: Any = OmegaConf.to_container(OmegaConf.load(grid))
        wanted += every_combination(lists)
    protocol = {
        "model": model.name,
        "model_sha256": model.sha256,
        **model.tokenizer.identity,
        "features_sha256": extractor.sha256,
        "reference_count": real.count,
        "seed": seed,
    }
    path = Path(f"{out}.json")
    saved = read_results(path, "results") if path.exists() else {"protocol": protocol, "results": []}
    if saved["protocol"] != protocol:
        raise UserError(f"{path} was made by another protocol", saved["protocol"], "give another --out")
    saved["versions"] = {"ggm_image": ggm_image.__version__, "torch": torch.__version__}
    saved["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device.type}"
    results = saved["results"]
    for other in merge:
        part = read_results(other, "results")
        if part["protocol"] != protocol:
            raise UserError(f"{other} was made by another protocol", part["protocol"], "leave it out")
        results += [row for row in part["results"] if row not in results]
    write_json(path, saved)
    for settings in wanted:
        if any((row["settings"], row["n"]) == (asdict(settings), count) for row in results):
            continue
        results.append(sample_and_score(model, settings, count, seed, extractor, real))
        click.echo(table(results[-1:], name).splitlines()[-1])
        write_json(path, saved)
    write_text(f"{out}.md", table(results, name))
    plot(results, name, Path(f"{out}.png"))


if __name__ == "__main__":
    raise SystemExit(run(main))
