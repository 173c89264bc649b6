"""Images to tokens and back with a tokenizer whose every code is known beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.data import decode as data_decode
from ggm_image.data import encode as module
from ggm_image.data.decode import decode
from ggm_image.data.encode import check_image_size, encode
from ggm_image.data.sources.image_files import open_source
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.image.io import open_image
from ggm_image.image.preprocess import to_model
from ggm_image.tokenizers.registry import load_tokenizer
from tests.conftest import MeanTokenizer, pack


def expected(folder: Path) -> torch.Tensor:
    source = open_source(folder)
    return MeanTokenizer().encode(to_model(torch.stack([source[k] for k in range(len(source))])))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tokens_labels_and_manifest(class_folder: Path, tmp_path: Path, mean_tokenizer: MeanTokenizer) -> None:
    cache = encode(class_folder, tmp_path / "cache", mean_tokenizer)
    assert torch.equal(cache.tokens(range(12)), expected(class_folder))
    assert cache.labels(range(12)).tolist() == [0] * 4 + [1] * 5 + [2] * 3
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["tokenizer_name"] == "mean-f4"
    assert manifest["tokenizer_sha256"] == "5e" * 32
    assert manifest["class_names"] == ["ant", "bee", "cow"]
    assert manifest["preprocessing"]["crop"] == "centre square of the shorter side"
    assert (manifest["grid"], manifest["image_size"], manifest["count"]) == ([2, 2], 8, 12)
    assert manifest["source"]["images"] == 12


# Seen to fail with results taken in the order the threads finish, and with the last batch's padding kept.
@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_cache_depends_neither_on_batch_size_nor_on_threads(
    class_folder: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    tokenizer = MeanTokenizer()
    encode(class_folder, tmp_path / "a", MeanTokenizer(), shard_size=7)
    encode(class_folder, tmp_path / "b", tokenizer, shard_size=7, batch_size=batch_size, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(tokenizer.batches) == {batch_size}


def test_half_precision_is_noted_and_does_not_mix(class_folder: Path, tmp_path: Path) -> None:
    """Seen to fail with a manifest that says nothing of it."""
    tokenizer = load_tokenizer("cifar10-f4-4096")
    exact = encode(class_folder, tmp_path / "exact", tokenizer, image_size=32)
    half = encode(class_folder, tmp_path / "half", tokenizer, image_size=32, precision="bf16")
    same = (exact.tokens(range(12)) == half.tokens(range(12))).float().mean()
    assert 0.9 < same < 1
    assert "precision" not in exact.manifest.preprocessing
    assert half.manifest.preprocessing["precision"] == "bf16"
    assert next(tokenizer.parameters()).is_contiguous(), "the caller's tokenizer was changed"
    with pytest.raises(UserError, match=r"another request .*preprocessing\.precision is 'bf16', now None"):
        encode(class_folder, tmp_path / "half", tokenizer, image_size=32)
    with pytest.raises(UserError, match="fp32 or bf16"):
        encode(class_folder, tmp_path / "other", tokenizer, image_size=32, precision="fp16")


def test_a_batch_fits_the_device_and_the_pictures() -> None:
    assert [module.fitting_batch("cpu", size) for size in (8, 32, 64, 256, 1024)] == [64, 64, 16, 1, 1]
    assert module.fitting_batch("cuda", 256) == 64


def test_tar_and_folder_give_the_same_shards(class_folder: Path, tmp_path: Path) -> None:
    a = encode(class_folder, tmp_path / "a", MeanTokenizer())
    b = encode(pack(class_folder, tmp_path / "x.tar.xz", mode="w:xz"), tmp_path / "b", MeanTokenizer())
    assert a.manifest.shards == b.manifest.shards
    assert a.manifest.request() == b.manifest.request()


# Seen to fail with flipped rows interleaved, and with the flip along the rows (dim -2).
def test_flip_adds_every_picture_mirrored(class_folder: Path, tmp_path: Path) -> None:
    cache = encode(class_folder, tmp_path / "a", MeanTokenizer(), flip=True, shard_size=10)
    originals = expected(class_folder)
    assert torch.equal(cache.tokens(range(24)), torch.cat([originals, originals.flip(-1)]))
    assert not torch.equal(originals, originals.flip(-1))
    assert torch.equal(cache.labels(range(12)), cache.labels(range(12, 24)))
    assert cache.manifest.preprocessing["order"] == "all originals, then all mirrored copies"


class Interrupted(MeanTokenizer):
    """Stops at a given batch, as Ctrl-C would."""

    def __init__(self, stop: int) -> None:
        super().__init__()
        self.stop = stop

    def encode_indices(self, images: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self.stop:
            raise KeyboardInterrupt
        return super().encode_indices(images)


# Seen to fail when a new writer started at shard 0 with the rows of the next one.
@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_an_interrupted_run_goes_on_bit_equal(class_folder: Path, tmp_path: Path, stop: int) -> None:
    encode(class_folder, tmp_path / "whole", MeanTokenizer(), shard_size=4, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        encode(class_folder, tmp_path / "cut", Interrupted(stop), shard_size=4, batch_size=2)
    if stop < 2:
        assert not (tmp_path / "cut").exists()
    else:
        with pytest.raises(UserError, match="not finished"):
            TokenCache.open(tmp_path / "cut")
    tokenizer = MeanTokenizer()
    encode(class_folder, tmp_path / "cut", tokenizer, shard_size=4, batch_size=2)
    assert len(tokenizer.batches) == 6 - stop // 2 * 2
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_cache_is_not_encoded_again(class_folder: Path, tmp_path: Path) -> None:
    encode(class_folder, tmp_path / "a", MeanTokenizer())
    before = contents(tmp_path / "a")
    tokenizer = MeanTokenizer()
    assert len(encode(class_folder, tmp_path / "a", tokenizer)) == 12
    assert tokenizer.batches == []
    assert contents(tmp_path / "a") == before


def test_a_bad_picture_stops_before_anything_is_written(class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "bee" / "2.png").write_text("text")
    with pytest.raises(UserError, match=r"bee/2\.png: not an image .*--skip-bad"):
        encode(class_folder, tmp_path / "new", MeanTokenizer())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError):
        encode(class_folder, tmp_path / "empty", MeanTokenizer())
    assert contents(tmp_path / "empty") == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "pictures"]


def test_skip_bad_leaves_out_and_names(class_folder: Path, tmp_path: Path) -> None:
    good = expected(class_folder)
    (class_folder / "ant" / "1.png").write_text("text")
    whole = (class_folder / "cow" / "2.png").read_bytes()
    (class_folder / "cow" / "2.png").write_bytes(whole[: len(whole) // 2])
    cache = encode(class_folder, tmp_path / "a", MeanTokenizer(), skip_bad=True, flip=True, shard_size=5)
    rows = [0, *range(2, 11)]
    assert torch.equal(cache.tokens(range(20)), torch.cat([good[rows], good[rows].flip(-1)]))
    assert cache.labels(range(10)).tolist() == [0] * 3 + [1] * 5 + [2] * 2
    assert [entry["name"] for entry in cache.manifest.skipped()] == ["ant/1.png", "cow/2.png"] * 2
    assert cache.manifest.item_of_row().tolist() == rows + [12 + row for row in rows]


def test_nothing_but_bad_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_text("text")
    with pytest.raises(UserError, match="none of the images"):
        encode(tmp_path / "src", tmp_path / "out", MeanTokenizer(), skip_bad=True)
    assert not (tmp_path / "out").exists()


def test_every_mode_and_size_in_one_folder(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    modes = {"1": 1, "L": 100, "LA": (100, 255), "P": 3, "RGB": (100,) * 3, "RGBA": (100,) * 3 + (255,), "I;16": 25700}
    for number, (mode, colour) in enumerate(modes.items()):
        Image.new(mode, (9 + number, 30 - number), colour).save(source / f"{number}.png")
    Image.new("CMYK", (20, 20), (0, 0, 0, 155)).save(source / "7.jpg", quality=95)
    Image.new("RGB", (1, 1), (100, 100, 100)).save(source / "8.png")
    cache = encode(source, tmp_path / "out", MeanTokenizer())
    tokens = cache.tokens(range(9)).flatten(1)
    assert (tokens == tokens[:, :1]).all()
    assert tokens[:3, 0].tolist() == [255, 100, 100]
    np.testing.assert_allclose(tokens[4:, 0], 100, atol=1)


@pytest.mark.parametrize("size", [3, 10])
def test_an_image_size_that_does_not_fit_the_cells(size: int) -> None:
    with pytest.raises(UserError, match=rf"multiple of 4 .*\({size}\); use --image-size \d+"):
        check_image_size(MeanTokenizer(), size)


def test_image_size_resizes(class_folder: Path, tmp_path: Path) -> None:
    assert encode(class_folder, tmp_path / "a", MeanTokenizer(), image_size=16).tokens([0]).shape == (1, 4, 4)


def test_decode_writes_class_folders(class_folder: Path, tmp_path: Path) -> None:
    cache = encode(class_folder, tmp_path / "cache", MeanTokenizer())
    assert decode(cache, tmp_path / "out", MeanTokenizer(), batch_size=5) == 12
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert names == [f"{'ant' if k < 4 else 'bee' if k < 9 else 'cow'}/{k:06d}.png" for k in range(12)]
    # What it writes, encoded again, gives the very same tokens: the cells of this tokenizer are flat.
    again = encode(tmp_path / "out", tmp_path / "again", MeanTokenizer())
    assert torch.equal(again.tokens(range(12)), cache.tokens(range(12)))


def test_decode_without_classes_is_flat(flat_folder: Path, tmp_path: Path) -> None:
    cache = encode(flat_folder, tmp_path / "cache", MeanTokenizer())
    decode(cache, tmp_path / "out", MeanTokenizer())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{k:06d}.png" for k in range(5)]
    assert open_image(tmp_path / "out" / "000004.png").shape == (3, 8, 8)


def test_decode_refuses_another_tokenizer_and_a_full_folder(class_folder: Path, tmp_path: Path) -> None:
    cache = encode(class_folder, tmp_path / "cache", MeanTokenizer())
    with pytest.raises(UserError, match="the tokenizer that made it .*made with mean-f4 5e5e"):
        decode(cache, tmp_path / "out", MeanTokenizer(sha256="ab" * 32))
    before = contents(class_folder)
    with pytest.raises(UserError, match="new or empty"):
        decode(cache, class_folder, MeanTokenizer())
    assert contents(class_folder) == before
    assert not (tmp_path / "out").exists()


def test_decode_refuses_class_names_that_leave_the_folder(class_folder: Path, tmp_path: Path) -> None:
    cache = encode(class_folder, tmp_path / "cache", MeanTokenizer())
    for name in ("..", "a/b", "", "/etc"):
        cache.manifest.class_names[1] = name
        with pytest.raises(UserError, match="class names must be folder names"):
            decode(cache, tmp_path / "out", MeanTokenizer())


def test_an_interrupted_decode_leaves_nothing(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = encode(class_folder, tmp_path / "cache", MeanTokenizer())
    calls = []

    def stop(*_: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return torch.zeros(5, 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(data_decode, "decode_batch", stop)
    with pytest.raises(KeyboardInterrupt):
        decode(cache, tmp_path / "out", MeanTokenizer(), batch_size=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "pictures"]
