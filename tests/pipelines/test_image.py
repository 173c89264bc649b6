"""A model from its folder: the same images however they are asked for, and holes filled without a trace elsewhere."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.blending import blend_seam
from ggm_image.image.extension import Extension
from ggm_image.image.io import rgb_pixels, to_pil
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.pipelines.base import image_generator, rows_per_call
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.inpaint import Inpainter
from ggm_image.pipelines.load import load_model
from ggm_image.runtime.devices import choose_device
from ggm_image.sampler.settings import Settings
from ggm_image.tokenizers.registry import load_tokenizer
from tests.models import tiny_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_model_folder(tmp_path_factory.mktemp("model")))


FAST = Settings(order="signal", sweeps=1, block=4)


@pytest.mark.parametrize(
    "settings",
    [
        FAST,
        Settings(order="signal", sweeps=2, block=4),
        Settings(order="signal", sweeps=2, block=8, first_block=3, first_order="halton"),
        Settings(order="schedule", sweeps=2, block=4),
        Settings(order="schedule", sweeps=1, block=4, guidance=2.0, temperature=0.8, top_k=10, top_p=0.9),
    ],
)
def test_picture_depends_on_its_seed_and_index_alone(model: Model, settings: Settings) -> None:
    # seen to fail with the seed's own generator for every image
    n = model.kernel_batch + 3
    whole = model.sample_tokens(model.labels(n, "cat"), seed=5, settings=settings)
    assert torch.equal(model.sample_tokens(model.labels(2, "cat"), seed=5, settings=settings), whole[:2])
    later = model.sample_tokens(model.labels(3, "cat"), seed=5, settings=settings, first=n - 3)
    assert torch.equal(later, whole[-3:])
    assert not torch.equal(model.sample_tokens(model.labels(2, "cat"), seed=6, settings=settings), whole[:2])


def test_generators_differ_by_seed_and_index() -> None:
    # seen to fail with seed + index as the generator's seed: (0, 1) and (1, 0) were the same
    seeds = {image_generator(s, k).initial_seed() for s in range(20) for k in range(20)}
    assert len(seeds) == 400


def test_number_of_network_calls_is_as_announced(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    for settings, expected in (
        (FAST, 4),
        (Settings(order="signal", sweeps=3, block=5), 12),
        (Settings(order="signal", sweeps=3, block=8, first_block=3), 6 + 4),
        (Settings(order="schedule", sweeps=2, block=3, first_block=16), 12),
    ):
        calls.clear()
        model.sample_tokens([0], settings=settings)
        assert len(calls) == settings.calls(16) == expected


def test_classes_by_name_and_index(model: Model) -> None:
    assert model.labels(2, "Dog") == model.labels(2, 1) == model.labels(2, "1") == [1, 1]
    assert model.labels(4, None) == [0, 1, 2, 0]
    assert model.labels(2, ["cat", 2]) == [0, 2]
    with pytest.raises(UserError, match="did you mean cat"):
        model.label("cta")
    with pytest.raises(UserError, match="choose one of cat, dog, ship"):
        model.label("xyzzy")
    with pytest.raises(UserError, match="no such class"):
        model.label(3)
    with pytest.raises(UserError, match="at least 1"):
        model.labels(0, "cat")


def test_settings_and_presets(model: Model) -> None:
    assert model.settings("exact") == Settings(order="schedule", sweeps=4, block=1)
    assert model.settings("fast", block=2, top_k=None).block == 2
    with pytest.raises(UserError, match="did you mean sweeps"):
        Settings.of({"sweep": 1})
    with pytest.raises(UserError, match="no such preset"):
        model.settings("bset")


def test_guidance_needs_no_more_than_the_class(model: Model) -> None:
    # with weight 0 the class has no effect
    unguided = Settings(order="schedule", sweeps=1, block=4, guidance=0.0)
    a = model.sample_tokens([0, 0], seed=1, settings=unguided)
    assert torch.equal(a, model.sample_tokens([1, 2], seed=1, settings=unguided))


def test_guidance_that_grows_leaves_the_first_call_alone(model: Model) -> None:
    # Seen to fail with the power not handed on.
    draw = [
        model.sample_tokens([0, 1, 2], seed=1, settings=Settings(block=1 << 20, guidance=weight, guidance_power=power))
        for weight, power in ((1.0, 0.0), (9.0, 1.0), (9.0, 0.0))
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


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


def test_black_mask_gives_the_picture_and_white_one_a_sample(model: Model) -> None:
    # seen to fail with another seed for the first window
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    [same] = model.inpaint(image, Image.new("L", (16, 16), 0), settings=FAST)
    assert np.array_equal(np.asarray(same), np.asarray(image))
    for settings in (FAST, Settings(order="schedule", sweeps=2, block=4, guidance=2.0)):
        white = model.inpaint(image, Image.new("L", (16, 16), 255), n=2, classes="dog", seed=4, settings=settings)
        plain = model.sample(2, classes="dog", seed=4, settings=settings)
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


def test_extended_picture_keeps_its_pixels(model: Model) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    by = Extension(left=8, bottom=20)
    for feather in (0, 3):
        [result] = model.inpaint(Image.fromarray(pixels), extend=by, settings=FAST, feather=feather)
        assert result.size == (24, 36)
        assert np.array_equal(np.asarray(result)[:16, 8:], pixels)


def test_signal_of_any_size_is_the_mean_over_windows(model: Model) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (16, 30, 3), dtype=np.uint8)
    found = model.signal(Image.fromarray(pixels))
    assert found.shape == (4, 7)
    left = model.signal(Image.fromarray(pixels[:, :16]))
    right = model.signal(Image.fromarray(pixels[:, 12:28]))
    expected = torch.cat([left[:, :3], (left[:, 3:] + right[:, :1]) / 2, right[:, 1:]], dim=1)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="at least 4 pixels"):
        model.signal(Image.new("RGB", (3, 16)))


def test_signal_judges_windows_in_batches(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail with a network call for every window
    pixels = np.random.default_rng(5).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    rows: list[int] = []
    forward = model.network.forward
    monkeypatch.setattr(model.network, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest))
    found = model.signal(Image.fromarray(pixels), block=4)
    assert rows == [model.kernel_batch] * 2 * 4  # 20 windows in two batches, 16 sites in blocks of 4
    corner = model.signal(Image.fromarray(pixels[:16, :16]), block=4)
    torch.testing.assert_close(found[:4, :4], corner)


def test_a_folder_of_pictures_does_not_hide_a_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail: the README's own commands unpack CIFAR-10 into a folder cifar10
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10-f4-4096").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("cifar10").name == "cifar10"


def test_model_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_model(tmp_path)
    folder = tiny_model_folder(tmp_path / "a")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="whole safetensors file"):
        load_model(folder)
    weights.write_bytes(whole)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("width: 32", "width: 64"))
    with pytest.raises(UserError, match="must fit the architecture"):
        load_model(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        load_model(tiny_model_folder(tmp_path, spoil=lambda state: state["head_bias"].fill_(torch.nan)))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    # seen to fail without the comparison of hashes in load_model
    folder = tiny_model_folder(tmp_path / "a", seed=0)
    other = tiny_model_folder(tmp_path / "b", seed=1)
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / "a" / "tokenizer" / name).write_bytes((other.parent / "tokenizer" / name).read_bytes())
    with pytest.raises(UserError, match="was trained with tokenizer"):
        load_model(folder)


def test_network_config_round_trip(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    assert load_model(folder).network.config == NetworkConfig(
        **asdict(NetworkConfig(codebook_size=32, classes=3, grid=[4, 4], width=32, depth=2, heads=2))
    )


ALL_SETTINGS = [
    FAST,
    Settings(order="signal", sweeps=2, block=3, first_block=5, guidance=2.5, guidance_power=1.0),
    Settings(order="signal", sweeps=3, block=4, guidance=1.5, first_order="halton", revise_share=0.5),
    Settings(order="signal", sweeps=2, block=4, first_order="bayer", top_k=9),
    Settings(order="schedule", sweeps=2, block=3),
    Settings(order="schedule", sweeps=1, block=4, guidance=2.0, temperature=0.8, top_p=0.9),
]


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize("seed", range(3))
def test_a_row_with_its_own_known_sites_is_the_row_alone(model: Model, settings: Settings, seed: int) -> None:
    """Random batches: few and many known sites, none, all, and patterns that occur again.

    Seen to fail with the number of calls taken from the first row: 55 of 60 sites differed.
    """
    rng = np.random.default_rng(seed)
    n = 6
    known = np.full((n, 16), -1)
    for row, count in zip(known, [0, 16, *rng.integers(0, 17, n - 3)], strict=False):
        row[rng.permutation(16)[:count]] = rng.integers(0, 32, count)
    known[-1] = np.where(known[2] < 0, -1, (known[2] + 1) % 32)
    order = rng.permutation(n)
    rows, labels = torch.from_numpy(known[order]), rng.integers(0, 3, n).tolist()
    together = model.sample_tokens(labels, seed=seed, settings=settings, known=rows)
    for k in range(n):
        alone = model.sample_tokens(labels[k : k + 1], seed=seed, settings=settings, known=rows[k : k + 1], first=k)
        assert torch.equal(together[k], alone[0]), k
        assert torch.equal(together[k].flatten()[rows[k] >= 0], rows[k][rows[k] >= 0])


def test_rows_of_one_pattern_share_their_calls(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a batch is finished when it is told: the grids of `on_batch` are those of the result."""
    shapes, told = [], []
    forward = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", lambda self, *a: shapes.append(len(a[0])) or forward(self, *a))
    known = torch.full((4, 16), -1)
    known[1::2, :8] = 3
    found = model.sample_tokens([0] * 4, settings=FAST, known=known, on_batch=told.append)
    assert shapes == [model.kernel_batch] * (4 + 2)
    assert torch.equal(torch.cat(told), found[[0, 2, 1, 3]])
    with pytest.raises(UserError, match="same known sites in every image .2 patterns"):
        model.sample_tokens([0] * 4, settings=FAST, known=known, callback=lambda t, tokens: None)


