"""Data sets of the Hugging Face Hub, read through ``datasets`` without a copy on disk.

``hub:NAME[@REVISION][:SPLIT][?image=COLUMN&label=COLUMN&config=NAME]``, where NAME is the Hub's or a local folder, also
one that ``save_to_disk`` made. A file of the data set is a part; what can be divided at will is cut into parts of at
most ``shard_size`` images.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ggm_image.data.sources.base import ClassIndex, ImageStream, Sample
from ggm_image.errors import UserError
from ggm_image.io.download import is_offline

_FORM = "hub:NAME[@REVISION][:SPLIT][?image=COLUMN&label=COLUMN&config=NAME]"


@dataclass(frozen=True)
class _Address:
    name: str
    revision: str | None
    split: str | None
    image: str | None = None
    label: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, source: str) -> "_Address":
        match = re.fullmatch(r"hub:([^@:?]+)(?:@([^:?]+))?(?::([\w.-]+))?(?:\?(.*))?", source)
        options = dict(parse_qsl(match[4] or "", keep_blank_values=True)) if match else {}
        if not match or not set(options) <= {"image", "label", "config"}:
            raise UserError(f"a data set is written {_FORM}", source, "mend it")
        return cls(match[1], match[2], match[3], **options)


def open_hub(source: str, class_names: Sequence[str] = (), *, shard_size: int) -> ImageStream:
    """Open a data set; its images are read later, part by part.

    Args:
        source: as above.
        class_names: in the order of the labels, where the data set does not name them.
        shard_size: images a part, where the data set can be divided at will.

    Raises:
        UserError: ``datasets`` is not installed, no such data set, or its columns are not clear.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("hub: needs the package datasets", source, "pip install ggm-image[hub]") from error
    address = _Address.parse(source)
    data = _load(address, source, shard_size)
    image = _column(data.features, datasets.Image, address.image, "image", source)
    label = _label_column(data.features, address.label, source)
    feature = data.features[label] if label else None
    named = list(feature.names) if isinstance(feature, datasets.ClassLabel) and feature.names else []
    if named and class_names:
        raise UserError("the data set names its classes itself", source, "leave --classes out")
    index = ClassIndex(named or class_names, numbers_are_indices=bool(named))  # as a ClassLabel stores them
    data = data.select_columns([image, *([label] if label else [])]).cast_column(image, datasets.Image(decode=False))
    parts = [f"{k:05d}" for k in range(data.num_shards)]

    def read(part: int) -> Iterator[Sample]:
        rows = iter(data.shard(num_shards=len(parts), index=part))
        for k in range(1 << 62):
            try:
                row = next(rows, None)
            # It fails with whatever lies below it: fsspec, Arrow, HTTP.
            except Exception as error:
                raise _unreadable(f"{source}, part {part}", error) from error
            if row is None:
                return
            name = f"{parts[part]}/{k}"
            yield Sample(
                name,
                -1 if label is None or row[label] in (None, -1) else index(row[label], f"{source}, {name}"),
                functools.partial(_content, row[image], name),
            )

    return ImageStream(source, parts, named or list(class_names), read, identity=source)


def _load(address: _Address, source: str, shard_size: int) -> Any:
    """The data set as a stream of files."""
    import datasets

    local = Path(address.name)
    if not local.exists() and is_offline():
        raise UserError("GGM_IMAGE_OFFLINE is set", source, "unset it, or give a folder on this machine")
    try:
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(local))
        else:
            data = datasets.load_dataset(
                address.name, address.config, revision=address.revision, split=address.split, streaming=True
            )
    except Exception as error:
        raise _unreadable(source, error) from error
    if isinstance(data, dict):
        split = address.split or (next(iter(data)) if len(data) == 1 else None)
        if split not in data:
            raise UserError("split must be named", f"{source} has {', '.join(data)}", f"e.g. :{next(iter(data))}")
        data = data[split]
    if isinstance(data, datasets.Dataset):
        data = data.to_iterable_dataset(num_shards=max(1, -(-len(data) // shard_size)))
    return data if data.features else data._resolve_features()


def _unreadable(where: str, error: Exception) -> UserError:
    why = (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(
        "data set cannot be read", f"{where}: {why}", "check its name, revision and split, and the network"
    )


def _column(features: Any, kind: type, asked: str | None, what: str, source: str) -> str:
    fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
    if asked is not None and asked in fitting:
        return asked
    if asked is not None or len(fitting) != 1:
        got = f"{source} has {', '.join(fitting) or 'none'} among {', '.join(features)}"
        raise UserError(f"one column of the kind {kind.__name__} must be named", got, f"append ?{what}=COLUMN")
    return fitting[0]


def _label_column(features: Any, asked: str | None, source: str) -> str | None:
    import datasets

    if asked is not None:
        if asked not in features:
            raise UserError("no such column", f"{source}: {asked}", f"choose one of {', '.join(features)}")
        return asked
    fitting = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(fitting) > 1:
        return _column(features, datasets.ClassLabel, "label" if "label" in fitting else None, "label", source)
    return fitting[0] if fitting else next((name for name in ("label", "labels") if name in features), None)


def _content(cell: Any, name: str) -> bytes:
    if cell is None:
        raise UserError("sample must have one image", name, "mend or remove it")
    if cell["bytes"] is None:
        import fsspec

        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    return cell["bytes"]
