"""Memory of training: what `ggm-image train --dry-run` predicts, against what a process really takes.

    python tools/benchmarks/bench_memory.py configs/cifar10.yaml train.batch_size=64 [--devices 2 --strategy fsdp]
    python tools/benchmarks/bench_memory.py --table --tflops 400

Trains a few steps on random tokens, with every site queried, as the prediction has it. `tensors` is the most that
tensors hold at any moment of a step, from the allocator's own records: what the prediction is about. `resident`, on a
CPU, is the peak of the process's memory over what it had before the network was made, once a tiny network has been
trained to load what the libraries load late: the C library keeps freed memory that it cannot use. One configuration a
process.

The table says what is computed for the shipped configs on 1, 8 and 8 x 8 GPUs; nothing in it is measured.
"""

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from bench_train import load_complete, make_trainer

from ggm_image.cli.main import run
from ggm_image.cli.options import device_option, json_option
from ggm_image.io.resources import resource_dir
from ggm_image.runtime.devices import resolve_device
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.cost_estimate import estimate_cost
from ggm_image.training.distributed import DistributedContext, make_fabric
from ggm_image.training.optim import OPTIMIZERS
from ggm_image.training.sharded_state import own
from ggm_image.training.trainer import GeneratorTrainer

STEPS = 3
MACHINES = ((1, 1, "ddp"), (8, 1, "ddp"), (8, 8, "ddp"), (8, 8, "fsdp"))
GIB = 1 << 30


def resident(name: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    return 0


def tiny(config: GeneratorConfig) -> GeneratorConfig:
    network = replace(config.network, codebook_size=16, width=8 * config.network.heads, depth=2)
    return replace(config, network=network, train=replace(config.train, batch_size=64))


def held(trainer: GeneratorTrainer) -> int:
    """Bytes of weights, average and moments in this process."""
    moments = [value for state in trainer.optimizer.state_dict()["state"].values() for value in state.values()]
    tensors = [*trainer.network.parameters(), *trainer.ema.state.values(), *moments]
    return sum(own(tensor).nbytes for tensor in tensors)


def peak_of_a_step(trainer: GeneratorTrainer) -> int:
    """Bytes that tensors hold at most in a step, beyond what they held before it."""
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.train_step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train_step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def measure(config: GeneratorConfig, device: str, devices: int) -> dict[str, float]:
    """Bytes predicted and measured, of this process."""
    fabric = make_fabric(device, config.train.precision, devices=devices, strategy=config.train.strategy)
    context = DistributedContext(fabric)
    with TemporaryDirectory() as folder:
        warm = make_trainer(tiny(config), Path(folder), device, context)
        for _ in range(2):
            warm.train_step()
        del warm
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        trainer = make_trainer(config, Path(folder), device, context)
        trainer.block = config.network.grid[0] * config.network.grid[1]
        for _ in range(STEPS):
            trainer.train_step()
        peak = resident("VmHWM") - before
        tensors = held(trainer) + peak_of_a_step(trainer)
    cost = estimate_cost(config, devices=devices, rate=1e12)
    predicted = cost.state_bytes + cost.activation_bytes
    return {
        "state": cost.state_bytes,
        "activations": cost.activation_bytes,
        "predicted": predicted,
        "tensors": tensors,
        "ratio": tensors / predicted,
        "resident": peak,
        "rank": context.rank,
    }


def table(tflops: float) -> str:
    """Markdown: memory of a GPU and images per second, predicted."""
    lines = [
        "| config | million | batch | GPUs | strategy | GiB per GPU | images/s, computed | GB sent per step |",
        "| --- " * 8 + "|",
    ]
    for path in sorted(resource_dir("configs").glob("*.yaml")):
        if path.name.startswith("tokenizer"):
            continue
        for devices, nodes, strategy in MACHINES:
            config = load_complete(path, [f"train.strategy={strategy}"])
            shards = strategy != "fsdp" or OPTIMIZERS[config.train.optimizer].shards
            if config.train.batch_size < devices * nodes or not shards:
                continue
            cost = estimate_cost(config, devices=devices, nodes=nodes, rate=tflops * 1e12)
            memory = (cost.state_bytes + cost.activation_bytes) / GIB
            name = strategy if cost.processes > 1 else ""
            lines.append(
                f"| {path.stem} | {cost.parameters / 1e6:.0f} | {cost.batch_size} | {cost.processes} | {name} "
                f"| {memory:.1f} | {cost.batch_size / cost.step_seconds:,.0f} | {cost.sent_bytes / 1e9:.2f} |"
            )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path), default=Path("configs/cifar10.yaml"))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--devices", default=1, show_default=True, help="Processes, started here.")
@click.option("--strategy", default="auto", show_default=True, help="ddp or fsdp.")
@click.option("--table", "tabulate", is_flag=True, help="Predict the shipped configs, and measure nothing.")
@click.option(
    "--tflops", default=400.0, show_default=True, help="Assumed rate of a GPU's matrix products, for --table."
)
@device_option
@json_option
def bench(
    config: Path,
    overrides: tuple[str, ...],
    devices: int,
    strategy: str,
    tabulate: bool,
    tflops: float,
    device: str | None,
    as_json: bool,
) -> None:
    if tabulate:
        click.echo(table(tflops))
        return
    settings = load_complete(config, [*overrides, f"train.strategy={strategy}"])
    result = measure(settings, resolve_device(device), devices)
    if result["rank"]:
        return
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"predicted {result['predicted'] / GIB:.2f} GiB ({result['state'] / GIB:.2f} state, "
        f"{result['activations'] / GIB:.2f} activations); tensors hold {result['tensors'] / GIB:.2f} GiB, "
        f"{result['ratio']:.2f} of the prediction; resident {result['resident'] / GIB:.2f} GiB"
    )


if __name__ == "__main__":
    raise SystemExit(run(bench))
