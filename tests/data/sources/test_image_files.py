"""Order, names and classes of a set of images, whatever it is packed in."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.errors import UserError
from ggm_image.image.io import open_image
from tests.conftest import pack
from tests.data.shards import png, write_tar

NAMES = [f"ant/{k}.png" for k in range(4)] + [f"bee/{k}.png" for k in range(5)] + [f"cow/{k}.png" for k in range(3)]
LABELS = [0] * 4 + [1] * 5 + [2] * 3


def same_pictures(a: ImageSource, b: ImageSource) -> bool:
    return len(a) == len(b) and all(torch.equal(a[k], b[k]) for k in range(len(a)))


# Seen to fail with os.walk's own order (the fixture makes the folders in another one).
def test_class_folders(class_folder: Path) -> None:
    (class_folder / "bee" / "notes.txt").write_text("no image")
    (class_folder / "bee" / ".hidden.png").write_text("no image")
    (class_folder / ".git").mkdir()
    (class_folder / ".git" / "x.png").write_text("no image")
    source = open_source(class_folder)
    assert (source.names, source.labels, source.class_names) == (NAMES, LABELS, ["ant", "bee", "cow"])


def test_a_zip_is_called_a_zip(tmp_path: Path) -> None:
    """Whatever its name. Seen to fail: tarfile calls it a bad checksum or a truncated header."""
    for name in ("images.zip", "images.tar"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("ant/0.png", b"\0" * 2000)
        with pytest.raises(UserError, match=rf"zip archives cannot be read .*{name}.; unpack it and give the folder"):
            open_source(tmp_path / name)


def test_flat_folder_and_single_picture(flat_folder: Path) -> None:
    source = open_source(flat_folder)
    assert (source.names, source.labels, source.class_names) == ([f"{k}.png" for k in range(5)], [-1] * 5, [])
    alone = open_source(flat_folder / "3.png")
    assert (alone.names, alone.labels) == (["3.png"], [-1])
    assert torch.equal(alone[0], source[3])


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".bz2"])
@pytest.mark.parametrize("prefix", ["", "./", "set/", "a/b/"])
def test_tar_equals_folder(class_folder: Path, tmp_path: Path, suffix: str, prefix: str) -> None:
    archive = pack(class_folder, tmp_path / f"set.tar{suffix}", lambda name: prefix + name, f"w:{suffix[1:]}")
    folder, tar = open_source(class_folder), open_source(archive, scratch=tmp_path)
    assert (tar.labels, tar.class_names) == (LABELS, ["ant", "bee", "cow"])
    assert [name[-9:] for name in tar.names] == NAMES
    assert same_pictures(folder, tar)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", archive.name]


def test_flat_tar_and_wrapped_flat_tar(flat_folder: Path, tmp_path: Path) -> None:
    plain = open_source(pack(flat_folder, tmp_path / "a.tar"))
    wrapped = open_source(pack(flat_folder, tmp_path / "b.tar", lambda name: "flat/" + name))
    rooted = open_source(pack(flat_folder, tmp_path / "c.tar", lambda name: "./only/" + name))
    assert plain.labels == wrapped.labels == [-1] * 5
    assert rooted.class_names == ["only"]
    assert same_pictures(plain, wrapped)


def test_folder_of_tar_shards(class_folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    pack(class_folder / "bee", shards / "01.tar.gz", lambda name: f"bee/{name}", "w:gz")
    pack(class_folder / "ant", shards / "00.tar", lambda name: f"ant/{name}")
    source = open_source(shards)
    assert source.class_names == ["ant", "bee"]
    assert source.labels == [0] * 4 + [1] * 5
    assert source.names[4] == "01.tar.gz/bee/0.png"
    folder = open_source(class_folder)
    assert all(torch.equal(source[k], folder[k]) for k in range(9))


def test_hard_links_in_a_tar_are_pictures_too(flat_folder: Path, tmp_path: Path) -> None:
    archive = pack(flat_folder, tmp_path / "a.tar")
    with tarfile.open(archive, "a") as tar:
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        tar.addfile(link)
    source = open_source(archive)
    assert source.names[-1] == "9.png"
    assert torch.equal(source[5], source[0])


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match="unsafe name"):
        open_source(tmp_path / "a.tar")


def test_only_an_ancestor_is_a_circle(class_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seen to fail: of two class folders that are links to one, a class vanished without a word."""
    real = class_folder.parent / "elsewhere"
    (class_folder / "bee").rename(real)
    for name in ("bee", "wasp"):
        (class_folder / name).symlink_to(real)
    (real / "deeper").mkdir()
    (real / "deeper" / "up").symlink_to(real)
    source = open_source(class_folder)
    assert source.class_names == ["ant", "bee", "cow", "wasp"]
    assert source.labels == [0] * 4 + [1] * 5 + [2] * 3 + [3] * 5
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "2 links to folders that contain them (e.g. " in line
    (class_folder / "itself").symlink_to("itself")
    assert len(open_source(class_folder)) == 17


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_left_out_is_counted_by_reason(
    class_folder: Path, tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail: a folder of HEIC vanished, and ``@eaDir`` was a class of thumbnails."""
    extra = {
        "dog/1.heic": b"x", "dog/2.HEIC": b"x", "ant/notes.txt": b"x", "ant/empty.png": b"", "ant/.hidden.png": b"x",
        "@eaDir/0.png/SYNOPHOTO_THUMB_S.jpg": b"x", "__MACOSX/ant/0.png": b"x", "ant/._0.png": b"x",
        "bee/Thumbs.db": b"x", "manifest.json": b"{}",
    }  # fmt: skip
    for name, content in extra.items():
        (class_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (class_folder / name).write_bytes(content)
    source = open_source(pack(class_folder, tmp_path / "a.tar") if packed else class_folder)
    assert (source.names, source.labels, source.class_names) == (NAMES, LABELS, ["ant", "bee", "cow"])
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "2 .heic files (convert to JPEG or PNG; e.g. dog/" in line
    for part in ("1 .txt file (e.g. ant/notes.txt)", "1 hidden file", "1 empty file (e.g. ant/empty.png)"):
        assert part in line
    assert "4 files or folders of the operating system" in line
    assert ".json" not in line
    if not packed:
        assert "1 folder without an image, which is no class (dog)" in line


def test_nothing_but_other_formats_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no images found .*1 \.heic file \(convert to JPEG or PNG; e\.g\. a\.heic"):
        open_source(tmp_path)


def test_nothing_is_said_where_nothing_is_left_out(class_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_source(class_folder)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("packed", [False, True])
def test_classes_that_are_numbers_are_in_their_order(flat_folder: Path, tmp_path: Path, packed: bool) -> None:
    """Seen to fail: "10" came before "2", so that labels disagreed with those of the same set as numbers."""
    names = ["10", "2", "0", "1", "100"]
    for k, name in enumerate(names):
        (flat_folder / name).mkdir()
        (flat_folder / f"{k}.png").rename(flat_folder / name / "a.png")
    source = open_source(pack(flat_folder, tmp_path / "a.tar") if packed else flat_folder)
    assert source.class_names == ["0", "1", "2", "10", "100"]
    assert [source.class_names[label] for label in source.labels] == [name.split("/")[0] for name in source.names]
    (flat_folder / "2").rename(flat_folder / "two")
    assert open_source(flat_folder).class_names == ["0", "1", "10", "100", "two"]


def test_apple_double_pax_headers_and_capital_suffixes(tmp_path: Path) -> None:
    long = "a" * 120
    files = {f"./set/{place}/._{long}.JPG": b"notes" for place in "xy"}
    files |= {f"./set/{place}/{long}.JPG": png(k) for k, place in enumerate("xy")}
    source = open_source(write_tar(tmp_path / "a.tar", dict(sorted(files.items()))))
    assert source.names == [f"set/{place}/{long}.JPG" for place in "xy"]
    assert torch.equal(source[1], open_image(png(1)))


def test_links_in_circles_end(class_folder: Path) -> None:
    (class_folder / "ant" / "round").symlink_to(class_folder)
    assert len(open_source(class_folder)) == 12


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "no images", "mixed", "empty file"])
def test_no_source(class_folder: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "src"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello " * 1000)
    elif kind == "empty file":
        path.touch()
    elif kind == "no images":
        path.mkdir()
        (path / "a.txt").touch()
    elif kind == "mixed":
        path = class_folder
        (path / "stray.png").write_bytes((path / "ant" / "0.png").read_bytes())
    wanted = {
        "missing": "does not exist",
        "empty folder": "no images found",
        "no images": "no images found",
        "mixed": r"1 outside, e\.g\. stray\.png, 12 inside",
    }
    with pytest.raises(UserError, match=wanted.get(kind, "whole tar archive|no images found")):
        open_source(path)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".bz2"])
def test_a_cut_archive_is_refused(class_folder: Path, tmp_path: Path, suffix: str) -> None:
    whole = pack(class_folder, tmp_path / "a.tar").read_bytes()[:9000]
    packer = {".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress}.get(suffix, bytes)
    data = packer(whole)
    path = tmp_path / f"cut.tar{suffix}"
    path.write_bytes(data[:-20] if suffix else data[:-1000])
    with pytest.raises(UserError, match=r"cut\.tar"):
        open_source(path)


def test_fingerprint_tells_names_and_labels_apart(class_folder: Path) -> None:
    before = open_source(class_folder).fingerprint()
    assert before == open_source(class_folder).fingerprint()
    (class_folder / "ant" / "0.png").rename(class_folder / "ant" / "00.png")
    assert open_source(class_folder).fingerprint() != before
