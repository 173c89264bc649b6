"""What the methods of a model take: classes, seeds, settings, images and outputs of any kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.pipelines.image import Model
from ggm_image.sampler.settings import Settings
from tests.models import FAST


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
    with pytest.raises(UserError, match="did you mean 'sweeps'"):
        Settings.of({"sweep": 1})
    with pytest.raises(UserError, match="no such preset"):
        model.settings("bset")


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
    with pytest.raises(UserError, match="did you mean 'guidance'"):
        model.sample(1, guidence=3)
    image, mask = Image.new("RGB", (16, 16), "red"), np.ones((16, 16), bool)
    [one], [other] = model.inpaint(image, mask, block=2), model.inpaint(image, mask, settings=model.settings(block=2))
    assert np.array_equal(one, other)


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
