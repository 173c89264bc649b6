"""Inpainting with a model: known pixels stay, nothing under the mask is seen, and windows continue each other."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.blending import blend_seam
from ggm_image.image.extension import Extension
from ggm_image.image.io import rgb_pixels, to_pil
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.inpaint import Inpainter
from ggm_image.sampler.settings import Settings
from tests.models import FAST


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_inpaint_changes_no_known_pixel(model: Model, mode: str) -> None:
    # seen to fail when the decoded image was returned without compositing
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (16, 24), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (16, 24, 4), dtype=np.uint8)).convert(mode)
    mask = np.zeros((16, 24), dtype=np.uint8)
    mask[3:9, 5:14] = 255
    samples = model.inpaint(image, Image.fromarray(mask), n=2, seed=3, settings=FAST)
    assert len(samples) == 2
    for sample in samples:
        assert sample.mode == image.mode
        assert sample.size == image.size
        assert np.array_equal(np.asarray(sample)[mask == 0], np.asarray(image)[mask == 0])
    assert not np.array_equal(np.asarray(samples[0]), np.asarray(samples[1]))


def test_inpaint_sees_nothing_under_the_mask(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail when the image was encoded as it was
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    hole = np.zeros((16, 16), dtype=bool)
    hole[4:10, 4:10] = True
    other = pixels.copy()
    other[hole] = 255 - other[hole]
    mask = Image.fromarray((hole * 255).astype(np.uint8))
    encoded, encode = [], model.tokenizer.encode
    monkeypatch.setattr(model.tokenizer, "encode", lambda images: encoded.append(images) or encode(images))
    first, second = (model.inpaint(Image.fromarray(p), mask, settings=FAST)[0] for p in (pixels, other))
    assert torch.equal(encoded[0], encoded[1])
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_inpaint_refuses_what_does_not_fit(model: Model) -> None:
    image = Image.new("RGB", (16, 16))
    with pytest.raises(UserError, match=r"16 x 16.*8 x 8"):
        model.inpaint(image, Image.new("L", (8, 8), 255))
    with pytest.raises(UserError, match="at least 4 pixels"):
        model.inpaint(Image.new("RGB", (3, 16)), Image.new("L", (3, 16), 255))
    with pytest.raises(UserError, match="context"):
        model.inpaint(image, Image.new("L", (16, 16), 255), context=8)


def test_black_mask_gives_the_image_and_white_one_a_sample(model: Model) -> None:
    # seen to fail with another seed for the first window
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    [same] = model.inpaint(image, Image.new("L", (16, 16), 0), settings=FAST)
    assert np.array_equal(np.asarray(same), np.asarray(image))
    for settings in (FAST, Settings(order="schedule", sweeps=2, block=4, guidance=2.0)):
        white = model.inpaint(image, Image.new("L", (16, 16), 255), n=2, classes="dog", seed=4, settings=settings)
        # in batches of the same size: on some processors others round another way
        batch = model.paint_batch
        tokens = model.sample_tokens(model.labels(2, "dog"), seed=4, settings=settings, batch=batch)
        plain = model.decode(tokens, batch=batch)
        assert np.array_equal(np.stack([np.asarray(x) for x in white]), plain.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("size", [(16, 16), (23, 41), (50, 37), (9, 5), (70, 16)])
@pytest.mark.parametrize("context", [None, 2])
def test_any_size_keeps_known_pixels_and_fills_the_hole(
    model: Model, size: tuple[int, int], context: int | None
) -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    mask = np.zeros((size[1], size[0]), dtype=bool)
    mask[size[1] // 5 : -1, 1 : -size[0] // 4] = True
    other = pixels.copy()
    other[mask] = rng.integers(0, 256, (int(mask.sum()), 3), dtype=np.uint8)
    first, second = (
        np.asarray(model.inpaint(Image.fromarray(p), mask, n=2, settings=FAST, context=context)[1])
        for p in (pixels, other)
    )
    assert np.array_equal(first[~mask], pixels[~mask])
    assert np.array_equal(first, second)  # nothing under the mask is seen, in no window
    assert not (first[mask] == pixels[mask]).all()
    third = model.inpaint(Image.fromarray(pixels), mask, n=3, settings=FAST, context=context)[1]
    assert np.array_equal(first, np.asarray(third))  # nor does an answer depend on their number


def test_windows_see_what_the_ones_before_them_painted(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each window is given the canvas so far, paints what is missing there alone, and meets the known pixels.

    Seen to fail with windows pasted whole, with a hole that stays missing after it was painted, and with decoded pixels
    in place of `blend_seam`'s.
    """
    pixels = torch.randint(0, 256, (3, 30, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    mask = np.zeros((30, 45), dtype=bool)
    mask[4:25, 6:40] = True
    found = model.plan_inpainting(mask, scales=1)
    crop, plan = found.crop, iter(found.scales[-1].windows)
    rows, columns = crop.slices
    canvas, missing = pixels[:, rows, columns].expand(2, -1, -1, -1).clone(), mask[rows, columns].copy()
    sampled: list[torch.Tensor] = []
    paint, decode = Inpainter.paint, model.decode

    def decode_and_keep(*arguments: Any, **settings: Any) -> torch.Tensor:
        sampled.append(decode(*arguments, **settings))
        return sampled[-1]

    def paint_and_check(self: Inpainter, given: torch.Tensor, unknown: np.ndarray, **settings: Any) -> torch.Tensor:
        rows, columns = next(plan).slices
        assert torch.equal(given, canvas[..., rows, columns])
        assert np.array_equal(unknown, missing[rows, columns])
        result = paint(self, given.clone(), unknown.copy(), **settings)
        for before, raw, after in zip(given, sampled[-1], result, strict=True):
            assert torch.equal(after, blend_seam(before, raw, unknown, reach=4))
        canvas[..., rows, columns] = result
        missing[rows, columns] = False
        return result

    monkeypatch.setattr(model, "decode", decode_and_keep)
    monkeypatch.setattr(Inpainter, "paint", paint_and_check)
    samples = model.inpaint(to_pil(pixels), mask, n=2, settings=FAST, scales=1)
    assert len(sampled) > 2
    assert next(plan, None) is None
    assert not missing.any()
    found_pixels = torch.stack([rgb_pixels(sample) for sample in samples])
    assert torch.equal(found_pixels[..., crop.slices[0], crop.slices[1]], canvas)
    assert torch.equal(found_pixels[..., torch.from_numpy(~mask)], pixels[:, torch.from_numpy(~mask)].expand(2, -1, -1))


def test_extended_image_keeps_its_pixels(model: Model) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    by = Extension(left=8, bottom=20)
    for feather in (0, 3):
        [result] = model.inpaint(Image.fromarray(pixels), extend=by, settings=FAST, feather=feather)
        assert result.size == (24, 36)
        assert np.array_equal(np.asarray(result)[:16, 8:], pixels)


def test_guidance_without_a_class_is_said_to_do_nothing(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.inpaint(Image.new("RGB", (16, 16), "red"), np.ones((16, 16), bool), settings=FAST, guidance=3)
    assert capsys.readouterr().err == "guidance has no effect without a class\n"
