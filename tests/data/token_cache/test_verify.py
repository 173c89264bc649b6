"""``encode --verify``: a sound cache is proved sound, and every lie is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ggm_image.data.encode import encode
from ggm_image.data.sources.open import open_images
from ggm_image.data.token_cache import verify as module
from ggm_image.data.token_cache.manifest import shard_file
from ggm_image.data.token_cache.verify import verify
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from tests.conftest import MeanTokenizer
from tests.data.shards import png, samples, write_shards, write_tar


@pytest.fixture
def folder(class_folder: Path, tmp_path: Path) -> Path:
    (class_folder / "bee" / "2.png").write_text("text")
    encode(class_folder, tmp_path / "cache", MeanTokenizer(), shard_size=5, skip_bad=True, flip=True)
    return tmp_path / "cache"


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    encode(write_shards(tmp_path / "shards"), tmp_path / "stream", MeanTokenizer(), flip=True)
    return tmp_path / "stream"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def rewrite(folder: Path, shard: int, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change a shard's arrays, and its SHA-256 with them."""
    path = folder / shard_file(shard)
    arrays = {name: array.copy() for name, array in load_file(path).items()}
    change(arrays)
    save_file(arrays, path)
    edit(folder, lambda values: values["shards"][shard].update(sha256=sha256_file(path)))


def test_sound_caches(folder: Path, stream: Path, class_folder: Path, tmp_path: Path) -> None:
    expected = {"count": 22, "skipped": 2, "items": 24, "shards": 5, "distinct": "items"}
    assert verify(folder) == {**expected, "content": False}
    assert verify(folder, open_images(str(class_folder))) == {**expected, "content": True}
    expected = {"count": 30, "skipped": 0, "items": 30, "shards": 10, "distinct": "keys"}
    assert verify(stream) == {**expected, "content": False}
    assert verify(stream, open_images(str(tmp_path / "shards"))) == {**expected, "content": True}


def test_a_flipped_bit(folder: Path) -> None:
    data = bytearray((folder / shard_file(2)).read_bytes())
    data[-1] ^= 1
    (folder / shard_file(2)).write_bytes(data)
    with pytest.raises(UserError, match="shard is damaged .*tokens-00002"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda m: m.update(count=21), "count is 21, the shards hold 22"),
        (lambda m: m.update(items=25), "in one row or be skipped|counts must agree|every shard"),
        (lambda m: m.update(count=m["count"] - m["shards"].pop()["count"]), "name every shard"),
        (
            lambda m: m.update(count=m["count"] + m["shards"][0]["count"], shards=[*m["shards"], m["shards"][0]]),
            "name every shard",
        ),
        (
            lambda m: m.update(
                count=m["count"] - m["shards"][1]["count"] + m["shards"][0]["count"],
                shards=[m["shards"][0], m["shards"][0], *m["shards"][2:]],
            ),
            "hold its own items",
        ),
        (lambda m: m["shards"].reverse(), "hold its own items|in one row or be skipped"),
        (lambda m: m["shards"][1].update(skipped=[]), "in one row or be skipped"),
        (lambda m: m["shards"][1]["skipped"][0].update(item=0), "hold its own items"),
        (lambda m: m["shards"][1]["skipped"].append(m["shards"][1]["skipped"][0]), "skipped twice"),
    ],
)
def test_a_manifest_that_does_not_add_up(folder: Path, change: Callable[[dict[str, Any]], object], wanted: str) -> None:
    edit(folder, change)
    with pytest.raises(UserError, match=wanted):
        verify(folder)


def test_tokens_and_labels_out_of_range(folder: Path) -> None:
    rewrite(folder, 0, lambda arrays: arrays["tokens"].__setitem__((0, 0, 0), 256))
    with pytest.raises(UserError, match=r"tokens must lie in \[0, 256\) .*tokens-00000.*max 256"):
        verify(folder)
    rewrite(folder, 1, lambda arrays: arrays["labels"].__setitem__(0, 3))
    with pytest.raises(UserError, match=r"labels must lie in \[0, 3\).*tokens-00001"):
        verify(folder)


# Seen to fail with the source's length and names compared alone.
def test_rows_of_another_class_than_the_source_says(folder: Path, class_folder: Path) -> None:
    rewrite(folder, 1, lambda arrays: arrays["labels"].__setitem__(0, 0))
    verify(folder)
    with pytest.raises(UserError, match="labels must be those of the source .*tokens-00001"):
        verify(folder, open_images(str(class_folder)))


def test_another_source(folder: Path, stream: Path, class_folder: Path, flat_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="12 images, the source has 5"):
        verify(folder, open_images(str(flat_folder)))
    (class_folder / "cow" / "2.png").rename(class_folder / "cow" / "3.png")
    with pytest.raises(UserError, match="names or labels differ"):
        verify(folder, open_images(str(class_folder)))
    with pytest.raises(UserError, match="5 parts, the source has 4"):
        verify(stream, open_images(f"{tmp_path}/shards/{{000..003}}.tar"))
    with pytest.raises(UserError, match="no parts, the source has 5"):
        verify(folder, open_images(str(tmp_path / "shards")))


# Seen to fail without the look at the keys, and with rounds of consecutive rows in place of equal digests.
@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_a_sample_in_two_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(module, "KEYS_AT_ONCE", at_once)
    pattern = write_shards(tmp_path / "shards", (4, 4, 4))
    encode(pattern, tmp_path / "sound", MeanTokenizer())
    assert verify(tmp_path / "sound")["count"] == 12
    write_tar(tmp_path / "shards" / "002.tar", {**samples(8, 11), "000005.png": png(99), "000005.cls": b"0"})
    encode(pattern, tmp_path / "cache", MeanTokenizer())
    with pytest.raises(UserError, match=r"no key may be in two rows \(row 1 of 001\.tar and row 3 of 002\.tar\)"):
        verify(tmp_path / "cache")


def test_mirrored_copies_of_another_part(stream: Path) -> None:
    rewrite(stream, 6, lambda arrays: arrays["keys"].__setitem__((0, 0), arrays["keys"][0, 0] ^ 1))
    with pytest.raises(UserError, match="copies must be .*tokens-00006"):
        verify(stream)


def test_an_unfinished_cache_proves_nothing(class_folder: Path, tmp_path: Path) -> None:
    encode(class_folder, tmp_path / "cache", MeanTokenizer(), shard_size=5, share=(0, 2))
    with pytest.raises(UserError, match="not finished .*2 of 3"):
        verify(tmp_path / "cache")
