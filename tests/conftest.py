"""What several tests share: small images in folders and tars, and a tokenizer that needs no training."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from jaxtyping import config as jaxtyping_config
from PIL import Image
from torch import Tensor

if os.environ.get("SHAPES", "") not in ("", "0"):  # before the package is imported
    from tests import shapes

    shapes.install()

from ggm_image.tokenizers.base import Tokenizer
from tests.models import tiny_model_folder


def pytest_configure(config: pytest.Config) -> None:
    # torchvision 0.29 announces that its readers will move; `data.images` has Pillow to fall back on.
    config.addinivalue_line("filterwarnings", "ignore:.*TorchCodec:DeprecationWarning")


class MeanTokenizer(Tokenizer):
    """Code of a 4 x 4 cell: its mean grey in 256 steps. Enough to know every token beforehand."""

    def __init__(self, *, name: str = "mean-f4", sha256: str = "5e" * 32, image_size: int = 8) -> None:
        super().__init__()
        self.name, self.sha256, self.image_size = name, sha256, image_size
        self.codebook_size, self.downscale = 256, 4
        self.batches: list[int] = []

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        self.batches.append(len(images))
        cells = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4)[:, 0]
        return ((cells + 1) * 127.5).round().long().clamp(0, 255)

    def decode_indices(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        cells = tokens.float() / 127.5 - 1
        return cells.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def mean_tokenizer() -> MeanTokenizer:
    return MeanTokenizer()


def draw_picture(seed: int, side: int = 8) -> np.ndarray:
    """A smooth RGB image (side, side, 3), different for each seed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR))


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For a test that passes a wrong shape to see it refused: no annotation is checked."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without curves: matplotlib takes three times as long as the training of a tiny network."""
    monkeypatch.setattr("ggm_image.training.loop.plot_at_the_end", lambda folder: None)


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Class folders ``ant`` (4 images), ``bee`` (5) and ``cow`` (3): PNG of 8 x 8 pixels."""
    root = tmp_path / "pictures"
    # Made in another order than they are to be read in.
    for number, (name, count) in enumerate([("cow", 3), ("ant", 4), ("bee", 5)]):
        (root / name).mkdir(parents=True)
        for k in reversed(range(count)):
            Image.fromarray(draw_picture(100 * number + k)).save(root / name / f"{k}.png")
    return root


@pytest.fixture
def flat_folder(tmp_path: Path) -> Path:
    """Five PNG of 8 x 8 pixels without classes."""
    root = tmp_path / "flat"
    root.mkdir()
    for k in range(5):
        Image.fromarray(draw_picture(k)).save(root / f"{k}.png")
    return root


def pack(root: Path, archive: Path, name: Callable[[str], str] = str, mode: str = "w") -> Path:
    """Put every file below ``root`` into a tar, in reverse order, under ``name(relative path)``."""
    with tarfile.open(archive, mode) as tar:
        for path in sorted((p for p in root.rglob("*") if p.is_file()), reverse=True):
            member = tarfile.TarInfo(name(path.relative_to(root).as_posix()))
            data = path.read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive
