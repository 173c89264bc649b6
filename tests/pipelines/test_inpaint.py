"""Coarse-to-fine inpainting: known pixels, seeds, the observation, and what is said beforehand."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.preprocess import to_model
from ggm_image.image.scales import enlarge, plan_inpainting
from ggm_image.io.configs import find_config
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.inpaint import SERVING, Inpainter, warn_of_detail
from tests.models import FAST


def pixels_and_hole(seed: int = 0, wide: int = 30) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    hole = np.zeros((50, 60), dtype=bool)
    hole[8 : 8 + wide, 12 : 12 + wide] = True
    return pixels, hole


def inpainted(model: Model, pixels: np.ndarray, hole: np.ndarray, **options: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in model.inpaint(Image.fromarray(pixels), hole, settings=FAST, **options)]


@pytest.mark.parametrize("scales", ["auto", 1, 2])
def test_known_pixels_seeds_and_what_lies_under_the_mask(model: Model, scales: Any) -> None:
    pixels, hole = pixels_and_hole()
    other = pixels.copy()
    other[hole] = 255 - other[hole]
    first = inpainted(model, pixels, hole, n=3, seed=2, scales=scales)
    assert all(np.array_equal(x[~hole], pixels[~hole]) for x in first)
    assert not np.array_equal(first[0], first[1])
    [alone] = inpainted(model, pixels, hole, n=1, seed=2, scales=scales)
    assert np.array_equal(alone, first[0])
    later = inpainted(model, other, hole, n=model.paint_batch + 1, seed=2, scales=scales)
    assert all(np.array_equal(a, b) for a, b in zip(first, later, strict=False))
    assert not np.array_equal(inpainted(model, pixels, hole, seed=3, scales=scales)[0], alone)


def test_a_far_border_changes_nothing(model: Model) -> None:
    """The crop alone is looked at: the same hole in a larger image gives the same samples."""
    pixels, hole = pixels_and_hole(wide=6)
    larger = np.pad(pixels, ((100, 90), (80, 70), (0, 0)))
    mask = np.pad(hole, ((100, 90), (80, 70)))
    [small], [large] = inpainted(model, pixels, hole), inpainted(model, larger, mask)
    assert np.array_equal(large[100:150, 80:140], small)


def test_a_fine_scale_follows_the_coarse_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """tau -> 0: every window takes the nearest codes of the enlarged coarse result."""
    pixels, hole = pixels_and_hole()
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
    sample_tokens, paint = model.sample_tokens, Inpainter.paint
    given: list[torch.Tensor] = []

    def look(labels: Any, **options: Any) -> torch.Tensor:
        tokens = sample_tokens(labels, **options)
        seen.append((given[-1], tokens, options["observation"]))
        assert labels == ([2, 2] if options["observation"] is None else [model.null_label] * 2)
        return tokens

    def keep(self: Inpainter, part: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        given.append(part.clone())
        return paint(self, part, *arguments, **options)

    monkeypatch.setattr(model, "sample_tokens", look)
    monkeypatch.setattr(Inpainter, "paint", keep)
    inpainted(model, pixels, hole, n=2, classes="ship", tau=1e-6)
    coarse = len(model.plan_inpainting(hole).scales[0].windows)
    assert len(seen) > coarse
    assert all(observation is None for _, _, observation in seen[:coarse])
    for part, tokens, observation in seen[coarse:]:
        assert observation is not None
        assert torch.equal(tokens, torch.cat([model.tokenizer.encode(to_model(x)[None]) for x in part]))


def test_a_small_tau_keeps_the_coarse_result_and_a_large_one_does_not(model: Model) -> None:
    pixels, hole = pixels_and_hole()
    small, middle, large = (inpainted(model, pixels, hole, tau=tau)[0] for tau in (1e-6, 1.0, 1e6))
    assert not np.array_equal(small, middle)
    assert not np.array_equal(middle, large)


def test_distances_are_least_at_the_code_of_the_encoder(model: Model) -> None:
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distances = model.tokenizer.code_distances(images)
    assert distances.shape == (2, 4, 6, 32)
    assert bool((distances >= 0).all())
    assert torch.equal(distances.argmin(-1), model.tokenizer.encode(images))
    z = model.tokenizer.latents(images).permute(0, 2, 3, 1)  # type: ignore[operator]
    expected = (z[..., None, :] - model.tokenizer.codebook_embeddings()).square().sum(-1)
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="multiples of 4"):
        model.tokenizer.code_distances(images[..., 1:])


def test_a_hole_too_wide_for_the_model_is_said_before_the_work(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, hole = pixels_and_hole()
    inpainted(model, pixels, pixels_and_hole(wide=6)[1])
    assert capsys.readouterr().err == ""
    inpainted(model, pixels, hole, scales=1)
    said = capsys.readouterr().err
    assert "up to 30 pixels wide" in said
    assert "--scales auto" in said

    def stop(*arguments: Any, **options: Any) -> torch.Tensor:
        raise InterruptedError

    monkeypatch.setattr(model, "sample_tokens", stop)
    with pytest.raises(InterruptedError):
        inpainted(model, pixels, hole)
    [line] = capsys.readouterr().err.splitlines()
    assert "16 x 16" in line
    assert "refined in" in line


@pytest.mark.parametrize(
    ("name", "side", "factor", "steps"), [("cifar10", 32, "6.38", "3 steps"), ("robots64", 64, "3.19", "2 steps")]
)
def test_what_is_said_of_a_photograph_for_each_shipped_model(name: str, side: int, factor: str, steps: str) -> None:
    mask = np.zeros((384, 512), dtype=bool)
    mask[150:251, 200:301] = True
    assert warn_of_detail(plan_inpainting(mask, (side, side), 4), name, (side, side)) == (
        f"the hole is up to 102 pixels wide and {name} was trained on images of {side} x {side}: it is filled at "
        f"1/{factor} of the resolution and refined in {steps}; expect few details: a model of at least 256 x 256, such "
        "as config imagenet256, would see it at full resolution"
    )


def test_the_model_that_is_named_is_large_enough() -> None:
    mask = np.zeros((384, 512), dtype=bool)
    mask[100:130, 100:130] = True
    said = warn_of_detail(plan_inpainting(mask, (32, 32), 4), "cifar10", (32, 32))
    assert "at least 64 x 64, such as config photos64, would" in said
    assert warn_of_detail(plan_inpainting(mask, (64, 64), 4), "robots64", (64, 64)) == ""
    mask[:] = True
    said = warn_of_detail(plan_inpainting(mask, (32, 32), 4), "cifar10", (32, 32))
    assert "the hole is the whole image" in said
    assert said.endswith("at least 512 x 512 would see it at full resolution")
    assert all(find_config(config).is_file() for config in SERVING.values())


def test_the_enlarged_result_is_of_each_image_alone() -> None:
    images = torch.randint(0, 256, (3, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(enlarge(images, (15, 20))[1:2], enlarge(images[1:2], (15, 20)))


@pytest.mark.parametrize("wrong", [{"scales": 0}, {"scales": "all"}, {"tau": 0.0}, {"tau": float("nan")}])
def test_scales_and_tau_are_checked(model: Model, wrong: dict[str, Any]) -> None:
    pixels, hole = pixels_and_hole()
    with pytest.raises(UserError, match=next(iter(wrong))):
        inpainted(model, pixels, hole, **wrong)
