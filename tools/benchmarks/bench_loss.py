"""What the binary loss costs beside cross-entropy: the head's product, the loss and both gradients, on one thread.

    python tools/benchmarks/bench_loss.py

"in one pass" is the loss as it trains where nothing is compiled, "as a graph" the same formula through autograd, as it
would be without that code. Each figure is the least of --repeats processor times, taken in turns, over that of
cross-entropy. Levels are 1, as in masked states, or random.
"""

import time
from collections.abc import Callable

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from ggm_image import objective
from ggm_image.cli.main import run
from ggm_image.runtime.precision import native_bf16


def cases(codes: int, sites: int, width: int, half: bool) -> dict[str, Callable[[], Tensor]]:
    """One step of the head under every loss."""
    head = torch.nn.Linear(width, codes)
    features = torch.randn(sites, width, requires_grad=True)
    x_0, noise = torch.randint(codes, (sites,)), torch.full((codes,), 1 / codes)
    ones, mixed = torch.ones(sites), torch.rand(sites)

    def logits() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return head(features)

    return {
        "cross-entropy": lambda: F.cross_entropy(logits().float(), x_0),
        "in one pass, level 1": lambda: objective._binary_at_once(logits(), x_0, ones, 64.0, noise).mean(),
        "in one pass, random levels": lambda: objective._binary_at_once(logits(), x_0, mixed, 64.0, noise).mean(),
        "as a graph, level 1": lambda: objective._binary(logits().float(), x_0, ones, 64.0, noise).mean(),
        "as a graph, random levels": lambda: objective._binary(logits().float(), x_0, mixed, 64.0, noise).mean(),
    }


def least_times(work: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Seconds of processor time of each, with its gradients."""
    least = dict.fromkeys(work, float("inf"))
    for _ in range(repeats):
        for name, step in work.items():
            start = time.process_time()
            step().backward()  # type: ignore[no-untyped-call]
            least[name] = min(least[name], time.process_time() - start)
    return least


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--codes", default="256,4096,16384", show_default=True, help="Sizes of the codebook, with commas.")
@click.option("--width", default=256, show_default=True, help="Of the network.")
@click.option("--repeats", default=15, show_default=True)
def main(codes: str, width: int, repeats: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    half = native_bf16(torch.device("cpu"))
    click.echo(f"products in {'bf16' if half else 'float32'}; time relative to cross-entropy")
    for v in map(int, codes.split(",")):
        sites = max(200, (1 << 22) // v // 4)
        found = least_times(cases(v, sites, width, half), repeats)
        base = found.pop("cross-entropy")
        click.echo(f"{v} codes, {sites} sites, cross-entropy {1e3 * base:.1f} ms")
        for name, seconds in found.items():
            click.echo(f"  {name}: {seconds / base:.2f}")


if __name__ == "__main__":
    raise SystemExit(run(main))
