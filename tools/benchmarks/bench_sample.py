"""How long an image takes, and how much of that is the sampler's own work outside the network.

    python tools/benchmarks/bench_sample.py cifar10
    python tools/benchmarks/bench_sample.py cifar10 --compile      # and the time over that of the compiled network

For each setting, in one run: the seconds of one batch, and the share of them that is spent outside the network: the
draws, the choice of sites, the masks. Random numbers and classes are as in `ggm-image sample`.
"""

import statistics
import time
from typing import Any

import click
import torch
from torch import Tensor, nn

from ggm_image.cli.main import run
from ggm_image.cli.options import print_json
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.settings import Settings


class Timed(nn.Module):
    """A network that adds up the seconds of its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.calls = network, 0.0, 0

    def forward(self, *inputs: Any) -> Tensor:
        start = now()
        logits: Tensor = self.network(*inputs)
        self.seconds += now() - start
        self.calls += 1
        return logits


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL", default="cifar10")
@click.option("--repeats", default=5, show_default=True, help="Batches of each setting, after one to warm up.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Measure every batch with a compiled network too.")
@click.option("--json", "as_json", is_flag=True)
def main(model_name: str, repeats: int, device: str, compiled: bool, as_json: bool) -> None:
    model = load_model(model_name, device=device)
    settings = {name: model.presets[name] for name in model.presets}
    settings |= {
        "schedule, 1 x 8": Settings(order="schedule", sweeps=1, block=8),
        "schedule, 4 x 16": Settings(order="schedule", sweeps=4, block=16),
        "signal, 1 x 4": Settings(order="signal", sweeps=1, block=4),
    }
    network = model.network
    faster = load_model(model_name, device=device, compiled=True) if compiled else None
    n, rows = model.kernel_batch, []
    for name, chosen in settings.items():
        totals, shares, decoding, ratios = [], [], [], []
        for repeat in range(repeats + 1):
            timed = Timed(network)
            model.network = timed  # type: ignore[assignment]
            start = now()
            tokens = model.sample_tokens(model.labels(n, None), seed=repeat, settings=chosen)
            total = now() - start
            model.decode(tokens)
            if repeat:
                totals.append(total)
                shares.append(1 - timed.seconds / total)
                decoding.append(now() - start - total)
            if faster is not None:
                start = now()
                faster.sample_tokens(model.labels(n, None), seed=repeat, settings=chosen)
                ratios.append(total / (now() - start))
        rows.append(
            {
                "setting": name,
                "calls": timed.calls,
                "images": n,
                "seconds": round(statistics.median(totals), 4),
                "outside_network": round(statistics.median(shares), 4),
                "decode_seconds": round(statistics.median(decoding), 4),
                **({"over_compiled": round(statistics.median(ratios[1:]), 2)} if ratios[1:] else {}),
            }
        )
    model.network = network
    if as_json:
        print_json(rows)
        return
    click.echo(
        f"{'setting':<18} {'calls':>5} {'s a batch of ' + str(n):>16} {'outside network':>16} {'decode s':>9}"
        + (f" {'over compiled':>14}" if compiled else "")
    )
    for row in rows:
        click.echo(
            f"{row['setting']:<18} {row['calls']:>5} {row['seconds']:>16.3f} {100 * row['outside_network']:>15.1f}% "
            f"{row['decode_seconds']:>9.3f}" + (f" {row['over_compiled']:>14.2f}" if compiled else "")
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
