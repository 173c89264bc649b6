"""Tokenizers by name and by folder, and what is said of a folder that is not one."""

from pathlib import Path

import pytest
import torch

from ggm_image import load_tokenizer
from ggm_image.data.images import open_source
from ggm_image.errors import UserError
from ggm_image.files import sha256_file
from ggm_image.resources import resource_dir
from ggm_image.tokenizers.registry import build_tokenizer, tokenizer_specs
from tests.models import tiny_tokenizer_folder


def test_every_shipped_tokenizer_builds_and_loads() -> None:
    specs = tokenizer_specs()
    assert "cifar10-f4" in [spec.name for spec in specs]
    for spec in specs:
        assert spec.folder.name == spec.name
        built = build_tokenizer(spec)
        assert (built.codebook_size, built.downscale) == (spec.codebook_size, spec.downscale)
        assert (spec.folder / "README.md").is_file()
        if spec.weights.is_file():
            assert sha256_file(spec.weights) == spec.sha256
            assert load_tokenizer(spec.name).sha256 == spec.sha256


def test_cifar10_tokens_and_reconstructions_are_pinned() -> None:
    # the shipped pictures are our own samples; their tokens are read from their pixels
    tokenizer = load_tokenizer("cifar10-f4")
    source = open_source(resource_dir("assets") / "models" / "cifar10" / "samples")
    images = torch.stack([source[k] for k in range(len(source))]).float() / 127.5 - 1
    tokens = tokenizer.encode(images)
    again = tokenizer.decode(tokens)
    psnr = 10 * torch.log10(4 / (again - images).square().mean())
    assert float(psnr) > 24
    assert len(tokens.unique()) > 200


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such tokenizer.*cifar10-f4"):
        load_tokenizer("cifar10-f8")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_tokenizer(tmp_path)
    folder = tiny_tokenizer_folder(tmp_path / "tiny")
    assert load_tokenizer(folder).name == "tiny"
    config = (folder / "config.yaml").read_text()
    for broken in (": [", "name: x", config.replace("ch_mult", "ch_mul"), config.replace("n_embed: 32", "n_embed: no")):
        (folder / "config.yaml").write_text(broken)
        with pytest.raises(UserError):
            load_tokenizer(folder)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    # seen to fail without the comparison of hashes: the flipped bit was decoded with
    folder = tiny_tokenizer_folder(tmp_path)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="must have SHA-256"):
        load_tokenizer(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no weights"):
        load_tokenizer(folder)


def test_pickle_is_not_read(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(tmp_path / "ran"),))

    folder = tiny_tokenizer_folder(tmp_path / "tiny")
    torch.save(Hostile(), folder / "model.safetensors")
    config = folder / "config.yaml"
    lines = [line if "sha256" not in line else "  sha256: ''" for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    with pytest.raises(UserError, match="whole safetensors file"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
