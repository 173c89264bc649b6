"""The likelihood bound of each method after equal training, beside the exact value, where all grids can be listed.

    python tools/experiments/toy_bounds.py

The joint is a Potts model of 2 x 2 sites and 4 codes, 256 grids in all. Every network of compare_objectives.py trains
--steps steps on samples of it, with the same transformer, optimizer and seeds. `bound` is the method's upper bound on
-log p, as in that comparison, on grids in the joint's own shares. `sampler` is the exact -log p under the method's
sampler, by enumeration of its steps: one site a call in Bayer order for networks that fill masked sites, --calls steps
for the others. Both are compared with the entropy of the joint, which no method can be below; what a bound is above
`sampler` is its looseness and the sampler's steps, what `sampler` is above the entropy is what the network has not
learnt. Writes OUT/results.json (resumable, row by row) and OUT/toy_bounds.md.
"""

import itertools
import tempfile
from pathlib import Path

import click
import torch
from baselines import MaskUniform, UniformState, d3pm_step, plug_in_step, sedd_step
from baselines.base import LOWEST_LEVEL, Network
from compare_methods import TRAINED, Row, bound
from compare_tables import spread
from experiments import Results
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.io.files import write_text
from ggm_image.schedule import order_sites
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet
from ggm_image.validation import build

SIDE, CODES = 2, 4
SITES = SIDE * SIDE
CONFIG: Row = {
    "network": {"codebook_size": CODES, "classes": 1, "grid": [SIDE, SIDE], "width": 32, "depth": 2, "heads": 2},
    "objective": {"contrast": 64.0, "masked": 1.0, "cosine": 1.0, "lattice": 0.0},
    "train": {
        "batch_size": 256,
        "learning_rate": 4e-3,
        "warmup_steps": 50,
        "ema_decay": 0.98,
        "compile": False,
        "precision": "32-true",
        "start_from_codes": False,
    },
}
ROWS = 40_000
"""Grids on which a bound is estimated."""


def listed(codes: int, sites: int) -> Int[Tensor, "n l"]:
    """All grids."""
    return torch.tensor(list(itertools.product(range(codes), repeat=sites)))


def joint(coupling: float = 1.0) -> Float[Tensor, " n"]:
    """P of every grid: neighbours like to agree, and each site has a taste of its own."""
    states = listed(CODES, SITES)
    grid = states.view(-1, SIDE, SIDE)
    agree = (grid[:, 1:] == grid[:, :-1]).flatten(1).sum(1) + (grid[:, :, 1:] == grid[:, :, :-1]).flatten(1).sum(1)
    taste = 0.5 * torch.randn(SITES, CODES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.softmax(coupling * agree.double() + taste.gather(1, states.T).sum(0), 0)


def in_shares(law: Float[Tensor, " n"], states: Int[Tensor, "n l"], count: int) -> Int[Tensor, "m l"]:
    """Grids in the law's shares, about ``count``, in random order."""
    rows = states.repeat_interleave((law * count).round().long(), 0)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]


