"""What a plugin registers is used through the Python API and the command line as what is shipped."""

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.io.safetensors import save_weights
from ggm_image.metrics import METRICS
from ggm_image.metrics.evaluate import evaluate
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.registry import SAMPLERS
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import CURVES, ORDERS, Schedule, SiteOrder
from ggm_image.tokenizers.registry import load_tokenizer
from ggm_image.tokenizers.vq.families import FAMILIES
from ggm_image.training.config import TrainConfig
from ggm_image.training.optim import OPTIMIZERS, OptimizerSettings
from tests.conftest import draw_picture
from tests.features import CHANNELS, Means, means_extractor, paint
from tests.models import tiny_model_folder, tiny_text_model_folder
from tests.training.toy import CONFIG, write_cache

MODULE = "tests.plugins.plugin"
REGISTRIES: tuple[dict[str, Any], ...] = (SAMPLERS, CURVES, ORDERS, OPTIMIZERS, FAMILIES, METRICS)


@pytest.fixture
def registries() -> Iterator[None]:
    """Afterwards the registries are as they were."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def plugin(registries: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment names the plugin, as a user's does."""
    monkeypatch.setenv("GGM_IMAGE_PLUGINS", MODULE)
    assert main(["--version"]) == 0
    yield MODULE
    del sys.modules[MODULE]


def one_site_only(height: int, width: int, generator: torch.Generator | None) -> torch.Tensor:
    return torch.zeros(height * width, dtype=torch.int64)


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_sampler_with_a_model_of_images_and_of_text(plugin: str, tmp_path: Path) -> None:
    settings = Settings(order="raster", block=5)
    masked: list[int] = []
    folder = tiny_model_folder(tmp_path)
    model = load_model(folder, device="cpu")
    model.sample_tokens([0], seed=1, settings=settings, callback=lambda t, x: masked.append(int((x[0] == 32).sum())))
    assert masked == [16, 11, 6, 1, 0]
    texts = load_model(tiny_text_model_folder(tmp_path), device="cpu")
    by_rows = texts.sample(2, seed=1, settings=settings)
    assert by_rows != texts.sample(2, seed=1, settings=Settings(order="signal", block=5))
    assert main(["sample", "--model", str(folder), "-n", "2", "--order", "raster", "--out", str(tmp_path / "x")]) == 0
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["settings"]["order"] == "raster"


