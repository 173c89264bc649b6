"""GGM against other models of text: the same tokens, transformer, optimizer, wall-clock time and seeds.

    python tools/experiments/compare_text.py tokens/train tokens/val --minutes 30 --seeds 2

| method | training | sampling |
| --- | --- | --- |
| `ggm` | binary, with expectations (the default) | Bayer order or most signal first, then revised; or fixed blocks |
| `literal` | binary-sampled: the paper's single draw | fixed blocks, several sweeps |
| `mdlm` | masked diffusion, any number of masked sites as likely | random order |
| `remdm` | the same network | tokens are masked again, by four strategies |
| `sedd` | score entropy, uniform rates | all sites in every step |
| `d3pm` | uniform noise, x_0-prediction | all sites in every step |
| `ar` | cross-entropy, causal attention | left to right, a call a token |

Tokens are bytes: figures are then per byte, and the reference reads samples as they are. Every network trains
`--minutes` of one thread; the reference, autoregressive too, `--reference-minutes`. Perplexity is that of samples under
the reference, per byte. It falls with the temperature, and so does the entropy of the samples' bytes. So methods are
compared at one entropy, that of held-out text: perplexity is interpolated in entropy between temperatures.

Settings are chosen on the first seed for every method and number of calls: `--settings-per-method` of them, several
samplers at several temperatures each, with `--tune` samples. The sampler of the least perplexity at the text's entropy
is taken, at the temperature that gives this entropy, and 12% below and above it. `-n` samples of each, with other
random numbers and on every seed, give the figures.

Writes OUT/results.json (resumable, row by row), OUT/compare.md and OUT/compare.png; with --report-only the last two are
written again from the first.
"""

import itertools
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import click
import torch
from baselines import CausalTransformer, autoregressive_costs, load_causal
from compare_text_methods import (
    NEAR,
    REFERENCE,
    TEMPERATURES,
    TEXT_METHODS,
    TEXT_TRAINED,
    TextNetwork,
    bits_of_text,
    draw_text,
    load_text_network,
)
from compare_text_tables import TextTuning, report
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
from jaxtyping import Int
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.metrics.text import text_figures, vocabulary
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.pipelines.model_weights import load_network
from ggm_image.tokenizers.text import ByteTokenizer

BATCH = 16
GPU_BATCH = 256
"""Texts in a call."""
REFERENCE_SEED = 1000
"""Of the reference: no autoregressive network that is compared has it."""


def train(context: Row, task: Row) -> Row:
    """Train one network, and measure its held-out bits per byte; all of the training text is trained on."""
    done = train_network(context, task, TEXT_TRAINED[task["network"]], "data.holdout=0")
    folder = NetworkFolder.read(folder_of(context, task) / "model")
    causal = task["network"] in ("ar", REFERENCE)
    network = load_causal(folder) if causal else load_network(folder)[0]
    bits = bits_of_text(task["network"], network.to(context["device"]), held_out(context["val"], context["val_rows"]))
    return {**done, "bits_per_byte": round(bits, 4)}


@lru_cache(maxsize=1)
def held_out(val: str, rows: int) -> Int[Tensor, "n l"]:
    """Rows of the validation text, not beside each other."""
    tokens = TokenCache.open(val).load()[0].flatten(1).long()
    return tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:rows]]


@lru_cache(maxsize=1)
def known_words(tokens: str) -> set[bytes]:
    """The words of the training text."""
    return vocabulary(ByteTokenizer().decode(TokenCache.open(tokens).load()[0].flatten()[None, None]))


@lru_cache(maxsize=1)
def reference_of(folder: Path, device: str) -> CausalTransformer:
    return load_causal(NetworkFolder.read(folder)).to(device)


@lru_cache(maxsize=1)
def loaded(network: str, folder: Path, device: str) -> TextNetwork:
    """The network of the last task, which is often that of the next."""
    return load_text_network(network, NetworkFolder.read(folder), device)


def figures_of(context: Row, tokens: Int[Tensor, "n l"]) -> Row:
    """All figures of rows of text."""
    folder = folder_of(context, {"network": REFERENCE, "seed": REFERENCE_SEED}) / "model"
    costs = autoregressive_costs(reference_of(folder, context["device"]), tokens)
    return text_figures(ByteTokenizer().decode(tokens[:, None]), known_words(context["tokens"]), costs.numpy())


def score_text(context: Row, task: Row) -> Row:
    """The figures of held-out text."""
    return figures_of(context, held_out(context["val"], task["n"]))


