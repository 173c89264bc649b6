"""The card of a model that is shared: what it is, its licence, samples, figures, and how to use it."""

import re
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path, write_text
from ggm_image.pipelines.figures import measured_rows, plain_figures
from ggm_image.pipelines.image import Model

SAMPLES = "samples.png"
COUNT = 16


def write_card(model: Model, folder: Path, *, repository: str, licence: str) -> None:
    """Write ``README.md`` and ``samples.png`` into a saved model's folder.

    Args:
        folder: of `Model.save`; a README.md in it becomes the card's last part.
        licence: of the weights, as the Hub names it.
    """
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.+-]{0,63}", licence):
        raise UserError("a licence is named by its identifier", f"got {licence!r}", "for example apache-2.0")
    grid = model.sample(COUNT, seed=0, output="grid")
    with atomic_path(folder / SAMPLES) as temporary:
        grid.save(temporary, format="PNG")
    write_text(folder / "README.md", card_text(model, folder, repository=repository, licence=licence.lower()))


def card_text(model: Model, folder: Path, *, repository: str, licence: str) -> str:
    """The card as Markdown with the Hub's header; arguments as in `write_card`."""
    height, width = model.image_size
    title = repository.partition("/")[2]
    classes = ", ".join(model.class_names[:100]) + (", ..." if len(model.class_names) > 100 else "")
    parts = [
        "\n".join(
            [
                "---",
                "library_name: ggm-image",
                f"license: {licence}",
                "pipeline_tag: unconditional-image-generation",
                "tags: [discrete-diffusion, glauber, inpainting]",
                "---",
            ]
        ),
        f"# {title}",
        f"A Glauber generative model ([arXiv 2405.17035](https://arxiv.org/abs/2405.17035)) of {width} x {height} "
        f"pixels: {model.grid[1]} x {model.grid[0]} tokens of {model.tokenizer.codebook_size:,} codes, "
        f"{sum(p.numel() for p in model.network.parameters()) / 1e6:.1f} million parameters, tokenizer "
        f"{model.tokenizer.name}. Licence of the weights: {licence}.",
        f"Classes: {classes}." if classes else "It has no classes.",
        f"![{COUNT} samples, seed 0, preset best]({SAMPLES})",
        f"*{COUNT} samples: seed 0, preset best, the classes in turn. Not selected.*",
        f"```bash\nggm-image sample --model {repository} -n 16 --out samples.png\n```",
    ]
    figures = _figures(folder)
    if figures:
        parts += ["## Figures", figures]
    own = folder / "README.md"
    if own.is_file():
        parts.append(_without_title(own.read_text(encoding="utf-8", errors="replace")))
    return "\n\n".join(parts) + "\n"


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