def test_a_schedule_in_settings_and_on_the_command_line(
    plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = Schedule.round_robin(2, 3, sweeps=2, block=2, curve="square", order="columns")
    assert schedule.sweep_levels == (1.0, 0.25, 0.0)
    assert [sites.tolist() for sites in schedule.blocks] == [[0, 3], [1, 4], [2, 5]]
    model, out = tiny_model_folder(tmp_path), tmp_path / "samples"
    chosen = ("--order", "schedule", "--sweeps", 2, "--curve", "square", "--site-order", "columns")
    shown(capsys, "sample", "--model", model, "-n", 2, "--out", out, *chosen)
    kept = json.loads((out / "manifest.json").read_text())["settings"]
    assert (kept["curve"], kept["site_order"]) == ("square", "columns")
    for command in ("sample", "fid", "inpaint"):
        help_page = shown(capsys, command, "--help")
        assert "square" in help_page
        assert "columns" in help_page
    ORDERS["columns"] = SiteOrder(f"{__name__}:one_site_only")
    with pytest.raises(UserError, match="permutation of the sites"):
        Schedule.round_robin(2, 3, sweeps=1, order="columns")


def test_an_optimizer_in_a_config(plugin: str, tmp_path: Path, no_curves: None) -> None:
    assert TrainConfig(optimizer="sgd").optimizer == "sgd"
    (tmp_path / "config.yaml").write_text(CONFIG)
    cache, run = write_cache(tmp_path / "tokens"), tmp_path / "run"
    options = ["--data", str(cache), "--out", str(run), "--device", "cpu"]
    assert main(["train", str(tmp_path / "config.yaml"), "train.steps=1", "train.optimizer=sgd", *options]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["optimizer"] == "sgd"


def test_a_family_of_tokenizers(plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(draw_picture(k, 16)).save(tmp_path / "images" / f"{k}.png")
    save_weights(tmp_path / "published.safetensors", {"levels": torch.linspace(-1, 1, 8)}, torch.float32)
    folder, tokens = tmp_path / "grey", tmp_path / "tokens"
    assert "family grey, 8 codes" in shown(capsys, "convert", tmp_path / "published.safetensors", folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["family"] == "grey"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(torch.full((1, 3, 4, 4), -1.0)).tolist() == [[[0]]]
    told = json.loads(shown(capsys, "encode", tmp_path / "images", tokens, "--tokenizer", folder, "--json"))
    assert (told["count"], told["grid"]) == (3, [4, 4])
    shown(capsys, "decode", tokens, tmp_path / "decoded")
    pixels = np.asarray(Image.open(tmp_path / "decoded" / "000000.png"))
    assert np.ptp(pixels.reshape(4, 4, 4, 4, 3), axis=(1, 3, 4)).max() == 0  # every cell is one grey


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_metric(plugin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = paint(tmp_path / "a", CHANNELS * 2), paint(tmp_path / "b", CHANNELS * 2, seed=1)
    expected = float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))
    report = evaluate(tmp_path / "a", tmp_path / "b", means_extractor(), metrics=["mean-gap"])
    assert report["mean_gap"] == pytest.approx(expected, rel=1e-5)
    assert (report["value"], report["kid"], report["precision"]) == (None, None, None)
    assert "mean_gap" in evaluate(tmp_path / "a", tmp_path / "b", means_extractor(), metrics=["kid"])
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    sides = ("fid", tmp_path / "a", tmp_path / "b", "--features", tmp_path / "means.pt")
    lines = shown(capsys, *sides, "--metrics", "mean-gap").splitlines()
    assert ["mean_gap", f"{expected:.4f}"] in [line.split() for line in lines]
    assert main([*map(str, sides), "--metrics", "mean-gip"]) == 2
    assert "did you mean 'mean-gap'?" in capsys.readouterr().err


def test_the_examples_of_contributing_run(
    registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them as one file that a user has written, and every entry used."""
    text = Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Plugins") : text.index("## Tests")]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, flags=re.MULTILINE)
    code = [textwrap.dedent(block) for block in blocks if "import" in block]
    assert len(code) == 5
    (tmp_path / "written_by_a_user.py").write_text("\n".join(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GGM_IMAGE_PLUGINS", "written_by_a_user")
    model = tiny_model_folder(tmp_path)
    for order in (("raster",), ("schedule", "--curve", "square", "--site-order", "columns")):
        out = tmp_path / f"{order[0]}.png"
        shown(capsys, "sample", "--model", model, "-n", 2, "--order", *order, "--sweeps", 2, "--out", out)
        assert out.is_file()
    radam = OPTIMIZERS["radam"].make(
        torch.nn.Linear(2, 2), OptimizerSettings(learning_rate=0.1, weight_decay=None, betas=(0.9, 0.98))
    )
    assert isinstance(radam, torch.optim.RAdam)
    save_weights(tmp_path / "file.safetensors", {"levels": torch.linspace(-1, 1, 8)}, torch.float32)
    assert "family grey" in shown(capsys, "convert", tmp_path / "file.safetensors", tmp_path / "grey")
    assert load_tokenizer(tmp_path / "grey").encode(torch.ones(1, 3, 8, 8)).tolist() == [[[7, 7], [7, 7]]]
    paint(tmp_path / "a", CHANNELS)
    report = evaluate(tmp_path / "a", tmp_path / "a", means_extractor(), metrics=["mean-gap"])
    assert report["mean_gap"] == 0
    del sys.modules["written_by_a_user"]


def test_nothing_is_left_of_a_plugin() -> None:
    names = ("raster", "square", "columns", "sgd", "grey", "mean-gap")
    for registry, name in zip(REGISTRIES, names, strict=True):
        assert name not in registry
    for wrong in ({"order": "raster"}, {"curve": "square"}, {"site_order": "columns"}, {"curve": "squrt"}):
        with pytest.raises(UserError, match=r"choose one of|did you mean"):
            Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "word"), [("tests.plugins.missing", "No module named"), ("tests.plugins.plugin,,", "")]
)
def test_plugins_that_cannot_be_imported(
    names: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GGM_IMAGE_PLUGINS", names)
    if not word:
        monkeypatch.setitem(sys.modules, MODULE, sys)  # imported already: empty names between commas are no error
        assert main(["--version"]) == 0
        return
    assert main(["--version"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a plugin cannot be imported (tests.plugins.missing: ")
    assert word in error
    assert error.count("\n") == 1
