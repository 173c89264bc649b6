"""Protect existing files: only outputs of the same command are overwritten, unless ``--overwrite`` is given.

Images that we write carry a mark, see `ggm_image.io.marks`. A file whose mark is missing, is another command's or no
longer matches was written by another program, or edited since. Folders are known by their ``manifest.json``. Nothing
here imports torch, so that a command can refuse before it starts to work.
"""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path, is_temporary, read_json_table, remove_temporaries, write_json
from ggm_image.io.image_formats import IMAGE_SUFFIXES, LOSSLESS_PNG, Encoding, marked_image
from ggm_image.io.marks import read_mark

if TYPE_CHECKING:
    from PIL.Image import Image

MANIFEST, PARTIAL = "manifest.json", "manifest.partial"
RUN_HEAD = "# Written by ggm-image: "
"""How ``config.yaml`` of a run begins."""

_CHECKPOINTS = {"checkpoint.pt", "checkpoint", "checkpoint-previous.pt", "checkpoint-previous"}
_RUN_FILES = {
    "config.yaml", "log.csv", "curves.png", "model", "samples", "tensorboard", "tokenizer", "reconstructions", "wandb",
}  # fmt: skip


def numbered(k: int, suffix: str = ".png") -> str:
    """The file name of image ``k`` in a folder of images."""
    return f"{k:06d}{suffix}"


def number_of(name: str, suffixes: Collection[str] = (".png",)) -> int | None:
    """The number of the image of this file name; None if it is not one that `numbered` gives for these suffixes.

    Names sort as text and numbers do not: ``1000000.png`` comes before ``999999.png``.
    """
    stem, dot, suffix = name.rpartition(".")
    if not (dot + suffix in suffixes and stem.isascii() and stem.isdecimal() and len(stem) < 19):
        return None
    return int(stem) if Path(numbered(int(stem))).stem == stem else None


def maker_of(folder: str | os.PathLike[str]) -> str | None:
    """The command that a folder's manifest says it is of; None where there is no manifest, "" where it is not ours."""
    for name in (MANIFEST, PARTIAL):
        path = Path(folder) / name
        if os.path.lexists(path):
            content = read_json_table(path)
            return "" if content is None else _maker(content)
    return None


def _maker(manifest: Mapping[str, Any]) -> str:
    if isinstance(manifest.get("command"), str):
        return str(manifest["command"])
    if {"shards", "tokenizer_sha256"} <= manifest.keys():
        return "encode"
    if {"model_sha256", "settings", "seed", "count"} <= manifest.keys():
        return "inpaint" if "image_sha256" in manifest else "sample"
    return ""


