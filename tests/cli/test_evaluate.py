"""``fid`` as somebody types it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ggm_image.cli.main import main
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.errors import UserError
from ggm_image.metrics import extract_features
from ggm_image.metrics import feature_extractors as features_module
from ggm_image.pipelines.image import Model
from tests.faults.harness import digests
from tests.features import CHANNELS, Means, paint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
SIDES = ("generated", "reference")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    paint(tmp_path / "a", CHANNELS * 4)
    paint(tmp_path / "b", CHANNELS * 3, seed=1)
    return tmp_path / "a", tmp_path / "b"


def run(*arguments: object) -> int:
    return main(["fid", *map(str, arguments), "--device", "cpu"])


def test_lines_for_people(sides: tuple[Path, Path], features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Aligned, with the interval and the counts, a line a class, and FID said of Inception alone."""
    assert run(*sides, "--features", features) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("FD (means)         ")
    assert "95% interval" in lines[0]
    assert [line[:17].rstrip() for line in lines[1:6]] == [
        "kernel distance",
        "precision, recall",
        "density, coverage",
        "class accuracy",
        "images",
    ]
    assert lines[4:6] == ["class accuracy     100.0% (reference 100.0%)", "images             12 against 9"]
    assert lines[6] == ""
    assert [line.split()[:3] for line in lines[7:]] == [
        ["class", "n", "reference"],
        *([name, "4", "3"] for name in CHANNELS),
    ]
    assert len({len(line) for line in lines[7:]}) == 1
    assert "FID" not in out
    assert err.startswith("warning: 3 of 3 classes")
    assert err.count("\n") == 1


