"""Samples that follow a guide: its observation, its limits, its classes, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.guide import load_guide
from ggm_image.image.preprocess import to_model
from ggm_image.pipelines.guide import Guide
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.sample_folder import sample_to_folder
from tests.cli.commands import run
from tests.models import FAST


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


# Seen to fail with tau in place of 1 / tau, and with the opacity of a cell's first pixel.
def test_the_observation_is_the_weighted_distance_to_the_codes(model: Model, image: np.ndarray) -> None:
    hints = np.dstack([image, np.full((16, 16), 255, dtype=np.uint8)])
    hints[:4, :8, 3] = 0
    hints[:4, 8:12, 3] = 51
    found = model.encode_guide(hints, 0.5).observation[0]
    pixels, _ = load_guide(hints, (16, 16))
    distances = model.tokenizer.code_distances(to_model(pixels)[None])[0].flatten(0, 1)
    weight = F.avg_pool2d(torch.from_numpy(hints[None, ..., 3] / 255.0), 4).flatten()
    assert weight[:2].tolist() == [0, 0]
    assert float(weight[2]) == pytest.approx(0.2)
    nearest = distances.amin(1, keepdim=True)
    d = nearest[weight > 0].median()
    expected = weight[:, None] * 0.5 * (nearest - distances) / d
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_strong_guides_are_reconstructed_and_weak_ones_have_no_effect(model: Model, image: np.ndarray) -> None:
    tokens = model.encode(image)
    strong = model.sample(3, guide=image, strength=1e6, settings=FAST)
    assert torch.equal(strong, model.decode(tokens.expand(3, -1, -1)))
    weak = model.sample(3, guide=image, strength=1e-30, settings=FAST)
    labels = [model.null_label] * 3
    free = model.decode(model.sample_tokens(labels, settings=FAST))
    assert torch.equal(weak, free)
    between = model.sample(3, guide=image, settings=FAST)
    assert not torch.equal(between, free)
    assert not torch.equal(between, strong)


def test_transparent_parts_are_free_and_opaque_ones_followed(model: Model, image: np.ndarray) -> None:
    hints = np.dstack([image, np.zeros((16, 16), dtype=np.uint8)])
    hints[8:12, 4:8, 3] = 255
    guide = model.encode_guide(hints, 1e6)
    labels = [model.null_label] * 4
    observation = guide.observation.expand(4, -1, -1)
    grids = model.sample_tokens(labels, settings=FAST, observation=observation)
    assert len({int(grid[2, 1]) for grid in grids}) == 1
    assert len({grid.numpy().tobytes() for grid in grids}) == 4


def test_an_image_depends_on_its_seed_alone(model: Model, image: np.ndarray) -> None:
    options: dict[str, Any] = {"guide": image, "settings": FAST, "seed": 5}
    many = model.sample(model.kernel_batch + 2, **options)
    assert torch.equal(model.sample(1, first=model.kernel_batch, **options)[0], many[model.kernel_batch])
    streamed = torch.cat(list(model.stream(model.kernel_batch + 2, **options)))
    assert torch.equal(streamed, many)
    assert torch.equal(model.sample(2, **(options | {"guide": model.encode_guide(image)})), many[:2])
    assert model.sample(0, **options).shape == (0, 3, 16, 16)


def test_classes_of_a_guided_image(
    model: Model, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    sample_tokens = model.sample_tokens

    def look(labels: Any, **options: Any) -> torch.Tensor:
        seen.append((labels, options["settings"].guidance))
        return sample_tokens(labels, **options)

    monkeypatch.setattr(model, "sample_tokens", look)
    model.sample(2, guide=image, settings=FAST, guidance=3)
    assert "guidance has no effect without a class" in capsys.readouterr().err
    model.sample(2, guide=image, settings=FAST, guidance=3, classes="ship")
    model.sample(2, settings=FAST, guidance=3)
    assert seen == [([model.null_label] * 2, 1.0), ([2, 2], 3.0), ([0, 1], 3.0)]


@pytest.mark.parametrize("strength", [0, -1.0, float("nan"), float("inf"), 1e-320, True])
def test_a_strength_out_of_range(model: Model, image: np.ndarray, strength: Any) -> None:
    with pytest.raises(UserError, match="strength of a guide must be positive"):
        model.sample(1, guide=image, strength=strength)


def test_a_folder_of_guided_images_is_resumed_for_the_same_guide_only(
    model: Model, image: np.ndarray, tmp_path: Path
) -> None:
    def fill(guide: Guide | None, n: int = 2) -> int:
        return sample_to_folder(model, tmp_path / "out", n, settings=FAST, guide=guide).sampled

    guide = model.encode_guide(image)
    assert fill(guide) == 2
    assert fill(model.encode_guide(Image.fromarray(image))) == 0
    assert fill(guide, 3) == 3  # a batch is sampled whole
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["classes"] is None
    assert manifest["guide"] == {"sha256": guide.sha256, "strength": 1.0}
    for other in (None, model.encode_guide(255 - image), model.encode_guide(image, 2.0)):
        with pytest.raises(UserError, match="other images"):
            fill(other)


def test_the_command(
    model_folder: Path, model: Model, image: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "guide.png", tmp_path / "out.png"
    Image.fromarray(image).save(path)
    options = ["sample", "--model", model_folder, "--device", "cpu", "-n", 1, "--block", 4, "--sweeps", 1]
    assert run(*options, "--guide", path, "--strength", 2, "--out", out, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["guide"]["strength"], manifest["settings"]["guidance"]) == (2.0, 1.0)
    settings = model.settings(block=4, sweeps=1)
    expected = model.sample(1, guide=path, strength=2.0, settings=settings, output="np")[0]
    assert np.array_equal(np.asarray(Image.open(out)), expected)
    for wrong, said in (
        (["--strength", 2], "--strength belongs to --guide"),
        (["--guide", tmp_path / "none.png"], "guide cannot be opened"),
        (["--guide", path, "--out", path], "must not be an input"),
        (["--guide", path, "--out", tmp_path], "must not be an input"),
    ):
        assert run(*options, *wrong) == 2
        assert said in capsys.readouterr().err
