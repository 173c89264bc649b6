"""Sampling beside Halton-MaskGIT: images per second and peak memory of both, at equal sizes and equal calls.

    git clone https://github.com/valeoai/Halton-MaskGIT
    pip install einops
    python tools/benchmarks/bench_vs_halton.py Halton-MaskGIT --grid 16 --calls 32

Their transformer and sampler come from a checkout of their code (arXiv 2503.17076), which is no part of this project.
Both networks have the same width, depth, heads, grid, codes and classes, and random weights. Both sample the same
number of images at once in the same number of calls, in one Halton order for all images, with the same guidance, which
doubles each call. Each has its own MLP and conditioning; the parameters and operations of both are printed. Tokens are
not decoded.

The two take turns in one run. The ratio is the median over the turns.
"""

import importlib
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ggm_image.cli.main import run
from ggm_image.cli.options import device_option, json_option, print_json
from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.pipelines.base import autocast, image_generator, sample_batch
from ggm_image.pipelines.network_calls import NetworkCalls
from ggm_image.runtime.devices import resolve_device
from ggm_image.sampler.settings import Settings

MIB = 1 << 20
Sampler = Callable[[int], Tensor]
"""Samples a batch of token grids, given a seed."""


class Ours:
    """Our network and sampler."""

    def __init__(self, config: NetworkConfig, device: torch.device, images: int, calls: int, scale: float, half: bool):
        self.config, self.device, self.half = config, device, half
        self.images, self.network = images, Transformer(config).to(device, torch.bfloat16 if half else torch.float32)
        self.network.eval()
        sites = config.grid[0] * config.grid[1]
        self.settings = Settings(first_order="halton", block=-(-sites // calls), guidance=scale)
        if self.settings.calls(sites) != calls:
            got, fix = f"{calls} for {sites} sites", f"use {self.settings.calls(sites)}"
            raise UserError("no block size gives so many calls", got, fix)
        self._calls = NetworkCalls()

    def __call__(self, seed: int) -> Tensor:
        height, width = self.config.grid

        def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
            return self._calls(self.network, tokens, levels, sites, labels, (height, width))

        return sample_batch(
            denoiser,
            self.settings,
            [image_generator(seed, k) for k in range(self.images)],
            device=self.device,
            half=self.half,
            null_label=self.config.classes,
            height=height,
            width=width,
            codebook_size=self.config.codebook_size,
            labels=torch.arange(self.images) % self.config.classes,
        ).unflatten(1, (height, width))


class Theirs:
    """Their network and sampler, from a checkout."""

    def __init__(self, checkout: Path, ours: Ours, calls: int, scale: float):
        config, self.images, self.device = ours.config, ours.images, ours.device
        network, sampler = _load(checkout)
        self.network: nn.Module = network.Transformer(
            input_size=config.grid[0],
            hidden_dim=config.width,
            codebook_size=config.codebook_size,
            depth=config.depth,
            heads=config.heads,
            mlp_dim=int(config.width * config.mlp_ratio),
            nclass=config.classes,
        ).to(ours.device)
        self.labels = torch.arange(self.images, device=ours.device) % config.classes
        # Their weight w stands for our scale 1 + w.
        self.sampler = sampler.HaltonSampler(w=scale - 1, step=calls)
        # What their sampler asks of its trainer. Without pixels: the codes are returned as they are.
        self.trainer = SimpleNamespace(
            vit=self.network,
            input_size=config.grid[0],
            autocast=autocast(ours.device, ours.half),
            ae=SimpleNamespace(decode_code=self._keep),
            args=SimpleNamespace(
                device=ours.device, mask_value=config.codebook_size, codebook_size=config.codebook_size
            ),
        )

    def _keep(self, codes: Tensor) -> Tensor:
        self.codes = codes
        return codes.float()

    def __call__(self, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.sampler(self.trainer, nb_sample=self.images, labels=self.labels, verbose=False)
        return self.codes


def _load(checkout: Path) -> tuple[Any, Any]:
    """Their modules with the network and the sampler."""
    names = ("Network.transformer", "Sampler.halton_sampler")
    for name in names:
        if not (checkout / f"{name.replace('.', '/')}.py").is_file():
            fix = "git clone https://github.com/valeoai/Halton-MaskGIT"
            raise UserError("not a checkout of Halton-MaskGIT", checkout, fix)
    sys.path.insert(0, str(checkout.resolve()))
    try:
        network, sampler = map(importlib.import_module, names)
    except ModuleNotFoundError as error:
        raise UserError("their code needs a package", error.name, f"pip install {error.name}") from error
    finally:
        sys.path.pop(0)
    return network, sampler


def seconds_of(sample: Sampler, seed: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of a batch, with what it has given to the device."""
    _wait(device)
    start = clock()
    sample(seed)
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(sample: Sampler, device: torch.device) -> int:
    """Bytes that tensors hold at most while a batch is sampled, beyond what they held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        sample(0)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        sample(0)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def operations(sample: Sampler) -> float:
    """Floating-point operations of the matrix products of a batch."""
    with FlopCounterMode(display=False) as counter:
        sample(0)
    return float(counter.get_total_flops())


def compare(ours: Sampler, theirs: Sampler, device: torch.device, repeats: int, clock: str) -> dict[str, Any]:
    """Seconds of a batch of both, in turn; operations and peak memory once."""
    timer = time.process_time if clock == "cpu" else time.perf_counter
    ways = {"ours": ours, "halton": theirs}
    found: dict[str, Any] = {name: {"operations": operations(way)} for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):  # the first sets things up
        for name, way in ways.items():
            times[name].append(seconds_of(way, turn, device, timer))
    for name, way in ways.items():
        found[name] |= {"seconds": median(times[name][1:]), "peak_bytes": peak_bytes(way, device)}
    ratios = [theirs / ours for ours, theirs in zip(*(times[name][1:] for name in ways), strict=True)]
    return found | {"ratio": median(ratios), "ratios": [round(ratio, 3) for ratio in ratios], "clock": clock}


@click.command(help=__doc__)
@click.argument("checkout", type=click.Path(path_type=Path))
@click.option("--grid", default=16, show_default=True, type=click.IntRange(2), help="Sites on a side.")
@click.option("--width", default=256, show_default=True, help="Width of both networks.")
@click.option("--depth", default=8, show_default=True, help="Blocks.")
@click.option("--heads", default=4, show_default=True, help="Attention heads.")
@click.option("--codes", default=4096, show_default=True, help="Codebook size.")
@click.option("--classes", default=10, show_default=True)
@click.option("--calls", default=32, show_default=True, type=click.IntRange(1), help="Network calls of a batch.")
@click.option("--guidance", default=4.0, show_default=True, help="Scale; 1 is off, and saves both half of the work.")
@click.option("-n", "images", default=16, show_default=True, type=click.IntRange(1), help="Images of a batch.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Batches of each, in turn.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="cpu: seconds of CPU time, for a CPU that other programs use too; with OMP_NUM_THREADS=1.",
)
@device_option
@json_option
def main(
    checkout: Path,
    grid: int,
    width: int,
    depth: int,
    heads: int,
    codes: int,
    classes: int,
    calls: int,
    guidance: float,
    images: int,
    repeats: int,
    precision: str,
    clock: str,
    device: str | None,
    as_json: bool,
) -> None:
    place = torch.device(resolve_device(device))
    config = NetworkConfig(
        codebook_size=codes, classes=classes, grid=[grid, grid], width=width, depth=depth, heads=heads
    )
    torch.manual_seed(0)
    ours = Ours(config, place, images, calls, guidance, precision == "bfloat16")
    theirs = Theirs(checkout, ours, calls, guidance)
    result = compare(ours, theirs, place, repeats, clock)
    for name, way in (("ours", ours), ("halton", theirs)):
        result[name]["parameters"] = sum(p.numel() for p in way.network.parameters())
        result[name]["images_per_second"] = images / result[name]["seconds"]
    if as_json:
        print_json(result)
        return
    click.echo(f"{'':<8} {'million':>8} {'GFLOP a batch':>14} {'s a batch':>10} {'images/s':>9} {'peak MiB':>9}")
    for name in ("ours", "halton"):
        row = result[name]
        click.echo(
            f"{name:<8} {row['parameters'] / 1e6:>8.1f} {row['operations'] / 1e9:>14,.0f} {row['seconds']:>10.3f} "
            f"{row['images_per_second']:>9.2f} {row['peak_bytes'] / MIB:>9.0f}"
        )
    click.echo(f"ours is {result['ratio']:.2f} times as fast ({min(result['ratios'])} to {max(result['ratios'])})")


if __name__ == "__main__":
    raise SystemExit(run(main))
