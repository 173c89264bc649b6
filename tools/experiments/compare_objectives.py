"""GGM against its rivals: the same tokens, transformer, optimizer, wall-clock time and seeds.

    python tools/experiments/compare_objectives.py tokens/train tokens/val cifar10/val --features efficientnet-lite0 \\
        --features classifier.pt --minutes 30

| method | training | sampling |
| --- | --- | --- |
| `ggm` | binary, with expectations (the default) | fixed blocks, or most signal or Halton order first, then revised |
| `literal` | binary-sampled: the paper's single draw | fixed blocks, 1 to 4 sweeps |
| `maskgit` | masked diffusion | most confident first, one sweep |
| `halton` | the same network | Halton order, one sweep |
| `critic` | the same network | every second call judges half of the tokens, the worst are masked again |
| `remdm-cap`, `remdm-rescale`, `remdm-conf`, `remdm-loop` | the same network | ReMDM: tokens are masked again |
| `d3pm` | uniform noise, x_0-prediction | all sites in every step |
| `sedd` | score entropy, uniform rates | all sites in every step |
| `gidd` | masking and uniform noise, dynamic weights | all sites in every step, then self-correction |
| `duo` | uniform noise, its own bound | all sites in every step, with or without the greedy tail |

Every network trains `--minutes` on one thread of its own (of processor time, where there is no GPU). Sampler settings
are chosen on the first seed at every number of calls, with and without guidance: for every method
`--settings-per-method` of them (`compare_methods.candidates`: temperature for all, guidance weight and its growth where
there is guidance, and what else a sampler has) with `--tune` images each, then the four best of those with
`--tune-again` images. The best of these four is sampled `-n` times with other random numbers on every seed. Settings
are chosen by the first --features against `--tuning-share` of REFERENCE, the first images of each class; all figures
are taken against the others. The numbers stand in the report.

A guided call is two passes of the network. `bound` is an upper bound on held-out -log p, nats per token: over random
orders for networks that fill masked sites, by their own bounds for the others. A sweep has at most one call a site, so
one-sweep methods stop there. Writes OUT/results.json (resumable, row by row), OUT/compare.md and OUT/compare.png; with
--report-only the last two are written again from the first.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import torch
from compare_methods import METHODS, TRAINED, bound, candidates, draw
from compare_tables import Figures, figure_tables, network_table, plot
from comparison import (
    TUNING_SEED,
    comparison_options,
    folder_of,
    parse_calls,
    parse_methods,
    sampled_tokens,
    train_network,
)
from experiments import Results, Row, read_results
from image_figures import FeatureNetwork, Images, figures, load_images
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.files import write_text
from ggm_image.metrics.feature_extractors import load_extractor
from ggm_image.metrics.prdc import DENSITY_K
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.training.evaluation import own_tokenizer

BATCH = 100
GPU_BATCH = 500
"""Images in a call."""
FINALISTS = 4
"""Settings of a method and a number of calls that are tuned with more images."""


def train(context: Row, task: Row) -> Row:
    """Train one network, and bound its held-out likelihood."""
    done = train_network(context, task, TRAINED[task["network"]], f"data.val={context['val']}")
    model = load_model(folder_of(context, task) / "model", device=context["device"])
    tokens, labels = TokenCache.open(context["val"]).load()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.half):
        found = bound(task["network"], model.network, tokens.flatten(1).long(), labels)
    return {**done, "bound": found}


@lru_cache(maxsize=1)
def loaded(folder: str, device: str, compiled: bool) -> Model:
    """The model of the last task, which is often that of the next."""
    return load_model(folder, device=device, compiled=compiled)


def split_reference(images: Images, share: float) -> tuple[Images, Images]:
    """The part on which settings are chosen, the first ``share`` of each class, and the part for figures.

    Raises:
        UserError: one of the parts is too small for figures.
    """
    tuning: list[int] = []
    for label in np.unique(images.labels):
        rows = np.flatnonzero(images.labels == label)
        tuning += rows[: round(share * len(rows))].tolist()
    others = sorted(set(range(len(images))) - set(tuning))
    if min(len(tuning), len(others)) <= DENSITY_K:
        got = f"{len(tuning)} for tuning, {len(others)} for figures"
        raise UserError(f"both parts of the reference need more than {DENSITY_K} images", got, "give more images")
    return images.picked(sorted(tuning)), images.picked(others)


@lru_cache(maxsize=1)
def both_references(reference: str, size: int, share: float) -> tuple[Images, Images]:
    """`split_reference` of the images of a source."""
    return split_reference(load_images(Path(reference), size), share)


@lru_cache(maxsize=2)
def judges(
    features: tuple[str, ...], reference: str, size: int, share: float, part: str, device: str, out: str
) -> list[FeatureNetwork]:
    """The feature networks with the "tuning" or the "final" part of the reference, whose features are kept in OUT.

    Settings are chosen by the first network alone.
    """
    images = both_references(reference, size, share)[0 if part == "tuning" else 1]
    names = features[:1] if part == "tuning" else features
    kept = Path(out) / "reference"
    return [FeatureNetwork(load_extractor(name, device=device), images, statistics=kept) for name in names]


def judges_of(context: Row, part: str) -> list[FeatureNetwork]:
    images = [context[name] for name in ("reference", "size", "share")]
    return judges(tuple(context["features"]), *images, part, context["device"], context["out"])


def score(context: Row, task: Row) -> Row:
    """Sample the images of one setting, and measure them."""
    model = loaded(str(folder_of(context, task) / "model"), context["device"], context["compiled"])
    n, seconds = task["n"], 0.0
    batch = BATCH if model.device.type == "cpu" else GPU_BATCH
    labels = model.labels(n, None)

    def sampled() -> Iterator[Tensor]:
        nonlocal seconds
        start = time.perf_counter()
        for tokens in sampled_tokens(draw, model, task, labels, batch):
            images = model.decode(tokens.unflatten(1, model.grid), batch=min(batch, BATCH))
            seconds += time.perf_counter() - start
            yield images
            start = time.perf_counter()

    known = np.array(labels if model.class_names else [-1] * n)
    networks = judges_of(context, "final" if task["stage"] == "final" else "tuning")
    found = figures(networks, sampled(), known, model.class_names)
    return {"distance": found[0]["distance"], "figures": found, "seconds_per_image": round(seconds / n, 6)}


class Tuning:
    """Which settings are tried, and which are left after each round.

    Args:
        results: with the rows so far.
        sites: of the grid.
        count: settings tried for each method and number of calls.
        rounds: (images, how many of the least distances are kept).
    """

    def __init__(self, results: Results, sites: int, count: int, rounds: list[tuple[int, int]]) -> None:
        self.results, self.sites, self.count, self.rounds = results, sites, count, rounds

    def left(self, method: str, calls: int, guidance: bool, rounds: int | None = None) -> list[Row]:
        """The candidates that are left after the first ``rounds`` rounds; after all by default."""
        left = candidates(method, calls, self.sites, self.count, guidance=guidance)
        for n, kept in self.rounds[:rounds]:
            tuned = self.results.of(method=method, calls=calls, stage="tune", n=n)
            tuned = sorted((row for row in tuned if row["task"]["settings"] in left), key=lambda row: row["distance"])
            left = [row["task"]["settings"] for row in tuned[:kept]]
        return left

    def figures(self, calls: list[int], guidance: bool, n: int) -> Figures:
        """What the chosen settings gave with ``n`` images."""
        found: Figures = {}
        for method, c in itertools.product(METHODS, calls):
            for settings in self.left(method, c, guidance):
                if rows := self.results.of(stage="final", method=method, calls=c, n=n, settings=settings):
                    found[method, c] = rows
        return found


def report(tuning: Tuning, calls: list[int], guidance: list[bool], n: int, out: Path) -> str:
    """Write the tables and the figure; the tables."""
    results = tuning.results
    saved = results.protocol
    rounds = ", then ".join(f"the best {kept} of those with {m} images" for m, kept in tuning.rounds)
    lines = [
        f"{tuning.count} settings tried for every method and number of calls: {rounds}; chosen by the first features "
        f"on seed 0 against {saved['tuning_images']} reference images. Figures: {n} images a seed against "
        f"{saved['figure_images']} other reference images.",
        "",
    ]
    panels: dict[str, Figures] = {}
    for guided in guidance:
        title = "guided" if guided else "no guidance"
        panels[title] = tuning.figures(calls, guided, n)
        lines += [f"## {title}", "", figure_tables(panels[title], calls), ""]
    lines += ["## networks", "", network_table(results)]
    text = "\n".join(lines)
    write_text(out / "compare.md", text)
    plot(panels, calls, out / "compare.png")
    return text


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@comparison_options(config="configs/compare_cifar10.yaml", calls="4,8,16,32,64", methods=METHODS, settings=16)
@click.option("--features", multiple=True, required=True, help="Feature network, as for `ggm-image fid`; repeatable.")
@click.option("--guidance", type=click.Choice(["off", "on", "both"]), default="both", show_default=True)
@click.option("--tune", type=click.IntRange(DENSITY_K + 1), default=200, show_default=True, help="Images for each.")
@click.option(
    "--tune-again",
    type=click.IntRange(DENSITY_K + 1),
    default=1000,
    show_default=True,
    help=f"Images for each of the {FINALISTS} best.",
)
@click.option(
    "--tuning-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Part of the reference on which settings are chosen.",
)
@click.option(
    "-n",
    "count",
    type=click.IntRange(DENSITY_K + 1),
    default=2000,
    show_default=True,
    help="Images for each figure, on each seed.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks for sampling.")
def main(
    tokens: Path,
    val: Path,
    reference: Path,
    config: str,
    features: tuple[str, ...],
    minutes: float,
    seeds: int,
    calls: str,
    methods: str,
    guidance: str,
    settings: int,
    tune: int,
    tune_again: int,
    tuning_share: float,
    count: int,
    processes: int,
    compiled: bool,
    report_only: bool,
    out: Path,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    asked, budget = parse_methods(methods, METHODS), parse_calls(calls)
    manifest = TokenCache.open(tokens).manifest
    sites = manifest.grid[0] * manifest.grid[1]
    guided = {"off": [False], "on": [True], "both": [False, True]}[guidance]
    if True in guided and not manifest.class_names:
        raise UserError("guidance needs classes", f"{tokens} has none", "pass --guidance off")
    rounds = [(tune, FINALISTS), (tune_again, 1)]
    path = out / "results.json"
    if report_only:
        results = Results(path, read_results(path, "rows")["protocol"])
        click.echo(report(Tuning(results, sites, settings, rounds), budget, guided, count, out))
        return
    context: Row = {"tokens": tokens, "val": val, "reference": reference, "config": config, "out": out}
    context = {name: str(value) for name, value in context.items()}
    context |= {"features": list(features), "size": manifest.image_size, "share": tuning_share}
    context |= {"device": device, "compiled": compiled, "overrides": list(overrides)}
    parts = both_references(str(reference), manifest.image_size, tuning_share)
    protocol = {
        "config": Path(config).read_text(),
        "overrides": list(overrides),
        "minutes": minutes,
        "tokenizer": own_tokenizer(manifest).identity,
        "features": [network.extractor.identity() for network in judges_of(context, "final")],
        "tuning_images": len(parts[0]),
        "tuning_sha256": parts[0].sha256(),
        "figure_images": len(parts[1]),
        "figure_sha256": parts[1].sha256(),
        "threads": torch.get_num_threads() // max(1, processes),
        "device": device,
    }
    results = Results(path, protocol)
    tuning = Tuning(results, sites, settings, rounds)

    def go(tasks: list[Row], work: Callable[[Row, Row], Row], label: str) -> None:
        results.run(tasks, work, context, processes=processes, label=label)

    networks = dict.fromkeys(METHODS[method] for method in asked)
    training = itertools.product(range(seeds), networks)
    go([{"stage": "train", "network": name, "seed": k, "minutes": minutes} for k, name in training], train, "train")
    judges_of(context, "tuning")  # here once, so that the processes find its features

    def sampling(stage: str, method: str, c: int, chosen: Row, n: int, seed: int = 0) -> Row:
        task: Row = {"stage": stage, "method": method, "network": METHODS[method], "seed": seed, "calls": c}
        return {**task, "settings": chosen, "draws": TUNING_SEED if stage == "tune" else seed, "n": n}

    cases = list(itertools.product(asked, budget, guided))
    for k, (n, _) in enumerate(rounds):
        tried = [(case, entry) for case in cases for entry in tuning.left(*case, rounds=k)]
        go([sampling("tune", *case[:2], entry, n) for case, entry in tried], score, f"tune, {n}")
    chosen = [(case, entry) for case in cases for entry in tuning.left(*case)]
    pairs = itertools.product(range(seeds), chosen)
    go([sampling("final", *case[:2], entry, count, seed) for seed, (case, entry) in pairs], score, "measure")
    click.echo(report(tuning, budget, guided, count, out))


if __name__ == "__main__":
    raise SystemExit(run(main))