def test_json(sides: tuple[Path, Path], features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--features", features, "--json", "--batch-size", 5, "--metrics", "fid, prdc", "--bootstrap", 0]
    assert run(*sides, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["batch_size"], report["device"]) == (5, "cpu")
    assert (report["kid"], report["bootstrap"]) == (None, None)
    assert report["value"] > 0


def test_a_model_is_scored_as_its_saved_pictures(
    model: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sampled on the fly or by `sample --out DIR`: one figure, on either side.

    Seen to fail without the seed, and without the preset.
    """
    drawing = ["-n", 20, "--seed", 3, "--preset", "fast", "--block", 4]
    saved = ["sample", "--model", model, *drawing, "--out", tmp_path / "drawn", "--device", "cpu"]
    assert main([str(argument) for argument in saved]) == 0
    paint(tmp_path / "real", CHANNELS * 4)
    capsys.readouterr()
    common = [tmp_path / "real", "--features", features, "--seed", 3, "--json", "--bootstrap", 5]
    reports = []
    for arguments in (
        [tmp_path / "drawn", *common],
        ["--model", model, *common, *drawing],
        [f"model:{model}", *common, *drawing],
        [model, *common, *drawing],
    ):
        assert run(*arguments) == 0
        reports.append(json.loads(capsys.readouterr().out))
    for key in ("value", "bootstrap", "kid", "precision", "recall", "density", "coverage", "per_class"):
        assert all(report[key] == reports[0][key] for report in reports), key
    described = reports[1]["generated"]
    assert (described["n"], described["seed"], described["settings"]["block"], described["class"]) == (20, 3, 4, None)
    assert run(tmp_path / "drawn", f"model:{model}", *common[1:], *drawing) == 0
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(0, abs=1e-9)


def figures(report: dict) -> dict:
    """A report without what says where features were found."""
    sides = {side: {k: v for k, v in report[side].items() if k not in ("saved", "reused")} for side in SIDES}
    return {**report, **sides, "statistics": None}


def test_more_pictures_of_a_model(
    model: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 and then 80: only 40 more are drawn, and the report is that of 80 at once; of fewer, nothing is drawn."""
    paint(tmp_path / "real", CHANNELS * 4)
    batches, sample_tokens = [], Model.sample_tokens

    def counted(self: Model, labels: list[int], *, first: int = 0, **options) -> torch.Tensor:
        batches.append(first)
        return sample_tokens(self, labels, first=first, **options)

    monkeypatch.setattr(Model, "sample_tokens", counted)

    def report(n: int, folder: str) -> tuple[dict, list[int]]:
        batches.clear()
        drawing = ["--model", model, "-n", n, "--seed", 3, "--preset", "fast", "--statistics", tmp_path / folder]
        assert run(*drawing, tmp_path / "real", "--features", features, "--json", "--bootstrap", 5) == 0
        return json.loads(capsys.readouterr().out), list(batches)

    first, sampled = report(40, "kept")
    assert (first["generated"]["reused"], sampled) == (0, [0, 16, 32])
    more, sampled = report(80, "kept")
    assert (more["generated"]["reused"], sampled) == (40, [32, 48, 64])
    fresh, sampled = report(80, "fresh")
    assert sampled == [0, 16, 32, 48, 64]
    assert figures(more) == figures(fresh)
    assert digests(tmp_path / "kept") == digests(tmp_path / "fresh")
    again, sampled = report(40, "kept")
    assert (figures(again), again["generated"]["reused"], sampled) == (figures(first), 40, [])


def test_several_processes(
    model: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Number 0 alone prints, and the report is one process's; the others say that their share is done."""
    monkeypatch.setattr(extract_features, "CHUNK", 64)
    paint(tmp_path / "real", CHANNELS * 50)
    drawing = ["--model", model, "-n", 200, "--preset", "fast", tmp_path / "real", "--features", features, "--json"]
    assert run(*drawing, "--statistics", tmp_path / "one") == 0
    alone = json.loads(capsys.readouterr().out)
    assert run(*drawing, "--statistics", tmp_path / "two", "--shard", "1/2") == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "share 1/2 is done; process 0 prints the figures\n")
    assert len(list((tmp_path / "two").rglob("*.part"))) == 3
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*drawing, "--statistics", tmp_path / "two") == 0
    together = json.loads(capsys.readouterr().out)
    assert (together["generated"]["reused"], together["reference"]["reused"]) == (72, 64)
    assert figures(together) == figures(alone)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert run(*drawing) == 2
    assert "several processes need a folder to share features in (2 processes)" in capsys.readouterr().err


def test_interrupted(
    sides: tuple[Path, Path],
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C in the second side: one line, exit code 130, and the first is there the next time."""
    arguments = [*sides, "--features", features, "--statistics", tmp_path / "kept", "--json"]
    read = ImageSource.__getitem__

    def interrupted(source: ImageSource, index: int) -> torch.Tensor:
        if source.description.endswith("a") and index == 7:
            raise KeyboardInterrupt
        return read(source, index)

    monkeypatch.setattr(ImageSource, "__getitem__", interrupted)
    assert run(*arguments) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr(ImageSource, "__getitem__", read)
    assert run(*arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["generated"]["reused"], report["reference"]["reused"]) == (0, 9)


BAD = {
    "missing": (["{tmp}/missing", "{b}"], "does not exist"),
    "no images": (["{tmp}/empty", "{b}"], "no images found"),
    "one file": (["{tmp}/text.png", "{b}"], "at least 2 images (generated: 1"),
    "one image": (["{tmp}/one", "{b}"], "at least 2 images (generated: 1"),
    "one side": (["{b}"], "two sides are compared (got {b})"),
    "no side": ([], "two sides are compared (got nothing)"),
    "three sides": (["{b}", "{b}", "{b}"], "two sides are compared"),
    "model and two sides": (["--model", "{model}", "{b}", "{b}"], "--model takes the place of GENERATED"),
    "model alone": (["--model", "{model}"], "give REFERENCE"),
    "no such model": (["--model", "cifar11", "{b}"], "no such model"),
    "no such preset": (["--model", "{model}", "{b}", "--preset", "fats"], "no such preset"),
    "no such class": (["--model", "{model}", "{b}", "--class", "cta"], "did you mean cat"),
    "one drawn": (["--model", "{model}", "{b}", "-n", "1"], "(-n)"),
    "n without a model": (["{b}", "{b}", "-n", "100"], "option is for a model, and neither side is one (-n)"),
    "preset without a model": (["{b}", "{b}", "--preset", "fast"], "neither side is one (--preset)"),
    "guidance without a model": (["{b}", "{b}", "--guidance", "2"], "neither side is one (--guidance)"),
    "a tokenizer": (["{model}/../tokenizer", "{b}"], "must describe a model"),
    "statistics in a file": (["{b}", "{b}", "--statistics", "{tmp}/text.png"], "cannot be written"),
    "metrics": (["{b}", "{b}", "--metrics", "fid,is"], "must be of fid, kid and prdc (is)"),
    "bootstrap": (["{b}", "{b}", "--bootstrap", "1"], "at least 2 replicates (1)"),
    "weights": (["{b}", "{b}", "--weights", "{tmp}/no.pt"], "file of weights not found"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    name: str, sides: tuple[Path, Path], model: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, nothing left behind."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    paint(tmp_path / "one", ["red"])
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[name]
    places = {"tmp": tmp_path, "b": sides[1], "model": model}
    assert run(*(argument.format(**places) for argument in arguments), "--features", features) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message.format(**places) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_picture_is_named(
    sides: tuple[Path, Path], features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sides[0] / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    assert run(*sides, "--features", features) == 2
    assert "red/broken.png" in capsys.readouterr().err


def test_broken_images_are_left_out_when_asked(
    sides: tuple[Path, Path], features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of the images that remain, with their classes, and saved features are told apart."""
    common = ("--features", features, "--statistics", tmp_path / "saved", "--json")
    names = sorted(path.relative_to(sides[0]).as_posix() for path in sides[0].rglob("*.png"))
    content, broken = (sides[0] / names[0]).read_bytes(), names[0]
    (sides[0] / broken).unlink()
    assert run(*sides, *common) == 0
    expected = json.loads(capsys.readouterr().out)
    (sides[0] / broken).write_bytes(content[: len(content) // 2])
    assert run(*sides, *common) == 2
    assert broken in capsys.readouterr().err
    assert run(*sides, *common, "--skip-bad") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err.startswith("skipped: ")
    assert broken in err
    assert err.count("skipped: ") == 1
    assert (report["generated"]["skipped"], report["reference"]["skipped"]) == ([broken], [])
    assert report["generated"]["n"] == len(names) - 1
    for key in ("value", "kid", "class_accuracy", "per_class"):
        assert report[key] == expected[key]
    saved = sorted((tmp_path / "saved").iterdir())[:2]
    assert run(*saved, "--features", features, "--skip-bad") == 2
    assert "--skip-bad is for files of images" in capsys.readouterr().err


def test_help_does_not_import_torch() -> None:
    """Help has to answer at once."""
    code = "import sys, ggm_image.cli.main as m; m.main(['fid', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--features" in done.stdout


def test_how_to_score_without_a_network_is_said_in_full(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail where the line is cut in its middle, at the name of the variable."""
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(sides[0] / ("a" * 40)))
    assert run(*sides) == 2
    error = capsys.readouterr().err
    assert " ... " not in error
    assert "GGM_IMAGE_INCEPTION" in error


@pytest.mark.parametrize("name", ["inception", "timm:resnet18"])
def test_without_a_network_it_says_how_to_go_on(
    name: str, sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("weights cannot be downloaded", "no network", "check the connection")

    monkeypatch.setattr(features_module, "load_extractor", refuse)
    assert run(*sides, "--features", name) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: weights cannot be downloaded (no network); check the connection; without a network: "
    )
    assert "--features FILE.pt, a TorchScript file that takes uint8 images (N, 3, H, W)" in error
    assert error.count("\n") == 1
    assert run(*sides, "--features", name, "--weights", sides[0] / "red" / "0.png") == 2
    assert "without a network" not in capsys.readouterr().err
