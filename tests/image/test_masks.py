"""Masks, cells and compositing: nothing known may change, nothing unknown may be kept."""

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.blending import composite
from ggm_image.image.extension import Extension
from ggm_image.image.io import to_storable_mode
from ggm_image.image.masks import fill_unknown, known_tokens, load_mask, token_mask

SIDE, CELL = 32, 4


def pixels(*shape, high=256, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def square(height=SIDE, width=SIDE, top=5, left=9, size=13):
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def picture(mode, height=SIDE, width=SIDE):
    """An image of random pixels in any mode; a paletted one uses all of its palette."""
    if mode == "I;16":
        return Image.fromarray(pixels(height, width, high=65536, dtype=np.uint16))
    if mode == "1":
        return Image.fromarray(pixels(height, width, high=2) * 255).convert("1")
    if mode == "P":
        image = Image.fromarray(pixels(height, width)).convert("P")
        image.putpalette(pixels(768, seed=1).tobytes())
        return image
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(pixels(height, width, channels).squeeze(), mode if mode == "CMYK" else None)


def drawn(height=SIDE, width=SIDE):
    return Image.fromarray(pixels(height, width, 3, seed=2))


# --- from pixels to tokens


def test_every_single_pixel_makes_its_own_token_unknown():
    """All 1024 masks of one pixel: exactly the cell that holds it.

    Seen to fail with average pooling and a threshold at one half, with nearest-neighbour downsampling, and
    with rows and columns exchanged.
    """
    for y in range(SIDE):
        for x in range(SIDE):
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[y, x] = True
            expected = torch.zeros(SIDE // CELL, SIDE // CELL, dtype=torch.bool)
            expected[y // CELL, x // CELL] = True
            assert torch.equal(token_mask(mask, CELL), expected), (y, x)


@pytest.mark.parametrize("dilate", [1, 3, 4, 100])
def test_dilation_is_counted_in_pixels(dilate):
    """A cell is unknown if it has a pixel that near. Seen to fail with a dilation of whole cells."""
    mask = np.zeros((24, 40), dtype=bool)
    mask[11, 17] = True
    y, x = np.mgrid[:24, :40]
    near = (abs(y - 11) <= dilate) & (abs(x - 17) <= dilate)
    assert torch.equal(token_mask(mask, CELL, dilate=dilate), token_mask(near, CELL))


def test_known_tokens_are_row_major():
    tokens = torch.arange(12).view(3, 4)
    unknown = torch.zeros(3, 4, dtype=torch.bool)
    unknown[1, 2] = unknown[2, 0] = True
    expected = [0, 1, 2, 3, 4, 5, -1, 7, -1, 9, 10, 11]
    assert known_tokens(tokens, unknown).tolist() == known_tokens(tokens.flatten(), unknown).tolist() == expected


def test_tokens_and_masks_of_other_sizes_are_refused():
    with pytest.raises(UserError, match="30 x 32.*28 x 32"):
        token_mask(square(32, 30), CELL)
    with pytest.raises(UserError, match="at least 0 pixels .-1"):
        token_mask(square(), CELL, dilate=-1)
    with pytest.raises(UserError, match=r"\(4, 3\) and \(3, 4\)"):
        known_tokens(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.bool))


def test_the_hole_is_filled_from_outside():
    """What lay under the mask leaves no trace, the rest stays. Seen to fail with the image returned."""
    image, other = torch.from_numpy(pixels(2, 3, SIDE, SIDE))
    mask = square()
    other = torch.where(torch.from_numpy(mask), other, image)
    assert torch.equal(fill_unknown(image, mask), fill_unknown(other, mask))
    assert torch.equal(fill_unknown(image, mask)[:, ~mask], image[:, ~mask])
    assert torch.equal(fill_unknown(image, mask)[:, 5, 12], image[:, 4, 12])
    assert (fill_unknown(image, np.ones_like(mask)) == 128).all()


# --- compositing


@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "P", "1", "CMYK"])
def test_known_pixels_are_the_inputs_bit_for_bit(mode, feather, tmp_path):
    """Through load_mask, composite and a PNG file, alpha and 16 bits included.

    Seen to fail with the blend taken over the whole image (rounding), with feathering outside the hole, and
    with alpha set to 255 everywhere.
    """
    source = picture(mode)
    mask = square()
    loaded, found = load_mask(source, mask)
    assert np.array_equal(found, mask)
    composite(loaded, drawn(), found, feather=feather).save(tmp_path / "out.png")
    result = Image.open(tmp_path / "out.png")
    expected = {"P": "RGB", "1": "L", "CMYK": "RGB"}.get(mode, mode)
    assert result.mode == expected
    before = np.asarray(source.convert(expected) if expected != mode else source)
    assert np.array_equal(np.asarray(result)[~mask], before[~mask])
    assert not np.array_equal(np.asarray(result)[mask], before[mask])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_the_hole_shows_what_was_drawn(mode):
    """Opaque, and on the scale of the mode. Seen to fail with 8-bit values written into a 16-bit image."""
    mask = square()
    result = composite(picture(mode), drawn(), mask)
    if mode == "I;16":
        expected = np.asarray(drawn().convert("L")).astype(np.uint16) * 257
    else:
        expected = np.asarray(drawn().convert(mode))
    assert np.array_equal(np.asarray(result)[mask], expected[mask])


