"""Scoring whole folders: the figure, what it was taken of, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ggm_image.cli.main import main
from ggm_image.data.images import open_source
from ggm_image.errors import UserError
from ggm_image.files import sha256_file
from ggm_image.metrics.features import load_extractor
from ggm_image.metrics.frechet import FeatureStatistics, frechet_distance
from ggm_image.metrics.score import score

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
CHANNELS = ["blue", "green", "red"]  # in alphabetical order, as the stand-in classifier has them


class Means(nn.Module):
    """Features: the channel means. Classes: the strongest channel, named in alphabetical order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])

    @torch.jit.export
    def logits(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3]).flip(1)


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(path))
    return path


def paint(folder, colours, *, seed=0, classes=True):
    """A noisy picture of each colour, of two sizes, in class folders or flat; returns channel means."""
    rng = np.random.default_rng(seed)
    means = {}
    for k, colour in enumerate(colours):
        pixels = rng.integers(0, 100, (8, 8 + k % 2, 3))
        pixels[..., ["red", "green", "blue"].index(colour)] += 150
        path = folder / colour / f"{k:03d}.png" if classes else folder / f"{k:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        means[path.relative_to(folder).as_posix()] = pixels.mean(axis=(0, 1))
    return np.array([means[name] for name in sorted(means)])


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_figure_is_the_distance_of_the_features(tmp_path, features, batch_size):
    """Whatever the batch size, the last batch included. Seen to fail with the last batch dropped."""
    a = paint(tmp_path / "a", CHANNELS * 5)
    b = paint(tmp_path / "b", CHANNELS * 3, seed=1)
    report = score(tmp_path / "a", tmp_path / "b", load_extractor(str(features)), batch_size=batch_size)
    expected = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert report["value"] == pytest.approx(expected, rel=1e-4)
    assert report["warnings"] == []


def test_the_protocol_is_complete(tmp_path, features):
    """All that somebody needs to get the same figure, as JSON."""
    paint(tmp_path / "a", CHANNELS * 4, classes=False)
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({"seed": 3, "classes": CHANNELS * 12}))
    paint(tmp_path / "b", CHANNELS * 2)
    report = json.loads(json.dumps(score(tmp_path / "a", tmp_path / "b", load_extractor(str(features)))))
    assert report["metric"] == "FD (means)"
    assert report["features"] == {
        "name": str(features),
        "sha256": sha256_file(features),
        "dimension": 3,
        "resize": "inside the network",
    }
    assert (report["generated"]["n"], report["reference"]["n"]) == (12, 6)
    assert report["generated"]["sizes"] == {"8x8": 6, "9x8": 6}
    assert report["generated"]["names_sha256"] == open_source(tmp_path / "a").fingerprint()
    manifest = tmp_path / "a" / "manifest.json"
    assert report["generated"]["manifest"] == {"seed": 3, "sha256": sha256_file(manifest)}
    assert report["covariance"].startswith("unbiased")
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"ggm-image", "scipy", "clean-fid", "pillow"} <= set(report["versions"])


def test_class_accuracy(tmp_path, features):
    """By class folders, of which the generated side may lack some, and by the manifest of a flat folder.

    Seen to fail with labels of the generated side used as classes of the network (green is its 0 here).
    """
    extractor = load_extractor(str(features))
    paint(tmp_path / "b", CHANNELS * 2)
    paint(tmp_path / "a", ["green", "red"] * 4)
    assert score(tmp_path / "a", tmp_path / "b", extractor)["class_accuracy"] == 1
    (tmp_path / "a" / "green" / "000.png").rename(tmp_path / "a" / "red" / "000.png")
    assert score(tmp_path / "a", tmp_path / "b", extractor)["class_accuracy"] == 7 / 8
    paint(tmp_path / "flat", CHANNELS, classes=False)
    assert score(tmp_path / "flat", tmp_path / "b", extractor)["class_accuracy"] is None
    asked = {"classes": ["blue", "red", "red"]}
    (tmp_path / "flat" / "manifest.json").write_text(json.dumps(asked))
    assert score(tmp_path / "flat", tmp_path / "b", extractor)["class_accuracy"] == pytest.approx(2 / 3)


def test_few_pictures(tmp_path, features):
    paint(tmp_path / "a", ["red"])
    paint(tmp_path / "b", CHANNELS)
    extractor = load_extractor(str(features))
    with pytest.raises(UserError, match="at least 2 pictures .generated: 1"):
        score(tmp_path / "a", tmp_path / "b", extractor)
    report = score(tmp_path / "b", tmp_path / "b", extractor)
    assert "3 samples for 3 features" in report["warnings"][0]


def test_command(tmp_path, features, capsys):
    """Two lines for people, JSON for programs, warnings on stderr, and FID said of Inception alone."""
    paint(tmp_path / "a", CHANNELS * 4)
    paint(tmp_path / "b", CHANNELS)
    args = ["fid", str(tmp_path / "a"), str(tmp_path / "b"), "--features", str(features), "--device", "cpu"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert out.startswith("FD (means) ")
    assert "(12 pictures against 3)\nclass accuracy 100.0%" in out
    assert "FID" not in out
    assert err.startswith("warning: 3 samples for 3 features")
    assert main([*args, "--json", "--batch-size", "5"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["batch_size"], report["device"]) == (5, "cpu")


@pytest.mark.parametrize("bad", ["missing", "empty", "text.png", "one"])
def test_command_on_bad_input(bad, tmp_path, features, capsys):
    """One line, exit code 2."""
    paint(tmp_path / "b", CHANNELS)
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "one", ["red"])
    (tmp_path / "text.png").write_text("no picture")
    assert main(["fid", str(tmp_path / bad), str(tmp_path / "b"), "--features", str(features)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_broken_picture_is_named(tmp_path, features, capsys):
    paint(tmp_path / "a", CHANNELS)
    (tmp_path / "a" / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much more")
    assert main(["fid", str(tmp_path / "a"), str(tmp_path / "a"), "--features", str(features)]) == 2
    assert "red/broken.png" in capsys.readouterr().err


def test_help_does_not_import_torch():
    """Help has to answer at once."""
    code = "import sys, ggm_image.cli.main as m; m.main(['fid', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--features" in done.stdout
