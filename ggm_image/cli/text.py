"""``infill``, and what ``sample`` and ``signal`` do with a model of text."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.options import (
    GroupedCommand,
    count_option,
    device_option,
    how,
    json_option,
    out_option,
    overwrite_option,
    print_json,
    seed_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    TOKENIZER,
    check_input,
    find_described_model,
    load,
    sampler_changes,
    sampler_options,
    shipped_model_option,
)
from ggm_image.errors import UserError
from ggm_image.io.outputs import Gate
from ggm_image.io.text_outputs import check_texts, save_texts
from ggm_image.runtime.streams import is_terminal

if TYPE_CHECKING:
    from ggm_image.pipelines.model_folder import NetworkFolder

DOUBTFUL = 0.5
"""Signal below which a byte is marked."""
_STRONG, _WEAK = {"fg": "white", "bg": "red"}, {"fg": "red"}


def refuse_given(context: click.Context, names: dict[str, str]) -> None:
    """Raise UserError for an option that was given and that text has not."""
    for name, fix in names.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[-1] for p in context.command.params if p.name == name)
            raise UserError(f"{option} belongs to models of images", context.params[name], fix)


def check_no_guidance(options: dict[str, Any]) -> None:
    """Raise UserError where guidance is asked for: text has no classes."""
    for name in ("guidance", "guidance_power"):
        if options.get(name) is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} needs a model with classes", options[name], "leave it out: text has none")


@click.command(cls=GroupedCommand)
@click.argument("text", required=False)
@what(
    click.option("--file", type=click.Path(path_type=Path), help="File with the text, in place of TEXT."),
    shipped_model_option("books"),
    TOKENIZER,
    count_option(1, "Number of samples."),
    click.option("--mask", metavar="CHAR", help="Every run of CHAR is a gap; four or more '_' by default."),
    click.option("--length", type=click.IntRange(min=1), help="Tokens of every gap; as its mark is long by default."),
)
@how(sampler_options, seed_option, device_option)
@where(out_option(help="Folder for the samples; they are printed by default."), overwrite_option, json_option)
def infill(text: str | None, file: Path | None, out: Path | None, **options: Any) -> None:
    """Fill the gaps of TEXT, which are marked as ____; every other byte stays.

    A text that is longer than the rows of the model is filled in windows from left to right.
    """
    if (text is None) == (file is None):
        raise UserError("infill needs a text or a file", "both" if text else "neither", 'give "a ____ text" or --file')
    given, changes = SimpleNamespace(**options), sampler_changes(options)
    found = find_described_model(given.model_name, "text")
    check_no_guidance(changes)
    settings = found.settings(given.preset, **changes)
    gate = Gate("infill", given.overwrite)
    if out is not None:
        check_texts(gate, out)
    if file is not None:
        check_input(file, "text")
    template = file.read_bytes() if file is not None else (text or "").encode("utf-8", "surrogateescape")

    from ggm_image.pipelines.text_gaps import split_gaps

    parts = split_gaps(template, length=given.length, mask=given.mask)
    model = load(given)
    known, after_space = model.template(parts)
    run: dict[str, Any] = {"seed": given.seed, "settings": settings}
    keep_block = changes["block"] is not None
    texts = model.fill(known, n=given.count, after_space=after_space, keep_block=keep_block, **run)
    _give(texts, out, model.manifest(given.count, length=len(known), **run), gate, given.as_json)


def sample_texts(found: "NetworkFolder", out: Path | None, given: SimpleNamespace, changes: dict[str, Any]) -> None:
    """Sample texts, and print them or write them into a folder."""
    check_no_guidance(changes)
    run: dict[str, Any] = {"seed": given.seed, "settings": found.settings(given.preset, **changes)}
    gate = Gate("sample", given.overwrite)
    if out is not None:
        check_texts(gate, out)
    model = load(given)
    texts = model.sample(given.count, length=given.length, keep_block=changes["block"] is not None, **run)
    _give(texts, out, model.manifest(given.count, length=given.length or model.length, **run), gate, given.as_json)


def _give(texts: list[bytes], out: Path | None, manifest: dict[str, Any], gate: Gate, as_json: bool) -> None:
    """Print texts, or write them into a folder."""
    if out is not None:
        save_texts(gate, out, texts, manifest)
    if as_json:
        shown = {"out": str(out)} if out is not None else {"texts": [_readable(text) for text in texts]}
        print_json(shown | manifest)
    elif out is not None:
        click.echo(f"{out}: {len(texts)} text{'' if len(texts) == 1 else 's'}")
    else:
        for k, text in enumerate(texts):
            if len(texts) > 1:
                click.echo(f"--- {k} ---")
            click.echo(_readable(text))


def _readable(text: bytes) -> str:
    """The text without control characters, which could write over a terminal; line breaks and tabs stay."""
    shown = text.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)


def signal_of_text(text_or_file: str, given: SimpleNamespace) -> None:
    """Print a text with what looks like noise marked: in colour on a terminal, in ``[[ ]]`` elsewhere.

    Args:
        text_or_file: a file, or the text itself: something of several words, or a word without a dot or slash, that is
            no file's name.
    """
    path = Path(text_or_file)
    looks_like_path = not re.search(r"\s", text_or_file.strip()) and re.search(r"[./\\]\w", text_or_file)
    is_file = os.path.lexists(text_or_file) or looks_like_path
    if is_file:
        check_input(path, "text")
    model = load(given)
    text = path.read_bytes() if is_file else text_or_file.encode("utf-8", "surrogateescape")
    probability = model.signal(text, level=given.level, block=given.block)
    if given.as_json:
        signal = [round(p, 4) for p in probability.tolist()]
        print_json({"text": text_or_file, "model": model.name, "level": given.level, "signal": signal})
        return
    click.echo(marked(text, probability.tolist(), in_colour=is_terminal(sys.stdout)))
    least = probability.argsort()[:3].tolist()
    shown = ", ".join(f"byte {k}: {probability[k]:.2f}" for k in least)
    click.echo(f"{path if is_file else 'text'}: mean {probability.mean():.2f}; least signal at {shown}", err=True)


def marked(text: bytes, probability: list[float], *, in_colour: bool) -> str:
    """A text with its doubtful parts marked.

    Args:
        probability: of each byte, that it is signal. A character of several bytes has the lowest of theirs.
        in_colour: by terminal colours, the stronger the less signal; otherwise in ``[[ ]]``.
    """
    parts: list[tuple[int, str]] = []
    place = 0
    for character in text.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        least = min(probability[place : place + size])
        doubt = 2 if least < DOUBTFUL / 2 else 1 if least < DOUBTFUL else 0
        doubt = min(doubt, 1) if not in_colour else doubt
        shown = _readable(character.encode("utf-8", "surrogateescape"))
        if parts and parts[-1][0] == doubt:
            parts[-1] = doubt, parts[-1][1] + shown
        else:
            parts.append((doubt, shown))
        place += size
    if in_colour:
        styles: list[dict[str, Any]] = [{}, _WEAK, _STRONG]
        return "".join(click.style(part, **styles[doubt]) if doubt else part for doubt, part in parts)
    return "".join(f"[[{part}]]" if doubt else part for doubt, part in parts)
