"""Manifests and shards, damaged by hypothesis: what opens holds what its manifest says."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.writer import TokenCacheWriter
from tests.faults.strategies import damaged, examples, numbers, tried, values, written_texts


def request(**changes: Any) -> Manifest:
    """A small token cache's."""
    values: dict[str, Any] = {
        "tokenizer_name": "mean-f4",
        "tokenizer_sha256": "5e" * 32,
        "codebook_size": 256,
        "grid": (2, 3),
        "image_size": 8,
        "class_names": ["ant", "bee"],
        "preprocessing": {"size": 8},
        "source": {"path": "here", "images": 7, "sha256": "0"},
    }
    return Manifest(**values | changes)


@examples(25)
@given(items=st.integers(1, 40), shard_size=st.integers(1, 9), processes=st.integers(1, 6), parts=st.booleans())
def test_shares_of_an_encoding_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, items: int, shard_size: int, processes: int, parts: bool
) -> None:
    """Seen to fail with the last shard left out."""
    folder = tmp_path_factory.mktemp("shares") / "cache"
    asked = request(items=0 if parts else items, shard_size=shard_size, parts=items if parts else 0)
    units = [unit for k in range(processes) for unit in TokenCacheWriter(folder, asked, (k, processes)).pending_units()]
    assert sorted(units) == list(range(items if parts else asked.shards_in_all))
    if not parts:
        assert sorted(item for unit in units for item in asked.items_of(unit)) == list(range(items))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole shards of a stream's kind and one of three images, one of them skipped."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    writer = TokenCacheWriter(folder, request(items=7, shard_size=4))
    writer.write(torch.arange(24).view(4, 2, 3), torch.tensor([0, 1, 0, 1]))
    writer.write(torch.arange(12).view(2, 2, 3), torch.tensor([0, 1]), skipped=[{"item": 5, "name": "x", "why": "y"}])
    assert writer.finish() == 0
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def mutants(draw: st.DrawFn, whole: Any, others: st.SearchStrategy[Any] = values) -> Any:
    """A JSON value with up to three of its parts replaced, removed, put in or exchanged."""
    whole = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(whole))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        inside = whole
        for key in way:
            inside = inside[key]
        match draw(st.sampled_from(["replace", "remove", "insert", "count", "shift"])):
            case "replace":
                inside[last] = draw(others)
            case "remove":
                del inside[last]
            case "insert" if isinstance(inside, list):
                inside.insert(last, draw(others))
            case "insert":
                inside[draw(written_texts)] = draw(others)
            case "count" if isinstance(inside[last], bool):
                inside[last] = not inside[last]
            case "shift" if isinstance(inside, list) and all(isinstance(value, int) for value in inside):
                by = draw(st.sampled_from([-1, 1, -8, -100, -1000, 1 << 63]))
                inside[:] = [value + by for value in inside]
            case "count" if isinstance(inside[last], int):
                inside[last] += draw(st.sampled_from([-1, 1, 1 << 20, 1 << 38, -inside[last]]))
    return whole


def opens_or_refuses(folder: Path) -> None:
    """What opens holds what its manifest says."""
    cache = tried(lambda: TokenCache.open(folder))
    if cache is None:
        return
    assert len(cache) == cache.manifest.count == sum(len(cache.shard(k)[1]) for k in range(len(cache.manifest.shards)))
    for k, shard in enumerate(cache.manifest.shards):
        tokens, labels = cache.shard(k)
        assert tokens.shape == (shard["count"], *cache.manifest.grid)
        assert labels.shape == (shard["count"],)
        assert int(tokens.sum()) + int(labels.sum()) is not None  # every page is there to be read
    if len(cache):
        tried(lambda: cache.tokens([0, len(cache) - 1]))


COUNTS = dict.fromkeys(("items", "parts", "shard_size", "count", "codebook_size", "image_size"), numbers)
files = st.sampled_from(["", ".", "../tokens-00000.safetensors", "f" * 300, "\x00", "\ud800"])


@examples(300)
@given(data=st.data())
def test_any_manifest(cache: Path, data: st.DataObject) -> None:
    """Seen to fail with counts and grids unchecked, and with a file name too long for the file system."""
    path = cache / "manifest.json"
    whole = path.read_text()
    mutant = data.draw(mutants(json.loads(whole)))
    match data.draw(st.sampled_from(["nothing more", "counts", "files"])):
        case "counts":
            counted = st.fixed_dictionaries({"complete": st.booleans()}, optional=COUNTS)
            mutant = json.loads(whole) | data.draw(counted)
        case "files":
            mutant = json.loads(whole)
            mutant["shards"][0]["file"] = data.draw(files)
    try:
        path.write_text(json.dumps(mutant))
        tried(lambda: Manifest.read(cache))
        opens_or_refuses(cache)
    finally:
        path.write_text(whole)


@examples(200)
@given(data=st.data())
def test_any_shard(cache: Path, data: st.DataObject) -> None:
    """Seen to fail with a header of a thousand brackets."""
    path = cache / "tokens-00000.safetensors"
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    headers = mutants(json.loads(whole[8 : 8 + length]))
    spoilt = data.draw(
        st.one_of(
            damaged(whole),
            st.builds(
                lambda header, more: struct.pack("<Q", len(header) + more) + header + whole[8 + length :],
                st.one_of(headers.map(json.dumps), st.integers(1, 1 << 16).map(lambda n: "[" * n)).map(str.encode),
                st.sampled_from([0, 0, 0, 1, -1, 1 << 30]),
            ),
        )
    )
    try:
        path.write_bytes(spoilt)
        opens_or_refuses(cache)
    finally:
        path.write_bytes(whole)