def test_known_tokens_of_any_kind(model: Model) -> None:
    known = [-1] * 15 + [7]
    expected = model.sample_tokens([0, 1], settings=FAST, known=torch.tensor(known))
    for same in (known, np.array(known), np.array([known, known], dtype=np.int32)):
        assert torch.equal(model.sample_tokens([0, 1], settings=FAST, known=same), expected)
    for wrong in (known[1:], [known] * 3, [float(k) for k in known]):
        with pytest.raises(UserError, match="known tokens do not fit"):
            model.sample_tokens([0, 1], settings=FAST, known=wrong)
    with pytest.raises(UserError, match=r"a label must be at most 3 \(got 4\)"):
        model.sample_tokens([4])


def test_a_grid_does_not_depend_on_the_others_that_are_judged(model: Model) -> None:
    """Every call has the same number of rows. Seen to fail with a last batch that is not padded."""
    tokens = torch.randint(0, 32, (model.kernel_batch + 2, 4, 4), generator=torch.Generator().manual_seed(1))
    shapes = []
    forward = Transformer.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", lambda self, *a: shapes.append(len(a[0])) or forward(self, *a))
        found = model.signal_of_tokens(tokens)
    assert set(shapes) == {model.kernel_batch}
    assert torch.equal(model.signal_of_tokens(tokens[-1:])[0], found[-1])


