"""The card of a model that is shared: what it is, its licence, samples, figures, and how to use it."""

import re
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path, write_text
from ggm_image.pipelines.figures import measured_rows, plain_figures
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.text import TextModel

SAMPLES = {"image": "samples.png", "text": "samples.txt"}
COUNT = 16
SHOWN_TEXTS = 4
"""Sampled texts that the card itself shows; all are in the file."""
TASKS = {"image": ("unconditional-image-generation", "inpainting"), "text": ("text-generation", "infilling")}
"""What a model does, as the Hub calls it: its task, and a tag."""


def write_card(model: Model | TextModel, folder: Path, *, repository: str, licence: str) -> None:
    """Write ``README.md`` and the samples, ``samples.png`` or ``samples.txt``, into a saved model's folder.

    Args:
        model: loaded, for the samples on the card.
        folder: of the model's ``save``; a README.md in it becomes the card's last part.
        repository: ``owner/name``, for the commands on the card.
        licence: of the weights, as the Hub names it.
    """
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.+-]{0,63}", licence):
        raise UserError("a licence is named by its identifier", f"got {licence!r}", "for example apache-2.0")
    with atomic_path(folder / SAMPLES[model.modality]) as temporary:
        if isinstance(model, TextModel):
            parts = _about_text(model, temporary, repository)
        else:
            parts = _about_images(model, temporary, repository)
    card = card_text(parts, model, folder, repository=repository, licence=licence.lower())
    write_text(folder / "README.md", card)


def card_text(parts: list[str], model: Model | TextModel, folder: Path, *, repository: str, licence: str) -> str:
    """The card as Markdown with the Hub's header.

    Args:
        parts: paragraphs on what the model makes; of the first, a sentence that continues with its size.
        model, folder, repository, licence: as in `write_card`.
    """
    task, tag = TASKS[model.modality]
    header = ["library_name: ggm-image", f"license: {licence}", f"pipeline_tag: {task}"]
    header.append(f"tags: [discrete-diffusion, glauber, {tag}]")
    lines = [
        "\n".join(["---", *header, "---"]),
        f"# {repository.partition('/')[2]}",
        f"A Glauber generative model ([arXiv 2405.17035](https://arxiv.org/abs/2405.17035)) of {parts[0]} "
        f"{model.tokenizer.codebook_size:,} codes, "
        f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.1f} million parameters, tokenizer "
        f"{model.tokenizer.name}. Licence of the weights: {licence}.",
        *parts[1:],
    ]
    figures = _figures(folder)
    if figures:
        lines += ["## Figures", figures]
    own = folder / "README.md"
    if own.is_file():
        lines.append(_without_title(own.read_text(encoding="utf-8", errors="replace")))
    return "\n\n".join(lines) + "\n"


def _about_images(model: Model, samples: Path, repository: str) -> list[str]:
    """The parts of a card of images; writes the samples."""
    model.sample(COUNT, seed=0, output="grid").save(samples, format="PNG")
    height, width = model.image_size
    classes = ", ".join(model.class_names[:100]) + (", ..." if len(model.class_names) > 100 else "")
    return [
        f"{width} x {height} pixels: {model.grid[1]} x {model.grid[0]} tokens of",
        f"Classes: {classes}." if classes else "It has no classes.",
        f"![{COUNT} samples, seed 0, preset best]({SAMPLES['image']})",
        f"*{COUNT} samples: seed 0, preset best, the classes in turn. Not selected.*",
        f"```bash\nggm-image sample --model {repository} -n 16 --out samples.png\n```",
    ]


def _about_text(model: TextModel, samples: Path, repository: str) -> list[str]:
    """The parts of a card of text; writes the samples."""
    texts = model.sample(COUNT, seed=0)
    samples.write_bytes(b"".join(f"--- {k} ---\n".encode() + text + b"\n" for k, text in enumerate(texts)))
    # Four spaces before each line, as a sample may hold any fence; what is no printable text shows as a mark.
    shown = "\n".join(_printed(f"--- {k} ---\n", text) for k, text in enumerate(texts[:SHOWN_TEXTS]))
    return [
        f"text: rows of {model.length} tokens of",
        shown,
        f"*The first {SHOWN_TEXTS} of {COUNT} samples in {SAMPLES['text']}: seed 0, preset best. Not selected.*",
        f"```bash\nggm-image sample --model {repository} -n 4\n"
        f'ggm-image infill "It was the ____ of times" --model {repository}\n```',
    ]


def _printed(title: str, text: bytes) -> str:
    """A text as an indented block of Markdown."""
    lines = (title + text.decode("utf-8", "replace")).splitlines()
    return "\n".join("    " + "".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines)


def _figures(folder: Path) -> str:
    """The rows of ``quality.json`` as a table; empty where there are none."""
    rows = [plain_figures(row) for row in measured_rows(folder)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    lines = [columns, ["---"] * len(columns), *([_number(row.get(key, "")) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def _without_title(text: str) -> str:
    """A card of the author's, without header and title; links into the author's folders become text."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"\A\s*# [^\n]*\n", "", text)
    text = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]*\)", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text).strip()
