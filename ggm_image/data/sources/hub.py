"""Datasets of the Hugging Face Hub, streamed through ``datasets`` without a copy on disk.

``hub:NAME[@REVISION][:SPLIT][?image=COLUMN&label=COLUMN&config=NAME]``, where NAME is a dataset on the Hub or a
local folder, including one written by ``save_to_disk``. Each file of the dataset is a part; datasets with random access
are split into parts of at most ``shard_size`` images. For text, only ``?config=NAME`` applies, and each row is a
document.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ggm_image.data.sources.base import ClassIndex, ImageStream, Sample
from ggm_image.data.sources.text import Document, TextSource
from ggm_image.errors import UserError
from ggm_image.io.download import is_offline

_IMAGE_OPTIONS, _TEXT_OPTIONS = ("image", "label", "config"), ("config",)


@dataclass(frozen=True)
class _Address:
    name: str
    revision: str | None
    split: str | None
    image: str | None = None
    label: str | None = None
    config: str | None = None

    @classmethod
    def parse(cls, source: str, allowed: Sequence[str] = _IMAGE_OPTIONS) -> "_Address":
        match = re.fullmatch(r"hub:([^@:?]+)(?:@([^:?]+))?(?::([\w.-]+))?(?:\?(.*))?", source)
        options = dict(parse_qsl(match[4] or "", keep_blank_values=True)) if match else {}
        if not match or not set(options) <= set(allowed):
            entries = "&".join(f"{name}={'NAME' if name == 'config' else 'COLUMN'}" for name in allowed)
            raise UserError(f"a data set is written hub:NAME[@REVISION][:SPLIT][?{entries}]", source, "correct it")
        return cls(match[1], match[2], match[3], **options)


def open_hub(source: str, class_names: Sequence[str] = (), *, shard_size: int) -> ImageStream:
    """Open a data set; its images are read later, part by part.

    Args:
        shard_size: images a part, where the data set can be divided at will.
    """
    datasets = _library(source)
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
            # Its errors come from fsspec, Arrow or HTTP, with no common base class.
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


def open_hub_text(source: str, *, text_key: str = "text") -> TextSource:
    """Open a data set of text; its rows are documents, called by their number. A row without text is an empty one.

    Args:
        text_key: the column; the only one of strings where there is none of that name.
    """
    _library(source)
    data = _load(_Address.parse(source, _TEXT_OPTIONS), source, 10_000)
    kinds = {name: getattr(feature, "dtype", "") for name, feature in data.features.items()}
    strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
    column = text_key if text_key in strings else strings[0] if len(strings) == 1 and text_key == "text" else None
    if column is None:
        got = f"{source} has {', '.join(strings) or 'none'} among {', '.join(kinds)}"
        raise UserError(f"data set must have a column {text_key!r} of text", got, "name it with text_key")
    data = data.select_columns([column])

    def documents() -> Iterator[Document]:
        rows = iter(data)
        for k in range(1 << 62):
            try:
                row = next(rows, None)
            except Exception as error:  # as for images
                raise _unreadable(f"{source}, row {k}", error) from error
            if row is None:
                return
            yield Document(f"{k:08d}.txt", iter([(row[column] or "").encode("utf-8", "surrogatepass")]))

    return TextSource(source, documents)


def _library(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("hub: needs the package datasets", source, "pip install 'ggm-image[hub]'") from error
    return datasets


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
        raise UserError("sample must have one image", name, "fix or remove it")
    if cell["bytes"] is None:
        import fsspec

        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    return cell["bytes"]