def test_nothing_asked_for_is_nothing(model: Model) -> None:
    assert model.sample(0).shape == (0, 3, 16, 16)
    assert model.sample(0).dtype == torch.uint8
    assert model.sample(0, output="pil") == []
    assert model.sample(0, output="np").shape == (0, 16, 16, 3)
    assert model.sample_tokens([]).shape == (0, 4, 4)
    assert model.decode(model.sample_tokens([])).shape == (0, 3, 16, 16)
    assert model.inpaint(Image.new("RGB", (16, 16)), np.ones((16, 16), bool), n=0) == []
    assert model.encode(torch.zeros(0, 3, 16, 16, dtype=torch.uint8)).shape == (0, 4, 4)
    assert model.signal_of_tokens(torch.zeros(0, 4, 4, dtype=torch.int64)).shape == (0, 4, 4)
    for n in (-1, 1.5, True, "3"):
        with pytest.raises(UserError, match="number of images must be"):
            model.sample(n)  # type: ignore[call-overload]


def test_samples_as_tensor_array_or_images(model: Model) -> None:
    expected = model.sample(2, seed=3, preset="fast")
    assert expected.dtype == torch.uint8
    assert torch.equal(model.sample(2, seed=3, preset="fast", output="pt"), expected)
    array = model.sample(2, seed=3, preset="fast", output="np")
    assert np.array_equal(array, expected.permute(0, 2, 3, 1).numpy())
    images = model.sample(2, seed=3, preset="fast", output="pil")
    assert all(np.array_equal(image, row) for image, row in zip(images, array, strict=True))
    with pytest.raises(UserError, match="no such output .got 'jpg'.; choose one of pt, pil, np"):
        model.sample(1, output="jpg")  # type: ignore[call-overload]


