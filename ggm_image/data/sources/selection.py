"""Which files of a folder or archive are images, and why the others are left out."""

from collections import Counter
from pathlib import PurePosixPath

IMAGE_SUFFIXES: tuple[str, ...] = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IMAGE_SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif")
TAR_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
_UNREAD_IMAGES = frozenset(
    {".heic", ".heif", ".hif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
    | {".psd", ".svg", ".eps", ".exr", ".hdr", ".jxl", ".ico"}
)
"""Images of formats that Pillow does not read, or that need more than a decoder."""
_SYSTEM = frozenset(
    {"@eadir", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".appledouble"}
    | {"#recycle", "$recycle.bin", "system volume information", "lost+found", ".spotlight-v100", ".trashes"}
)
"""In small letters: what Synology, macOS, Windows and Linux put beside people's files."""
_OURS = frozenset({"manifest.json", "manifest.partial"})  # of images that this package wrote
_SHOWN = 5  # suffixes that one line names

SYSTEM, HIDDEN, EMPTY, CIRCULAR = "system", "hidden", "empty", "circular"
_WORDS = {
    SYSTEM: ("file or folder of the operating system", "files or folders of the operating system"),
    HIDDEN: ("hidden file or folder", "hidden files or folders"),
    EMPTY: ("empty file", "empty files"),
    CIRCULAR: ("link to a folder that contains it", "links to folders that contain them"),
}


def is_tar(name: str) -> bool:
    """Whether a file of this name is a tar archive, compressed or not."""
    return name.lower().endswith(TAR_SUFFIXES)


def is_image(name: str) -> bool:
    """Whether a file of this name is an image in a format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def system_or_hidden(part: str) -> str:
    """Why a file or folder of this name is not one of the user's images: `SYSTEM` or `HIDDEN`; empty if it may be.

    ``._IMG.JPG`` holds the Finder's notes about ``IMG.JPG`` (AppleDouble), despite its suffix.
    """
    if part.lower() in _SYSTEM or part.startswith("._"):
        return SYSTEM
    return HIDDEN if part.startswith(".") and part not in (".", "..") else ""


def why_left_out(name: PurePosixPath) -> str:
    """Why a file is no image: `SYSTEM`, `HIDDEN`, or its suffix; empty if it is one.

    Args:
        name: path inside the source. The whole path counts: what lies in a hidden folder is hidden.
    """
    for part in name.parts:
        if reason := system_or_hidden(part):
            return reason
    return "" if is_image(name.name) else name.suffix.lower() or "no suffix"


class LeftOut:
    """Counts what is left out, by reason, with an example of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self.folders: list[str] = []
        """Class folders without an image."""

    def add(self, reason: str, name: object) -> None:
        """Count a file, or a folder that is not entered."""
        if PurePosixPath(str(name)).name in _OURS:
            return
        self._counts[reason] += 1
        self._examples.setdefault(reason, str(name))

    def __bool__(self) -> bool:
        return bool(self._counts or self.folders)

    def __str__(self) -> str:
        """``3 .heic files (convert them to JPEG or PNG; e.g. a.heic), 1 hidden file or folder``."""
        suffixes = [(reason, n) for reason, n in self._counts.most_common() if reason not in _WORDS]
        # images that people would miss come before notes and lists
        suffixes.sort(key=lambda entry: entry[0] not in _UNREAD_IMAGES)
        parts = []
        for reason, n in suffixes[:_SHOWN]:
            what = "without a suffix" if reason == "no suffix" else ""
            files = "file" if n == 1 else "files"
            named = f"{n} {files} {what}" if what else f"{n} {reason} {files}"
            fix = "convert to JPEG or PNG; " if reason in _UNREAD_IMAGES else ""
            parts.append(f"{named} ({fix}e.g. {self._examples[reason]})")
        if rest := sum(n for _, n in suffixes[_SHOWN:]):
            parts.append(f"{rest} with other suffixes")
        for reason, (one, many) in _WORDS.items():
            if n := self._counts[reason]:
                parts.append(f"{n} {one if n == 1 else many} (e.g. {self._examples[reason]})")
        if self.folders:
            some = ", ".join(self.folders[:_SHOWN]) + (" ..." if len(self.folders) > _SHOWN else "")
            parts.append(f"{len(self.folders)} {'folder' if len(self.folders) == 1 else 'folders'} without an image")
            parts[-1] += f", which {'is no class' if len(self.folders) == 1 else 'are no classes'} ({some})"
        return ", ".join(parts)


def class_order(names: set[str]) -> list[str]:
    """Class names in the order of their indices: by value where all are numbers ("2" before "10"), else as text."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name) if len(name) < 4000 else 0, name))
    return sorted(names)
