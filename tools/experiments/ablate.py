"""What each choice in GGM's training is worth: one thing changed at a time, three seeds, the same number of steps.

    python tools/experiments/ablate.py tokens/train tokens/val cifar10/val --features features.pt --steps 600 --out
    ablate

| row | what is changed |
| --- | --- |
| `default` | nothing: binary, contrast 64, clean-token logits, a level for every site, rotary positions |
| `contrast N` | noise draws for each signal draw |
| `cross-entropy` | -log p0(x_0) in place of the binary loss |
| `cross-entropy-noisy` | -log q(x_t), its mean over x_t given x_0 |
| `single draw` | binary-sampled: the paper's loss, keep 0.5 |
| `direct` | the network emits the signal logit itself, as in the paper, and is told the queried site's level |
| `one time` | the network is told one number, the highest level of any site |
| `block N` | N sites queried in every step of training |
| `masked S` | share of rows as masked diffusion shows them: all levels 1, the queried sites without a token |
| `cosine S` | share of steps that query any number of sites, by a cosine law |
| `lattice S` | share of steps that query a block of a schedule, and not a random set |
| `marginal noise` | noise from the data's own frequencies of codes |
| `random start` | no embedding knows which codes look alike |
| `tied head` | the token embedding is the head's weights, and starts small |
| `learned positions` | a learned vector a site in place of rotary angles and waves |

`nll` is the held-out -log P(x_t at a site | rest) under the heat bath, the mean over levels 0.1 to 1; `masked` the same
at level 1 with a quarter, half, three quarters or all of the sites masked; both in nats per token, on the config's
`train.validate_images`. Seeds differ more than rows: what a row is worth is its difference from `default` on the same
seed. FD is the Fréchet distance of `-n` images sampled in 16 calls: 4 sweeps of fixed blocks of
16, and most signal first (2 x 8), both at temperature 0.8. Noise of another law changes what `nll` is about: that row
has none. Writes OUT/results.json (resumable) and OUT/ablate.md.
"""

import math
import statistics
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from compare_tables import spread
from experiments import Results, Row
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ggm_image.cli.main import run
from ggm_image.data.sources.image_files import open_source
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.image.preprocess import to_uint8
from ggm_image.io.config_schema import load_config
from ggm_image.io.files import write_text
from ggm_image.metrics.extract_features import extract_features
from ggm_image.metrics.feature_extractors import Extractor, load_extractor
from ggm_image.metrics.feature_file import FeatureMatrix, Features, row_type
from ggm_image.metrics.fid import frechet_distance
from ggm_image.metrics.image_sets import ImageFileSet
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.network.positions import Positions
from ggm_image.pipelines.base import image_generator
from ggm_image.runtime.memory import keep_freed_memory
from ggm_image.sampler import sample, sample_signal, truncated
from ggm_image.schedule import Schedule
from ggm_image.training.checkpoint import has_checkpoint, load_checkpoint
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.criterion import Criterion
from ggm_image.training.dataset import fit_to_cache, load_tokens
from ggm_image.training.evaluation import MASKED_SHARES, own_tokenizer, val_nll
from ggm_image.training.trainer import GeneratorTrainer

TEMPERATURE = 0.8
BATCH = 100


