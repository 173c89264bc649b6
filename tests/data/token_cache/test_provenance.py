"""A token cache knows its images by their content, not by their names."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ggm_image.data.encode import encode
from ggm_image.data.sources.open import open_images
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.provenance import counted
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.verify import verify
from ggm_image.errors import UserError
from tests.conftest import MeanTokenizer, pack
from tests.data.shards import png, samples, write_shards, write_tar
from tests.data.test_encode import contents


def change(path: Path, content: bytes) -> None:
    """Give a file another content and a later time; of the same size where the content has it."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def run(source: object, out: Path, **options: object) -> TokenCache | None:
    return encode(str(source), out, MeanTokenizer(), shard_size=5, **options)  # type: ignore[arg-type]


def tokens_of(folder: Path) -> dict[str, bytes]:
    """All files but what the manifest says of times: a shard that did not change keeps that of its archive."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["states"]
    return {**contents(folder), "manifest.json": json.dumps(manifest).encode()}


@pytest.fixture(params=["folder", "tar", "tar.gz", "shards"])
def source(request: pytest.FixtureRequest, class_folder: Path, tmp_path: Path) -> tuple[str, Callable[[], object]]:
    """A set of images, and a function that changes two of them under their names."""
    kind = request.param
    if kind == "shards":
        pattern = write_shards(tmp_path / "shards", (4, 4, 4))
        files = {**samples(4, 8), "000005.png": png(95), "000006.png": png(96)}
        return pattern, lambda: change(
            tmp_path / "shards" / "001.tar", write_tar(tmp_path / "x.tar", files).read_bytes()
        )

    def edit() -> None:
        for name, seed in (("ant/1.png", 91), ("cow/2.png", 92)):
            change(class_folder / name, png(seed))

    if kind == "folder":
        return str(class_folder), edit
    path = tmp_path / f"set.{kind}"
    mode = "w:gz" if kind.endswith("gz") else "w"
    pack(class_folder, path, mode=mode)

    def repack() -> None:
        edit()
        change(path, pack(class_folder, tmp_path / "x.tar", mode=mode).read_bytes())

    return str(path), repack


@pytest.mark.parametrize("flip", [False, True])
def test_images_that_change_under_their_names_are_found(
    source: tuple[str, Callable[[], object]], tmp_path: Path, flip: bool
) -> None:
    """Seen to fail: the old tokens stayed, and the proof said that all was right."""
    where, edit = source
    run(where, tmp_path / "cache", flip=flip)
    assert verify(tmp_path / "cache", open_images(where))["content"] is True
    before = contents(tmp_path / "cache")
    edit()
    names = r"000005, 001\.tar: 000006" if "shards" in where else r"ant/1\.png, cow/2\.png"
    with pytest.raises(UserError, match=rf"not those that were encoded .*{names}.*--overwrite"):
        verify(tmp_path / "cache", open_images(where))
    with pytest.raises(UserError, match=rf"images have changed since .*{names}.*add --overwrite"):
        run(where, tmp_path / "cache", flip=flip)
    assert contents(tmp_path / "cache") == before
    run(where, tmp_path / "cache", flip=flip, overwrite=True)
    run(where, tmp_path / "other", flip=flip)
    assert tokens_of(tmp_path / "cache") == tokens_of(tmp_path / "other")
    assert verify(tmp_path / "cache", open_images(where))["content"] is True


def test_times_alone_change_nothing(source: tuple[str, Callable[[], object]], tmp_path: Path) -> None:
    where, _ = source
    run(where, tmp_path / "cache")
    before = contents(tmp_path / "cache")
    folder = tmp_path / "shards" if "shards" in where else Path(where)
    for path in [folder] if folder.is_file() else folder.rglob("*.*"):
        os.utime(path, ns=(10**18, 10**18))
    tokenizer = MeanTokenizer()
    assert encode(where, tmp_path / "cache", tokenizer, shard_size=5) is not None
    assert tokenizer.batches == []
    assert contents(tmp_path / "cache") == before


def test_an_unchanged_source_is_not_read_again(class_folder: Path, tmp_path: Path) -> None:
    run(class_folder, tmp_path / "cache")
    opened = open_images(str(class_folder))
    opened.read = lambda index: pytest.fail("read")  # type: ignore[method-assign, assignment]
    assert encode(opened, tmp_path / "cache", MeanTokenizer(), shard_size=5) is not None


def test_only_the_shards_of_changed_images_are_encoded_again(class_folder: Path, tmp_path: Path) -> None:
    run(class_folder, tmp_path / "cache")
    change(class_folder / "ant" / "1.png", png(91))
    tokenizer = MeanTokenizer()
    encode(class_folder, tmp_path / "cache", tokenizer, shard_size=5, batch_size=5, overwrite=True)
    assert tokenizer.batches == [5]


def test_an_interrupted_run_that_resumes_finds_them_too(class_folder: Path, tmp_path: Path) -> None:
    assert run(class_folder, tmp_path / "cache", share=(0, 3)) is None
    change(class_folder / "ant" / "1.png", png(91))
    with pytest.raises(UserError, match="images have changed since"):
        run(class_folder, tmp_path / "cache")
    assert run(class_folder, tmp_path / "cache", overwrite=True) is not None
    verify(tmp_path / "cache", open_images(str(class_folder)))


def test_a_label_that_changes_in_a_shard_is_a_change(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", (3, 3))
    run(pattern, tmp_path / "cache")
    write_tar(tmp_path / "x.tar", {**samples(3, 6), "000004.cls": b"2"})
    change(tmp_path / "shards" / "001.tar", (tmp_path / "x.tar").read_bytes())
    with pytest.raises(UserError, match=r"changed since .*1, 001\.tar: 000004\)"):
        run(pattern, tmp_path / "cache")
    write_tar(tmp_path / "x.tar", {**samples(3, 5)})
    change(tmp_path / "shards" / "001.tar", (tmp_path / "x.tar").read_bytes())
    with pytest.raises(UserError, match=r"changed since .*1, 001\.tar: an image is missing\)"):
        run(pattern, tmp_path / "cache")


def test_an_image_that_was_skipped_and_is_whole_now(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", (3, 3))
    path = tmp_path / "shards" / "000.tar"
    write_tar(path, {**samples(0, 3), "000001.png": b"text"})
    run(pattern, tmp_path / "cache", skip_bad=True)
    run(pattern, tmp_path / "cache", skip_bad=True)
    write_tar(tmp_path / "x.tar", samples(0, 3))
    change(path, (tmp_path / "x.tar").read_bytes())
    with pytest.raises(UserError, match=r"changed since .*1, 000\.tar: 000001\)"):
        run(pattern, tmp_path / "cache", skip_bad=True)


def test_overwrite_replaces_another_request_and_nothing_else(class_folder: Path, tmp_path: Path) -> None:
    run(class_folder, tmp_path / "cache", flip=True)
    with pytest.raises(UserError, match=r"another request .*--overwrite"):
        run(class_folder, tmp_path / "cache")
    run(class_folder, tmp_path / "cache", overwrite=True)
    run(class_folder, tmp_path / "other")
    assert contents(tmp_path / "cache") == contents(tmp_path / "other")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="must be new, empty or a token cache"):
        run(class_folder, tmp_path / "notes", overwrite=True)
    assert contents(tmp_path / "notes") == {"mine.txt": b"mine"}


def old_cache(folder: Path) -> None:
    """Make a cache one of the version before contents were recorded."""
    from safetensors.numpy import load_file, save_file

    from ggm_image.io.files import sha256_file, write_json

    values = json.loads((folder / "manifest.json").read_text())
    del values["states"]
    values["preprocessing"]["version"] = 1
    for shard in values["shards"]:
        path = folder / shard["file"]
        save_file({name: array for name, array in load_file(path).items() if name != "digests"}, path)
        shard["sha256"] = sha256_file(path)
    write_json(folder / "manifest.json", values)


def test_caches_of_earlier_versions_are_read_and_proved(
    source: tuple[str, Callable[[], object]], tmp_path: Path
) -> None:
    where, _ = source
    cache = run(where, tmp_path / "cache")
    assert cache is not None
    rows = range(len(cache))
    tokens = cache.tokens(rows).clone()
    old_cache(tmp_path / "cache")
    assert torch.equal(TokenCache.open(tmp_path / "cache").tokens(rows), tokens)
    assert verify(tmp_path / "cache", open_images(where))["content"] is False
    with pytest.raises(UserError, match=r"an earlier version encoded it, .*rotated.*--overwrite"):
        run(where, tmp_path / "cache")
    run(where, tmp_path / "cache", overwrite=True)
    assert Manifest.read(tmp_path / "cache").preprocessing["version"] == 2


def test_classes_in_the_order_of_an_earlier_version_keep_their_indices(flat_folder: Path, tmp_path: Path) -> None:
    """Indices are named in the manifest: "10" before "2" there, whatever order a new cache has."""
    for k, name in enumerate(["10", "2", "1"]):
        (flat_folder / name).mkdir()
        (flat_folder / f"{k}.png").rename(flat_folder / name / "a.png")
    for k in (3, 4):
        (flat_folder / f"{k}.png").unlink()
    opened = open_images(str(flat_folder))
    opened.order_classes(["1", "10", "2"])  # type: ignore[union-attr]
    cache = encode(opened, tmp_path / "cache", MeanTokenizer())
    assert cache is not None
    assert (cache.manifest.class_names, cache.labels(range(3)).tolist()) == (["1", "10", "2"], [0, 1, 2])
    again = run(flat_folder, tmp_path / "again")
    assert again is not None
    assert (again.manifest.class_names, again.labels(range(3)).tolist()) == (["1", "2", "10"], [0, 2, 1])
    before = contents(tmp_path / "cache")
    assert encode(flat_folder, tmp_path / "cache", MeanTokenizer()) is not None
    assert contents(tmp_path / "cache") == before
    verify(tmp_path / "cache", open_images(str(flat_folder)))


def test_a_shard_that_lacks_its_last_byte_is_refused(class_folder: Path, tmp_path: Path) -> None:
    """Seen to fail: the digests are the last array, which reading tokens does not need."""
    run(class_folder, tmp_path / "cache")
    path = tmp_path / "cache" / "tokens-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read .*tokens-00001.*cut off"):
        TokenCache.open(tmp_path / "cache")


def test_mirrored_copies_are_counted_once() -> None:
    assert counted(iter(["a.png", "b.png", "a.png", "b.png"])) == (2, "a.png, b.png")
