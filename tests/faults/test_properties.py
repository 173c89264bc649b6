"""Whatever a parser is given, drawn by hypothesis: what it documents, or one `UserError`; nothing else, and no hang."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ggm_image.data.sources.tar_stream import MOST_PLACES, expand
from ggm_image.data.sources.webdataset_samples import groups, split
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.writer import TokenCacheWriter
from ggm_image.errors import UserError
from ggm_image.image.windows import plan_windows, window_side
from ggm_image.io.config_schema import load_config, save_config
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.sample_folder import sample_to_folder
from ggm_image.runtime.ranks import rank_and_world_size
from ggm_image.sampler.settings import Settings
from ggm_image.tokenizers.checkpoints.reader import open_weights
from ggm_image.training.config import GeneratorConfig
from ggm_image.validation import _keys
from tests.models import tiny_model_folder

T = TypeVar("T")


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


def examples(most: int) -> settings:
    """The same draws every time, on any machine however slow, and nothing kept."""
    return settings(
        max_examples=most,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def tried(call: Callable[[], T]) -> T | None:
    """What a call gives, or None where it refuses its input."""
    try:
        return call()
    except UserError:
        return None


# Words that mean something to a parser, which letters drawn one by one seldom make.
WORDS = (
    "${", "}", "${train.seed}", "${oc.env:HOME}", "\\${a}", "???", "{", "[", "]", ",", ":", "=", ".", "..", "null", "~",
    "nan", ".inf", "-1", "0", "1e400", "0x1F", "1_0", "true", "!!python/name:os.system", "&a", "*a", "<<", "|", "#",
    "'", '"', "\t", "\n", "\x00", "\x85", "é", "٣", "\ud800", "9" * 5000, "f" * 300, " ",
)  # fmt: skip
texts = st.one_of(
    st.text(max_size=12),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), max_size=5).map("".join),
)
written_texts = texts.filter(lambda text: text.isascii() or text.encode("utf-8", "replace").decode() == text)
numbers = st.one_of(st.integers(-2, 9), st.sampled_from([1 << 16, 1 << 39, 1 << 63, -(1 << 63), 10**400]))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), written_texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(written_texts, inner, max_size=3)),
    max_leaves=5,
)
KEYS = _keys(GeneratorConfig, "")
keys = st.one_of(st.sampled_from(KEYS), texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


def same_when_saved(config: GeneratorConfig, path: Path) -> None:
    save_config(path, config)
    # By what is written out: NaN is not itself.
    assert repr(asdict(load_config(GeneratorConfig, path))) == repr(asdict(config))


@examples(25)
@given(overrides=st.lists(st.one_of(texts, st.tuples(keys, texts).map("=".join)), max_size=3))
def test_any_text_as_an_override(folder: Path, overrides: list[str]) -> None:
    (folder / "empty.yaml").write_text("train: {}\n")
    config = tried(lambda: load_config(GeneratorConfig, folder / "empty.yaml", overrides))
    if config is not None:
        same_when_saved(config, folder / "saved.yaml")


@examples(25)
@given(key=keys.map(lambda key: key.split(".")), value=values, beside=st.dictionaries(keys, values, max_size=1))
def test_any_value_in_a_config(folder: Path, key: list[str], value: Any, beside: dict[str, Any]) -> None:
    for name in reversed(key):
        value = {name: value}
    (folder / "config.yaml").write_text(yaml.safe_dump(beside | value, allow_unicode=True), encoding="utf-8")
    config = tried(lambda: load_config(GeneratorConfig, folder / "config.yaml"))
    if config is not None:
        same_when_saved(config, folder / "saved.yaml")


@examples(20)
@given(
    steps=st.integers(1, 1 << 40),
    rate=st.floats(1e-30, 1e30),
    minutes=st.one_of(st.none(), st.floats(1e-6, 1e9)),
    betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2).map(list),
    compiled=st.booleans(),
    source=st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda text: "$" not in text and text != "???"),
)
def test_an_override_says_what_is_meant(
    folder: Path, steps: int, rate: float, minutes: float | None, betas: list[float], compiled: bool, source: str
) -> None:
    (folder / "empty.yaml").write_text("train: {}\n")
    written = yaml.safe_dump(source, default_style='"', width=1 << 20).strip()
    meant = {"steps": steps, "learning_rate": rate, "max_minutes": minutes, "betas": betas, "compile": compiled}
    overrides = [f"train.{name}={json.dumps(value)}" for name, value in meant.items()]
    config = load_config(GeneratorConfig, folder / "empty.yaml", [*overrides, f"tokenizer.source={written}"])
    assert {name: getattr(config.train, name) for name in meant} == meant
    assert config.tokenizer.source == source


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(tiny_model_folder(tmp_path_factory.mktemp("model"))), device="cpu")


@examples(60)
@given(asked=st.one_of(texts, st.integers(-2, 9), st.sampled_from(["cat", "DOG", " ship", "2", "3", "٢", "²"])))
def test_any_text_as_a_class(model: Model, asked: str | int) -> None:
    """Seen to fail with an index that may be the number of classes."""
    model.class_names = ["cat", "dog", "ship"]
    labels = tried(lambda: model.labels(2, asked))
    assert labels is None or (labels[0] == labels[1] and labels[0] in range(3))


names = st.one_of(st.sampled_from(["cat", "Cat", " cat", "1", "0", "10", "02"]), st.text(max_size=6))


@examples(60)
@given(class_names=st.lists(names, min_size=1, max_size=6, unique=True))
def test_every_class_has_its_name_and_its_index(model: Model, class_names: list[str]) -> None:
    """Seen to fail without exact names, and with an int looked for among the names."""
    model.class_names = class_names
    for k, name in enumerate(class_names):
        assert model.label(name) == k
        assert model.label(k) == k
        assert str(k) in class_names or model.label(str(k)) == k


counts = st.one_of(st.integers(0, 12).map(str), st.just("9" * 5000), texts)


@examples(60)
@given(rank=counts, world_size=counts, between=st.sampled_from(["/", " / ", "//", ""]))
def test_any_text_as_a_share(rank: str, world_size: str, between: str) -> None:
    """Seen to fail with a share n/n, and with a RANK of 5,000 digits."""
    found = tried(lambda: rank_and_world_size(f"{rank}{between}{world_size}"))
    assert found is None or (0 <= found[0] < found[1] and f"{found[0]}/{found[1]}" == f"{int(rank)}/{int(world_size)}")
    with pytest.MonkeyPatch.context() as patch:
        # As os.environ would hand them on: without NUL, and what is no text escaped.
        for name, text in (("RANK", rank), ("WORLD_SIZE", world_size)):
            patch.setitem(os.environ, name, text.replace("\0", "").encode("utf-8", "replace").decode())
        found = tried(rank_and_world_size)
    assert found is None or 0 <= found[0] < found[1]


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


class Drawer(Model):
    """Draws black images and says which."""

    def __init__(self, batch: int) -> None:
        self.kernel_batch, self.drawn = batch, list[int]()

    def manifest(self, n: int, **_: Any) -> dict[str, Any]:
        return {"count": n, "classes": None}

    def labels(self, n: int, classes: Any, first: int = 0) -> list[int]:
        return list(range(first, first + n))

    def sample_tokens(self, labels: Any, *, first: int = 0, **_: Any) -> torch.Tensor:
        assert labels[0] == first
        self.drawn += labels
        return torch.tensor(labels)

    def decode(self, tokens: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.zeros(len(tokens), 3, 2, 2, dtype=torch.uint8)


@examples(15)
@given(n=st.integers(1, 14), batch=st.integers(1, 5), processes=st.integers(1, 4))
def test_shares_of_a_folder_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, n: int, batch: int, processes: int
) -> None:
    """Seen to fail with a stride one too long for three processes."""
    folder, drawers = tmp_path_factory.mktemp("drawn"), [Drawer(batch) for _ in range(processes)]
    ends = [sample_to_folder(d, folder, n, settings=Settings(), share=(k, processes)) for k, d in enumerate(drawers)]
    assert sorted(k for d in drawers for k in d.drawn) == list(range(n))
    assert [end.drawn for end in ends] == [len(d.drawn) for d in drawers]
    assert all(end.missing == 0 for end in ends[-1:])


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


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with up to four changes: overwritten, cut out, put in, doubled, or cut off."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(made))), draw(st.integers(1, 16))
        match draw(st.sampled_from(["overwrite", "cut out", "put in", "double", "cut off"])):
            case "overwrite":
                made[at : at + length] = draw(st.binary(min_size=1, max_size=length))
            case "cut out":
                del made[at : at + length]
            case "put in":
                made[at:at] = draw(st.binary(min_size=1, max_size=length))
            case "double":
                made[at:at] = made[at : at + length]
            case "cut off":
                del made[at:]
    return bytes(made)


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


def called(*_: object) -> None:
    """Named in the pickles below; nobody may call it."""
    CALLS.append(1)


CALLS: list[int] = []


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return called, ("now",)


def checkpoints(folder: Path) -> list[bytes]:
    """What torch.save writes, new and old, with something in it that a pickle would call."""
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    content = {"state_dict": weights, "epoch": 3, "callbacks": {"x": [Trap(), (1, "two", None)]}}
    made = []
    for new in (True, False):
        torch.save(content, folder / "whole.pt", _use_new_zipfile_serialization=new)
        made.append((folder / "whole.pt").read_bytes())
    return made


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@examples(60)
@given(data=st.data())
def test_any_checkpoint(folder: Path, data: st.DataObject) -> None:
    """Seen to fail with a machine that calls what is named, and with an empty stack let through."""
    new, old = checkpoints(folder)
    calls = [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        f"c{__name__}\ncalled\n(tR.".encode(),
        b"c__main__\nx\n(ibuiltins\neval\n.",
    ]
    whole = data.draw(st.sampled_from([new, old]))
    at = data.draw(st.integers(0, len(whole)))
    spliced = st.sampled_from(calls).map(lambda call: whole[:at] + call + whole[at:])
    spoilt = data.draw(st.one_of(damaged(whole), spliced, st.sampled_from([new, old, *map(pickle.dumps, ({}, 1))])))
    (folder / "spoilt.pt").write_bytes(spoilt)

    def read() -> None:
        with open_weights(folder / "spoilt.pt") as tensors:
            for tensor in tensors.values():
                assert tensor.read().shape == tensor.shape

    CALLS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", called)
        patch.setattr("builtins.eval", called)
        tried(read)
    assert not CALLS


class Storage:
    """What torch's pickles name by a persistent id."""


