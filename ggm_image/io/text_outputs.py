"""A folder of sampled texts: ``000000.txt ...`` and a ``manifest.json`` with the SHA-256 of each.

Text files carry no mark, so the manifest says which files are ours. A file that was edited since is never overwritten.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggm_image.io.files import atomic_path, read_json_table, remove_temporaries, write_json
from ggm_image.io.outputs import MANIFEST, Gate


def numbered_text(k: int) -> str:
    """The file name of text ``k`` in a folder of texts."""
    return f"{k:06d}.txt"


def check_texts(gate: Gate, folder: str | os.PathLike[str]) -> None:
    """Raise UserError unless texts may be written into ``folder``: it is missing, empty, or all of it is ours."""
    gate.check_folder(folder)
    if gate.overwrite or not (Path(folder) / MANIFEST).is_file():
        return
    hashes = _hashes(Path(folder))
    if hashes is None:
        raise gate.refuse(folder, "its manifest is not one of texts")
    for k, sha256 in enumerate(hashes):
        path = Path(folder) / numbered_text(k)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise gate.refuse(path, "it was changed since")


def save_texts(gate: Gate, folder: str | os.PathLike[str], texts: Sequence[bytes], manifest: Mapping[str, Any]) -> None:
    """Write texts and then the manifest: a folder with a manifest is complete.

    Texts of ours that are no longer part of it are removed; other files stay.

    Args:
        manifest: what to say of them; ``command`` and ``sha256``, one of each text, are added.
    """
    check_texts(gate, folder)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    before = _hashes(folder) or []
    (folder / MANIFEST).unlink(missing_ok=True)
    for k, text in enumerate(texts):
        with atomic_path(folder / numbered_text(k)) as temporary:
            temporary.write_bytes(text)
    for k in range(len(texts), len(before)):
        path = folder / numbered_text(k)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == before[k]:
            path.unlink()
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    write_json(folder / MANIFEST, {"command": gate.command, **manifest, "sha256": hashes})


def _hashes(folder: Path) -> list[str] | None:
    """The SHA-256 of each text by the folder's manifest; None where it is not one of texts."""
    content = read_json_table(folder / MANIFEST) or {}
    hashes = content.get("sha256")
    return list(map(str, hashes)) if content.get("modality") == "text" and isinstance(hashes, list) else None
