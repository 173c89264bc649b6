"""WebDataset: which files are a sample, what its class is, and what is no sample."""

import json
import os
from pathlib import Path

import pytest
import torch

from ggm_image.data.sources.base import ClassIndex, ImageStream, Sample, read_classes
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.data.sources.open import open_images
from ggm_image.data.sources.webdataset import open_webdataset
from ggm_image.errors import UserError
from ggm_image.image.io import open_image
from tests.conftest import pack
from tests.data.shards import png, samples, write_shards, write_tar


def stream_of(tmp_path: Path, files: dict[str, bytes], classes: tuple[str, ...] = ()) -> list[Sample]:
    return list(open_webdataset(str(write_tar(tmp_path / "a.tar", files)), classes).read(0))


# Seen to fail with the key cut at the last dot: "a.seg" was a sample of its own.
def test_files_are_grouped_by_their_name_up_to_the_first_dot(tmp_path: Path) -> None:
    files = {
        "README.txt": b"no sample",
        "__info__.json": b"{}",
        "n01/a.cls": b"2\n",
        "n01/a.seg.png": b"a mask",
        "n01/a.JPG": png(1),
        "n02/a.txt": b"words",
        "n02/a.webp": png(2),
        "n02/a.cls": b"0",
        "alone.json": b"{}",
    }
    a, b = stream_of(tmp_path, files)
    assert (a.name, a.label, b.name, b.label) == ("n01/a", 2, "n02/a", 0)
    assert torch.equal(a.load(), open_image(png(1)))
    assert torch.equal(b.load(), open_image(png(2)))
    assert len({a.key, b.key}) == 2


@pytest.mark.parametrize(
    ("files", "classes", "label"),
    [
        ({}, (), -1),
        ({"cls": b"7"}, (), 7),
        ({"cls": b" dog\n"}, ("cat", "dog"), 1),
        ({"cls": b"1"}, ("cat", "dog"), 1),
        ({"cls": b"7"}, ("7", "8"), 0),  # a name goes before a number
        ({"json": b'{"label": 3}'}, (), 3),
        ({"json": b'{"class": "dog", "x": 1}'}, ("cat", "dog"), 1),
        ({"json": b'{"label": 3}', "cls": b"4"}, (), 4),
        ({"json": b"[1]"}, (), -1),
    ],
)
def test_where_the_class_stands(tmp_path: Path, files: dict[str, bytes], classes: tuple[str, ...], label: int) -> None:
    (sample,) = stream_of(tmp_path, {"a.png": png(0), **{f"a.{name}": b for name, b in files.items()}}, classes)
    assert sample.label == label


@pytest.mark.parametrize(
    ("cls", "classes", "wanted"),
    [
        (b"cow", ("cat", "dog"), r"not known .*'cow'.*check --classes"),
        (b"2", ("cat", "dog"), r"\[0, 2\) .*a: 2"),
        (b"-1", (), "not known"),
        (b"\xff\xfe", (), "not known"),
        (b"", (), "not known"),
    ],
)
def test_classes_that_do_not_exist(tmp_path: Path, cls: bytes, classes: tuple[str, ...], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        stream_of(tmp_path, {"a.png": png(0), "a.cls": cls}, classes)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"b.cls": b"1"}, r"one image .*a\.tar: b: cls"),
        ({"b.cls": b"1", "b.png": png(0), "b.jpg": png(0)}, "one image"),
        ({"b.v2.png": png(0)}, r"one image .*v2\.png"),
        ({"b.seg.png": png(0), "b.cls": b"1"}, r"one image .*b: seg\.png, cls"),
        ({"b.png": png(0)}, "either all have a class or none .*b has none"),
        ({"b.png": png(0), "b.json": b"{"}, "no JSON"),
        ({"b.png": b"text", "b.cls": b"1"}, r"a\.tar: b: not an image"),
    ],
)
def test_bad_samples_say_so_when_they_are_decoded(tmp_path: Path, files: dict[str, bytes], wanted: str) -> None:
    good, bad, last = stream_of(tmp_path, {**samples(0, 1), **files, **samples(2, 3)})
    good.load()
    last.load()
    with pytest.raises(UserError, match=wanted):
        bad.load()


def test_a_class_where_none_was_expected(tmp_path: Path) -> None:
    _, bad = stream_of(tmp_path, {"a.png": png(0), **samples(1, 2)})
    with pytest.raises(UserError, match="those before it have not"):
        bad.load()


def test_a_key_that_comes_back(tmp_path: Path) -> None:
    """Seen to fail without the set of keys: the second half of a sample took its place."""
    with pytest.raises(UserError, match=r"sample comes twice .*a\.tar: 000000"):
        stream_of(tmp_path, {**samples(0, 2), "000000.txt.jpg": png(5)})
    with pytest.raises(UserError, match="file comes twice"):
        stream_of(tmp_path, {"a.png": png(0), "./a.png": png(0)})


