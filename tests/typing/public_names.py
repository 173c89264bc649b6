"""A user's program. `make lint` checks it with mypy --strict and --disallow-any-expr; nothing runs it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import assert_type

import ggm_image
from ggm_image import load_model, load_tokenizer
from ggm_image.errors import UserError
from ggm_image.glauber import add_noise, heat_bath, sample_codes, signal_logit, uniform_noise
from ggm_image.image.visualize import heat_map
from ggm_image.objective import loss
from ggm_image.pipelines.image import Model, Pixels
from ggm_image.pipelines.text import TextModel
from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import Schedule, Step, TrainingState, random_training_state
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.text import ByteTokenizer


def on_progress(done: int, total: int) -> None:
    print(f"{done} of {total}")


def images(folder: Path) -> None:
    """Every output of a model, and what can be done with an image."""
    assert_type(ggm_image.__version__, str)
    model = load_model("cifar10", device=torch.device("cpu"), tokenizer=folder, compiled=False, cuda_graphs=None)
    assert_type(model, Model)
    assert_type(model.sample(4, classes="cat", seed=0), Tensor)
    assert_type(model.sample(2, output="pt", classes=["cat", 3], on_progress=on_progress), Tensor)
    assert_type(model.sample(4, output="pil", guidance=3.0), list[Image.Image])
    assert_type(model.sample(output="grid", preset="fast", top_k=100), Image.Image)
    pixels = model.sample(4, output="np", settings=model.settings("fast", temperature=0.9))
    assert_type(pixels, Pixels)
    assert_type(pixels.shape, tuple[int, int, int, int])
    image = Image.fromarray(pixels[0].astype(np.uint8))  # type: ignore[misc]  # NumPy's own Any

    assert_type(model.stream(100, batch=10), Iterator[Tensor])
    assert_type(model.stream(100, output="pil", classes=3), Iterator[list[Image.Image]])
    assert_type(model.stream(100, output="grid"), Iterator[Image.Image])
    for batch in model.stream(100, output="np", guidance=2.0):
        assert_type(batch, Pixels)

    mask = torch.zeros(32, 32, dtype=torch.bool)
    for source in (image, pixels, torch.zeros(3, 32, 32, dtype=torch.uint8), folder / "image.png", b"bytes"):
        answers = model.inpaint(source, mask, n=2, classes=None, feather=1, scales="auto", on_progress=on_progress)
        assert_type(answers, list[Image.Image])
    assert_type(model.inpaint("image.png", "mask.png", scales=2, sweeps=2), list[Image.Image])

    signal = model.signal(image, level=0.5)
    assert_type(signal, Tensor)
    assert_type(heat_map(image, signal, model.tokenizer.downscale), Image.Image)

    assert_type(model.to("cpu"), Model)
    assert_type(model.save(folder), Path)
    assert_type(model.class_names, list[str])
    assert_type(model.image_size, tuple[int, int])
    assert_type(model.device, torch.device)
    assert_type(model.name, str)
    assert_type(model.sha256, str)
    assert_type(model.label("cat"), int)
    assert_type(model.labels(3, None), list[int])
    assert_type(model.presets["best"], Settings)
    assert_type(model.tokenizer, Tokenizer)
    assert_type(model.encode([image]), Tensor)
    tokens = model.sample_tokens([0, 1], seed=1)
    assert_type(model.decode(tokens), Tensor)
    assert_type(model.signal_of_tokens(tokens), Tensor)


def texts() -> None:
    """A model of text has to be asked for by its modality."""
    model = load_model("runs/books/model", modality="text")
    assert_type(model, TextModel)
    assert_type(model.sample(4, length=100, temperature=0.8), list[bytes])
    assert_type(model.infill("It was the ____ of times", n=4), list[bytes])
    assert_type(model.signal(b"text"), Tensor)
    assert_type(load_tokenizer("bytes"), ByteTokenizer)


def tokens(folder: Path) -> Tensor:
    """Images to tokens and back."""
    tokenizer = load_tokenizer(folder, device="cpu")
    assert_type(tokenizer, Tokenizer)
    codes = tokenizer.encode(torch.zeros(1, 3, 32, 32))
    assert_type(codes, Tensor)
    assert_type(tokenizer.encode(folder / "image.png", half=True), Tensor)
    assert_type(tokenizer.encode([Image.new("RGB", (32, 32))]), Tensor)
    assert_type(tokenizer.name, str)
    assert_type(tokenizer.codebook_size, int)
    assert_type(tokenizer.identity, dict[str, str])
    return tokenizer.decode(codes)


class UniformDenoiser:
    """Any callable of this shape is a denoiser."""

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        return torch.zeros(len(tokens), sites.shape[-1], 16)


def mathematics() -> Tensor:
    """The chain, its schedule and its samplers."""
    noise, generator = uniform_noise(16), torch.Generator().manual_seed(0)
    logits = torch.randn(2, 16, generator=generator)
    log_probs = heat_bath(logits, 0.5, noise)
    assert_type(log_probs, Tensor)
    assert_type(signal_logit(logits, torch.full((2,), 0.5), 0.9, noise), Tensor)
    assert_type(sample_codes(log_probs, torch.rand(2)), Tensor)
    assert_type(add_noise(torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4), noise, generator=generator), Tensor)

    clean = torch.zeros(2, dtype=torch.int64)
    assert_type(loss("binary", logits, clean, torch.full((2,), 0.5), None, noise), Tensor)

    schedule = Schedule.round_robin(2, 2, sweeps=3, block=1, final_level=0.0, curve="sqrt")
    assert_type(schedule, Schedule)
    assert_type(schedule.steps, tuple[Step, ...])
    assert_type(schedule.steps[0].sites, Tensor)
    assert_type(schedule.steps[0].keep, float)
    assert_type(schedule.levels(0), Tensor)
    state = random_training_state(2, 2, 2, generator=generator)
    assert_type(state, TrainingState)

    denoiser = UniformDenoiser()
    assert_type(sample(denoiser, schedule, 3, codebook_size=16, generator=generator), Tensor)
    guided_denoiser = truncated(guided(denoiser, 2.0, null_label=10), top_k=4)
    return sample_signal(guided_denoiser, 3, height=2, width=2, codebook_size=16, calls=4)


def errors() -> None:
    """What bad input raises."""
    try:
        load_model("no-such-model")
    except UserError as error:
        assert_type(str(error), str)
