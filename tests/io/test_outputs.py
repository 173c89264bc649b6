"""The gate in front of every output: what we did not write stays."""

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from ggm_image.errors import UserError
from ggm_image.io import outputs
from ggm_image.io.image_formats import JPEG, Encoding, marked_image
from ggm_image.io.marks import read_mark
from ggm_image.io.outputs import RUN_HEAD, Gate, check_inputs_kept, maker_of, merged_folder, number_of, numbered
from tests.io.small_images import ENCODINGS, noise

SAMPLES = {"model_sha256": "0", "settings": {}, "seed": 0, "count": 2}


@ENCODINGS
def test_our_files_of_every_format_are_replaced(encoding: Encoding, tmp_path: Path) -> None:
    path, gate = tmp_path / "new" / f"a{encoding.suffix}", Gate("sample", encoding=encoding)
    gate.save(path, noise(0), {"seed": 0})
    gate.save(path, noise(1), {"seed": 1})
    assert (read_mark(path) or {})["settings"] == {"seed": 1}
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(UserError, match="written by ggm-image sample"):
        Gate("inpaint", encoding=encoding).save(path, noise(2))
    noise(3).save(path)
    with pytest.raises(UserError, match="no mark"):
        gate.save(path, noise(2))


def test_a_folder_in_another_format(tmp_path: Path) -> None:
    """Images and manifest agree: ours of the former format go, those of others stay."""
    jpeg = Encoding.choose(JPEG)
    Gate("inpaint").save_images([noise(0), noise(1)], tmp_path, {"count": 2})
    noise(8).save(tmp_path / "000007.png")
    assert Gate("inpaint", encoding=jpeg).save_images([noise(0)], tmp_path, {"count": 1}) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.jpg", "000007.png", "manifest.json"]
    noise(9).save(tmp_path / "000001.jpg")
    with pytest.raises(UserError, match="000001.jpg exists"):
        Gate("inpaint", encoding=jpeg).save_images([noise(0), noise(1)], tmp_path, {"count": 2})


def somebodys(path: Path, how: str) -> None:
    ours = marked_image(noise(), "sample", {})
    if how == "photo":
        noise(5).save(path)
    elif how == "jpeg":
        noise(5).save(path, format="JPEG")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("mine")
    elif how == "another command's":
        path.write_bytes(marked_image(noise(), "inpaint", {}))
    elif how == "repainted":  # an editor that keeps the text chunks
        with Image.open(io.BytesIO(ours)) as image:
            texts = PngImagePlugin.PngInfo()
            for key, value in image.text.items():  # type: ignore[attr-defined]
                texts.add_text(key, value)
        noise(6).save(path, pnginfo=texts)
    elif how == "cut":
        path.write_bytes(ours[:-15])
    elif how == "more behind":
        path.write_bytes(ours + b"notes")
    elif how == "a mark of nonsense":
        texts = PngImagePlugin.PngInfo()
        texts.add_text("ggm-image", "[1]")
        noise(6).save(path, pnginfo=texts)
    elif how == "a link to nowhere":
        path.symlink_to("nowhere")
    elif how == "a pipe":
        os.mkfifo(path)


