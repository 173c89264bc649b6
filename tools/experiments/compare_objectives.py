"""GGM against its baselines: the same tokens, transformer, optimizer, wall-clock time and seeds.

    python tools/experiments/compare_objectives.py tokens/train tokens/val cifar10/val --features features.pt --minutes
    10

| method | training | drawing |
| --- | --- | --- |
| `ggm` | binary, with expectations (the default) | fixed blocks, or most signal or Halton order first, then revised |
| `literal` | binary-sampled: the paper's single draw | fixed blocks, 1 to 4 sweeps |
| `maskgit` | masked diffusion | most confident first, one sweep |
| `halton` | the same network | Halton order, one sweep |
| `d3pm` | uniform noise, x_0-prediction | all sites in every step |
| `sedd` | score entropy, uniform rates | all sites in every step |

Every network trains `--minutes` on one thread of its own (of processor time, where there is no GPU). The settings of
every sampler (`candidates`: temperature for all; block, sweeps, order, calls that revise, confidence noise, curve,
first level where it has them) are tuned on the first seed at every number of calls: all with `--tune` images, the
four best of those with `--tune-again` images; the best of these four is then drawn `-n` times with other random
numbers on every seed. No guidance. FD is the Fréchet distance to REFERENCE; `bound` is an
upper bound on the held-out -log p, nats a token: over random orders for networks that fill masked sites, by the score
entropy for the others. A sweep has at most one call a site, so one-sweep methods stop there. Writes OUT/results.json
(resumable), OUT/compare.md and OUT/compare.png.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import torch
from baselines import (
    D3PMTrainer,
    MaskedTrainer,
    SEDDTrainer,
    any_order_bound,
    d3pm_log_score,
    d3pm_step,
    halton,
    score_bound,
    sedd_step,
    tau_leap,
)
from experiments import Results, Row
from jaxtyping import Float64, Int
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.sources.image_files import open_source
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.files import write_text
from ggm_image.metrics.extract_features import extract_features
from ggm_image.metrics.feature_extractors import Extractor, load_extractor
from ggm_image.metrics.feature_file import FeatureMatrix, Features, row_type
from ggm_image.metrics.fid import frechet_distance
from ggm_image.metrics.image_sets import ImageFileSet
from ggm_image.metrics.prdc import prdc
from ggm_image.pipelines.base import image_generator
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.runtime.memory import keep_freed_memory
from ggm_image.sampler import sample, sample_signal, truncated
from ggm_image.schedule import Schedule
from ggm_image.training.checkpoint import has_checkpoint
from ggm_image.training.evaluation import own_tokenizer
from ggm_image.training.run import train_generator
from ggm_image.training.trainer import GeneratorTrainer

TRAINED: dict[str, tuple[type[GeneratorTrainer], str]] = {
    "ggm": (GeneratorTrainer, "binary"),
    "literal": (GeneratorTrainer, "binary-sampled"),
    "masked": (MaskedTrainer, "cross-entropy"),
    "d3pm": (D3PMTrainer, "cross-entropy"),
    "sedd": (SEDDTrainer, "cross-entropy"),  # the class brings its own loss
}
METHODS = {"ggm": "ggm", "literal": "literal", "maskgit": "masked", "halton": "masked", "d3pm": "d3pm", "sedd": "sedd"}
"""The network of each method."""
TITLES = {
    "ggm": "GGM",
    "literal": "GGM, single draw",
    "maskgit": "MaskGIT",
    "halton": "masked, Halton order",
    "d3pm": "D3PM, uniform",
    "sedd": "SEDD, uniform",
}
TEMPERATURES = (1.0, 0.8, 0.65, 0.5)
BATCH = 100
FINALISTS = 4
"""Settings of a method and a number of calls that are tuned with more images."""
TUNING_SEED = 1_000_000
"""Of the images on which settings are chosen: figures are made of others."""


def candidates(method: str, calls: int, sites: int) -> list[Row]:
    """The sampler settings that are tried for ``calls`` network calls; empty where the method has none."""
    found: list[Row] = []
    for temperature in TEMPERATURES:
        if method in ("ggm", "literal"):
            for sweeps in (1, 2, 4):
                block = sites * sweeps // calls
                if block * calls != sites * sweeps or not 1 <= block <= sites // 2:
                    continue
                found.append({"order": "schedule", "sweeps": sweeps, "block": block, "temperature": temperature})
            for revise_calls in (0, calls // 8, calls // 4, calls // 2) if method == "ggm" else ():
                if revise_calls == 1 or calls - revise_calls > sites:
                    continue
                block = max(1, sites // max(1, revise_calls))  # they visit every site once
                revised = {"revise_calls": revise_calls, "block": block, "temperature": temperature}
                found.append({"order": "signal", **revised, "confidence_noise": 4.5})
                found.append({"order": "signal", **revised, "first_order": "halton"})
        elif method in ("maskgit", "halton"):
            if calls <= sites:
                noises = ({"confidence_noise": noise} for noise in (8.0, 4.5, 2.0)) if method == "maskgit" else ({},)
                found += [{"temperature": temperature, **noise} for noise in noises]
        else:
            levels = (1e-3, 2e-2) if method == "sedd" else (1e-3,)
            for curve, first_level in itertools.product(("cosine", "linear"), levels):
                found.append({"curve": curve, "first_level": first_level, "temperature": temperature})
    return found


def draw(
    method: str,
    model: Model,
    calls: int,
    settings: Row,
    labels: Int[Tensor, " b"],
    generators: list[torch.Generator],
) -> Int[Tensor, "b l"]:
    """One batch of tokens."""
    height, width = model.grid
    temperature, b = settings["temperature"], len(generators)
    denoiser = truncated(model.network, temperature=temperature)
    shared: Row = {"codebook_size": model.tokenizer.codebook_size, "device": model.device}
    common = {**shared, "labels": labels, "generator": generators}
    if settings.get("order") == "schedule":
        schedule = Schedule.round_robin(height, width, sweeps=settings["sweeps"], block=settings["block"])
        return sample(denoiser, schedule, b, **common)
    if settings.get("order") == "signal" or method == "maskgit":
        revise_calls = settings.get("revise_calls", 0)
        return sample_signal(
            denoiser,
            b,
            height=height,
            width=width,
            calls=calls - revise_calls,
            revise_calls=revise_calls,
            block=settings.get("block"),
            confidence_noise=settings.get("confidence_noise", 0.0),
            first_order=settings.get("first_order", "signal"),
            **common,
        )
    shared |= {"generators": generators, "temperature": temperature}
    if method == "halton":
        return halton(model.network, calls, labels, height=height, width=width, **shared)
    step = {"d3pm": d3pm_step, "sedd": sedd_step}[method]
    curve, first_level = settings["curve"], settings["first_level"]
    return tau_leap(
        model.network, step, calls, labels, sites=height * width, curve=curve, first_level=first_level, **shared
    )


def folder_of(context: Row, task: Row) -> Path:
    return Path(context["out"]) / f"{task['network']}-{task['seed']}"


def train(context: Row, task: Row) -> Row:
    """Train one network, and bound its held-out likelihood."""
    folder = folder_of(context, task)
    method, objective = TRAINED[task["network"]]
    if context["device"] == "cpu":
        keep_freed_memory()
        # seconds of one thread: other work on the machine takes nothing from a network
        method = type(method.__name__, (method,), {"timer": staticmethod(time.process_time)})
    overrides = [*context["overrides"], f"train.max_minutes={task['minutes']}", f"train.seed={task['seed']}"]
    train_generator(
        context["config"],
        context["tokens"],
        folder,
        overrides=[*overrides, f"objective.name={objective}", f"data.val={context['val']}"],
        resume=has_checkpoint(folder),
        device=context["device"],
        report=lambda line: None,
        method=method,
    )
    model = load_model(folder / "model", device=context["device"])
    done = NetworkFolder.read(folder / "model").config["training"]
    images = done["step"] * done["train"]["batch_size"]
    return {
        "minutes": done["minutes"],
        "pictures": images,
        "bound": bound(task["network"], model, TokenCache.open(context["val"])),
    }


@torch.inference_mode()
def bound(network: str, model: Model, cache: TokenCache) -> float:
    """Upper bound on -log p of the held-out tokens, nats a token."""
    tokens, labels = cache.load()
    arguments: Row = {
        "codebook_size": model.tokenizer.codebook_size,
        "generator": torch.Generator().manual_seed(0),
    }
    every = torch.arange(tokens[0].numel())

    def log_score(x_t: Tensor, levels: Tensor, own: Tensor | None) -> Tensor:
        sample = model.network(x_t, levels, every, own).double()
        return d3pm_log_score(sample, x_t, levels[:, :1, None].double()) if network == "d3pm" else sample

    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.half):
        if network in ("d3pm", "sedd"):
            return score_bound(log_score, tokens.flatten(1).long(), labels, **arguments)
        return any_order_bound(model.network, tokens.flatten(1).long(), labels, **arguments)


@lru_cache(maxsize=1)
def loaded(folder: str, device: str, compiled: bool) -> Model:
    """The model of the last task, which is often that of the next."""
    return load_model(folder, device=device, compiled=compiled)


def hash_of_features(features: str) -> str:
    """SHA-256 of the weights of a feature network, whatever it is named by; its full name where a library has them."""
    extractor = load_extractor(features)
    return extractor.sha256 or extractor.name


@lru_cache(maxsize=1)
def judge(features: str, reference: str, device: str) -> tuple[Extractor, Features]:
    """The feature network, and the features of the reference."""
    extractor = load_extractor(features, device=device)
    return extractor, extract_features(ImageFileSet(open_source(reference)), extractor, label="reference")


def matrix_of(batches: list[Float64[np.ndarray, "_ d"]]) -> FeatureMatrix:
    """Features in memory as figures want them."""
    features = np.concatenate(batches)
    rows = np.zeros(len(features), row_type(features.shape[1]))
    rows["features"] = features
    return FeatureMatrix(rows)


def score(context: Row, task: Row) -> Row:
    """Draw the images of one setting and score them; for a figure with precision and recall."""
    model = loaded(str(folder_of(context, task) / "model"), context["device"], context["compiled"])
    extractor, reference = judge(context["features"], context["reference"], context["device"])
    n, found, seconds = task["n"], [], 0.0
    for first in range(0, n, BATCH):
        start = time.perf_counter()
        labels = torch.tensor(model.labels(BATCH, None, first), device=model.device)
        generators = [image_generator(task["draws"], first + k) for k in range(BATCH)]
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=model.half):
            tokens = draw(task["method"], model, task["calls"], task["settings"], labels, generators)
        seconds += time.perf_counter() - start
        images = model.decode(tokens.unflatten(1, model.grid), batch=BATCH)
        found.append(extractor(images[: n - first]))
    matrix = matrix_of(found)
    row = {
        "distance": frechet_distance(matrix.statistics(), reference.statistics),
        "seconds_per_image": seconds / (-(-n // BATCH) * BATCH),
    }
    if task["stage"] == "final":
        near = prdc(matrix, reference.matrix, device=extractor.device)
        row |= {name: near[name] for name in ("precision", "recall")}
    return row


def selected(results: Results, method: str, calls: int, sites: int, rounds: list[tuple[int, int]]) -> list[Row]:
    """The candidates that are left after rounds of tuning: (images, how many of the least distances are kept)."""
    left = candidates(method, calls, sites)
    for n, kept in rounds:
        tuned = results.of(method=method, calls=calls, stage="tune", n=n)
        tuned = sorted((row for row in tuned if row["task"]["settings"] in left), key=lambda row: row["distance"])
        left = [row["task"]["settings"] for row in tuned[:kept]]
    return left


Figures = dict[tuple[str, int], list[Row]]
"""Results of the chosen settings by method and calls, one a seed; only what has been drawn."""


def figures(results: Results, calls: list[int], sites: int, rounds: list[tuple[int, int]], n: int) -> Figures:
    """What the settings chosen by these rounds gave with ``n`` images."""
    found: Figures = {}
    for method, c in itertools.product(METHODS, calls):
        for settings in selected(results, method, c, sites, rounds):
            if rows := results.of(stage="final", method=method, calls=c, n=n, settings=settings):
                found[method, c] = rows
    return found


def shown(settings: Row) -> str:
    """Settings on one line."""
    parts = [f"T {settings['temperature']:g}"]
    if "sweeps" in settings:
        parts.insert(0, f"{settings['order']} {settings['sweeps']} x {settings['block']}")
    if "revise_calls" in settings:
        revised = f", {settings['revise_calls']} calls revise {settings['block']}" if settings["revise_calls"] else ""
        parts.insert(0, settings.get("first_order", settings["order"]) + revised)
    parts += [f"noise {settings['confidence_noise']:g}"] if "confidence_noise" in settings else []
    parts += [f"{settings['curve']} from {settings['first_level']:g}"] if "curve" in settings else []
    return ", ".join(parts)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation; 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def tables(results: Results, finals: Figures, calls: list[int]) -> str:
    """Markdown: distances, the settings that made them, what was trained, and who is ahead."""
    seeds = len({row["task"]["seed"] for row in results.of(stage="train")})
    means = {key: spread([row["distance"] for row in rows]) for key, rows in finals.items()}
    methods = [m for m in METHODS if any(key[0] == m for key in means)]
    header = "| FD at network calls | " + " | ".join(map(str, calls)) + " |"
    lines = [header, "| --- " * (len(calls) + 1) + "|"]
    for m in methods:
        cells = []
        for c in calls:
            if (m, c) not in means:
                cells.append("")
                continue
            mean, deviation = means[m, c]
            text = f"{mean:.2f} ± {deviation:.2f}" if seeds > 1 else f"{mean:.2f}"
            cells.append(f"**{text}**" if mean == min(v[0] for k, v in means.items() if k[1] == c) else text)
        lines.append(f"| {TITLES[m]} | " + " | ".join(cells) + " |")
    lines += ["", "| precision, recall at network calls | " + " | ".join(map(str, calls)) + " |"]
    lines.append("| --- " * (len(calls) + 1) + "|")
    for m in methods:
        pairs = [
            [statistics.fmean(row[name] for row in finals[m, c]) for name in ("precision", "recall")]
            if (m, c) in finals
            else []
            for c in calls
        ]
        lines.append(f"| {TITLES[m]} | " + " | ".join(", ".join(f"{x:.2f}" for x in pair) for pair in pairs) + " |")
    lines += ["", "| settings | " + " | ".join(map(str, calls)) + " |", "| --- " * (len(calls) + 1) + "|"]
    for m in methods:
        cells = [shown(finals[m, c][0]["task"]["settings"]) if (m, c) in finals else "" for c in calls]
        lines.append(f"| {TITLES[m]} | " + " | ".join(cells) + " |")
    lines += ["", "| network | images seen | minutes | bound on -log p, nats a token |", "| --- | --- | --- | --- |"]
    for network in TRAINED:
        rows = results.of(stage="train", network=network)
        if rows:
            mean, deviation = spread([row["bound"] for row in rows])
            images, minutes = (statistics.fmean(row[name] for row in rows) for name in ("pictures", "minutes"))
            lines.append(f"| {network} | {images:,.0f} | {minutes:.1f} | {mean:.3f} ± {deviation:.3f} |")
    lines.append("")
    for c in calls:
        baselines = {m: means[m, c] for m in methods if (m, c) in means and not m.startswith(("ggm", "literal"))}
        if ("ggm", c) in means and baselines:
            near = min(baselines, key=lambda m: baselines[m][0])
            gap = baselines[near][0] - means["ggm", c][0]
            word = "ahead of" if gap > 0 else "behind"
            lines.append(f"- {c} calls: GGM is {abs(gap):.2f} {word} the best rival, {TITLES[near]}.")
    return "\n".join(lines) + "\n"


def plot(finals: Figures, calls: list[int], path: Path) -> None:
    """Distance against calls, with the deviation over seeds."""
    from quality_vs_cost import pyplot

    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
    for method, marker in zip(METHODS, "osd^vP", strict=True):
        points = [(c, spread([row["distance"] for row in finals[method, c]])) for c in calls if (method, c) in finals]
        if points:
            axes.errorbar(
                [c for c, _ in points],
                [mean for _, (mean, _) in points],
                [deviation for _, (_, deviation) in points],
                marker=marker,
                capsize=3,
                linewidth=2.2 if method == "ggm" else 1.2,
                label=TITLES[method],
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(calls, [str(c) for c in calls])
    axes.set_xlabel("network calls")
    axes.set_ylabel("FD")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command(help=__doc__)
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option(
    "--config", default="configs/compare_cifar10.yaml", show_default=True, help="Network and optimizer of all."
)
@click.option("--features", required=True, help="Feature network, as for `ggm-image fid`.")
@click.option("--minutes", default=10.0, show_default=True, help="Training time of every network.")
@click.option("--seeds", default=3, show_default=True, help="Networks of each kind.")
@click.option("--calls", default="4,8,16,32,64,128,256", show_default=True, help="Network calls, with commas.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Which, with commas.")
@click.option("--tune", default=100, show_default=True, help="Images for each candidate setting.")
@click.option("--tune-again", default=500, show_default=True, help=f"Images for each of the {FINALISTS} best.")
@click.option("-n", "count", default=2000, show_default=True, help="Images for each figure, on each seed.")
@click.option("--processes", default=2, show_default=True, help="Tasks at a time, which share the threads; 0: here.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks for drawing.")
@click.option("--out", type=click.Path(path_type=Path), default="compare", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
def main(
    tokens: Path,
    val: Path,
    reference: Path,
    config: str,
    features: str,
    minutes: float,
    seeds: int,
    calls: str,
    methods: str,
    tune: int,
    tune_again: int,
    count: int,
    processes: int,
    compiled: bool,
    out: Path,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    asked, budget = methods.split(","), [int(c) for c in calls.split(",")]
    for method in asked:
        if method not in METHODS:
            raise UserError("no such method", method, f"choose from {', '.join(METHODS)}")
    manifest = TokenCache.open(tokens).manifest
    sites = manifest.grid[0] * manifest.grid[1]
    protocol = {
        "config": Path(config).read_text(),
        "overrides": list(overrides),
        "minutes": minutes,
        "tokenizer": own_tokenizer(manifest).identity,
        "features": hash_of_features(features),
        "threads": torch.get_num_threads() // max(1, processes),
    }
    results = Results(out / "results.json", protocol)
    context: Row = {"tokens": tokens, "val": val, "reference": reference, "config": config, "features": features}
    context = {name: str(value) for name, value in context.items()}
    context |= {"out": str(out), "device": device, "compiled": compiled, "overrides": list(overrides)}

    def go(tasks: list[Row], work: Callable[[Row, Row], Row], label: str) -> None:
        results.run(tasks, work, context, processes=processes, label=label)

    networks = dict.fromkeys(METHODS[method] for method in asked)
    training = itertools.product(range(seeds), networks)
    go([{"stage": "train", "network": name, "seed": k, "minutes": minutes} for k, name in training], train, "train")

    def drawing(stage: str, method: str, c: int, settings: Row, n: int, seed: int = 0) -> Row:
        task: Row = {"stage": stage, "method": method, "network": METHODS[method], "seed": seed, "calls": c}
        return {**task, "settings": settings, "draws": TUNING_SEED if stage == "tune" else seed, "n": n}

    cases = list(itertools.product(asked, budget))
    rounds = [(tune, FINALISTS), (tune_again, 1)]
    for k, (n, _) in enumerate(rounds):
        tried = [(case, settings) for case in cases for settings in selected(results, *case, sites, rounds[:k])]
        go([drawing("tune", *case, settings, n) for case, settings in tried], score, f"tune, {n}")
    chosen = [(case, settings) for case in cases for settings in selected(results, *case, sites, rounds)]
    pairs = itertools.product(range(seeds), chosen)
    go([drawing("final", *case, settings, count, seed) for seed, (case, settings) in pairs], score, "draw")
    finals = figures(results, budget, sites, rounds, count)
    write_text(out / "compare.md", tables(results, finals, budget))
    plot(finals, budget, out / "compare.png")
    click.echo(tables(results, finals, budget))


if __name__ == "__main__":
    raise SystemExit(run(main))