def test_feather_fades_inside_the_hole_alone():
    """White on black: the share of the drawn image by distance to the nearest known pixel, in quarters."""
    mask = square(top=8, left=8, size=16)
    black, white = Image.new("RGB", (SIDE, SIDE)), Image.new("RGB", (SIDE, SIDE), "white")
    row = np.asarray(composite(black, white, mask, feather=3))[16, :, 0]
    assert row[5:14].tolist() == [0, 0, 0, 64, 128, 191, 255, 255, 255]


def test_feather_takes_no_colour_from_transparent_pixels():
    """Red under alpha 0 must not glow through. Seen to fail with a blend that ignores alpha."""
    mask = square()
    source = np.zeros((SIDE, SIDE, 4), np.uint8)
    source[..., 0] = 255
    source[~mask] = [0, 0, 255, 255]
    loaded, found = load_mask(Image.fromarray(source))
    assert np.array_equal(found, mask)
    result = np.asarray(composite(loaded, Image.new("RGB", (SIDE, SIDE), "blue"), found, feather=4))
    assert (result == [0, 0, 255, 255]).all()


def test_all_white_mask_paints_everything():
    mask = np.ones((SIDE, SIDE), dtype=bool)
    result = composite(picture("RGB"), drawn(), mask, feather=5)
    assert np.array_equal(np.asarray(result), np.asarray(drawn()))


def test_colour_profile_is_kept():
    source = picture("RGB")
    source.info["icc_profile"] = b"profile"
    assert composite(source, drawn(), square()).info["icc_profile"] == b"profile"


# --- reading masks


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_masks_of_every_mode(mode, tmp_path):
    """White on black, written and read: the same hole whatever the file holds."""
    mask = square()
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    if mode == "I;16":
        image = Image.fromarray(mask.astype(np.uint16) * 65535)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "mask.png")
    assert np.array_equal(load_mask(picture("RGB"), tmp_path / "mask.png")[1], mask)


def test_threshold_is_128():
    grey = pixels(SIDE, SIDE)
    mask = load_mask(picture("L"), Image.fromarray(grey))[1]
    assert np.array_equal(mask, grey >= 128)
    deep = pixels(SIDE, SIDE, high=65536, dtype=np.uint16)
    assert np.array_equal(load_mask(picture("L"), Image.fromarray(deep))[1], deep >= 128 * 257)


def test_strokes_on_a_transparent_layer():
    """White under alpha 0 is no stroke. Seen to fail with alpha dropped by a plain conversion to L."""
    layer = np.full((SIDE, SIDE, 4), 255, np.uint8)
    mask = square()
    layer[~mask, 3] = 0
    assert np.array_equal(load_mask(picture("RGB"), Image.fromarray(layer))[1], mask)


def test_transparency_of_a_palette_is_a_hole(tmp_path):
    source = picture("P")
    source.save(tmp_path / "p.png", transparency=7)
    loaded, mask = load_mask(tmp_path / "p.png")
    assert loaded.mode == "RGBA"
    assert np.array_equal(mask, np.asarray(source) == 7)