def test_what_is_taken_for_webdataset(class_folder: Path, flat_folder: Path, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path / "shards", (2, 3))
    for source in (pattern, str(tmp_path / "shards"), f"pipe:cat {pattern}", f"file://{pattern}"):
        opened = open_images(source)
        assert isinstance(opened, ImageStream), source
        assert [len(list(opened.read(k))) for k in range(2)] == [2, 3]
    one = open_images(str(tmp_path / "shards" / "000.tar"))
    assert isinstance(one, ImageStream)
    assert one.parts == ["000.tar"]
    (tmp_path / "tars").mkdir()
    pack(class_folder, tmp_path / "tars" / "a.tar")
    for source in (class_folder, flat_folder, tmp_path / "tars", tmp_path / "tars" / "a.tar"):
        assert isinstance(open_images(str(source)), ImageSource), source
    with pytest.raises(UserError, match="leave --classes out"):
        open_images(str(class_folder), class_names=["a"])


def test_a_pipe_among_archives_is_not_waited_for(tmp_path: Path) -> None:
    """Seen to wait without end, to see whether it holds classes."""
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match="Not a regular file"):
        open_images(str(tmp_path))


# Seen to fail with the whole addresses as names: a set that has moved was another request.
def test_shards_that_have_moved_are_the_same(tmp_path: Path) -> None:
    here = open_webdataset("https://a/x/{000..002}.tar?signature=1")
    assert here.parts == ["000.tar", "001.tar", "002.tar"]
    assert here.description == "https://a/x/{000..002}.tar"
    assert here.fingerprint() == open_webdataset("s3://b/{000..002}.tar").fingerprint()
    assert here.fingerprint() != open_webdataset("s3://b/{000..001}.tar").fingerprint()
    assert open_webdataset("s3://{a,b}/0.tar").parts == ["s3://a/0.tar", "s3://b/0.tar"]


def test_patterns_that_mean_nothing_or_the_same_twice(tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, (1, 1))
    with pytest.raises(UserError, match=r"does not exist .*002\.tar"):
        open_images(pattern.replace("001", "002"))
    with pytest.raises(UserError, match="named once"):
        open_images(f"{tmp_path}/{{000,001,000}}.tar")


