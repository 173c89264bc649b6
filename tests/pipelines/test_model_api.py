"""What a page, a notebook or a service needs of a model: progress, cancelling, streams, threads, saving."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.settings import Settings


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder, device="cpu")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        Settings(order="signal", sweeps=2, block=4),
        Settings(order="schedule", sweeps=2, block=3),
        Settings(order="signal", sweeps=2, block=8, first_block=3, first_order="halton"),
    ],
)
def test_progress_counts_every_call_of_every_batch(model: Model, settings: Settings, image: Image.Image) -> None:
    told: list[tuple[int, int]] = []
    model.sample(model.kernel_batch + 1, settings=settings, on_progress=lambda *step: told.append(step))
    total = 2 * settings.calls(16)
    assert told == [(k, total) for k in range(total + 1)]

    told.clear()
    mask = np.zeros((20, 24), dtype=bool)
    mask[:, 2:22] = True  # two windows
    model.inpaint(image, mask, n=model.paint_batch + 1, settings=settings, on_progress=lambda *step: told.append(step))
    total = told[0][1]
    assert model.plan_inpainting(mask).calls > 1
    assert told == [(k, total) for k in range(total + 1)]


def test_what_progress_raises_cancels(model: Model, image: Image.Image) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        model.sample(1, on_progress=stop)
    with pytest.raises(Stopped):
        model.inpaint(image, np.ones((20, 24), dtype=bool), on_progress=stop)
    assert not torch.is_inference_mode_enabled()
    assert model.sample(1).shape == (1, 3, 16, 16)


def test_stream_gives_the_images_of_sample(model: Model) -> None:
    whole = model.sample(7, seed=3, first=2)
    parts = list(model.stream(7, seed=3, first=2, batch=3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), whole)
    assert [len(part) for part in model.stream(model.kernel_batch + 1, preset="fast", output="pil")][1:] == [1]
    assert list(model.stream(0)) == []
    with pytest.raises(UserError, match="no such class"):
        model.stream(2, classes="horse")  # before it is iterated
    with pytest.raises(UserError, match="no such output"):
        model.stream(2, output="jpeg")


def test_grid_is_one_image_that_a_notebook_shows(model: Model) -> None:
    grid = model.sample(4, seed=1, output="grid")
    assert grid.size == (32, 32)
    assert grid._repr_png_().startswith(b"\x89PNG")
    images = model.sample(4, seed=1, output="np")
    assert np.array_equal(np.asarray(grid)[16:, :16], images[2])
    with pytest.raises(UserError, match="at least 1"):
        model.sample(0, output="grid")


def test_repr_names_the_sizes(model: Model) -> None:
    assert repr(model).startswith("Model('model', 16 x 16 pixels, 4 x 4 tokens of 32 codes (tiny), 3 classes, ")
    assert repr(model).endswith(" million parameters, cpu, fp32)") or repr(model).endswith("cpu, bf16)")


def test_to_moves_the_model_and_keeps_its_samples(
    model_folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_model(model_folder, device="cpu")
    assert other.to("cpu") is other
    assert torch.equal(other.sample(2), model.sample(2))
    monkeypatch.setattr("ggm_image.pipelines.token_model.native_bf16", lambda device: True)
    assert next(other.to("cpu").network.parameters()).dtype == torch.bfloat16
    monkeypatch.setattr("ggm_image.pipelines.token_model.native_bf16", lambda device: False)
    # nothing was rounded
    assert torch.equal(other.to("cpu").sample(2), load_model(model_folder, device="cpu").sample(2))
    with pytest.raises(UserError, match="no such device"):
        other.to("tpu")


def test_threads_share_a_model(model: Model, image: Image.Image) -> None:
    mask = np.zeros((20, 24), dtype=bool)
    mask[4:12, 4:12] = True

    def work(seed: int) -> tuple[torch.Tensor, bytes]:
        samples = model.sample(2, seed=seed, preset="fast")
        return samples, model.inpaint(image, mask, seed=seed, preset="fast")[0].tobytes()

    alone = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(8)))
    for (samples, inpainted), (expected, expected_bytes) in zip(together, alone, strict=True):
        assert torch.equal(samples, expected)
        assert inpainted == expected_bytes
    assert len({samples.numpy().tobytes() for samples, _ in alone}) == 8


def test_saved_model_needs_nothing_else(model_folder: Path, model: Model, tmp_path: Path) -> None:
    saved = model.save(tmp_path / "one")
    moved = saved.rename(tmp_path / "two")
    assert sorted(path.name for path in moved.rglob("*.*")) == sorted(2 * ["config.yaml", "model.safetensors"])
    assert str(model_folder.parent) not in (moved / "config.yaml").read_text()
    again = load_model(moved, device="cpu")
    assert again.tokenizer_source == moved / "tokenizer"
    assert torch.equal(again.sample(2), model.sample(2))
    third = load_model(again.save(tmp_path / "three"), device="cpu")
    assert third.identity == model.identity
    with pytest.raises(UserError, match="new or empty"):
        model.save(moved)
