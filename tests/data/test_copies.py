"""Mirrored and shifted copies: the list of offsets, the order of rows, and that copies of an image stay together."""

import hashlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from ggm_image.data.copies import Copy, check_shifts, copies_of, most_shifts, shift_offsets
from ggm_image.data.encode import encode
from ggm_image.data.sources.image_files import open_source
from ggm_image.data.sources.open import open_images
from ggm_image.data.token_cache.manifest import Manifest, shard_file
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.verify import verify
from ggm_image.errors import UserError
from ggm_image.image.preprocess import to_model
from ggm_image.io.config_schema import load_config
from ggm_image.metrics.reconstruction import report
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import load_tokens
from tests.conftest import MeanTokenizer
from tests.data.shards import png, write_shards, write_tar
from tests.data.test_encode import Interrupted, contents


@pytest.fixture(params=["folder", "shards"])
def source(request: pytest.FixtureRequest, class_folder: Path, tmp_path: Path) -> str:
    """12 images at random or 15 in five archives."""
    return str(class_folder) if request.param == "folder" else write_shards(tmp_path / "shards")


def images_of(source: str) -> torch.Tensor:
    """The images in their order, uint8 (n, 3, 8, 8)."""
    opened = open_images(source)
    if hasattr(opened, "read") and hasattr(opened, "parts"):
        return torch.stack([sample.load() for part in range(len(opened.parts)) for sample in opened.read(part)])
    return torch.stack([opened[k] for k in range(len(opened))])


def by_hand(images: torch.Tensor, mirrored: bool, dy: int, dx: int) -> torch.Tensor:
    """Tokens of shifted images, by torch's own reflection."""
    images = images.flip(-1) if mirrored else images
    pad, (h, w) = max(abs(dy), abs(dx)), images.shape[-2:]
    padded = F.pad(images.float(), (pad,) * 4, mode="reflect")
    moved = padded[..., pad - dy : pad - dy + h, pad - dx : pad - dx + w]
    return MeanTokenizer().encode(to_model(moved.to(torch.uint8)))


def run(source: str, out: Path, tokenizer: MeanTokenizer | None = None, **options: Any) -> TokenCache | None:
    return encode(source, out, tokenizer or MeanTokenizer(), shard_size=5, batch_size=2, **options)


