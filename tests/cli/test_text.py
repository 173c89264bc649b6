"""``sample``, ``infill`` and ``signal`` with a model of text."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ggm_image.cli.text import marked
from ggm_image.errors import UserError
from ggm_image.metrics.image_sets import open_image_set
from tests.cli.commands import run
from tests.models import tiny_model_folder, tiny_text_model_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_text_model_folder(tmp_path)


def test_sample_prints_and_writes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = tmp_path / "out", ("--model", model, "-n", 2, "--device", "cpu", "--preset", "fast", "--length", 5)
    assert run("sample", *options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("--- 0 ---\n")
    assert "--- 1 ---" in printed
    assert run("sample", *options, "--out", out) == 0
    assert [len((out / f"{k:06d}.txt").read_bytes()) for k in range(2)] == [5, 5]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["command"], manifest["modality"], manifest["count"], manifest["length"]) == (
        "sample",
        "text",
        2,
        5,
    )
    first = (out / "000000.txt").read_bytes()
    assert run("sample", *options, "-n", 1, "--out", out) == 0  # our own may be replaced
    assert sorted(path.name for path in out.iterdir()) == ["000000.txt", "manifest.json"]
    assert (out / "000000.txt").read_bytes() == first
    (out / "000000.txt").write_bytes(b"edited")
    capsys.readouterr()
    assert run("sample", *options, "--out", out) == 2
    assert "was changed since" in capsys.readouterr().err
    assert (out / "000000.txt").read_bytes() == b"edited"


def test_infill(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--device", "cpu", "-n", 2, "--json")
    assert run("infill", "It was ____ of times", *options, "--length", 3) == 0
    texts = json.loads(capsys.readouterr().out)["texts"]
    assert len(texts) == 2
    for text in texts:
        assert text.startswith("It was ")
        assert text.endswith(" of times")
    (tmp_path / "t.txt").write_bytes(b"a_#\xff")
    assert run("infill", "--file", tmp_path / "t.txt", "--mask", "#", "--out", tmp_path / "out", *options) == 0
    found = (tmp_path / "out" / "000001.txt").read_bytes()
    assert (found[:2], found[3:], len(found)) == (b"a_", b"\xff", 4)


def test_a_shipped_model_of_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found by its name, which infill takes by default, and `models` says what it makes."""
    (tmp_path / "models").mkdir()
    tiny_text_model_folder(tmp_path).rename(tmp_path / "models" / "books")
    monkeypatch.setattr("ggm_image.pipelines.model_folder.resource_dir", lambda name: tmp_path)
    figures = {"results": [{"settings": {"order": "signal", "sweeps": 1, "block": 8}, "n": 9, "known_words": 0.875}]}
    (tmp_path / "models" / "books" / "quality.json").write_text(json.dumps(figures))
    assert run("infill", "a____c", "--device", "cpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["texts"][0][0], found["texts"][0][-1]) == ("books", "a", "c")
    assert run("models", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["makes"], row["tokenizer"], row["grid"]) == ("books", "text", "bytes", [1, 16])
    assert run("models") == 0
    assert "fast         known words 0.875; 9 samples" in capsys.readouterr().out


def test_signal_marks_text(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("some text")
    assert run("signal", tmp_path / "t.txt", "--model", model, "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert captured.out.replace("[[", "").replace("]]", "") == "some text\n"
    assert "least signal at byte" in captured.err
    assert run("signal", tmp_path / "t.txt", "--model", model, "--device", "cpu", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["signal"]) == 9


def test_signal_of_a_text_that_is_given_itself(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", model, "--device", "cpu")
    for text in ("It was teh best of times", "a//b c", "word"):
        assert run("signal", text, *options) == 0
        captured = capsys.readouterr()
        assert captured.out.replace("[[", "").replace("]]", "") == text + "\n"
        assert captured.err.startswith("text: mean")
    for name in ("letter.txt", "folder/letter"):  # a word that looks like a file is one that is missing
        assert run("signal", name, *options) == 2
        assert "cannot be opened" in capsys.readouterr().err


def test_marks() -> None:
    text, probability = "aébc\x1b".encode(), [0.9, 0.9, 0.4, 0.1, 0.9, 0.9]
    assert marked(text, probability, in_colour=False) == "a[[éb]]c\N{REPLACEMENT CHARACTER}"
    coloured = marked(text, probability, in_colour=True)
    assert coloured.count("\x1b[0m") == 2  # weak and strong, and nothing of the text's own


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("sample", "--out", "x.png"), "--out of a model of text must be a folder"),
        (("sample", "--class", "cat"), "--class belongs to models of images"),
        (("sample", "--guidance", 2), "--guidance needs a model with classes"),
        (("infill", "nothing missing"), "must have a gap"),
        (("infill",), "needs a text or a file"),
        (("infill", "a ____", "--mask", "ab"), "one character"),
        (("infill", "a ____", "--file", "t.txt"), "needs a text or a file"),
    ],
)
def test_refused(model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], part: str) -> None:
    assert run(*arguments, "--model", model) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert part in error


def test_models_of_text_make_no_images(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = tmp_path / "a.png", tmp_path / "b.png"
    assert run("inpaint", *images, "--model", model, "--out", tmp_path / "c.png") == 2
    assert "must be one of images" in capsys.readouterr().err
    with pytest.raises(UserError, match="must be one of images"):
        open_image_set(f"model:{model}", device="cpu")


def test_models_of_images_are_no_models_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tiny_model_folder(tmp_path)
    assert run("infill", "a ____", "--model", images) == 2
    assert "must be one of text" in capsys.readouterr().err
    assert run("sample", "--length", 4, "--model", images) == 2
    assert "--length belongs to models of text" in capsys.readouterr().err