def test_settings_are_changed_by_name(model: Model) -> None:
    base = Settings(order="schedule", sweeps=1, block=4)
    expected = model.sample(2, classes="cat", settings=Settings(order="schedule", sweeps=1, block=4, guidance=3.0))
    for guidance in (3, 3.0, np.float32(3), np.int64(3)):
        assert torch.equal(model.sample(2, classes="cat", settings=base, guidance=guidance), expected)
    fast = model.settings("fast", guidance=3)
    assert torch.equal(model.sample(2, preset="fast", guidance=3), model.sample(2, settings=fast))
    with pytest.raises(UserError, match="did you mean guidance"):
        model.sample(1, guidence=3)
    image, mask = Image.new("RGB", (16, 16), "red"), np.ones((16, 16), bool)
    [one], [other] = model.inpaint(image, mask, block=2), model.inpaint(image, mask, settings=model.settings(block=2))
    assert np.array_equal(one, other)


def test_guidance_without_a_class_is_said_to_do_nothing(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.inpaint(Image.new("RGB", (16, 16), "red"), np.ones((16, 16), bool), settings=FAST, guidance=3)
    assert capsys.readouterr().err == "guidance has no effect without a class\n"


@pytest.mark.parametrize(
    "classes",
    [
        ["cat", "ship", "dog"],
        ("cat", 2, np.int64(1)),
        np.array([0, 2, 1]),
        np.array(["cat", "ship", "dog"]),
        torch.tensor([0, 2, 1]),
        iter(["cat", "ship", 1]),
    ],
)
def test_classes_of_any_kind(model: Model, classes: Any) -> None:
    assert model.labels(3, classes) == [0, 2, 1]


def test_one_class_of_any_kind(model: Model) -> None:
    for classes in (2, np.int64(2), np.array(2), torch.tensor(2), "ship", np.str_("ship"), "2"):
        assert model.labels(2, classes) == [2, 2]
    for wrong in (True, 2.0, np.float64(2), object(), ["cat", None]):
        with pytest.raises(UserError, match=r"no such class|a class is a name"):
            model.labels(2, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [True, 1.5, "1", None, np.float64(1)])
def test_what_is_no_seed_is_refused(model: Model, seed: Any) -> None:
    """Seen to fail: True and 1.5 gave images of seeds of their own."""
    image, mask = Image.new("RGB", (16, 16)), np.ones((16, 16), bool)
    for use in (
        lambda: model.sample(1, seed=seed, settings=FAST),
        lambda: model.sample_tokens([0], seed=seed, settings=FAST),
        lambda: model.inpaint(image, mask, seed=seed, settings=FAST),
        lambda: model.manifest(1, classes=None, seed=seed, settings=FAST),
    ):
        with pytest.raises(UserError, match="a seed must be a whole number"):
            use()


def test_a_seed_of_numpy_is_its_number(model: Model) -> None:
    expected = model.sample_tokens([0], seed=7, settings=FAST)
    assert torch.equal(model.sample_tokens([0], seed=np.int32(7), settings=FAST), expected)  # type: ignore[arg-type]
    assert model.manifest(1, classes=None, seed=np.int32(7), settings=FAST)["seed"] == 7  # type: ignore[arg-type]


def test_images_of_any_kind(model: Model, tmp_path: Path) -> None:
    """A path, bytes, an open file, Pillow, arrays and tensors: the same pixels, so the same answer, map and tokens."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16), bool)
    mask[3:9, 3:9] = True
    image, path = Image.fromarray(pixels), tmp_path / "image.png"
    image.save(path)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    [sample] = model.inpaint(image, mask, settings=FAST)
    tokens = model.encode(tensor[None])
    for source in (path, str(path), path.read_bytes(), pixels, tensor, tensor[None], tensor.numpy()):
        assert np.array_equal(model.inpaint(source, mask, settings=FAST)[0], sample)
        assert torch.equal(model.signal(source), model.signal(image))
        assert torch.equal(model.encode(source), tokens)
        if not isinstance(source, torch.Tensor):  # of a tensor, `encode` takes floats alone
            assert torch.equal(model.tokenizer.encode(source), tokens)
    with path.open("rb") as file:
        assert np.array_equal(model.inpaint(file, mask, settings=FAST)[0], sample)
    for several in ([image, path], np.stack([pixels] * 2), (image for _ in range(2))):
        assert torch.equal(model.tokenizer.encode(several), tokens.repeat(2, 1, 1))
    with pytest.raises(UserError, match="of one size .16 x 16 and 20 x 16"):
        model.tokenizer.encode([image, image.resize((20, 16))])
    with pytest.raises(UserError, match="at least one image"):
        model.tokenizer.encode([])
    for wrong in (pixels / 255, tensor.float(), pixels.astype(np.int64), np.zeros((16, 16, 5), np.uint8)):
        with pytest.raises(UserError, match=r"must be uint8 pixels .*multiply values in \[0, 1\] by 255"):
            model.inpaint(wrong, mask, settings=FAST)
    with pytest.raises(UserError, match="of the type NoneType.; give a path"):
        model.signal(None)  # type: ignore[arg-type]


def test_the_device_is_chosen_as_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(folder).device == torch.device("cpu")
    for load in (
        lambda: load_model(folder, device="cuda"),
        lambda: load_tokenizer(tmp_path / "tokenizer", device="cuda"),
    ):
        with pytest.raises(UserError, match=r"device is not available \(cuda, 0 CUDA devices found\)"):
            load()
    with pytest.raises(UserError, match="no such device"):
        load_model(folder, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(("grid", "rows"), [((8, 8), 128), ((12, 12), 64), ((16, 16), 32), ((24, 24), 32)])
def test_a_gpu_is_given_fewer_rows_of_larger_grids(grid: tuple[int, int], rows: int) -> None:
    assert rows_per_call(torch.device("cuda"), grid[0] * grid[1]) == rows
    assert rows_per_call(torch.device("cpu"), grid[0] * grid[1]) == 16
