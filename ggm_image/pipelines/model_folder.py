"""Trained networks on disk, by name or folder: what ``config.yaml`` says, read without importing torch."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError, explained, suggest
from ggm_image.io.hub import is_repository, snapshot
from ggm_image.io.resources import resource_dir
from ggm_image.io.yaml import read_yaml
from ggm_image.network.config import NetworkConfig
from ggm_image.sampler.settings import Settings
from ggm_image.validation import build

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
TOKENIZER = "tokenizer"
"""Folder in a model's folder, for a tokenizer that is not shipped."""
TEXT_TOKENIZER = "tokenizer.json"
"""The file in it of a tokenizer of text that has one."""


@dataclass(frozen=True, kw_only=True)
class NetworkFolder:
    """What ``config.yaml`` of a trained network says.

    Attributes:
        folder: where it lies.
        tokenizer_name, tokenizer_sha256: the only tokenizer that it can be used with.
        tokenizer_source: folder of that tokenizer when the model was trained; empty for a shipped one.
        class_names: in the order of the labels.
        presets: sampler settings by name.
        config: all of ``config.yaml``, with how it was trained.
        repository: ``owner/name`` on the Hub; empty for a folder of this machine.
        revision: the commit hash there.
    """

    folder: Path
    network: NetworkConfig
    tokenizer_name: str
    tokenizer_sha256: str
    tokenizer_source: str
    class_names: list[str]
    presets: dict[str, dict[str, Any]]
    config: dict[str, Any]
    repository: str = ""
    revision: str = ""

    @property
    def name(self) -> str:
        return self.repository or self.folder.resolve().name

    @property
    def tokenizer(self) -> str | Path:
        """Where its tokenizer is: in the model's own folder, else where it was in training, else by its name.

        What a repository says of folders is not followed: they are another machine's.
        """
        if any((self.folder / TOKENIZER / name).is_file() for name in (CONFIG, TEXT_TOKENIZER)):
            return self.folder / TOKENIZER
        return (not self.repository and self.tokenizer_source) or self.tokenizer_name

    @property
    def modality(self) -> str:
        """What it makes: "image" or "text"."""
        return str(self.config["tokenizer"].get("modality", "image"))

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def check_modality(self, modality: str) -> None:
        """Raise UserError unless the model makes this, "image" or "text"."""
        if self.modality != modality:
            kinds = {"image": "images", "text": "text"}
            got = f"{self.name} is one of {kinds.get(self.modality, self.modality)}"
            raise UserError(f"the model must be one of {kinds[modality]}", got, "name another model")

    def check_weights(self) -> None:
        """Raise UserError unless the weights file exists; it is not read."""
        if not self.weights.is_file():
            raise UserError("the model has no weights", f"no {self.weights}", "copy the file there, or train it")

    def settings(self, preset: str = "best", **changes: Any) -> Settings:
        """A preset with changes; None leaves the preset's value."""
        if preset not in self.presets:
            raise UserError("no such preset", f"got {preset!r}", f"choose one of {', '.join(self.presets)}")
        entries = asdict(Settings.of(dict(self.presets[preset])))
        return Settings.of(entries | {name: value for name, value in changes.items() if value is not None})

    @staticmethod
    def read(folder: Path) -> "NetworkFolder":
        """Read ``config.yaml``."""
        path = folder / CONFIG
        if not path.is_file():
            raise UserError(f"a model is a folder with {CONFIG} and {WEIGHTS}", f"no {path}", "give a model folder")
        remedy = f"export it again, or keep the {CONFIG} that came with the weights"
        config = read_yaml(path, "must describe a model", remedy)
        with explained(f"{path} must describe a model", remedy):
            if "train" in config and "class_names" not in config:
                model = folder / "model"
                written_yet = (model / CONFIG).is_file()
                fix = f"give {model}" if written_yet else f"finish the run; it writes {model}"
                raise UserError("a training run is not a model", f"got {folder}", fix)
            if config["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} must have format version {FORMAT_VERSION}",
                    f"got {config['format_version']}",
                    "install the version of ggm-image that wrote it",
                )
            network = build(NetworkConfig, config["network"])
            if not isinstance(config["class_names"], list) or len(config["class_names"]) != network.classes:
                raise ValueError(f"class_names are not the names of {network.classes} classes")
            return NetworkFolder(
                folder=folder,
                network=network,
                tokenizer_name=str(config["tokenizer"]["name"]),
                tokenizer_sha256=str(config["tokenizer"]["sha256"]),
                tokenizer_source=str(config["tokenizer"].get("source", "")),
                class_names=[str(name) for name in config["class_names"]],
                presets={str(k): dict(v) for k, v in config["presets"].items()},
                config=config,
            )


def find_model(name_or_path: str | Path) -> NetworkFolder:
    """The model folder of a shipped name, of a path, or of ``owner/name`` or ``owner/name@revision`` on the Hub."""
    path = Path(name_or_path)
    shipped = {folder.name: folder for folder in shipped_models()}
    # A folder of images called cifar10 must not hide the model of that name.
    if path.is_dir() and ((path / CONFIG).is_file() or str(name_or_path) not in shipped):
        return NetworkFolder.read(path)
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    if isinstance(name_or_path, str) and is_repository(name_or_path):
        found = snapshot(name_or_path)
        return replace(NetworkFolder.read(found.folder), repository=found.repository, revision=found.revision)
    fix = suggest(name_or_path, shipped, f"known: {', '.join(sorted(shipped))}", n=3, cutoff=0.3)
    raise UserError("no such model, neither a shipped name nor a folder", f"got {str(name_or_path)!r}", fix)


def shipped_models() -> list[NetworkFolder]:
    """Every model that is shipped, by name."""
    return [NetworkFolder.read(p.parent) for p in sorted(resource_dir("assets").glob(f"models/*/{CONFIG}"))]