def test_orientation_is_applied_to_the_picture(tmp_path):
    """A phone's upright photograph lies on its side in the file; the mask was painted on what is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("RGB", 16, 32).save(tmp_path / "photo.png", exif=exif)
    loaded, _ = load_mask(tmp_path / "photo.png", square(32, 16, left=2, size=8))
    assert loaded.size == (16, 32)


def test_a_black_mask_is_an_empty_hole():
    assert not load_mask(picture("RGB"), Image.new("L", (SIDE, SIDE), 127))[1].any()


def test_fit_keeps_every_stroke():
    """Any white in what becomes one pixel counts. Seen to fail with nearest-neighbour resizing."""
    for y in range(0, 2 * SIDE, 7):
        fine = np.zeros((2 * SIDE, 2 * SIDE), dtype=bool)
        fine[y, 5:50] = True
        mask = load_mask(picture("RGB"), fine, fit=True)[1]
        assert mask.sum() == 23
        assert mask[y // 2, 2:25].all()
    coarse = square(SIDE // 2, SIDE // 2, top=3, left=4, size=5)
    assert np.array_equal(load_mask(picture("RGB"), coarse, fit=True)[1], coarse.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_larger_mask_or_an_extension_paints_beyond_the_picture(mode):
    """Seen to fail with rows and columns of the place exchanged."""
    small = to_storable_mode(picture(mode, 12, 20))
    mask = np.ones((30, 40), dtype=bool)
    mask[4:16, 15:35] = False  # here lies the image
    for loaded, hole in (
        load_mask(small, mask),
        load_mask(small, np.zeros((12, 20), bool), extend_by=Extension(left=15, top=4, right=5, bottom=14)),
    ):
        assert loaded.mode == small.mode
        assert loaded.size == (40, 30)
        assert np.array_equal(hole, mask)
        assert np.array_equal(np.asarray(loaded)[4:16, 15:35], np.asarray(small))


def test_bad_masks_are_refused(tmp_path):
    rgb = picture("RGB")
    with pytest.raises(UserError, match="image 32 x 32, mask 16 x 8"):
        load_mask(rgb, np.ones((8, 16), bool))
    with pytest.raises(UserError, match="a mask is needed.*mode RGB"):
        load_mask(rgb)
    with pytest.raises(UserError, match="opaque everywhere"):
        load_mask(rgb.convert("RGBA"))
    with pytest.raises(UserError, match="float64"):
        load_mask(rgb, np.full((SIDE, SIDE), 1.5))
    with pytest.raises(UserError, match="mask cannot be opened.*nothere.png"):
        load_mask(rgb, tmp_path / "nothere.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"image cannot be read.*text\.png"):
        load_mask(tmp_path / "text.png", np.ones((SIDE, SIDE), bool))
    frames = [Image.new("L", rgb.size, grey) for grey in (0, 255)]
    for name in ("moving.gif", "moving.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(UserError, match=f"mask must be a single image.*{name}: 2 frames"):
            load_mask(rgb, tmp_path / name)
    whole = (tmp_path / "moving.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match=r"mask cannot be.*cut\.png"):
        load_mask(rgb, tmp_path / "cut.png")
    with pytest.raises(UserError, match="floating-point"):
        to_storable_mode(Image.new("F", (4, 4)))


def test_bad_composites_are_refused():
    with pytest.raises(UserError, match="image 32 x 32, sample 16 x 32, mask 32 x 32"):
        composite(picture("RGB"), drawn(32, 16), square())
    with pytest.raises(UserError, match="at least 0 pixels"):
        composite(picture("RGB"), drawn(), square(), feather=-1)


@pytest.mark.parametrize("feather", [0, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_crop_is_composited_as_the_whole_image(mode, feather):
    image, new, mask = picture(mode), drawn(), square()
    whole = composite(image, new, mask, feather=feather)
    part = composite(image, new.crop((8, 3, SIDE, SIDE)), mask, feather=feather, origin=(3, 8))
    assert np.array_equal(np.asarray(part), np.asarray(whole))
    assert np.array_equal(np.asarray(composite(image, new, mask & False)), np.asarray(image))
