"""The token cache: what is written is read, an interrupted one resumes, anything doubtful is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.writer import TokenCacheWriter
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file


def request(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "tokenizer_name": "mean-f4",
        "tokenizer_sha256": "5e" * 32,
        "codebook_size": 65536,
        "grid": (2, 3),
        "image_size": 8,
        "class_names": ["ant", "bee"],
        "preprocessing": {"size": 8},
        "source": {"path": "here", "images": 11, "sha256": "0"},
        "items": 11,
        "shard_size": 4,
    }
    return Manifest(**{**values, **changes})


TOKENS = torch.randint(0, 65536, (11, 2, 3), generator=torch.Generator().manual_seed(0))
TOKENS[0, 0, 0], TOKENS[1, 0, 0] = 65535, 0
LABELS = torch.arange(11) % 3 - 1


def fill(writer: TokenCacheWriter, shards: int = 99) -> None:
    for items in list(writer.pending())[:shards]:
        writer.write(TOKENS[items.start : items.stop], LABELS[items.start : items.stop])


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    writer = TokenCacheWriter(tmp_path / "cache", request())
    fill(writer)
    writer.finish()
    return TokenCache.open(tmp_path / "cache")


# Seen to fail with int16 in place of uint16 (65535 came back as -1) and with searchsorted's side="left"
# (the last row of each shard was looked for in the next one).
def test_rows_come_back_in_any_order(cache: TokenCache) -> None:
    assert len(cache) == 11
    for rows in (torch.arange(11), torch.tensor([10, 0, 3, 4, 4, 7, 8]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(cache.tokens(rows), TOKENS[rows])
        assert torch.equal(cache.labels(rows), LABELS[rows])
    assert cache.tokens([3]).dtype == cache.labels([3]).dtype == torch.int64
    tokens, labels = cache.load()
    assert torch.equal(tokens.long(), TOKENS)
    assert torch.equal(labels, LABELS)


@pytest.mark.parametrize("row", [-1, 11])
def test_rows_outside_are_an_error(cache: TokenCache, row: int) -> None:
    with pytest.raises(IndexError, match=r"\[0, 11\)"):
        cache.tokens([0, row])


def test_the_files_are_as_documented(cache: TokenCache) -> None:
    assert sorted(p.name for p in cache.folder.iterdir()) == [
        "manifest.json",
        *(f"tokens-0000{k}.safetensors" for k in range(3)),
    ]
    with safe_open(cache.folder / "tokens-00002.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["labels", "tokens"]
        assert file.get_tensor("tokens").dtype == torch.uint16
        assert file.get_tensor("tokens").shape == (3, 2, 3)
        assert file.get_tensor("labels").dtype == torch.int32
    manifest = json.loads((cache.folder / "manifest.json").read_text())
    assert (manifest["count"], manifest["complete"], manifest["grid"]) == (11, True, [2, 3])
    assert [shard["count"] for shard in manifest["shards"]] == [4, 4, 3]
    for shard in manifest["shards"]:
        assert shard["sha256"] == sha256_file(cache.folder / shard["file"])
    cache.verify()


# Seen to fail with shards that are trusted without a look at their SHA-256 (the damaged case).
@pytest.mark.parametrize("accident", ["none", "damaged", "missing", "half-written"])
@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_an_interrupted_cache_goes_on_bit_equal(
    cache: TokenCache, tmp_path: Path, finished: int, accident: str
) -> None:
    again = tmp_path / "again"
    fill(TokenCacheWriter(again, request()), finished)
    last = again / f"tokens-{finished - 1:05d}.safetensors"
    if finished and accident == "damaged":
        data = bytearray(last.read_bytes())
        data[-1] ^= 1
        last.write_bytes(data)
    elif finished and accident == "missing":
        last.unlink()
    elif accident == "half-written":
        (again / ".tokens-00003.0123abcd.tmp.safetensors").write_bytes(b"half")

    writer = TokenCacheWriter(again, request())
    trusted = max(0, finished - (accident in ("damaged", "missing")))
    assert [items.start for items in writer.pending()] == list(range(4 * trusted, 11, 4))
    fill(writer)
    writer.finish()
    files = sorted(p.name for p in cache.folder.iterdir())
    assert sorted(p.name for p in again.iterdir()) == files
    for name in files:
        assert (again / name).read_bytes() == (cache.folder / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_sha256": "00" * 32},
        {"codebook_size": 1024},
        {"image_size": 16},
        {"class_names": ["ant", "cow"]},
        {"preprocessing": {"size": 8, "flip": True}},
        {"source": {"path": "here", "images": 11, "sha256": "1"}},
        {"items": 12},
        {"shard_size": 5},
    ],
)
def test_another_request_is_refused_and_changes_nothing(cache: TokenCache, change: dict[str, Any]) -> None:
    before = {p.name: p.read_bytes() for p in cache.folder.iterdir()}
    with pytest.raises(UserError, match=f"another request .*{next(iter(change))}"):
        TokenCacheWriter(cache.folder, request(**change))
    assert {p.name: p.read_bytes() for p in cache.folder.iterdir()} == before


def test_a_source_that_has_moved_is_the_same_request(cache: TokenCache) -> None:
    moved = request(source={"path": "there", "images": 11, "sha256": "0"}, tokenizer_source="elsewhere")
    assert list(TokenCacheWriter(cache.folder, moved).pending()) == []


def test_a_folder_where_a_kill_left_only_a_temporary_file_is_as_good_as_new(tmp_path: Path) -> None:
    """Seen to fail: the harness of tests/faults found it refused as a foreign folder."""
    (tmp_path / ".manifest.0123abcd.tmp.json").write_bytes(b"{")
    writer = TokenCacheWriter(tmp_path, request())
    fill(writer)
    writer.finish()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_foreign_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="new, empty or a token cache"):
        TokenCacheWriter(tmp_path, request())
    with pytest.raises(UserError, match="must be a folder"):
        TokenCacheWriter(tmp_path / "a.txt", request())
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("value", "got"), [(1024, "max 1024"), (-1, "min -1")])
def test_tokens_out_of_range_are_not_written(tmp_path: Path, value: int, got: str) -> None:
    writer = TokenCacheWriter(tmp_path / "cache", request(codebook_size=1024))
    tokens = torch.zeros(4, 2, 3, dtype=torch.int64)
    tokens[2, 1, 1] = value
    with pytest.raises(UserError, match=rf"\[0, 1024\) \(got {got}\); was this set encoded with another"):
        writer.write(tokens, torch.zeros(4, dtype=torch.int64))
    writer.discard_if_empty()
    assert not (tmp_path / "cache").exists()


def test_tokens_out_of_range_are_not_read(cache: TokenCache) -> None:
    path = cache.folder / "manifest.json"
    path.write_text(path.read_text().replace('"codebook_size": 65536', '"codebook_size": 1024'))
    small = TokenCache.open(cache.folder)
    with pytest.raises(UserError, match="got max 65535"):
        small.tokens([0])
    with pytest.raises(UserError, match="got max 65535"):
        small.load()


def test_skipped_items_shift_the_rows(tmp_path: Path) -> None:
    writer = TokenCacheWriter(tmp_path, request(items=6))
    writer.write(TOKENS[[0, 2, 3]], LABELS[[0, 2, 3]], skipped=[{"item": 1, "name": "b.png", "why": "cut"}])
    writer.write(TOKENS[4:6], LABELS[4:6])
    writer.finish()
    cache = TokenCache.open(tmp_path)
    assert cache.manifest.item_of_row().tolist() == [0, 2, 3, 4, 5]
    assert torch.equal(cache.tokens(range(5)), TOKENS[[0, 2, 3, 4, 5]])
    assert cache.manifest.skipped()[0]["name"] == "b.png"


def test_an_unfinished_cache_is_not_read(tmp_path: Path) -> None:
    fill(TokenCacheWriter(tmp_path, request()), 2)
    with pytest.raises(UserError, match=r"not finished .*2 of 3 shards\); rerun the same ggm-image encode"):
        TokenCache.open(tmp_path)


@pytest.mark.parametrize("damage", ["no folder", "no manifest", "no json", "list", "version", "shard", "cut", "path"])
def test_what_is_no_cache_is_refused(cache: TokenCache, damage: str) -> None:
    folder, manifest = cache.folder, cache.folder / "manifest.json"
    shard = folder / "tokens-00001.safetensors"
    if damage == "no folder":
        folder = folder / "nowhere"
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "no json":
        manifest.write_text("{")
    elif damage == "list":
        manifest.write_text("[]")
    elif damage == "version":
        manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 7'))
    elif damage == "shard":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == "path":
        manifest.write_text(manifest.read_text().replace("tokens-00001", "../cache/tokens-00001"))
    with pytest.raises(UserError):
        TokenCache.open(folder)


def test_a_damaged_shard_is_found_by_verify(cache: TokenCache) -> None:
    path = cache.folder / "tokens-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="tokens-00001"):
        TokenCache.open(cache.folder).verify()