def test_class_names(tmp_path: Path) -> None:
    assert read_classes("3") == ["0", "1", "2"]
    path = tmp_path / "names.txt"
    path.write_text("tench, Tinca tinca\ngoldfish\n\n")
    assert read_classes(str(path)) == ["tench, Tinca tinca", "goldfish"]
    for text in ("", "a\n\nb", "a\nb\na"):
        path.write_text(text)
        with pytest.raises(UserError, match="name of its own"):
            read_classes(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        read_classes(str(path))
    for asked in ("0", "names", "-1", "1.5"):
        with pytest.raises(UserError, match="a file with a name a line, or their number"):
            read_classes(asked)


def img2dataset(folder: Path, first: int, labels: tuple[int | str, ...], field: str = "label") -> Path:
    """A shard as img2dataset writes it: image, caption, and a JSON with the label."""
    files = {}
    for k, label in enumerate(labels):
        key = f"{first:05d}{k:04d}"
        files |= {f"{key}.jpg": png(k), f"{key}.txt": b"words"}
        files[f"{key}.json"] = json.dumps({"caption": "words", field: label, "status": "success"}).encode()
    return write_tar(folder / f"{first:05d}.tar", files)


def labels_of(source: str, **options: object) -> tuple[list[str], list[int]]:
    opened = open_images(source, **options)  # type: ignore[arg-type]
    assert isinstance(opened, ImageStream)
    return opened.class_names, [sample.label for k in range(len(opened.parts)) for sample in opened.read(k)]


def test_one_tar_a_folder_and_a_pattern_have_the_same_labels(tmp_path: Path) -> None:
    """Seen to fail: labels in JSON were none in a folder and in one tar, and six classes in a pattern."""
    one = img2dataset(tmp_path / "a", 0, (3, 5, 0))
    img2dataset(tmp_path / "a", 1, (2, 5))
    assert labels_of(str(one)) == ([], [3, 5, 0])
    for source in (f"{tmp_path}/a", f"{tmp_path}/a/{{00000..00001}}.tar", f"pipe:cat {tmp_path}/a/0000{{0,1}}.tar"):
        assert labels_of(source) == ([], [3, 5, 0, 2, 5])
        opened = open_webdataset(source)
        list(opened.read(0))
        assert opened.notes == ["labels from the json field 'label', the first is '3'"]


def test_what_lies_beside_shards_takes_no_labels_away(tmp_path: Path) -> None:
    img2dataset(tmp_path / "a", 0, (3, 5))
    for name in ("@eaDir/00000.tar", "logs/notes.txt", "00000_stats.json"):
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text("x")
    assert labels_of(f"{tmp_path}/a") == ([], [3, 5])
    (tmp_path / "a" / "logs" / "a.png").write_bytes(png(0))
    assert isinstance(open_images(f"{tmp_path}/a"), ImageSource)


@pytest.mark.parametrize("places", ["one", "folder", "pattern"])
def test_labels_that_are_names_are_collected_and_sorted(tmp_path: Path, places: str) -> None:
    img2dataset(tmp_path / "a", 0, ("dog", "cat", "10"))
    img2dataset(tmp_path / "a", 1, ("ape", "dog"))
    source = {"one": "a/00000.tar", "folder": "a", "pattern": "a/{00000,00001}.tar"}[places]
    names, labels = labels_of(str(tmp_path / source))
    assert names == sorted({"cat", "dog", "10"} | (set() if places == "one" else {"ape"}))
    assert [names[label] for label in labels] == ["dog", "cat", "10"] + ([] if places == "one" else ["ape", "dog"])


def test_names_in_a_stream_from_elsewhere_need_a_list(tmp_path: Path) -> None:
    path = img2dataset(tmp_path, 0, ("dog",))
    with pytest.raises(UserError, match=r"not known .*'dog'.*--classes FILE"):
        labels_of(f"pipe:cat {path}")


def test_a_label_key_insists(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {"a.jpg": png(0), "a.json": b'{"label": 1, "meta": {"kind": "owl"}, "a.b": "elk"}', "a.sort": b"newt\n"},
    )
    assert labels_of(str(path)) == ([], [1])
    assert labels_of(str(path), label_key="meta.kind") == (["owl"], [0])
    assert labels_of(str(path), label_key="a.b") == (["elk"], [0])
    assert labels_of(str(path), label_key=".SORT") == (["newt"], [0])
    opened = open_webdataset(str(path), label_key="breed")
    assert "no json field 'breed'; its json has label, meta, a.b" in opened.notes[0]
    (sample,) = opened.read(0)
    with pytest.raises(UserError, match="label that --label-key names .*no json field 'breed'; its json has label"):
        sample.load()


def test_a_label_key_where_there_are_no_samples(class_folder: Path) -> None:
    with pytest.raises(UserError, match="--label-key belongs to WebDataset"):
        open_images(str(class_folder), label_key="label")


def test_a_pattern_of_class_folders_has_their_classes(class_folder: Path, tmp_path: Path) -> None:
    """Seen to fail: read as samples without labels."""
    for name in ("ant", "cow"):
        pack(class_folder / name, tmp_path / f"{name}.tar", lambda file, name=name: f"{name}/{file}")  # type: ignore[misc]
    opened = open_images(f"{tmp_path}/{{ant,cow}}.tar")
    assert isinstance(opened, ImageSource)
    assert (opened.class_names, opened.labels) == (["ant", "cow"], [0] * 4 + [1] * 3)


@pytest.mark.parametrize("plain_too", [False, True])
def test_keys_with_dots_keep_their_labels(tmp_path: Path, plain_too: bool) -> None:
    """Seen to fail: the key ended at the first dot, and the class was of a suffix that nobody reads."""
    files = {f"in.2020.{k}.{suffix}": data for k in range(3) for suffix, data in (("jpg", png(k)), ("cls", b"%d" % k))}
    if plain_too:
        files |= {"a.jpg": png(7), "a.cls": b"7"}
    found = {sample.name: sample.label for sample in stream_of(tmp_path, files)}
    assert found == {f"in.2020.{k}": k for k in range(3)} | ({"a": 7} if plain_too else {})
    assert open_images(str(tmp_path / "a.tar")).class_names == []
    (sample,) = stream_of(tmp_path, {"b.v2.jpg": png(0), "b.json": b'{"label": 4}'})
    assert (sample.name, sample.label) == ("b.v2", 4)


def test_a_number_is_the_class_of_that_name(tmp_path: Path) -> None:
    """Seen to fail: of the classes "0", "1", "10", "2" the label 2 was the third, "10"."""
    path = img2dataset(tmp_path, 0, (2, 10, 1))
    assert labels_of(str(path), class_names=["0", "1", "10", "2"])[1] == [3, 2, 1]


def test_a_number_that_a_data_set_stores_for_its_own_names_is_an_index() -> None:
    assert ClassIndex(["1", "2", "3"])(2, "here") == 1
    assert ClassIndex(["1", "2", "3"], numbers_are_indices=True)(2, "here") == 2


def test_apple_double_and_empty_images_in_shards(tmp_path: Path) -> None:
    """Seen to fail: ``._IMG.JPG`` was cut at its first dot, and every second sample "came twice"."""
    files = {}
    for k in range(3):
        files |= {f"./set/._IMG_{k}.JPG": b"notes", f"./set/IMG_{k}.JPG": png(k), f"./set/IMG_{k}.CLS": b"%d" % k}
    files |= {"./set/IMG_4.JPG": b"", "./set/IMG_4.CLS": b"0", "__MACOSX/._a.jpg": b"notes"}
    opened = open_webdataset(str(write_tar(tmp_path / "a.tar", files)))
    assert [(sample.name, sample.label) for sample in opened.read(0)] == [(f"set/IMG_{k}", k) for k in range(3)]
    assert str(opened.left_out).startswith("4 files or folders of the operating system (e.g. set/._IMG_0.JPG)")
    assert "1 empty file" in str(opened.left_out)