def draw_flat_cells(folder: Path, *, in_shards: bool) -> str:
    """Seven images of 8 x 8 pixels and four greys each, in a format that no library encodes."""
    files: dict[str, bytes] = {}
    for k in range(7):
        pixels = bytes(
            (37 * k + 90 * (y // 4) + 50 * (x // 4)) % 256 for y in range(8) for x in range(8) for _ in "rgb"
        )
        files[f"{k}.ppm"] = b"P6 8 8 255\n" + pixels
    if in_shards:
        write_tar(folder / "0.tar", {name: files[name] for name in sorted(files)[:4]})
        write_tar(folder / "1.tar", {name: files[name] for name in sorted(files)[4:]})
        return f"{folder}/{{0..1}}.tar"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def digest_of_cache(folder: Path) -> str:
    """SHA-256 of manifest and arrays, but for what depends on the place, the time and the versions of libraries."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["made_with"], manifest["states"], manifest["source"]["path"], manifest["source"]["sha256"]
    total = hashlib.sha256()
    for number, shard in enumerate(manifest["shards"]):
        del shard["sha256"]
        shard["part"] = Path(shard.get("part", "")).name
        for name, array in sorted(load_file(folder / shard_file(number)).items()):
            total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    total.update(json.dumps(manifest).encode())
    return total.hexdigest()


# Seen to fail with the content moved the other way, with edge padding, and with dy and dx exchanged.
@pytest.mark.parametrize("copy", [Copy(), Copy(dy=2), Copy(dx=-4), Copy(True), Copy(True, -3, 1)])
def test_a_copy_is_mirrored_then_shifted_with_reflection(copy: Copy) -> None:
    image = torch.randint(0, 256, (3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = F.pad((image.flip(-1) if copy.mirrored else image).float()[None], (4,) * 4, mode="reflect")[0]
    expected = padded[:, 4 - copy.dy : 9 - copy.dy, 4 - copy.dx : 10 - copy.dx].to(torch.uint8)
    assert torch.equal(copy.apply(image), expected)
    assert torch.equal(copy.apply(torch.stack([image, image]))[1], expected)


def test_offsets_are_distinct_and_come_in_rings_from_both_sides() -> None:
    assert list(islice(shift_offsets(), 11)) == [
        (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 2), (0, -2), (2, 0)
    ]  # fmt: skip
    for size, most in [(8, 1), (32, 2), (64, 4), (256, 16)]:
        offsets = list(islice(shift_offsets(), most_shifts(size)))
        square = {(dy, dx) for dy in range(-most, most + 1) for dx in range(-most, most + 1)}
        assert len(offsets) == len(set(offsets)) == len(square) - 1
        assert set(offsets) == square - {(0, 0)}
        rings = [max(map(abs, offset)) for offset in offsets]
        assert rings == sorted(rings)
        assert all(a == (-b[0], -b[1]) for a, b in zip(offsets[::2], offsets[1::2], strict=True))


def test_originals_and_mirrored_copies_keep_their_places() -> None:
    assert copies_of(False, 0) == (Copy(),)
    assert copies_of(True, 0) == (Copy(), Copy(True))
    assert copies_of(False, 2) == (Copy(), Copy(dx=1), Copy(dx=-1))
    assert copies_of(True, 1) == (Copy(), Copy(True), Copy(dx=1), Copy(True, dx=1))


# Seen to fail with the shift of a mirrored image mirrored too, and with the copies of an image in adjacent rows.
@pytest.mark.parametrize("flip", [False, True])
def test_rows_are_those_of_images_shifted_by_hand(source: str, tmp_path: Path, flip: bool) -> None:
    images = images_of(source)
    cache = run(source, tmp_path / "cache", flip=flip, shifts=3)
    assert cache is not None
    copies = [(m, dy, dx) for dy, dx in [(0, 0), (0, 1), (0, -1), (1, 0)] for m in ([False, True] if flip else [False])]
    expected = [by_hand(images, *copy) for copy in copies]
    n = len(images)
    assert len(cache) == cache.manifest.items == len(copies) * n
    assert torch.equal(cache.tokens(range(len(cache))), torch.cat(expected))
    assert len({tokens.numpy().tobytes() for tokens in expected}) == len(expected)
    assert cache.labels(range(len(cache))).tolist() == cache.labels(range(n)).tolist() * len(copies)
    assert cache.manifest.image_of_row().tolist() == [*range(n)] * len(copies)
    assert cache.manifest.preprocessing["shifts"] == 3
    assert verify(tmp_path / "cache", open_images(source))["count"] == len(cache)
    rest = {"flip": flip, "shard_size": 5, "batch_size": 2}
    plain = encode(source, tmp_path / "plain", MeanTokenizer(), **rest)  # type: ignore[arg-type]
    assert plain is not None
    assert torch.equal(plain.tokens(range(len(plain))), cache.tokens(range(len(plain))))


# Seen to fail with "shifts" stored where it is 0, and with all rows mirrored.
@pytest.mark.parametrize(
    ("kind", "flip", "golden"),
    [
        ("folder", False, "4d412c735a39e7e6b39662bc6a9e7daae6ac6dcdd303fd5e8bbc4d7cb158c9b5"),
        ("folder", True, "a84eeb496c3c8e2558e4c954bc177b390c7adb2b5a1cdd163570508fec2cdd69"),
        ("shards", True, "164b9c8396eff7825ca80a3508510c8e9fbc621d67a55aa15bdf0423fe728562"),
    ],
)
def test_a_cache_without_shifts_is_what_it_was_before_there_were_any(
    tmp_path: Path, kind: str, flip: bool, golden: str
) -> None:
    where = draw_flat_cells(tmp_path / "images", in_shards=kind == "shards")
    run(where, tmp_path / "cache", flip=flip)
    assert digest_of_cache(tmp_path / "cache") == golden


def test_an_interrupted_run_and_two_processes_give_the_same_files(source: str, tmp_path: Path) -> None:
    options = {"flip": True, "shifts": 1}
    whole = run(source, tmp_path / "whole", **options)
    assert whole is not None
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "cut", Interrupted(17), **options)
    run(source, tmp_path / "cut", **options)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert run(source, tmp_path / "shared", share=(1, 2), **options) is None
    assert run(source, tmp_path / "shared", share=(0, 2), **options) is not None
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    encode(source, tmp_path / "batches", MeanTokenizer(), shard_size=5, batch_size=7, workers=1, **options)  # type: ignore[arg-type]
    assert contents(tmp_path / "batches") == contents(tmp_path / "whole")


def test_another_number_of_shifts_is_another_request(class_folder: Path, tmp_path: Path) -> None:
    run(str(class_folder), tmp_path / "cache", shifts=2)
    before = contents(tmp_path / "cache")
    with pytest.raises(UserError, match=r"another request .*preprocessing\.shifts is 2, now 3"):
        run(str(class_folder), tmp_path / "cache", shifts=3)
    with pytest.raises(UserError, match="another request"):
        run(str(class_folder), tmp_path / "cache")
    assert contents(tmp_path / "cache") == before


@pytest.mark.parametrize(
    ("shifts", "what"),
    [
        (-1, r"shifts must lie in \[0, 8\] for images of 8 pixels \(-1\); use --shifts 0"),
        (9, r"shifts must lie in \[0, 8\] for images of 8 pixels \(9\); use --shifts 8"),
        (10**30, r"shifts must lie in \[0, 8\]"),
    ],
)
def test_impossible_numbers_of_shifts_end_before_anything_is_written(
    class_folder: Path, tmp_path: Path, shifts: int, what: str
) -> None:
    tokenizer = MeanTokenizer()
    with pytest.raises(UserError, match=what):
        run(str(class_folder), tmp_path / "cache", tokenizer, shifts=shifts)
    assert tokenizer.batches == []
    assert not (tmp_path / "cache").exists()


def test_images_too_small_to_shift() -> None:
    assert [most_shifts(size) for size in (0, 1, 2, 3)] == [0, 0, 8, 8]
    assert [most_shifts(size) for size in (-(10**400), 10**400)] == [0, 1 << 16]
    with pytest.raises(UserError, match=r"\[0, 0\] for images of 1 pixels"):
        check_shifts(1, 1)


@pytest.mark.parametrize("value", [-1, 9, 10**12, "two", 1.5, True, None, 8])
def test_a_manifest_that_cannot_be(tmp_path: Path, value: object) -> None:
    """8 shifts are possible, and not in the 3 rows of one image."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(0))
    run(str(tmp_path / "images"), tmp_path / "cache", shifts=2)
    path = tmp_path / "cache" / "manifest.json"
    values = json.loads(path.read_text())
    values["preprocessing"]["shifts"] = value
    path.write_text(json.dumps(values))
    wrong = "items are 3, fewer than the 9 copies" if value == 8 else r"preprocessing\.shifts is"
    with pytest.raises(UserError, match=f"not that of a token cache .*{wrong}"):
        Manifest.read(tmp_path / "cache")


# Seen to fail with `images = items // 2` where there is a flip: shifted copies of held-out images were trained on.
@pytest.mark.parametrize("skip", [False, True])
def test_copies_of_a_held_out_image_are_never_trained_on(source: str, tmp_path: Path, skip: bool) -> None:
    if skip and Path(source).is_dir():
        (Path(source) / "bee" / "2.png").write_text("text")
    cache = run(source, tmp_path / "cache", flip=True, shifts=2, skip_bad=skip)
    assert cache is not None
    config = tmp_path / "config.yaml"
    config.write_text(
        "network: {codebook_size: 256, classes: 3, grid: [2, 2], width: 8, depth: 1, heads: 1}\n"
        "data: {holdout: 1}\ntrain: {steps: 1, seed: 3}\n"
    )
    training, held = load_tokens(load_config(GeneratorConfig, config), cache)
    assert len(held) == 6
    assert len(training) == len(cache) - 6
    images = cache.manifest.image_of_row()
    tokens = cache.load()[0].flatten(1)
    rows = [{tuple(row) for row in part.tokens.tolist()} for part in (training, held)]
    assert not rows[0] & rows[1]
    image = {int(images[k]) for k in range(len(tokens)) if tuple(tokens[k].tolist()) in rows[1]}
    assert len(image) == 1


def test_the_report_compares_shifted_rows_with_shifted_images(class_folder: Path, tmp_path: Path) -> None:
    opened, tokenizer = open_source(class_folder), MeanTokenizer()
    cache = run(str(class_folder), tmp_path / "cache", flip=True, shifts=1)
    assert cache is not None
    result = report(opened, cache, tokenizer, batch_size=4)
    images = torch.stack([opened[k] for k in range(12)])
    images = torch.cat([copy.apply(images) for copy in (Copy(), Copy(True), Copy(dx=1), Copy(True, dx=1))])
    decoded = ((tokenizer.decode(cache.tokens(range(48))) + 1) * 127.5).round()
    psnr = 10 * torch.log10(255**2 / (images.double() - decoded.double()).pow(2).mean(dim=(1, 2, 3)))
    assert result["images"] == 48
    assert result["psnr_db"]["mean"] == pytest.approx(float(psnr.mean()))
    assert result["psnr_db"]["min"] == pytest.approx(float(psnr.min()))