def score(context: Row, task: Row) -> Row:
    """Sample the texts of one setting, and measure them."""
    model = loaded(task["network"], folder_of(context, task) / "model", context["device"])
    on_cpu = model.device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    start, labels = clock(), [model.null_label] * task["n"]
    batches = sampled_tokens(draw_text, model, task, labels, BATCH if on_cpu else GPU_BATCH)
    tokens = torch.cat([part.cpu() for part in batches])
    seconds = (clock() - start) / task["n"]
    return {**figures_of(context, tokens), "seconds_per_text": round(seconds, 6)}


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@comparison_options(config="configs/compare_text.yaml", calls="16,64,256,1024", methods=TEXT_METHODS, settings=9)
@click.option("--reference-minutes", type=float, help="Training time of the reference; as --minutes by default.")
@click.option("--val-rows", type=click.IntRange(1), default=1000, show_default=True, help="Rows of held-out text.")
@click.option("--tune", type=click.IntRange(2), default=64, show_default=True, help="Samples of each setting.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(2),
    default=256,
    show_default=True,
    help="Samples for each figure, on each seed, at each of three temperatures.",
)
def main(
    tokens: Path,
    val: Path,
    config: str,
    minutes: float,
    reference_minutes: float | None,
    seeds: int,
    calls: str,
    methods: str,
    settings: int,
    val_rows: int,
    tune: int,
    count: int,
    processes: int,
    report_only: bool,
    out: Path,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    asked, budget = parse_methods(methods, TEXT_METHODS), parse_calls(calls)
    path = out / "results.json"
    if report_only:
        results = Results(path, read_results(path, "rows")["protocol"])
        click.echo(report(TextTuning(results, settings, tune), budget, count, out))
        return
    manifest = check_bytes(tokens, val)
    context: Row = {"tokens": tokens, "val": val, "config": config, "out": out}
    context = {name: str(value) for name, value in context.items()}
    context |= {"val_rows": val_rows, "device": device, "overrides": list(overrides)}
    protocol = {
        "config": Path(config).read_text(),
        "overrides": list(overrides),
        "minutes": minutes,
        "reference_minutes": reference_minutes or minutes,
        "length": manifest.grid[1],
        "temperatures": TEMPERATURES,
        "near": NEAR,
        "val_rows": val_rows,
        "threads": torch.get_num_threads() // max(1, processes),
        "device": device,
    }
    results = Results(path, protocol)
    tuning = TextTuning(results, settings, tune)

    def go(tasks: list[Row], work: Callable[[Row, Row], Row], label: str) -> None:
        results.run(tasks, work, context, processes=processes, label=label)

    networks = dict.fromkeys(TEXT_METHODS[method] for method in asked)
    training = [(REFERENCE, REFERENCE_SEED, reference_minutes or minutes)]
    training += [(name, seed, minutes) for seed, name in itertools.product(range(seeds), networks)]
    go([{"stage": "train", "network": name, "seed": k, "minutes": m} for name, k, m in training], train, "train")
    go([{"stage": "text", "n": val_rows}], score_text, "held-out text")

    def sampling(stage: str, method: str, c: int, chosen: Row, n: int, seed: int = 0) -> Row:
        task: Row = {"stage": stage, "method": method, "network": TEXT_METHODS[method], "seed": seed, "calls": c}
        return {**task, "settings": chosen, "draws": TUNING_SEED if stage == "tune" else seed, "n": n}

    cases = list(itertools.product(asked, sorted({*budget, *([manifest.grid[1]] if "ar" in asked else [])})))
    cases = [(method, c) for method, c in cases if c in budget or method == "ar"]
    tried = [(case, entry) for case in cases for entry in tuning.candidates(*case)]
    go([sampling("tune", *case, entry, tune) for case, entry in tried], score, "tune")
    chosen = [(case, entry) for case in cases for entry in tuning.chosen(*case)]
    pairs = itertools.product(range(seeds), chosen)
    go([sampling("final", *case, entry, count, seed) for seed, (case, entry) in pairs], score, "measure")
    click.echo(report(tuning, budget, count, out))


def check_bytes(tokens: Path, val: Path) -> Manifest:
    """The manifest of the training text; both caches must be of bytes, in rows of one length."""
    manifest, other = TokenCache.open(tokens).manifest, TokenCache.open(val).manifest
    for path, found in ((tokens, manifest), (val, other)):
        if found.tokenizer_sha256 != ByteTokenizer.sha256:
            got = f"{path} was encoded with {found.tokenizer_name}"
            raise UserError("the text must be encoded with the tokenizer bytes", got, "pass --tokenizer bytes")
    if manifest.grid != other.grid:
        got = f"{manifest.grid[1]} and {other.grid[1]}"
        raise UserError("both texts must have rows of one length", got, "encode them again with one --length")
    return manifest


if __name__ == "__main__":
    raise SystemExit(run(main))