class DirectTransformer(Transformer):
    """Emits u(a) = log q(a) / pi(a), up to a constant: the paper's signal logit. Uniform noise.

    Seen from outside it gives clean-token logits like every other: log of q(a) - (1 - level) pi(a), which is
    level p0(a); what an imperfect network makes negative is left at a millionth of the noise. A queried site of level
    0, as `sample_signal` has it, is asked for its clean token: level 1.
    """

    def seen_levels(self, tokens: Tensor, levels: Tensor) -> Tensor:
        asked_clean = (tokens == self.config.codebook_size) & (levels == 0)
        return levels.masked_fill(asked_clean, 1.0)  # q depends on the queried site's own level

    def forward(
        self,
        tokens: Tensor,
        levels: Tensor,
        sites: Tensor,
        labels: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        u = super().forward(tokens, levels, sites, labels, grid)
        seen = self.seen_levels(tokens, levels.float())
        level = seen.gather(1, sites.expand(len(levels), -1)).unsqueeze(2)
        v = u.shape[2]
        return ((u.softmax(2) - (1 - level) / v).clamp_min(1e-6 / v)).log()


class DirectCriterion(Criterion):
    """The binary loss with its expectations, on the signal logit s(a) = u(a) - log contrast itself."""

    def head(
        self, features: Float[Tensor, "n d"], x_0: Int[Tensor, " n"], level: Float[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        u = self.network.logits(features)
        with torch.autocast(u.device.type, enabled=False):
            return direct_loss(u.float(), x_0, level.float(), self.config.contrast).mean()


def direct_loss(
    u: Float[Tensor, "n v"], x_0: Int[Tensor, " n"], level: Float[Tensor, " n"], contrast: float
) -> Float[Tensor, " n"]:
    """-[ level log sigma(s(x_0)) + (1-level) mean log sigma(s(a)) + contrast mean log sigma(-s(b)) ], uniform noise."""
    s = u - math.log(contrast)
    signal, noise = F.softplus(-s), F.softplus(s)
    own = signal.gather(-1, x_0[:, None])[:, 0]
    return level * own + (1 - level) * signal.mean(-1) + contrast * noise.mean(-1)


class DirectTrainer(GeneratorTrainer):
    def make_network(self) -> Transformer:
        return DirectTransformer(self.config.network)

    def make_criterion(self, network: Transformer) -> Criterion:
        return DirectCriterion(network, self.config.objective, self.noise)


class OneTimeTransformer(Transformer):
    def seen_levels(self, tokens: Tensor, levels: Tensor) -> Tensor:
        return levels.amax(1, keepdim=True).expand_as(levels)


class OneTimeTrainer(GeneratorTrainer):
    def make_network(self) -> Transformer:
        return OneTimeTransformer(self.config.network)


class MarginalTrainer(GeneratorTrainer):
    """Noise by the frequencies of the codes in the training tokens, none of them 0."""

    def make_criterion(self, network: Transformer) -> Criterion:
        counts = torch.bincount(self.training.tokens.flatten().long(), minlength=self.config.network.codebook_size)
        self.noise = ((counts + 1.0) / (counts + 1.0).sum()).to(self.device)
        return super().make_criterion(network)


class LearnedTransformer(Transformer):
    """A learned vector for every site of the training grid, and attention that knows no positions."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.site = nn.Linear(config.grid[0] * config.grid[1], config.width, bias=False)
        nn.init.normal_(self.site.weight, std=0.02)

    def positions(self, grid: tuple[int, int] | None, device: torch.device) -> Positions:
        sites, half = self.site.in_features, self.config.width // self.config.heads // 2
        turn = torch.ones(sites, 1, half, device=device)
        return Positions(turn, turn.new_zeros(sites, 2, half), torch.eye(sites, device=device))


class LearnedTrainer(GeneratorTrainer):
    def make_network(self) -> Transformer:
        return LearnedTransformer(self.config.network)


class Block1Trainer(GeneratorTrainer):
    block = 1


class Block16Trainer(GeneratorTrainer):
    block = 16


class Block64Trainer(GeneratorTrainer):
    block = 64


ROWS: dict[str, tuple[type[GeneratorTrainer], list[str]]] = {
    "default": (GeneratorTrainer, []),
    "contrast 1": (GeneratorTrainer, ["objective.contrast=1"]),
    "contrast 8": (GeneratorTrainer, ["objective.contrast=8"]),
    "contrast 512": (GeneratorTrainer, ["objective.contrast=512"]),
    "cross-entropy": (GeneratorTrainer, ["objective.name=cross-entropy"]),
    "cross-entropy-noisy": (GeneratorTrainer, ["objective.name=cross-entropy-noisy"]),
    "single draw": (GeneratorTrainer, ["objective.name=binary-sampled", "objective.keep=0.5"]),
    "direct": (DirectTrainer, []),
    "one time": (OneTimeTrainer, []),
    "block 1": (Block1Trainer, []),
    "block 16": (Block16Trainer, []),
    "block 64": (Block64Trainer, []),
    "masked 0": (GeneratorTrainer, ["objective.masked=0"]),
    "masked 0.3": (GeneratorTrainer, ["objective.masked=0.3"]),
    "masked 1": (GeneratorTrainer, ["objective.masked=1"]),
    "cosine 0.4": (GeneratorTrainer, ["objective.cosine=0.4"]),
    "lattice 0.5": (GeneratorTrainer, ["objective.lattice=0.5"]),
    "lattice 1": (GeneratorTrainer, ["objective.lattice=1"]),
    "marginal noise": (MarginalTrainer, []),
    "random start": (GeneratorTrainer, ["train.start_from_codes=false"]),
    "tied head": (GeneratorTrainer, ["network.tied_head=true"]),
    "learned positions": (LearnedTrainer, []),
}


def trained(context: Row, task: Row) -> GeneratorTrainer:
    """The trainer of a task at the end of its run."""
    method, overrides = ROWS[task["row"]]
    if context["device"] == "cpu":
        keep_freed_memory()
    folder = Path(context["out"]) / f"{task['row'].replace(' ', '-')}-{task['seed']}"
    changes = [*context["overrides"], *overrides, f"train.seed={task['seed']}", f"train.steps={task['steps']}"]
    config = load_config(GeneratorConfig, context["config"], [*changes, "train.max_minutes=null"])
    config.data.val = context["val"]
    cache = TokenCache.open(context["tokens"])
    fit_to_cache(config, cache.manifest, Path(context["tokens"]))
    training, val_set = load_tokens(config, cache)
    silent: Callable[[str], None] = lambda line: None  # noqa: E731
    trainer = method(config, cache.manifest, training, val_set, folder, device=context["device"], report=silent)
    if has_checkpoint(folder):
        trainer.load_state_dict(load_checkpoint(folder))
    trainer.fit()
    return trainer


def measure(context: Row, task: Row) -> Row:
    """Train one row on one seed; what it has learnt, and the distances of its samples."""
    trainer = trained(context, task)
    network = trainer.averaged()
    with torch.inference_mode(), trainer.fabric.autocast():
        values = val_nll(network, trainer.held_out, trainer.noise)
        marginal = isinstance(trainer, MarginalTrainer)
        found: Row = {} if marginal else {"nll": values["nll"]}
        found["masked"] = statistics.fmean(values[f"nll_masked_{share:g}"] for share in MASKED_SHARES)
        found["minutes"] = trainer.clock.seconds / 60
        for name, sampler in samplers(network, trainer).items():
            found[name] = distance(context, task, trainer, sampler)
    return found


def samplers(network: Transformer, trainer: GeneratorTrainer) -> dict[str, Callable[..., Tensor]]:
    """The two samplers, as functions of batch size, labels and generators."""
    height, width = network.config.grid
    sites = height * width
    denoiser = truncated(network, temperature=TEMPERATURE)
    common: Row = {"codebook_size": network.config.codebook_size, "noise": trainer.noise}
    schedule = Schedule.round_robin(height, width, sweeps=4, block=max(1, sites // 4))
    half: Row = {"calls": 8, "revise_calls": 8, "block": max(1, sites // 8), "height": height, "width": width}
    return {
        "fd_schedule": partial(sample, denoiser, schedule, **common),
        "fd_signal": partial(sample_signal, denoiser, **half, **common),
    }


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


def distance(context: Row, task: Row, trainer: GeneratorTrainer, sampler: Callable[..., Tensor]) -> float:
    """Fréchet distance of ``n`` images, classes in turn."""
    extractor, reference = judge(context["features"], context["reference"], context["device"])
    tokenizer = own_tokenizer(trainer.manifest, device=str(trainer.device))
    classes, found = max(1, len(trainer.manifest.class_names)), []
    for first in range(0, task["n"], BATCH):
        labels = (torch.arange(first, first + BATCH) % classes).to(trainer.device)
        generators = [image_generator(task["seed"], first + k) for k in range(BATCH)]
        tokens = sampler(BATCH, labels=labels, generator=generators)
        with torch.autocast(trainer.device.type, enabled=False):
            images = to_uint8(tokenizer.decode(tokens.unflatten(1, trainer.manifest.grid))).cpu()
        found.append(extractor(images[: task["n"] - first]))
    return frechet_distance(matrix_of(found).statistics(), reference.statistics)


COLUMNS = {
    "nll": "held-out NLL",
    "masked": "masked NLL",
    "fd_schedule": "FD, 4 x 16 fixed blocks",
    "fd_signal": "FD, 2 x 8 by signal",
}


def table(results: Results) -> str:
    """Markdown: a row for each change, mean and deviation over the seeds, and of the difference on the same seed."""
    header = ["change", *COLUMNS.values(), "masked NLL against default", "seeds"]
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    default = {result["task"]["seed"]: result["masked"] for result in results.of(row="default")}
    for row in ROWS:
        found = results.of(row=row)
        if not found:
            continue
        cells = []
        for name in COLUMNS:
            values = [result[name] for result in found if name in result]
            digits = 3 if "nll" in name or name == "masked" else 2
            cells.append("{:.{d}f} ± {:.{d}f}".format(*spread(values), d=digits) if values else "")
        pairs = [(result["masked"], default.get(result["task"]["seed"])) for result in found if row != "default"]
        gaps = [masked - other for masked, other in pairs if other is not None]
        cells.append("{:+.3f} ± {:.3f}".format(*spread(gaps)) if gaps else "")
        lines.append(f"| {row} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.option("--config", default="configs/compare_cifar10.yaml", show_default=True, help="Network, optimizer.")
@click.option("--features", required=True, help="Feature network, as for `ggm-image fid`.")
@click.option("--steps", default=600, show_default=True, help="Optimizer steps of every row.")
@click.option("--seeds", default=3, show_default=True, help="Networks of each row.")
@click.option("--rows", default=",".join(ROWS), help="Which, with commas; all by default.")
@click.option("-n", "count", default=1000, show_default=True, help="Images for each distance.")
@click.option("--processes", default=2, show_default=True, help="Tasks at a time, which share the threads; 0: here.")
@click.option("--out", type=click.Path(path_type=Path), default="ablate", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]")
def main(
    tokens: Path,
    val: Path,
    reference: Path,
    config: str,
    features: str,
    steps: int,
    seeds: int,
    rows: str,
    count: int,
    processes: int,
    out: Path,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    asked = rows.split(",")
    for row in asked:
        if row not in ROWS:
            raise UserError("no such row", row, f"choose from {', '.join(ROWS)}")
    protocol: dict[str, Any] = {
        "config": Path(config).read_text(),
        "overrides": list(overrides),
        "tokenizer": own_tokenizer(TokenCache.open(tokens).manifest).identity,
        "features": hash_of_features(features),
        "temperature": TEMPERATURE,
    }
    results = Results(out / "results.json", protocol)
    context: Row = {"tokens": tokens, "val": val, "reference": reference, "config": config, "features": features}
    context = {name: str(value) for name, value in context.items()}
    context |= {"out": str(out), "device": device, "overrides": list(overrides)}
    tasks = [{"row": row, "seed": seed, "steps": steps, "n": count} for seed in range(seeds) for row in asked]
    results.run(tasks, measure, context, processes=processes, label="ablate")
    write_text(out / "ablate.md", table(results))
    click.echo(table(results))


if __name__ == "__main__":
    raise SystemExit(run(main))
