"""Each published layout: loaded by path, the originals' own tokens and pixels, and converted without a change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.checkpoints.detect import read_published
from ggm_image.tokenizers.registry import build_tokenizer, find_tokenizer, load_spec, load_tokenizer, published_spec
from ggm_image.tokenizers.vq.families import FAMILIES
from ggm_image.tokenizers.vq.gumbel import GumbelVQGAN
from ggm_image.tokenizers.vq.vqgan import DDConfig
from tests.tokenizers import layouts
from tests.tokenizers.layouts import LAYOUTS, ORIGINALS, SAME_WEIGHTS, pictures


def load(name: str, folder: Path) -> Tokenizer:
    return load_tokenizer(LAYOUTS[name][1](folder))


@pytest.mark.parametrize("name", LAYOUTS)
def test_tokens_and_pixels_are_the_originals(name: str, tmp_path: Path) -> None:
    """Seen to fail for LlamaGen without the division of the codes by their lengths, for aMUSEd and MaskGIT with pixels
    in [-1, 1], for MaskGIT with the shortcut applied to the block's input, for latent-diffusion without the Identity in
    the middle, for LlamaGen and diffusers with the decoder's levels counted from the other end, and for gumbel with
    the smallest logit."""
    tokenizer = load(name, tmp_path)
    recorded = ORIGINALS[SAME_WEIGHTS.get(name, name)]
    tokens = tokenizer.encode(pictures())
    assert tokens.shape == (4, 8, 8)
    assert tokens.flatten(1).tolist() == recorded["tokens"]
    assert len(tokens.unique()) > 20
    probe = tokenizer.decode(tokens)[:, :, 3::8, 5::8].flatten()
    assert torch.allclose(probe, torch.tensor(recorded["pixels"]), atol=1e-4)
    assert float((probe.abs() < 1).float().mean()) > 0.8  # not all of it cut off at the ends of the range


@pytest.mark.parametrize("name", LAYOUTS)
def test_family_and_sizes_are_told_apart(name: str, tmp_path: Path) -> None:
    family, make = LAYOUTS[name]
    spec = find_tokenizer(make(tmp_path))
    assert (spec.family, spec.downscale, spec.image_size, spec.grid) == (family, 4, 256, 64)
    tokenizer = load_spec(spec)
    assert len(tokenizer.sha256) == 64
    width = spec.architecture.get("embed_dim") or spec.architecture["z_channels"]
    assert tokenizer.codebook_embeddings().shape == (spec.codebook_size, width)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if LAYOUTS[name][0] in ("taming", "gumbel")])
def test_a_checkpoint_without_its_config_is_told_by_its_shapes(name: str, tmp_path: Path) -> None:
    LAYOUTS[name][1](tmp_path)
    with_config = read_published(next(tmp_path.rglob("*.ckpt")))
    for yaml in tmp_path.rglob("*.yaml"):
        yaml.unlink()
    without = read_published(next(tmp_path.rglob("*.ckpt")))
    assert without.family == with_config.family
    built = [FAMILIES[p.family].config(**{**p.architecture, "ddconfig": DDConfig()}) for p in (without, with_config)]
    assert built[0] == built[1]
    assert without.architecture["ddconfig"] == with_config.architecture["ddconfig"]


def test_a_file_of_no_family(tmp_path: Path) -> None:
    torch.save({"state_dict": {"layer.weight": torch.ones(2, 2)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"known family of tokenizers .*other\.ckpt: layer\.weight"):
        load_tokenizer(tmp_path / "other.ckpt")
    torch.save({"encoder.down.0.block.0.conv1.weight": torch.ones(2, 2)}, tmp_path / "part.ckpt")
    with pytest.raises(UserError, match="known family"):
        load_tokenizer(tmp_path / "part.ckpt")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match="neither safetensors nor"):
        load_tokenizer(tmp_path / "notes.txt")


def test_a_checkpoint_that_lacks_a_part_or_has_another_shape(tmp_path: Path) -> None:
    path = layouts.taming(tmp_path)
    whole = torch.load(path, weights_only=False)
    broken = dict(whole["state_dict"])
    del broken["decoder.conv_out.bias"]
    torch.save({"state_dict": broken}, path)
    with pytest.raises(UserError, match=r"decoder\.conv_out\.bias is missing, expected \(3,\)"):
        load_tokenizer(path)
    broken = whole["state_dict"] | {"quantize.embedding.weight": torch.ones(300, 16)}
    torch.save({"state_dict": broken}, path)
    with pytest.raises(UserError, match=r"quantize\.embedding\.weight is \(300, 16\), expected \(256, 16\)"):
        load_tokenizer(path)
    broken = whole["state_dict"] | {"quant_conv.bias": torch.full((16,), torch.nan)}
    torch.save({"state_dict": broken}, path)
    with pytest.raises(UserError, match=r"quant_conv\.bias holds NaN"):
        load_tokenizer(path)
    torch.save({"state_dict": whole["state_dict"] | {"quantize.used": torch.arange(4)}}, path)
    with pytest.raises(UserError, match="remap"):
        load_tokenizer(path)


def change_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "entries",
    [
        {"norm_type": "spatial"},
        {"norm_num_groups": 16},
        {"act_fn": "gelu"},
        {"block_out_channels": [32, 48, 64]},
        {"up_block_types": ["UpDecoderBlock2D"] * 3},
        {"mid_block_add_attention": False},
        {"down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "CrossAttnDownBlock2D"]},
    ],
)
def test_diffusers_models_of_another_kind_are_refused(entries: dict[str, Any], tmp_path: Path) -> None:
    layouts.diffusers_folder(tmp_path, unit_range=False)
    change_json(tmp_path / "config.json", **entries)
    with pytest.raises(UserError, match="VQGAN of taming's kind"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "entries",
    [
        {"block_out_channels": []},
        {"block_out_channels": [0, 0, 0]},
        {"block_out_channels": 32},
        {"block_out_channels": [32, 64, 64 << 40]},
        {"block_out_channels": [31, 62, 62]},
        {"layers_per_block": 1 << 40},
        {"layers_per_block": "many"},
        {"num_vq_embeddings": 1 << 70},
        {"num_vq_embeddings": -1},
        {"latent_channels": 1 << 50},
        {"sample_size": float("inf")},
        {"sample_size": [256]},
        {"down_block_types": 3},
        {"out_channels": 0},
        {"in_channels": 4},
    ],
)
def test_absurd_configs_end_in_one_line(entries: dict[str, Any], tmp_path: Path) -> None:
    """Seen to fail without the check of the number of blocks: it was still building them when it was stopped."""
    layouts.diffusers_folder(tmp_path, unit_range=False)
    change_json(tmp_path / "config.json", **entries)
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"_class_name": "AutoencoderKL"}', "\xff"])
def test_configs_that_describe_no_tokenizer(text: str, tmp_path: Path) -> None:
    layouts.diffusers_folder(tmp_path, unit_range=False)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json must be"):
        load_tokenizer(tmp_path)


def test_the_range_of_pixels_can_be_given(tmp_path: Path) -> None:
    # no config of diffusers says it: LDM's take [-1, 1], aMUSEd's takes [0, 1]
    layouts.diffusers_folder(tmp_path, unit_range=False)
    guessed, given = (published_spec(tmp_path, unit_range=unit) for unit in (None, True))
    assert (guessed.architecture["unit_range"], given.architecture["unit_range"]) == (False, True)
    assert not torch.equal(load_spec(guessed).encode(pictures()), load_spec(given).encode(pictures()))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("taming.models.vqgan.VQModel", "ldm.models.autoencoder.AutoencoderKL", "AutoencoderKL"),
        ("embed_dim: 16", "embed_dim: wide", "invalid literal"),
        ("double_z: false", "double_z: true", "not supported"),
        ("attn_resolutions:", "attention_resolutions:", "attn_resolutions"),
    ],
)
def test_yaml_of_something_else(old: str, new: str, match: str, tmp_path: Path) -> None:
    path = layouts.taming(tmp_path)
    yaml = tmp_path / "model.yaml"
    text = yaml.read_text()
    assert old in text
    yaml.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=match):
        load_tokenizer(path)


def test_yaml_runs_nothing(tmp_path: Path) -> None:
    # seen to fail with yaml.unsafe_load: the marker was made
    path = layouts.taming(tmp_path)
    marker = tmp_path / "ran"
    yaml = tmp_path / "model.yaml"
    yaml.write_text(yaml.read_text() + f"bad: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(UserError, match="must be YAML"):
        load_tokenizer(path)
    assert not marker.exists()


def test_several_checkpoints_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        layouts.taming(tmp_path).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"one checkpoint .*a\.ckpt, b\.ckpt"):
        load_tokenizer(tmp_path)


def test_gumbel_needs_equal_widths(tmp_path: Path) -> None:
    layouts.gumbel(tmp_path)
    yaml = tmp_path / "last.yaml"
    yaml.write_text(yaml.read_text().replace("embed_dim: 32", "embed_dim: 16"))
    with pytest.raises(UserError, match="must be z_channels 32"):
        load_tokenizer(tmp_path / "last.ckpt")


def test_gumbel_chooses_picture_by_picture_alike(tmp_path: Path) -> None:
    tokenizer = load("gumbel", tmp_path)
    assert isinstance(tokenizer, GumbelVQGAN)
    with torch.no_grad():
        together = tokenizer.quantize.proj(tokenizer.latents(pictures())).argmax(dim=1)
    assert torch.equal(tokenizer.encode(pictures()), together)
    assert tokenizer.encode(pictures()[:0]).shape == (0, 8, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_defaults_that_build(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = family.config()
    assert (config.downscale, config.image_size) == (16, 256)
    made = [layout for layout, (kind, _) in LAYOUTS.items() if kind == name]
    assert made, f"no layout of {name}"
    spec = find_tokenizer(LAYOUTS[made[0]][1](tmp_path))
    assert build_tokenizer(spec).codebook_size == spec.codebook_size
