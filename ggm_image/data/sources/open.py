"""Open any source of images."""

import os
from collections.abc import Sequence
from pathlib import Path

from ggm_image.data.sources.base import ImageStream
from ggm_image.data.sources.image_files import ImageSource, find_tars, open_source
from ggm_image.data.sources.webdataset import is_webdataset, local_tars, open_webdataset
from ggm_image.errors import UserError


def open_images(
    source: str,
    *,
    scratch: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] = (),
    shard_size: int = 1,
    label_key: str = "",
) -> ImageSource | ImageStream:
    """Open any supported source of images.

    Args:
        source: what `ggm_image.data.sources.image_files.open_source` reads; tar shards of WebDataset, see
            `ggm_image.data.sources.webdataset`; or ``hub:`` and a data set, see `ggm_image.data.sources.hub`.
        scratch: for `open_source`.
        class_names: of a stream, in the order of its labels; empty where it has them itself.
        shard_size: images a part, where a stream can be divided at will.
        label_key: of WebDataset: where the class stands, see `ggm_image.data.sources.webdataset.open_webdataset`.
    """
    if source.startswith("hub:"):
        from ggm_image.data.sources.hub import open_hub

        if label_key:
            raise UserError("--label-key belongs to WebDataset", label_key, "append ?label=COLUMN to the data set")
        return open_hub(source, class_names, shard_size=shard_size)
    if is_webdataset(source, label_key):
        return open_webdataset(source, class_names, label_key=label_key)
    if class_names:
        raise UserError("class names belong to WebDataset", source, "leave --classes out: classes are the folders")
    if label_key:
        raise UserError("--label-key belongs to WebDataset", source, "leave it out: classes are the folders")
    if not Path(source).exists() and (tars := local_tars(source)):
        return ImageSource(**vars(find_tars([Path(tar) for tar in tars], source, scratch=scratch)))
    return open_source(source, scratch=scratch)
