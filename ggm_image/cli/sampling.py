"""Options and helpers that the commands which sample share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.options import NameOf, own_device
from ggm_image.errors import UserError
from ggm_image.io.files import check_plain
from ggm_image.io.image_formats import DEFAULT_QUALITY, FORMATS, IMAGE_SUFFIXES, PNG, Encoding, format_of
from ggm_image.pipelines.classes import class_labels
from ggm_image.sampler.registry import SAMPLERS
from ggm_image.schedule.registry import CURVES, ORDERS

if TYPE_CHECKING:
    from ggm_image.pipelines.model_folder import NetworkFolder


class NumberOrWord(click.ParamType):
    """One word, or a whole number from 1 to ``most``."""

    def __init__(self, word: str, most: int, name: str) -> None:
        self.word, self.most, self.name = word, most, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == self.word:
            return self.word
        if str(value).isdecimal() and 1 <= int(value) <= self.most:
            return int(value)
        return self.fail(f"{value!r} is neither {self.word} nor a whole number from 1 to {self.most}", param, ctx)


def format_options(command: Any) -> Any:
    """``--format`` and ``--quality``, passed as ``image_format`` and ``quality``; give them to `output_encoding`."""
    suffixes = [suffix[1:] for suffix in IMAGE_SUFFIXES]
    form = click.option(
        "--format",
        "image_format",
        type=click.Choice(suffixes, case_sensitive=False),
        help="Format of the images in a folder, png by default.",
    )
    quality = click.option(
        "--quality",
        type=NumberOrWord("lossless", 100, "1-100|lossless"),
        help=f"Of JPEG and WebP, {DEFAULT_QUALITY} by default; lossless is for WebP.",
    )
    return form(quality(command))


def is_image_path(path: Path) -> bool:
    """Whether ``--out`` names one image rather than a folder."""
    if path.suffix and not path.is_dir():
        if format_of(path) is not None:
            return True
        usual = ", ".join(entry.suffixes[0] for entry in FORMATS)
        what = f"--out must be an image file ({usual}) or a folder"
        raise UserError(what, f"got {path}", "name it X.png, or without a suffix")
    return False


def output_encoding(out: Path, image_format: str | None, quality: int | str | None) -> tuple[bool, Encoding]:
    """Whether ``--out`` names one image rather than a folder, and how images are written there."""
    single = is_image_path(out)
    asked = format_of(f"x.{image_format}") if image_format else None
    form = (format_of(out) if single else asked) or PNG
    if asked is not None and asked is not form:
        raise UserError("--format belongs to a folder", f"--out {out}", f"name the file {out.stem}.{image_format}")
    return single, Encoding.choose(form, quality)


def check_input(path: Path, what: str) -> None:
    """Raise UserError unless a file can be opened; its content is looked at later."""
    try:
        check_plain(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"{what} cannot be opened", f"{path}: {error.strerror}", "check the file") from error


def shipped_model_option(default: str) -> Callable[[Any], Any]:
    """``--model``, with the shipped model that is meant where none is named."""
    described = "Shipped name, folder, or OWNER/NAME on the Hub."
    return click.option("--model", "model_name", default=default, help=described)


def tokenizer_option(text: str) -> Callable[[Any], Any]:
    """``--tokenizer``, passed as ``tokenizer: str | None``."""
    return click.option("--tokenizer", metavar="NAME|DIR", help=text)


MODEL = shipped_model_option("cifar10")
TOKENIZER = tokenizer_option("The model's tokenizer, if it has moved.")
COMPILE = click.option("--compile", "compiled", is_flag=True, help="Compile the network, for hundreds of images.")


def _orders() -> str:
    return "; ".join(["How sites are chosen", *(f"{name}: {entry.summary}" for name, entry in SAMPLERS.items())]) + "."


def sampler_options(command: Any) -> Any:
    """The sampler's settings; what is left out is the preset's."""
    options = (
        click.option("--preset", default="best", help="fast, best or exact (the paper's chain, no truncation)."),
        click.option("--order", type=NameOf(SAMPLERS), help=_orders()),
        click.option("--sweeps", type=click.IntRange(min=1), help="Number of passes over all sites."),
        click.option("--block", type=click.IntRange(min=1), help="Sites resampled in one network call."),
        click.option("--curve", type=NameOf(CURVES), help="Level curve of --order schedule."),
        click.option("--site-order", type=NameOf(ORDERS), help="Site order of --order schedule."),
        click.option("--guidance", type=float, help="Classifier-free guidance scale; 1 is off."),
        click.option(
            "--guidance-power",
            type=click.FloatRange(min=0),
            help="Exponent of the guidance ramp: 0 constant, 1 linear.",
        ),
        click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="Softmax temperature."),
        click.option("--top-k", type=click.IntRange(min=1), help="Keep only the K most likely codes."),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Keep this much probability mass."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sampler_parameters() -> tuple[str, ...]:
    """The names under which a command gets them."""
    parameters = sampler_options(click.Command("any")).params
    return tuple(parameter.name for parameter in reversed(parameters))


def sampler_changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's settings among the options of a command; None where the preset's are kept."""
    return {name: options[name] for name in sampler_parameters() if name != "preset"}


def model_options(text: str) -> tuple[Callable[[Any], Any], ...]:
    """``--model``, ``--tokenizer`` and ``--class``, of the commands that take a model of images."""
    return MODEL, TOKENIZER, class_option(text)


def class_option(text: str) -> Any:
    """``--class``, passed as ``classes: tuple[str, ...]``; give it to `asked_labels`."""
    return click.option("--class", "classes", multiple=True, metavar="NAME|INDEX,...", help=text)


def asked_labels(folder: "NetworkFolder", classes: Sequence[str]) -> list[int] | None:
    """The labels of ``--class``, which take turns; None where it was not given. Needs no weights."""
    return class_labels(folder.class_names, classes) if classes else None


def find_described_model(model_name: str, modality: str | None = "image") -> "NetworkFolder":
    """The model's description, before torch is imported: what is wrong with a request shows at once."""
    from ggm_image.pipelines.model_folder import find_model

    folder = find_model(model_name)
    if modality is not None:
        folder.check_modality(modality)
    folder.check_weights()
    return folder


def load(given: SimpleNamespace) -> Any:
    """The model that the options of a command name."""
    from ggm_image.pipelines.load import load_model

    compiled = getattr(given, "compiled", False)
    return load_model(given.model_name, tokenizer=given.tokenizer, device=own_device(given.device), compiled=compiled)