@dataclass(frozen=True)
class Gate:
    """What one run of a command may write.

    Attributes:
        command: whose outputs may be replaced, e.g. ``sample``.
        overwrite: replace anything; None for a command without ``--overwrite``.
        option: that names the output, for errors.
    """

    command: str
    overwrite: bool | None = False
    option: str = "--out"
    encoding: Encoding = LOSSLESS_PNG

    def refuse(self, path: str | os.PathLike[str], why: str) -> UserError:
        """The error for something at ``path`` that is not ours."""
        what = f"{path} exists and was not written by this command"
        return UserError(what, why, f"choose another {self.option}{self._insist}")

    @property
    def _insist(self) -> str:
        return "" if self.overwrite is None else " or add --overwrite"

    def check_file(self, path: str | os.PathLike[str], content: bytes | None = None) -> None:
        """Raise UserError unless a file may be written at ``path``.

        Args:
            content: what will be written, where that is known: a file that holds it already is no loss.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{self.option} must name a file", f"{path} is a folder", "choose another name")
        _check_place(path.parent, self.option)
        if self.overwrite or not os.path.lexists(path):
            return
        if content is not None and path.is_file() and path.read_bytes() == content:
            return
        if (why := self._not_ours(path)) is not None:
            raise self.refuse(path, why)

    def _not_ours(self, path: Path) -> str | None:
        """Why a file is not this command's; None if it is."""
        mark = read_mark(path)
        if mark is None:
            return "it carries no mark of ggm-image"
        if mark.get("command") != self.command:
            return f"it was written by ggm-image {mark.get('command')}"
        return None if mark["intact"] else "it was changed since"

    def save(self, path: str | os.PathLike[str], image: "Image", settings: Mapping[str, Any] | None = None) -> None:
        """Write an image with our mark, atomically; checked once more, because work takes time."""
        self.check_file(path)
        with atomic_path(path) as temporary:
            temporary.write_bytes(marked_image(image, self.command, settings, self.encoding))

    def check_folder(self, folder: str | os.PathLike[str], *, empty: bool = False) -> None:
        """Raise UserError unless ``folder`` may become or stay a folder of this command.

        Args:
            folder: it may be missing, empty, or say in its manifest that this command wrote it.
            empty: what the command writes has no manifest, so the folder must be missing or empty.
        """
        folder = self._folder(folder)
        names = [name for name in _names(folder) if not is_temporary(name)]
        if self.overwrite or not names:
            return
        if empty:
            fix = f"choose another {self.option}{self._insist}"
            raise UserError(f"{self.option} must be a new or an empty folder", f"{folder} holds {min(names)}", fix)
        maker = maker_of(folder)
        if maker != self.command:
            no_cache = ", but no token cache" if self.command == "encode" else ""
            raise self.refuse(folder, _whose(maker) if maker is not None else f"it holds {min(names)}{no_cache}")

    def check_run(self, folder: str | os.PathLike[str]) -> None:
        """Raise UserError unless a training run may start or resume in ``folder``.

        Files of other names, e.g. a scheduler's log, stay as they are. A folder with a checkpoint is a run: whether it
        is resumed is for training to say.
        """
        folder = self._folder(folder)
        names = set(_names(folder))
        if self.overwrite or names & _CHECKPOINTS or not (found := names & _RUN_FILES):
            return
        begins = {"config.yaml": RUN_HEAD, "log.csv": "step,"}
        if not any(_begins(folder / name, text) for name, text in begins.items()):
            raise self.refuse(folder / min(found), "the folder holds no run")

    def _folder(self, folder: str | os.PathLike[str]) -> Path:
        folder = Path(folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{self.option} must be a folder", f"{folder} is a file", "choose another name")
        _check_place(folder, self.option)
        return folder

    def check_images(self, folder: str | os.PathLike[str], count: int) -> None:
        """Raise UserError unless numbered images and a manifest may be written into ``folder``.

        Files of other names stay as they are. Our own images may be replaced, in a folder whose manifest is ours.
        """
        folder = self._folder(folder)
        maker = maker_of(folder)
        if self.overwrite:
            return
        if maker is not None and maker != self.command:
            raise self.refuse(folder / MANIFEST, _whose(maker))
        held = max(_count(folder), _count(folder, PARTIAL))
        if maker == self.command == "sample" and held > count:  # which adds images to a folder, and removes none
            got, fix = f"{folder}: count is {held}, now {count}", f"choose another folder{self._insist}"
            raise UserError("folder holds other images", got, fix)
        if maker is None or self.command != "sample":  # which resumes, and replaces no finished image
            for path in self._numbered(folder, None if maker is None else max(count, _count(folder))):
                if (why := self._not_ours(path)) is not None:
                    raise self.refuse(path, why)

    def _numbered(self, folder: Path, count: int | None) -> Iterator[Path]:
        """The numbered images in a folder, all or those below ``count``, in order."""
        suffix = self.encoding.suffix
        numbers = sorted(k for name in _names(folder) if (k := number_of(name, (suffix,))) is not None)
        return (folder / numbered(k, suffix) for k in numbers if count is None or k < count)

    def save_images(self, images: list["Image"], folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> int:
        """Write ``000000.png ...`` and then the manifest: a folder with a manifest is complete.

        Images of ours that are no longer part of it are removed, so that images and manifest agree; files of others
        are not touched.

        Args:
            manifest: what to say of them; ``command`` is added.

        Returns:
            The number of images that were removed.
        """
        folder = Path(folder)
        self.check_images(folder, len(images))
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        for k, image in enumerate(images):
            with atomic_path(folder / numbered(k, self.encoding.suffix)) as temporary:
                temporary.write_bytes(marked_image(image, self.command, encoding=self.encoding))
        written, removed = {numbered(k, self.encoding.suffix) for k in range(len(images))}, 0
        for path in sorted(folder / name for name in _names(folder) if name not in written):
            # also those of the run before in another format
            if number_of(path.name, IMAGE_SUFFIXES) is not None and self._not_ours(path) is None:
                path.unlink()
                removed += 1
        write_json(folder / MANIFEST, {"command": self.command, **manifest})
        return removed


def _whose(maker: str) -> str:
    return f"its manifest is that of ggm-image {maker}" if maker else "its manifest is not ours"


def _count(folder: Path, name: str = MANIFEST) -> int:
    count = (read_json_table(folder / name) or {}).get("count")
    return count if isinstance(count, int) else 0


def _begins(path: Path, text: str) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(text)) == text.encode()


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _check_place(folder: Path, option: str) -> None:
    """Raise UserError unless the nearest folder that exists can be written to."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{option} must lie in a folder", f"{place} is a file", "choose another name")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"folder of {option} cannot be written to", place, "choose another one")


def check_inputs_kept(
    out: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None, option: str = "--out"
) -> None:
    """Raise UserError if ``out`` is one of the files that are read; no ``--overwrite`` helps."""
    for path in inputs:
        if path is not None and os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise UserError(
                f"{option} must not be an input", f"got {out}", "choose another name: inputs are never written over"
            )


@contextmanager
def merged_folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder to write to for ``out``: itself where it is new or empty, else one that is moved into it at the end.

    Files of the same names are replaced, all others stay; on any error nothing is changed. The yielded folder does not
    exist yet, or is empty.
    """
    out = Path(out)
    if not _names(out):
        yield out
        return
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            target = out / path.relative_to(temporary)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
