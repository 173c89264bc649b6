"""Data sets of Hugging Face: what ``datasets`` reads from a folder goes the way of the Hub's."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image.data.encode import encode
from ggm_image.data.sources.base import ImageStream
from ggm_image.data.sources.hub import open_hub
from ggm_image.data.sources.text import open_text
from ggm_image.data.text import documents, encode_text
from ggm_image.data.token_cache.verify import verify
from ggm_image.errors import UserError
from ggm_image.tokenizers.text import ByteTokenizer
from tests.conftest import MeanTokenizer
from tests.data.shards import png
from tests.data.test_encode import contents

datasets = pytest.importorskip("datasets")

NAMES = ["ant", "bee", "cow"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(start: int, stop: int, **more: Any) -> Any:
    numbers = range(start, stop)
    columns = {"img": [{"bytes": png(k), "path": None} for k in numbers], "label": [k % 3 for k in numbers]}
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    return datasets.Dataset.from_dict(
        {**columns, **{name: [value] * len(numbers) for name, (value, _) in more.items()}},
        features=datasets.Features({**features, **{name: feature for name, (_, feature) in more.items()}}),
    )


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """A folder as the Hub has it: three files of parquet of one split."""
    folder = tmp_path / "parquet"
    folder.mkdir()
    for number, (start, stop) in enumerate([(0, 4), (4, 5), (5, 9)]):
        table(start, stop).to_parquet(folder / f"train-{number:05d}-of-00003.parquet")
    return f"hub:{folder}"


def labels_of(stream: ImageStream) -> list[list[int]]:
    return [[sample.label for sample in stream.read(k)] for k in range(len(stream.parts))]


# Seen to fail with the label of the next row.
@pytest.mark.parametrize("split", ["", ":train"])
def test_files_are_parts(parquet: str, split: str, tmp_path: Path) -> None:
    stream = open_hub(parquet + split, shard_size=100)
    assert stream.class_names == NAMES
    assert labels_of(stream) == [[0, 1, 2, 0], [1], [2, 0, 1, 2]]
    whole = encode(stream, tmp_path / "whole", MeanTokenizer())
    assert whole is not None
    flat = tmp_path / "flat"
    flat.mkdir()
    for k in range(9):
        (flat / f"{k}.png").write_bytes(png(k))
    same = encode(flat, tmp_path / "same", MeanTokenizer())
    assert same is not None
    assert torch.equal(whole.tokens(range(9)), same.tokens(range(9)))
    for share in ((1, 2), (0, 2)):
        encode(parquet + split, tmp_path / "shared", MeanTokenizer(), share=share, shard_size=10_000)
    if not split:
        assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert verify(tmp_path / "shared")["count"] == 9


def test_a_saved_data_set_is_cut_into_parts(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(0, 7), "test": table(7, 9)}).save_to_disk(tmp_path / "saved")
    source = f"hub:{tmp_path / 'saved'}"
    assert labels_of(open_hub(f"{source}:train", shard_size=3)) == [[0, 1, 2], [0, 1], [2, 0]]
    assert labels_of(open_hub(f"{source}:test", shard_size=3)) == [[1, 2]]
    with pytest.raises(UserError, match=r"split must be named .*train, test.*:train"):
        open_hub(source, shard_size=3)
    with pytest.raises(UserError, match="split must be named"):
        open_hub(f"{source}:val", shard_size=3)
    # Seen to fail with the names of the parts alone: another data set went on in the first one's cache.
    whole, test = open_hub(f"{source}:train", shard_size=9), open_hub(f"{source}:test", shard_size=9)
    assert whole.parts == test.parts
    assert whole.fingerprint() != test.fingerprint()


def test_a_folder_of_pictures(class_folder: Path) -> None:
    stream = open_hub(f"hub:{class_folder}:train", shard_size=100)
    assert stream.class_names == NAMES
    assert sorted(label for part in labels_of(stream) for label in part) == [0] * 4 + [1] * 5 + [2] * 3
    next(iter(stream.read(0))).load()


def test_columns(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["x", "y"])
    table(0, 3, mask=({"bytes": png(50), "path": None}, datasets.Image()), coarse=(1, coarse)).save_to_disk(
        tmp_path / "a"
    )
    source = f"hub:{tmp_path / 'a'}"
    with pytest.raises(UserError, match=r"kind Image .*img, mask.*\?image=COLUMN"):
        open_hub(source, shard_size=9)
    assert labels_of(open_hub(f"{source}?image=img&label=coarse", shard_size=9)) == [[1, 1, 1]]
    assert labels_of(open_hub(f"{source}?image=mask", shard_size=9)) == [[0, 1, 2]]
    with pytest.raises(UserError, match="no such column .*choose one of img, label"):
        open_hub(f"{source}?image=img&label=fine", shard_size=9)
    with pytest.raises(UserError, match="a data set is written hub:NAME"):
        open_hub(f"{source}?picture=img", shard_size=9)
    with pytest.raises(UserError, match="leave --classes out"):
        open_hub(f"{source}?image=img", ["a"], shard_size=9)


def test_a_data_set_without_pictures_and_one_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(UserError, match="has none among text"):
        open_hub(f"hub:{tmp_path / 'text'}", shard_size=9)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="data set cannot be read"):
        open_hub(f"hub:{tmp_path / 'empty'}", shard_size=9)
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    with pytest.raises(UserError, match="GGM_IMAGE_OFFLINE"):
        open_hub("hub:somebody/pictures", shard_size=9)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'ggm-image\[hub\]'"):
        open_hub("hub:somebody/pictures", shard_size=9)


def test_text(tmp_path: Path) -> None:
    texts = ["It was", None, "", "h\u00e9\n"]
    columns = {"text": texts, "title": ["a"] * 4, "n": [1] * 4}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "a")
    datasets.Dataset.from_dict({"story": texts, "n": [1] * 4}).save_to_disk(tmp_path / "b")
    for name in ("a", "b"):
        source = open_text(f"hub:{tmp_path / name}")
        for _ in range(2):  # it can be read again
            found = [(d.name, b"".join(d.pieces)) for d in source.documents()]
            assert found == [(f"{k:08d}.txt", (text or "").encode()) for k, text in enumerate(texts)]
    titles = open_text(f"hub:{tmp_path / 'a'}", text_key="title")
    assert [b"".join(d.pieces) for d in titles.documents()] == [b"a"] * 4
    with pytest.raises(UserError, match="must have a column 'n' of text.*text, title among text, title, n"):
        open_text(f"hub:{tmp_path / 'a'}", text_key="n")
    with pytest.raises(UserError, match=r"\?config=NAME"):
        open_text(f"hub:{tmp_path / 'a'}?image=text")
    cache = encode_text(f"hub:{tmp_path / 'b'}", tmp_path / "t", ByteTokenizer(), length=4)
    assert cache is not None
    assert [b"".join(d.pieces) for d in documents(cache, ByteTokenizer())] == [(t or "").encode() for t in texts]