HOW = [
    "photo", "jpeg", "empty", "text", "another command's", "repainted", "cut", "more behind", "a mark of nonsense",
    "a link to nowhere", "a pipe",
]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_files_of_others(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    somebodys(path, how)
    with pytest.raises(UserError, match=r"a.png exists and was not written by this command \(.+\); choose another"):
        Gate("sample").check_file(path)
    with pytest.raises(UserError, match="choose another --out or add --overwrite$"):
        Gate("sample").save(path, noise(1))
    Gate("sample", overwrite=True).check_file(path)
    if how != "a pipe":
        Gate("sample", overwrite=True).save(path, noise(1))
        Gate("sample").check_file(path)


def test_a_file_that_comes_while_the_command_works(tmp_path: Path) -> None:
    path, gate = tmp_path / "a.png", Gate("sample")
    gate.check_file(path)
    noise(7).save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not written by this command"):
        gate.save(path, noise(0))
    assert path.read_bytes() == before


def test_known_content_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    Gate("configs").check_file(tmp_path / "a.yaml", b"a: 1\n")
    with pytest.raises(UserError, match="not written"):
        Gate("configs").check_file(tmp_path / "a.yaml", b"a: 2\n")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    gate = Gate("sample")
    with pytest.raises(UserError, match="must name a file"):
        gate.check_file(tmp_path)
    for place in (tmp_path / "file" / "a.png", tmp_path / "file" / "b" / "a.png"):
        with pytest.raises(UserError, match="file is a file"):
            gate.check_file(place)
    with pytest.raises(UserError, match="must be a folder"):
        gate.check_images(tmp_path / "file", 1)
    gate.check_file(tmp_path / "a" / "b" / "c.png")
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        gate.check_file(tmp_path / "a" / "c.png")


@pytest.mark.parametrize(
    ("manifest", "maker"),
    [
        (None, None),
        (SAMPLES, "sample"),
        ({**SAMPLES, "image_sha256": "1"}, "inpaint"),
        ({"command": "inpaint"}, "inpaint"),
        ({"shards": [], "tokenizer_sha256": "2"}, "encode"),
        ({"name": "a web page"}, ""),
        ([1], ""),
        ("{", ""),
    ],
)
def test_whose_folder(manifest: object, maker: str | None, tmp_path: Path) -> None:
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else json.dumps(manifest)
        (tmp_path / "manifest.json").write_text(text)
    assert maker_of(tmp_path) == maker


@pytest.mark.parametrize("command", ["sample", "inpaint"])
@pytest.mark.parametrize("content", ["tokens", "others", "photo", "far photo", "damaged", "partial"])
def test_folders_of_others(content: str, command: str, tmp_path: Path) -> None:
    """Seen to fail where only the names to be written were looked at: a manifest would then describe others' files."""
    other = {"sample": {**SAMPLES, "image_sha256": "1"}, "inpaint": SAMPLES}[command]
    name, text = {
        "tokens": ("manifest.json", json.dumps({"shards": [], "tokenizer_sha256": "2"})),
        "others": ("manifest.json", json.dumps(other)),
        "partial": ("manifest.partial", json.dumps(other)),
        "damaged": ("manifest.json", "{"),
    }.get(content, ("", ""))
    if name:
        (tmp_path / name).write_text(text)
    else:
        noise(9).save(tmp_path / numbered(0 if content == "photo" else 7))
    with pytest.raises(UserError, match="exists and was not written by this command"):
        Gate(command).check_images(tmp_path, 2)
    Gate(command, overwrite=True).check_images(tmp_path, 2)


def test_a_folder_of_images(tmp_path: Path) -> None:
    """A shorter run leaves no images of the longer one beside its manifest, and no file of others is touched."""
    gate, out = Gate("inpaint"), tmp_path / "out"
    assert gate.save_images([noise(k) for k in range(4)], out, {"count": 4}) == 0
    (out / "notes.txt").write_text("mine")
    noise(8).save(out / numbered(12))
    others = (out / numbered(12)).read_bytes()
    assert gate.save_images([noise(5), noise(6)], out, {"count": 2}) == 2
    assert sorted(p.name for p in out.iterdir()) == [
        "000000.png",
        "000001.png",
        "000012.png",
        "manifest.json",
        "notes.txt",
    ]
    assert json.loads((out / "manifest.json").read_text()) == {"command": "inpaint", "count": 2}
    assert (out / numbered(12)).read_bytes() == others
    assert Image.open(out / numbered(0)).tobytes() == noise(5).tobytes()


def test_an_edited_image_of_ours_is_kept(tmp_path: Path) -> None:
    gate = Gate("inpaint")
    gate.save_images([noise(k) for k in range(3)], tmp_path, {"count": 3})
    noise(9).save(tmp_path / numbered(2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for count in (1, 3):
        with pytest.raises(UserError, match="000002.png exists"):
            gate.save_images([noise(4)] * count, tmp_path, {"count": count})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupted_folder_is_written_again(tmp_path: Path) -> None:
    gate = Gate("inpaint")
    gate.save_images([noise(k) for k in range(3)], tmp_path, {"count": 3})
    (tmp_path / "manifest.json").unlink()
    gate.save_images([noise(k) for k in range(3)], tmp_path, {"count": 3})
    assert maker_of(tmp_path) == "inpaint"


def test_numbers() -> None:
    """Seen to fail with names in the order of text."""
    for k in (0, 12, 999_999, 1_000_000, 12_345_678):
        assert number_of(numbered(k)) == k
    for name in (
        "1.png",
        "0000001.png",
        "000001.PNG",
        "000001.jpg",
        "00001a.png",
        "000001",
        "²²²²²².png",
        "-00001.png",
    ):
        assert number_of(name) is None
    assert numbered(1, ".jpg") == "000001.jpg"
    assert number_of("000001.jpg", (".jpg",)) == 1
    assert number_of("000001.png", (".jpg",)) is None


def test_folders_that_must_be_empty(tmp_path: Path) -> None:
    gate, out = Gate("decode", option="OUT"), tmp_path / "out"
    gate.check_folder(out, empty=True)
    out.mkdir()
    (out / ".a.0123abcd.tmp").write_text("what a killed process leaves")
    gate.check_folder(out, empty=True)
    (out / "a").write_text("x")
    with pytest.raises(
        UserError,
        match=r"^OUT must be a new or an empty folder \(.*out holds a\); choose another OUT or add --overwrite$",
    ):
        gate.check_folder(out, empty=True)
    with pytest.raises(UserError, match="choose another OUT$"):
        Gate("encode", None, "OUT").check_folder(out)
    (out / "manifest.json").write_text(json.dumps({"shards": [], "tokenizer_sha256": "2"}))
    Gate("encode", None, "OUT").check_folder(out)
    with pytest.raises(UserError, match="ggm-image encode"):
        Gate("decode").check_folder(tmp_path / "out", empty=False)


@pytest.mark.parametrize("name", ["config.yaml", "log.csv", "model", "samples"])
def test_a_run_takes_no_folder_of_others(name: str, tmp_path: Path) -> None:
    gate = Gate("train")
    (tmp_path / "slurm-12.out").write_text("a scheduler's")
    gate.check_run(tmp_path)
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("network: {}\n")
    with pytest.raises(UserError, match=f"{name} exists and was not written by this command"):
        gate.check_run(tmp_path)
    Gate("train", overwrite=True).check_run(tmp_path)
    (tmp_path / "checkpoint.pt").write_text("")
    gate.check_run(tmp_path)


@pytest.mark.parametrize(("name", "text"), [("config.yaml", f"{RUN_HEAD}x\na: 1\n"), ("log.csv", "step,loss\n")])
def test_a_run_that_was_killed_early(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "tensorboard").mkdir()
    Gate("train").check_run(tmp_path)


def test_a_folder_that_is_moved_in(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with merged_folder(out) as folder:
        assert folder == out
        (out / "a").mkdir(parents=True)
        (out / "a" / "1").write_text("old")
        (out / "keep").write_text("mine")
    with merged_folder(out) as folder:
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "1").write_text("new")
        (folder / "b").write_text("b")
    assert {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()} == {
        "a/1": "new", "b": "b", "keep": "mine",
    }  # fmt: skip

    def fail() -> None:
        with merged_folder(out) as folder:
            folder.mkdir()
            (folder / "keep").write_text("lost")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (out / "keep").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_inputs_are_kept_whatever_is_said(tmp_path: Path) -> None:
    noise().save(tmp_path / "in.png")
    (tmp_path / "link.png").symlink_to("in.png")
    for out in (tmp_path / "in.png", tmp_path / "link.png", tmp_path / "." / "in.png"):
        with pytest.raises(UserError, match="must not be an input"):
            check_inputs_kept(out, None, tmp_path / "in.png")
    check_inputs_kept(tmp_path / "out.png", tmp_path / "in.png", None)
