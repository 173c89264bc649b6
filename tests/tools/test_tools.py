"""The scripts that make figures: what they compute is what they say."""

import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.data.sources.webdataset import open_webdataset
from ggm_image.errors import UserError
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.settings import Settings
from tests.models import FAST, tiny_model_folder

TOOLS = Path(__file__).parents[2] / "tools"
KINDS = ["centre", "half", "border", "strokes", "scattered"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    for folder in ("benchmarks", "experiments", "figures"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    module = importlib.import_module(request.param)
    monkeypatch.delitem(sys.modules, request.param)
    return module


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tool", [name], indirect=True)


@on("bench_encode_memory")
def test_synthetic_shards_are_webdataset(tool: ModuleType, tmp_path: Path) -> None:
    for number in range(2):
        with open(tmp_path / f"{number}.tar", "wb") as file:
            tool.write_shard(file, tool.shard(number, 20))
    stream = open_webdataset(str(tmp_path))
    samples = [sample for part in range(2) for sample in stream.read(part)]
    assert [sample.label for sample in samples] == [k % 10 for k in range(20)] * 2
    assert len({sample.key for sample in samples}) == 40
    assert len({sample.load().numpy().tobytes() for sample in samples}) == 40
    assert tool.peak_megabytes() > 50


@on("make_masks")
@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_seeded_and_of_the_size_asked_for(tool: ModuleType, kind: str) -> None:
    masks = [tool.make_mask(kind, 24, 40, seed=3, index=k) for k in range(4)]
    assert all(mask.shape == (24, 40) and mask.dtype == bool and 0 < mask.mean() < 1 for mask in masks)
    assert np.array_equal(masks[2], tool.make_mask(kind, 24, 40, seed=3, index=2))
    differ = not np.array_equal(masks[0], masks[1])
    assert differ == (kind in ("strokes", "scattered"))


@on("make_masks")
def test_shares_of_white(tool: ModuleType) -> None:
    def white(kind: str) -> list[float]:
        return [float(tool.make_mask(kind, 32, 32, seed=0, index=k).mean()) for k in range(20)]

    assert set(white("centre")) == {0.25}
    assert set(white("border")) == {0.75}
    assert set(white("half")) == set(white("scattered")) == {0.5}
    assert all(0.25 <= share < 0.5 for share in white("strokes"))


@on("make_masks")
def test_masks_from_transparent_pictures(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgba = np.full((8, 8, 4), 255, dtype=np.uint8)
    rgba[2:5, 1:4, 3] = 0
    (tmp_path / "in").mkdir()
    Image.fromarray(rgba).save(tmp_path / "in" / "a.png")
    arguments = [str(tmp_path / "out"), "--kind", "alpha", "--from", str(tmp_path / "in")]
    assert tool.run(tool.main, arguments) == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")) == 255, rgba[..., 3] == 0)
    for wrong in (["--kind", "alpha"], ["--kind", "half", "--size", "8"], ["--kind", "half", "--size", "0x8"]):
        assert tool.run(tool.main, [str(tmp_path / "no"), *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "no").exists()


@on("chequered")
def test_chequered_patches_of_folders(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of several sizes; each counts once, whatever its number of cells."""
    y, x = np.mgrid[:16, :16]
    board = np.where((x + y) % 2, 255, 0).astype(np.uint8)
    patch = np.full((16, 16), 90, np.uint8)
    patch[4:8, 8:12] = np.where(board[4:8, 8:12], 130, 50)  # one cell of 16
    images = {"a": board, "b": np.zeros((16, 16), np.uint8), "c": np.zeros((8, 12), np.uint8), "d": patch}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert tool.run(tool.main, [str(tmp_path)]) == 0
    share = (1 + 0 + 0 + 1 / 16) / 4
    assert capsys.readouterr().out == f"{tmp_path}: 4 images, {share:.3%} of cells, 50.0% of images\n"


@on("compare_inpainting")
def test_seam_counts_every_pair_across_the_border_once(tool: ModuleType) -> None:
    """A square of 3 x 3 has twelve neighbours; only steps across the border count."""
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 3:6] = True
    image = torch.full((3, 8, 8), 10, dtype=torch.uint8)
    image[:, torch.from_numpy(mask)] = 30
    image[:, 3, 4] = 200  # inside, not at the border
    assert tool.seam_step(image, mask) == (12 * 20.0, 12)
    corner = np.zeros((8, 8), dtype=bool)
    corner[0, 0] = True
    assert tool.seam_step(image, corner)[1] == 2


@on("compare_inpainting")
def test_every_way_makes_as_many_calls(tool: ModuleType) -> None:
    for way in tool.WAYS:
        for unknown in (16, 32, 40):
            assert tool.settings_of(way, unknown, 8).calls(unknown) == 8


@on("compare_inpainting")
def test_known_tokens_that_are_noised_too_come_back(tool: ModuleType, tmp_path: Path) -> None:
    """Seen to fail: the tool called a method of `Model` that had been removed."""
    model = load_model(tiny_model_folder(tmp_path), device="cpu")
    known = torch.full((2, 16), -1)
    known[:, :6] = torch.arange(6)
    settings = Settings(order="schedule", sweeps=1, block=4)
    tokens = tool.renoised(model, known, torch.tensor([0, 1]), settings, [0, 1], 3)
    assert torch.equal(tokens[:, :6], known[:, :6])
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 32


@on("signal_report")
def test_area_under_the_curve(tool: ModuleType) -> None:
    rng = np.random.default_rng(0)
    positive = rng.random(400) < 0.3
    score = np.round(rng.normal(positive * 1.0, 1), 1)  # with ties
    pairs = score[positive][:, None] - score[~positive][None]
    assert tool.roc_auc(score, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@on("signal_report")
def test_calibration_error(tool: ModuleType) -> None:
    """Small for draws by the probability itself, and 0.2 where all probabilities are 0.2 too high."""
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.2, 1, 200_000)
    true = rng.random(200_000) < probability
    assert tool.calibration_error(tool.reliability(probability, true)) < 0.005
    late = rng.random(200_000) < probability - 0.2
    assert tool.calibration_error(tool.reliability(probability, late)) == pytest.approx(0.2, abs=0.005)


@on("signal_report")
def test_damage_is_where_it_is_said_to_be(tool: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (20, 48), generator=generator)
    damaged, where = tool.replace_tokens(tokens, 4, 50, generator)
    assert (where.sum(1) == 4).all()
    assert torch.equal(damaged != tokens, where)
    damaged, where = tool.paste_patch(tokens, 6, 8, 3, generator)
    assert torch.equal(damaged != tokens, where)
    assert torch.equal(damaged[where], tokens.roll(1, 0)[where])
    assert 0 < where.sum(1).max() <= 9


@on("quality_vs_cost")
def test_a_grid_has_every_combination_once(tool: ModuleType) -> None:
    """Settings without effect do not multiply. Seen to fail with the level curve kept for one sweep."""
    grid = {
        "order": ["schedule", "signal"],
        "sweeps": [1, 2],
        "curve": ["sqrt", "linear"],
        "revise_share": [0.25, 0.5],
        "confidence_noise": [2.0, 4.5],
    }
    found = tool.every_combination(grid)
    kinds = [(s.order, s.sweeps, s.curve, s.revise_share, s.confidence_noise) for s in found]
    assert len(kinds) == len(set(kinds)) == 1 + 2 + 2 + 2 * 2
    assert {kind[2] for kind in kinds if kind[:2] == ("schedule", 2)} == {"sqrt", "linear"}
    blocks = {"sweeps": [1, 2], "block": [4, 8], "first_block": [None, 4]}
    found = tool.every_combination({"order": ["signal", "schedule"], **blocks})
    signal = [(s.sweeps, s.block, s.first_block) for s in found if s.order == "signal"]
    assert signal == [(1, 4, None), (1, 8, None), (2, 4, None), (2, 4, 4), (2, 8, None), (2, 8, 4)]
    assert sum(s.order == "schedule" for s in found) == 4
    # Without guidance its ramp has no effect, nor has noise on a confidence that a fixed order does not ask for.
    ramps = {"guidance": [1, 2], "guidance_power": [0, 1], "confidence_noise": [2.0, 4.5]}
    found = tool.every_combination(ramps, tool.Settings(first_order="halton", temperature=0.5))
    assert [(s.guidance, s.guidance_power) for s in found] == [(1, 0), (2, 0), (2, 1)]
    assert {s.temperature for s in found} == {0.5}
    with pytest.raises(UserError, match="sweeps"):
        tool.every_combination({"sweep": [1]})


@on("quality_vs_cost")
def test_what_is_not_dominated_is_bold(tool: ModuleType) -> None:
    """A guided call costs two. Seen to fail with calls in place of passes."""

    def row(calls: int, distance: float, guidance: float = 1.0, **more: Any) -> dict[str, Any]:
        settings = asdict(tool.Settings(guidance=guidance, **more))
        return {"settings": settings, "n": 9, "calls": calls, "distance": distance, "class_accuracy": None}

    rows = [row(8, 3.0), row(8, 2.0, 3.0), row(16, 1.9), row(16, 2.0), row(32, 1.9), row(32, 1.0)]
    assert tool.undominated(rows) == [rows[0], rows[2], rows[5]]
    table = tool.table(rows, "test")
    assert table.count("**") == 6
    assert "| 8 | 16 | signal" in table
    growing = [row(8, 2.0, weight, guidance_power=1.0) for weight in (1.0, 0.0, 3.0)]
    assert [tool.passes(r) for r in [*growing, row(8, 2.0, 0.0)]] == [8, 15, 15, 8]
    assert tool.passes(row(8, 2.0, 3.0, guidance_power=1.0, order="schedule")) == 16


@on("compare_photo_inpainting")
def test_patchmatch_is_optional_and_sees_nothing_under_the_mask(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (20, 24, 3), dtype=np.uint8)
    mask = np.zeros((20, 24), dtype=bool)
    mask[4:12, 6:15] = True
    monkeypatch.setitem(sys.modules, "patchmatch", None)  # as if it were not installed
    monkeypatch.setattr(tool, "find_spec", lambda name: None)
    assert tool.baselines() == ["telea", "navier-stokes"]
    with pytest.raises(UserError, match="pip install pypatchmatch"):
        tool.fill(None, pixels, mask, "patchmatch", 0, "best")

    seen: list[Any] = []
    package = ModuleType("patchmatch")
    package.set_random_seed = seen.append  # type: ignore[attr-defined]
    package.inpaint = lambda image, hole: seen.append((image, hole)) or image + 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "patchmatch", package)
    monkeypatch.setattr(tool, "find_spec", lambda name: name)
    assert tool.baselines()[-1] == "patchmatch"
    result = tool.fill(None, pixels, mask, "patchmatch", 7, "best")
    seed, (image, hole) = seen
    assert seed == 7
    assert np.array_equal(hole, mask * 255)
    assert not image[mask].any()
    assert np.array_equal(result[~mask], pixels[~mask])
    assert (result[mask] == 1).all()


@on("guide_examples")
def test_the_figure_of_guides_has_four_rows(tool: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{k:06d}.png")
    model = load_model(tiny_model_folder(tmp_path / "model"))
    cells = tool.rows(model, tmp_path, [0, 1, 2, 3], strength=0.3, hint=0.5, settings=FAST, seed=0)
    assert len(cells) == 4 * tool.COLUMNS
    assert {tuple(cell.shape) for cell in cells} == {(3, 16, 16)}
    alpha = np.asarray(tool.colour_hints(16, 16))[..., 3]
    assert 0.1 < (alpha > 0).mean() < 0.5
