"""Training throughput of a config on this machine: images per second, and the share of its matrix-product rate.

    python tools/benchmarks/bench_train.py configs/cifar10.yaml [train.batch_size=64 ...]

Training steps on random tokens, and large matrix products in the same precision, take turns in one run, so that other
work on the machine slows both. The share is (floating-point operations of the network, three times its forward pass) /
seconds, over the rate of the products.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch

from ggm_image.cli.main import run
from ggm_image.cli.options import device_option, json_option
from ggm_image.io.config_schema import load_config
from ggm_image.runtime.devices import resolve_device
from ggm_image.runtime.memory import keep_freed_memory
from ggm_image.training.config import GeneratorConfig, complete_network
from ggm_image.training.cost_estimate import PRODUCT_SIDE, now, product_rate
from ggm_image.training.distributed import DistributedContext
from ggm_image.training.step_time import random_tokens
from ggm_image.training.trainer import GeneratorTrainer

WARM_UP = 40
"""Steps before the clock starts: compilation, and memory that is touched for the first time."""


SIZES: dict[str, tuple[int, int, tuple[int, int]]] = {
    "celebahq256": (1024, 0, (16, 16)),
    "ffhq256": (1024, 0, (16, 16)),
    "imagenet256": (16384, 1000, (16, 16)),
    "imagenet256-f8": (8192, 1000, (32, 32)),
    "robots64": (2048, 12, (8, 8)),
}
"""Codes, classes and grid of the token caches that the shipped configs are for; of any other, those of CIFAR-10."""


def load_complete(path: Path, overrides: Sequence[str] = ()) -> GeneratorConfig:
    """A config with the sizes that a token cache would fill in."""
    config = load_config(GeneratorConfig, path, overrides)
    codes, classes, grid = SIZES.get(path.stem, (4096, 10, (8, 8)))
    config.network = complete_network(config.network, codebook_size=codes, classes=classes, grid=grid)
    return config


def make_trainer(
    config: GeneratorConfig, out: Path, device: str, context: DistributedContext | None = None
) -> GeneratorTrainer:
    manifest, data = random_tokens(config.network, 4 * config.train.batch_size)
    return GeneratorTrainer(config, manifest, data, data, out, device=device, report=lambda line: None, context=context)


def measure(trainer: GeneratorTrainer, budget: float) -> dict[str, float]:
    """Steps and products in turn for ``budget`` seconds, after a warm-up."""
    config, device, precision = trainer.config, trainer.device, trainer.config.train.precision
    sites = config.network.grid[0] * config.network.grid[1]
    work: list[float] = []
    original = trainer._batch

    def batch() -> tuple[torch.Tensor, ...]:
        values = original()
        work.append(3.0 * len(values[0]) * trainer.network.flops(sites, len(values[2])))
        return values

    trainer._batch = batch  # type: ignore[method-assign]
    for _ in range(WARM_UP):
        trainer.train_step()
    product_rate(device, precision)
    work.clear()
    spent, rates, end = 0.0, [], time.perf_counter() + budget
    while time.perf_counter() < end or len(rates) < 3:
        rates.append(product_rate(device, precision))
        start = now(device)
        trainer.train_step()
        spent += now(device) - start
    rate = sum(rates) / len(rates)
    return {
        "pictures_per_second": len(work) * config.train.batch_size / spent,
        "training_tflops": sum(work) / spent / 1e12,
        "product_tflops": rate / 1e12,
        "share": sum(work) / spent / rate,
        "steps": float(len(work)),
        "batch_size": float(config.train.batch_size),
        "parameters": float(sum(p.numel() for p in trainer.network.parameters())),
    }


@click.command()
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/cifar10.yaml"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--seconds", "budget", default=20.0, show_default=True, help="How long to measure.")
@device_option
@json_option
def bench(config: Path, overrides: tuple[str, ...], budget: float, device: str | None, as_json: bool) -> None:
    """Training throughput of CONFIG on this machine."""
    settings, device = load_complete(config, overrides), resolve_device(device)
    if device == "cpu":
        keep_freed_memory()
    with TemporaryDirectory() as folder:
        result = measure(make_trainer(settings, Path(folder), device), budget)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{result['pictures_per_second']:.0f} images/s, {result['training_tflops']:.2f} TFLOP/s: "
        f"{result['share']:.2f} of the {result['product_tflops']:.2f} TFLOP/s of a product of side "
        f"{PRODUCT_SIDE} in {settings.train.precision} "
        f"({torch.get_num_threads()} CPU threads, {result['steps']:.0f} steps of {result['batch_size']:.0f})"
    )


if __name__ == "__main__":
    raise SystemExit(run(bench))
