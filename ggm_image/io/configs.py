"""Shipped configs: by name, with what their head says of them. Nothing here imports torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from ggm_image.errors import UserError, suggest
from ggm_image.io.resources import resource_dir


@dataclass(frozen=True, kw_only=True)
class ShippedConfig:
    """A config as its leading comment describes it.

    Attributes:
        name: without suffix.
        path: of the file.
        command: ``train``, ``train-tokenizer``, or the tool that it is for.
        what: what it makes, in one sentence.
        size: parameters and cost; empty where it says nothing.
        hardware: what a run needs.
        tried: whether the run was made; False for a starting point without known results.
    """

    name: str
    path: Path
    command: str
    what: str
    size: str
    hardware: str
    tried: bool


def shipped_configs() -> list[ShippedConfig]:
    """Every shipped config, by name."""
    return [_described(path) for path in sorted(resource_dir("configs").glob("*.yaml"))]


def _described(path: Path) -> ShippedConfig:
    text = path.read_text(encoding="utf-8")
    head = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    kind = "train-tokenizer" if re.search(r"^architecture:", text, re.MULTILINE) else "train"
    # Beside `ggm-image train` a script makes the data; alone it is what reads the config.
    tool = None if f"ggm-image {kind} " in text else re.search(r"python (tools/[\w/]+\.py)", text)
    return ShippedConfig(
        name=path.stem,
        path=path,
        command=tool[1] if tool else kind,
        what=head[0].rstrip("."),
        size=_first(r"^About ([^.]*(?:\.\d[^.]*)*)", head) or _first(r"(\d[\d.]*M parameters)", head),
        hardware=_first(r"^Hardware: (.*?)\.?$", head),
        tried=not any("NOT RUN" in line for line in head),
    )


def _first(pattern: str, lines: list[str]) -> str:
    return next((found[1].rstrip(".") for line in lines if (found := re.search(pattern, line))), "")


def find_config(name_or_path: str | Path) -> Path:
    """The config file of a path, or of a shipped name: ``cifar10``, ``cifar10.yaml`` or ``configs/cifar10.yaml``.

    A file that exists comes first.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = {config.name: config.path for config in shipped_configs()}
    name = path.name.removesuffix(".yaml")
    if name in shipped and path.parent in (Path(), Path("configs")):
        return shipped[name]
    fix = suggest(name, shipped, "give a YAML file, or a name of `ggm-image configs`", n=2, cutoff=0.5)
    raise UserError("config file does not exist", path, fix)
