"""Figures of a model of text on held-out text: bits per byte, samples by settings, and planted misspellings.

    python tools/experiments/text_report.py books books-train.txt.xz books-val.txt.xz --out books.json

Bits per byte: the bound of `train`, on rows that are drawn from the held-out text.
Samples: n of each of several sampler settings; the share of their words that the training text has and the entropy of
their bytes, with bootstrap intervals over the samples, and the entropy of their words, beside those of as much held-out
text; with --reference also the perplexity under that network.
Misspellings: in rows of held-out text some words of four or more letters have two neighbouring letters swapped or one
replaced, so that the training text does not have the result. The score of a word is the lowest P(signal) of its bytes;
the ROC-AUC is over all words of four or more letters, a tie counting one half.

OUT is written after every part. A part that it has already, of the same arguments, is not measured again.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from baselines import autoregressive_costs, load_causal
from signal_report import roc_auc

from ggm_image.cli.main import run
from ggm_image.data.sources.text import open_text
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file, write_json
from ggm_image.metrics.text import text_figures, vocabulary
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.model_folder import NetworkFolder, find_model
from ggm_image.pipelines.model_weights import load_network
from ggm_image.pipelines.text import TextModel
from ggm_image.training.dataset import TokenSet
from ggm_image.training.text_evaluation import bits_per_byte

WORD = re.compile(rb"(?<![A-Za-z'])[a-z]{4,}(?![A-Za-z'])")
SETTINGS: dict[str, dict[str, Any]] = {
    "signal, 32 calls": {"order": "signal", "sweeps": 1, "block": 8},
    "signal, 32 calls, T 0.8": {"order": "signal", "sweeps": 1, "block": 8, "temperature": 0.8},
    "signal, 64 calls": {"order": "signal", "sweeps": 1, "block": 4},
    "signal, 32 and 32 to revise": {"order": "signal", "sweeps": 2, "block": 8},
    "chain, 2 sweeps of 64 calls": {"order": "schedule", "sweeps": 2, "block": 4},
}
"""What is tried of a row of 256 tokens."""


def read_text(source: str) -> bytes:
    """All documents of a source, one after the other."""
    return b"".join(piece for document in open_text(source).documents() for piece in document.pieces)


def plant(row: bytes, known: set[bytes], count: int, rng: random.Random) -> tuple[bytes, list[tuple[int, int, bool]]]:
    """A row with misspelt words; and of its words of four or more letters start, end, and whether they are misspelt."""
    words = [found.span() for found in WORD.finditer(row)]
    chosen, text = set(rng.sample(range(len(words)), min(count, len(words)))), bytearray(row)
    places = []
    for k, (start, end) in enumerate(words):
        wrong = misspelt(row[start:end], known, rng) if k in chosen else None
        if wrong is not None:
            text[start:end] = wrong
        places.append((start, end, wrong is not None))
    return bytes(text), places


def misspelt(word: bytes, known: set[bytes], rng: random.Random) -> bytes | None:
    """Two neighbouring letters swapped or one replaced; None where twenty tries gave only known words."""
    for _ in range(20):
        k, letters = rng.randrange(len(word) - 1), bytearray(word)
        if rng.random() < 0.5:
            letters[k], letters[k + 1] = letters[k + 1], letters[k]
        else:
            letters[k] = rng.choice(b"abcdefghijklmnopqrstuvwxyz")
        if bytes(letters) not in known:
            return bytes(letters)
    return None


def measure_signal(
    model: TextModel, text: bytes, known: set[bytes], plants: int, *, per_row: int, block: int, seed: int
) -> dict[str, Any]:
    """ROC-AUC of planted misspellings."""
    rng, scores, positive = random.Random(seed), [], []
    starts = rng.sample(range(0, len(text) - model.length, model.length), len(text) // model.length - 1)
    rows, places = [], []
    while sum(wrong for row in places for _, _, wrong in row) < plants:
        start = starts.pop()
        row, found = plant(text[start : start + model.length], known, per_row, rng)
        rows.append(row)
        places.append(found)
    tokens = model.tokenizer.encode(rows)[:, 0]
    for signal, row in zip(model.signal_of_rows(tokens, block=block).numpy(), places, strict=True):
        for start, end, wrong in row:
            scores.append(float(signal[start:end].min()))
            positive.append(wrong)
    planted = np.array(positive)
    auc = roc_auc(-np.array(scores), planted)
    return {"roc_auc": auc, "plants": int(planted.sum()), "words": len(planted), "rows": len(rows)}


@click.command(help=__doc__)
@click.argument("model_name")
@click.argument("train_text")
@click.argument("val_text")
@click.option("--parts", default="bits,signal,samples", show_default=True, help="What to measure.")
@click.option("--rows", default=320, show_default=True, help="Rows for bits per byte.")
@click.option("--plants", default=1000, show_default=True, help="Misspellings.")
@click.option("--per-row", default=6, show_default=True, help="Misspellings in a row.")
@click.option("--block", default=4, show_default=True, help="Tokens judged in one network call.")
@click.option("-n", "count", default=64, show_default=True, help="Samples of each setting.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="Model folder of an autoregressive network, as compare_text.py writes it.",
)
@click.option("--presets", is_flag=True, help="Sample with the model's presets only.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(
    model_name: str,
    train_text: str,
    val_text: str,
    parts: str,
    rows: int,
    plants: int,
    per_row: int,
    block: int,
    count: int,
    reference: Path | None,
    presets: bool,
    seed: int,
    device: str | None,
    out: Path,
) -> None:
    model = load_model(model_name, device=device)
    if model.modality != "text" or model.tokenizer.name != "bytes":
        raise UserError("the model must be one of text with the tokenizer bytes", model.name, "name another model")
    text = read_text(val_text)
    known = vocabulary([read_text(train_text)]) if {"signal", "samples"} & set(parts.split(",")) else set()
    report: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}

    def part(name: str, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        asked = {"model_sha256": model.sha256, "precision": model.identity["precision"], "seed": seed} | asked
        if report.get(name, {}).get("asked") == asked:
            return
        report[name] = {"asked": asked, **measure()}
        write_json(out, report)
        click.echo(f"{name}: {report[name]}")

    def bits() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        size = model.length
        starts = (torch.randperm(len(text) // size, generator=generator)[:rows] * size).tolist()
        tokens = model.tokenizer.encode([text[start : start + size] for start in starts])[:, 0].int()
        network = load_network(find_model(model_name))[0].to(model.device)
        val = TokenSet(tokens, torch.zeros(len(tokens), dtype=torch.int64))
        with torch.inference_mode():
            return {"bits_per_byte": bits_per_byte(network, val, tokenizer=model.tokenizer, seed=seed)}

    judge = None if reference is None else NetworkFolder.read(reference)
    if judge is not None and judge.network.grid != [1, model.length]:
        got = f"{reference} has {judge.network.grid[1]}"
        raise UserError(f"the reference must have rows of {model.length} bytes", got, "train one, or leave it out")
    judged_by = {} if judge is None else {"reference_sha256": sha256_file(judge.weights)}

    def described(texts: list[bytes]) -> dict[str, Any]:
        if judge is None:
            return text_figures(texts, known)
        costs = autoregressive_costs(load_causal(judge), model.tokenizer.encode(texts)[:, 0])
        return text_figures(texts, known, costs.numpy())

    wanted = parts.split(",")
    if "bits" in wanted:
        part("bits", {"rows": rows, "precision": "fp32"}, bits)
    if "signal" in wanted:
        asked = {"plants": plants, "per_row": per_row, "block": block}
        part("signal", asked, lambda: measure_signal(model, text, known, seed=seed, **asked))
    if "samples" in wanted:
        rng = random.Random(seed)
        places = [rng.randrange(len(text) - model.length) for _ in range(count)]
        held_out = [text[place : place + model.length] for place in places]
        part("held-out text", {"n": count, **judged_by}, lambda: described(held_out))
        tried = {name: {} for name in model.presets if name != "exact"} if presets else SETTINGS
        for name, changes in tried.items():
            settings = model.settings(name) if presets else model.settings("exact", **changes)
            part(
                name,
                {"n": count, "settings": str(settings), **judged_by},
                lambda s=settings: described(model.sample(count, seed=seed, settings=s)),
            )


if __name__ == "__main__":
    raise SystemExit(run(main))