def sampler_nll(name: str, network: Network, law: Float[Tensor, " n"], codes: int, calls: int) -> float:
    """-log p of the law under the sampler of a network of `TRAINED`, nats a grid, by enumeration.

    Args:
        name: of the network.
        network: told no class.
        law: of the grids of `listed`, on a square grid.
        codes: v.
        calls: steps of the samplers that redraw all sites in each.
    """
    sites = round(torch.tensor(len(law)).double().log().item() / torch.tensor(codes).double().log().item())
    states, every = listed(codes, sites), torch.arange(sites)

    def answers(tokens: Tensor, level: float) -> Tensor:
        return network(tokens, torch.full(tokens.shape, level), every, None).double()

    if name not in ("d3pm", "sedd", "gidd", "duo"):
        side = round(sites**0.5)
        log_p, x = torch.zeros(len(law), dtype=torch.float64), torch.full_like(states, codes)
        for site in order_sites(side, side, "bayer").tolist():
            found = answers(x, 1.0)[:, site].log_softmax(-1)
            log_p += found.gather(1, states[:, site, None])[:, 0]
            x[:, site] = states[:, site]
        return float(-(law * log_p).sum())
    process = {"gidd": MaskUniform(codes), "duo": UniformState(codes)}.get(name)
    seen = states if process is None else listed(codes + 1, sites)
    if name == "gidd":
        now = (seen == codes).all(1).double()
    else:
        now = (seen < codes).all(1).double() / codes**sites
    for n in range(calls):
        here, there = n / calls, (n + 1) / calls
        if process is None:
            step = d3pm_step if name == "d3pm" else sedd_step
            level = max(LOWEST_LEVEL, here)
            probs = step(answers(seen, level), seen, level, there)
        else:
            probs = plug_in_step(process, answers(seen, here).log_softmax(-1), seen, 1 - here, max(0.0, 1 - there))
        probs = (probs / probs.sum(-1, keepdim=True)).nan_to_num(0.0)  # of grids that cannot occur
        now = now @ probs.gather(2, seen.T[None].expand(len(seen), -1, -1)).prod(1)
    return float(-(law * now[(seen < codes).all(1)].log()).sum())


def measure(context: Row, task: Row) -> Row:
    """Train one network, and measure it."""
    torch.manual_seed(task["seed"])
    law, states = joint(), listed(CODES, SITES)
    data = in_shares(law, states, ROWS).int()
    method, objective = TRAINED[task["network"]]
    values = {part: dict(entries) for part, entries in CONFIG.items()}
    values["objective"]["name"] = objective
    values["train"] |= {"steps": task["steps"], "seed": task["seed"]}
    tokens = TokenSet(data, torch.ones(len(data), dtype=torch.long))  # 1: the null class, which `bound` asks for too
    manifest = Manifest(
        tokenizer_name="none",
        tokenizer_sha256="",
        codebook_size=CODES,
        grid=(SIDE, SIDE),
        image_size=0,
        class_names=["all"],
        preprocessing={},
        source={},
        items=len(data),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = build(GeneratorConfig, values)
        trainer = method(config, manifest, tokens, tokens, Path(folder), device="cpu", report=lambda line: None)
        for _ in range(task["steps"]):
            trainer.train_step()
    network = trainer.averaged()
    found = bound(task["network"], network, in_shares(law, states, ROWS), None)
    with torch.no_grad():
        exact = sampler_nll(task["network"], network, law, CODES, task["calls"])
    return {"bound": found, "sampler": exact / SITES}


def table(results: Results) -> str:
    """Markdown: nats per token."""
    law = joint()
    entropy = float(-(law * law.log()).sum()) / SITES
    lines = [f"Entropy of the joint: {entropy:.4f} nats per token.", ""]
    lines += ["| network | bound on -log p | exact -log p of the sampler | seeds |", "| --- | --- | --- | --- |"]
    for name in TRAINED:
        rows = results.of(network=name)
        if rows:
            cells = ["{:.4f} ± {:.4f}".format(*spread([row[key] for row in rows])) for key in ("bound", "sampler")]
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(rows)} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Optimizer steps of each.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Networks of each kind.")
@click.option("--calls", type=click.IntRange(1), default=64, show_default=True, help="Steps of the samplers.")
@click.option("--processes", default=0, show_default=True, help="Tasks at a time; 0: here.")
@click.option("--out", type=click.Path(path_type=Path), default="toy", show_default=True)
def main(steps: int, seeds: int, calls: int, processes: int, out: Path) -> None:
    results = Results(out / "results.json", {"config": CONFIG, "rows": ROWS, "steps": steps, "calls": calls})
    cases = itertools.product(range(seeds), TRAINED)
    tasks = [{"network": name, "seed": seed, "steps": steps, "calls": calls} for seed, name in cases]
    results.run(tasks, measure, {}, processes=processes, label="toy")
    write_text(out / "toy_bounds.md", table(results))
    click.echo(table(results))


if __name__ == "__main__":
    raise SystemExit(run(main))
