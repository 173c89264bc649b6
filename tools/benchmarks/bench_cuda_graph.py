"""What CUDA graphs gain in sampling: images per second and the latency of one image, with them and without.

    python tools/benchmarks/bench_cuda_graph.py --model cifar10 --json cuda_graph.json

Both ways sample the same images, and their tokens must be equal: the exit status is 1 where they are not, or where
graphs could not be recorded. Each figure is the best of several runs that take turns, after runs that record the
graphs. "tokens" is the sampler alone, "images" includes the tokenizer's decoder, which graphs do not touch.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from ggm_image.cli.main import run
from ggm_image.errors import UserError
from ggm_image.io.files import write_json
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model

RECORDING_RUNS = 3
"""A shape is recorded in its third call."""


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of work on the device, from an idle device to an idle device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(models: dict[str, Model], *, n: int, preset: str, seed: int, repeats: int) -> dict[str, Any]:
    """Best times of every model, and whether all sample the same tokens."""
    tokens, peaks = {}, {}
    for name, model in models.items():
        torch.cuda.reset_peak_memory_stats()
        for _ in range(RECORDING_RUNS):
            tokens[name] = sample_tokens(model, n, preset, seed)
        model.sample(1, seed=seed, preset=preset)  # the decoder's first call
        peaks[name] = torch.cuda.max_memory_reserved() / 2**30
    jobs: dict[str, Callable[[Model], object]] = {
        "tokens_seconds": lambda model: sample_tokens(model, n, preset, seed),
        "images_seconds": lambda model: model.sample(n, seed=seed, preset=preset),
        "one_tokens_seconds": lambda model: sample_tokens(model, 1, preset, seed),
        "one_image_seconds": lambda model: model.sample(1, seed=seed, preset=preset),
    }
    rows: dict[str, dict[str, Any]] = {name: {} for name in models}
    for job, work in jobs.items():
        best = dict.fromkeys(models, float("inf"))
        for _ in range(repeats):
            for name, model in models.items():
                best[name] = min(best[name], seconds(lambda model=model, work=work: work(model)))  # type: ignore[misc]
        for name in models:
            rows[name][job] = best[name]
    first = next(iter(tokens.values()))
    for name, row in rows.items():
        graphs = models[name]._calls.graphs
        row["tokens_per_second"] = n / row["tokens_seconds"]
        row["images_per_second"] = n / row["images_seconds"]
        row["reserved_gib"] = peaks[name]  # of both models, for the second
        row["graphs"] = 0 if graphs is None else len(graphs)
        row["replays"] = 0 if graphs is None else graphs.replays
        row["failed"] = False if graphs is None else graphs.failed
        row["equal"] = bool(torch.equal(tokens[name], first))
    return rows


def sample_tokens(model: Model, n: int, preset: str, seed: int) -> torch.Tensor:
    return model.sample_tokens(model.labels(n, None), seed=seed, settings=model.settings(preset))


@click.command(help=__doc__)
@click.option("--model", "name", default="cifar10", show_default=True, help="A model's name or folder.")
@click.option("--preset", default="fast", show_default=True)
@click.option("-n", "--images", default=512, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Runs, of which the best counts."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the network in both ways.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here.")
def main(name: str, preset: str, images: int, seed: int, repeats: int, compiled: bool, path: Path | None) -> int:
    if not torch.cuda.is_available():
        click.echo("no CUDA device")
        return 0
    models = {
        "plain": load_model(name, device="cuda", compiled=compiled, cuda_graphs=False),
        "graphs": load_model(name, device="cuda", compiled=compiled),
    }
    if not all(isinstance(model, Model) for model in models.values()):
        raise UserError("the benchmark needs a model of images", name, "choose another")
    with torch.no_grad():
        rows = measure(models, n=images, preset=preset, seed=seed, repeats=repeats)
    device = torch.cuda.get_device_name()
    rate = f"rows a call {models['plain'].kernel_batch}, preset {preset}, {images} images, best of {repeats}"
    click.echo(f"{device}, torch {torch.__version__}: {rate}")
    click.echo(
        f"{'':<8} {'tokens of images/s':>19} {'images/s':>10} {'one, tokens ms':>15} {'one image ms':>13} {'graphs':>7}"
    )
    for way, row in rows.items():
        click.echo(
            f"{way:<8} {row['tokens_per_second']:>19.0f} {row['images_per_second']:>10.0f} "
            f"{1e3 * row['one_tokens_seconds']:>15.2f} {1e3 * row['one_image_seconds']:>13.2f} {row['graphs']:>7}"
        )
    found = rows["graphs"]
    good = found["equal"] and found["replays"] > 0 and not found["failed"]
    click.echo(
        f"tokens equal: {'yes' if found['equal'] else 'NO'}; replays: {found['replays']}; failed: {found['failed']}"
    )
    if path is not None:
        asked = {"model": name, "preset": preset, "images": images, "seed": seed, "compiled": compiled}
        write_json(path, {"device": device, "torch": torch.__version__, **asked, "ways": rows, "good": good})
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(run(main))