class Stored:
    """Pickled as a tensor is."""

    def __init__(self, *sizes: Any) -> None:
        self.sizes = sizes

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Storage(), *self.sizes, False, None)


def old_checkpoint(tensors: Any, keys: Any, numel: int) -> bytes:
    """The layout of torch.save before 1.6, with one storage of float32."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel, None) if isinstance(value, Storage) else None

    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {}, tensors, keys):
        Pickler(file, 2).dump(part)
    return file.getvalue() + struct.pack("<q", numel) + bytes(4 * max(0, min(numel, 9)))


sizes = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([-1, 1 << 62, 1 << 70, True, 1.0])), max_size=3)


@examples(200)
@given(
    size=sizes,
    stride=sizes,
    offset=st.one_of(st.just(0), numbers),
    keys=st.one_of(st.just(["0"]), values),
    numel=st.one_of(st.integers(0, 9), numbers.filter(lambda n: abs(n) < 1 << 63)),
)
@example(size=[0, 1 << 70], stride=[1, 1], offset=0, keys=["0"], numel=1)
@example(size=[1], stride=[1 << 70], offset=0, keys=["0"], numel=1)
@example(size=[1], stride=[1], offset=0, keys=[["0"]], numel=1)
@example(size=[3], stride=[0], offset=0, keys=["0"], numel=1)
def test_any_sizes_of_a_stored_tensor(
    folder: Path, size: list[Any], stride: list[Any], offset: int, keys: Any, numel: int
) -> None:
    """Seen to fail with sizes beyond 63 bits, and with storage keys that are no text."""
    stride += [1] * (len(size) - len(stride))
    stored = Stored(offset, tuple(size), tuple(stride[: len(size)]))
    (folder / "sizes.pt").write_bytes(old_checkpoint({"a": stored}, keys, numel))

    def read() -> None:
        with open_weights(folder / "sizes.pt") as tensors:
            value = tensors["a"].read()
            assert value.shape == tensors["a"].shape == tuple(size)
            assert value.numel() <= max(numel, 0)

    tried(read)


@examples(60)
@given(data=st.data(), cell=st.integers(1, 4), aligned=st.booleans())
def test_windows_cover_every_hole(data: st.DataObject, cell: int, aligned: bool) -> None:
    """Seen to fail with a window too few, and with one that leaves the image."""
    native = tuple(cell * data.draw(st.integers(1, 5)) for _ in range(2))
    step = cell if aligned else 1
    shape = tuple(data.draw(st.integers(1, 12)) * step for _ in range(2))
    holes = data.draw(st.lists(st.tuples(*[st.integers(0, side - 1) for side in shape]), min_size=1, max_size=4))
    context = data.draw(st.one_of(st.none(), st.integers(-1, 8)))
    mask = np.zeros(shape, bool)
    for (y, x), size in zip(holes, data.draw(st.lists(st.integers(1, 9), min_size=4, max_size=4)), strict=False):
        mask[y : y + size, x : x + size] = True
    windows = tried(lambda: plan_windows(mask, native, cell, context, 1))
    if windows is None:
        assert min(shape) < cell or (context is not None and not 0 <= 2 * context < min(native))
        return
    missing = mask.copy()
    for window in windows:
        assert 0 <= window.top <= shape[0] - window.height
        assert 0 <= window.left <= shape[1] - window.width
        for side, own, length in zip(shape, native, (window.height, window.width), strict=True):
            assert length == window_side(side, own, cell) == min(own, side // cell * cell)
        assert missing[window.slices].any()  # none is painted for nothing
        missing[window.slices] = False
    assert not missing.any()


pieces = st.sampled_from([
    "{", "}", ",", "..", "a", "7", "0", "-1", "{0..9}", "{000..127}", "{a,b}", "{z..a..3}", "{0..9..0}", "{a..Z}",
    "{0..999999999999}", "{0..99999}", "\\", "/", "*", "s3://b/", "pipe:", "9" * 5000, "{{0..9}..{0..9}}",
])  # fmt: skip


@examples(60)
@given(pattern=st.one_of(st.lists(pieces, max_size=8).map("".join), texts))
def test_any_pattern(pattern: str) -> None:
    """Seen to fail, killed, with a range that was expanded before it was counted."""
    found = tried(lambda: expand(pattern))
    assert found is None or len(found) <= MOST_PLACES
    if "{" not in pattern:
        assert found == ([pattern] if pattern else [""])


@examples(30)
@given(
    low=st.integers(-20, 200),
    count=st.integers(1, 40),
    width=st.integers(1, 4),
    words=st.lists(st.text("abcxyz09", min_size=1, max_size=3), min_size=2, max_size=4),
)
def test_a_pattern_says_what_is_meant(low: int, count: int, width: int, words: list[str]) -> None:
    """Seen to fail with the first place left out."""
    low = max(low, 0)
    ends = f"{low:0{width}d}", f"{low + count:0{width}d}"
    padded = max(map(len, ends)) if any(end.startswith("0") and end != "0" for end in ends) else 0
    meant = [f"p-{k:0{padded}d}.{w}.tar" for k in range(low, low + count + 1) for w in words]
    assert expand(f"p-{{{ends[0]}..{ends[1]}}}.{{{','.join(words)}}}.tar") == meant


@examples(60)
@given(st.lists(st.tuples(st.one_of(st.text("ab./_", max_size=6), texts), st.just(b"")), max_size=6))
def test_files_of_a_sample_are_those_of_one_key(files: list[tuple[str, bytes]]) -> None:
    found = tried(lambda: list(groups(files)))
    if found is None:
        return
    assert [(key, suffix) for key, group in found for suffix in group] == [split(name) for name, _ in files]
    assert all(first[0] != second[0] for first, second in pairwise(found))
