"""Tokenizers by name and by folder, and what is said of a folder that is not one."""

import hashlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ggm_image import load_tokenizer
from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image.preprocess import to_uint8
from ggm_image.io.files import sha256_file
from ggm_image.io.resources import resource_dir
from ggm_image.io.safetensors import read_weights
from ggm_image.metrics.checker import chequered_share
from ggm_image.tokenizers.checkpoints.unpacking import unpack_member
from ggm_image.tokenizers.registry import build_tokenizer, tokenizer_specs
from tests.models import tiny_tokenizer_folder
from tests.server import Server, running
from tests.tokenizers import layouts

SPECS = {spec.name: spec for spec in tokenizer_specs()}


@pytest.mark.parametrize("name", SPECS)
def test_every_known_tokenizer_builds(name: str) -> None:
    spec = SPECS[name]
    assert spec.folder.name == spec.name
    with torch.device("meta"):  # sizes alone: hundreds of MB of weights are not drawn
        built = build_tokenizer(spec)
    assert (built.codebook_size, built.downscale, built.image_size) == (
        spec.codebook_size,
        spec.downscale,
        spec.image_size,
    )
    card = (spec.folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    beside = spec.folder / spec.file
    if beside.is_file():
        assert sha256_file(beside) == spec.sha256
        assert load_tokenizer(name).sha256 == (spec.identity or spec.sha256)
    else:
        assert spec.page.startswith("https://")
        assert all(url.startswith("https://") for url in spec.urls)
        assert "Not checked" in card


def test_the_names_that_were_promised() -> None:
    known = {(spec.family, spec.downscale, spec.codebook_size) for spec in SPECS.values()}
    assert {
        ("taming", 16, 1024),
        ("taming", 16, 16384),
        ("gumbel", 8, 8192),
        ("taming", 4, 8192),
        ("taming", 8, 16384),
        ("diffusers", 16, 8192),
        ("llamagen", 8, 16384),
        ("llamagen", 16, 16384),
        ("maskgit", 16, 1024),
    } <= known
    assert {"cifar10-f4-4096", "robots64-f8-2048"} <= SPECS.keys()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GGM_IMAGE_OFFLINE", raising=False)
    return tmp_path / "cache" / "tokenizers" / "somebody's"


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as made:
        yield made


def known_tokenizer(folder: Path, data: bytes, server: Server, **weights: object) -> Path:
    """A folder whose config.yaml names a download, as those that are shipped do."""
    folder.mkdir()
    server.data = data
    entries = {
        "name": "somebody's",
        "family": "taming",
        "page": "https://example.org",
        "architecture": {"n_embed": 256, "embed_dim": 16, "ddconfig": layouts.ddconfig()},
        "weights": {"file": "vq.ckpt", "url": server.url(), "mirrors": [], "sha256": None, **weights},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(entries)))
    return folder


def test_a_known_tokenizer_is_downloaded_once_and_pinned(tmp_path: Path, cache: Path, server: Server) -> None:
    """Seen to fail without the comparison with the pin: the other file was loaded."""
    checkpoint = layouts.taming(tmp_path / "made")
    folder = known_tokenizer(tmp_path / "known", checkpoint.read_bytes(), server)
    first, again = load_tokenizer(folder), load_tokenizer(folder)
    assert len(server.asked) == 1
    assert first.sha256 == again.sha256 == sha256_file(checkpoint)
    assert torch.equal(first.encode(layouts.pictures()), load_tokenizer(checkpoint).encode(layouts.pictures()))
    assert (cache / "vq.ckpt.sha256").read_text().strip() == first.sha256
    torch.save({"state_dict": torch.load(checkpoint, weights_only=False)["state_dict"]}, cache / "vq.ckpt")
    with pytest.raises(UserError, match=r"as on the first use \(remove .*vq\.ckpt\.sha256 if the change is meant\)"):
        load_tokenizer(folder)
    (cache / "vq.ckpt.sha256").unlink()
    assert load_tokenizer(folder).sha256 != first.sha256


def test_a_hash_that_the_publisher_gives_is_checked(tmp_path: Path, cache: Path, server: Server) -> None:
    folder = known_tokenizer(
        tmp_path / "known", layouts.taming(tmp_path / "made").read_bytes(), server, sha256="ab" * 32
    )
    with pytest.raises(UserError, match=r"cannot be downloaded .*SHA-256 is [0-9a-f]{16}\.\.\., not abababab"):
        load_tokenizer(folder)
    assert not (cache / "vq.ckpt").exists()


def test_offline_says_which_file_to_put_where(
    tmp_path: Path, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = layouts.taming(tmp_path / "made")
    folder = known_tokenizer(tmp_path / "known", b"", server)
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    with pytest.raises(UserError, match=rf"put it at {cache / 'vq.ckpt'}"):
        load_tokenizer(folder)
    assert server.asked == []
    cache.mkdir(parents=True)
    checkpoint.rename(cache / "vq.ckpt")
    assert load_tokenizer(folder).codebook_size == 256
    monkeypatch.delenv("GGM_IMAGE_OFFLINE")
    (cache / "vq.ckpt").unlink()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(f"url: {server.url()}", "url: null"))
    with pytest.raises(UserError, match=rf"no address .*example\.org.*put the file at {cache / 'vq.ckpt'}"):
        load_tokenizer(folder)


def zipped(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path.read_bytes()


def test_a_checkpoint_in_a_zip_is_taken_out(tmp_path: Path, cache: Path, server: Server) -> None:
    checkpoint = layouts.taming(tmp_path / "made")
    data = zipped(tmp_path / "a.zip", {"vq-f8/model.ckpt": checkpoint.read_bytes(), "vq-f8/config.yaml": b"model: 1"})
    folder = known_tokenizer(tmp_path / "known", data, server, member="model.ckpt")
    assert load_tokenizer(folder).sha256 == sha256_file(checkpoint)
    assert sorted(p.name for p in cache.iterdir() if not p.name.startswith(".")) == ["vq.ckpt", "vq.ckpt.sha256"]


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"other.ckpt": b"x"}, "one model.ckpt .0."),
        ({"a/model.ckpt": b"x", "b/model.ckpt": b"y"}, "one model.ckpt .2."),
        ({"../../model.ckpt": bytes(50 << 20)}, "zip bomb"),
    ],
)
def test_zips_that_are_something_else(
    tmp_path: Path, cache: Path, server: Server, entries: dict[str, bytes], match: str
) -> None:
    folder = known_tokenizer(tmp_path / "known", zipped(tmp_path / "a.zip", entries), server, member="model.ckpt")
    with pytest.raises(UserError, match=match):
        load_tokenizer(folder)
    assert not (cache / "vq.ckpt").exists()
    assert list(tmp_path.rglob("model.ckpt")) == []


def test_a_zip_that_lies_about_its_size(tmp_path: Path) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", {"model.ckpt": bytes(50 << 20)}))
    size = struct.pack("<I", 50 << 20)
    assert data.count(size) == 2
    (tmp_path / "a.zip").write_bytes(bytes(data).replace(size, struct.pack("<I", 1000)))
    with pytest.raises(UserError, match="whole zip|zip bomb"):
        unpack_member(tmp_path / "a.zip", "model.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_families_and_odd_files_are_named(tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path / "tiny")
    config = folder / "config.yaml"
    text = config.read_text()
    for old, new, match in (
        ("name: tiny", "name: tiny\nfamily: maskgti", "did you mean maskgit"),
        ("n_embed: 32", "n_embed: 32\n  n_codes: 3", "architecture must be one of family taming"),
        ("weights:", "weights:\n  file: ../../etc/passwd", "file's name"),
    ):
        config.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=match):
            load_tokenizer(folder)


@pytest.mark.parametrize(("name", "model"), [("cifar10-f4-4096", "cifar10"), ("robots64-f8-2048", "robots64")])
def test_shipped_tokens_and_reconstructions(name: str, model: str) -> None:
    # the shipped images are our own samples; their tokens are read from their pixels
    tokenizer = load_tokenizer(name)
    source = open_source(resource_dir("assets") / "models" / model / "samples")
    images = torch.stack([source[k] for k in range(len(source))]).float() / 127.5 - 1
    tokens = tokenizer.encode(images)
    again = tokenizer.decode(tokens)
    psnr = 10 * torch.log10(4 / (again - images).square().mean())
    assert float(psnr) > 24
    assert len(tokens.unique()) > 200


def test_the_shipped_decoder_paints_no_chequered_patches() -> None:
    """Not even of random tokens. Photographs have 0.028% of their cells; earlier decoders painted ten times as many."""
    tokenizer = load_tokenizer("cifar10-f4-4096")
    source = open_source(resource_dir("assets") / "models" / "cifar10" / "samples")
    real = tokenizer.encode(torch.stack([source[k] for k in range(len(source))]).float() / 127.5 - 1)
    random = torch.randint(0, tokenizer.codebook_size, (80, 8, 8), generator=torch.Generator().manual_seed(0))
    images = to_uint8(tokenizer.decode(torch.cat([real, random])))
    assert float(chequered_share(images).mean()) <= 2 * 0.00028


TOKEN_TENSORS = {
    "cifar10-f4-4096": "a9466e61c6e8fa02a01e18472fd10970d1e28a3b4eea3535864e37bc1b6b06a9",
    "robots64-f8-2048": "f1ae29efa7351a685b2c307344fe801c03f671968b2dd12ce0ce882e28943712",
}


@pytest.mark.parametrize("name", TOKEN_TENSORS)
def test_shipped_encoders_and_codes_are_pinned(name: str) -> None:
    """A tokenizer of this name gives these tokens for ever: only its decoder may be replaced."""
    digest = hashlib.sha256()
    for key, value in sorted(read_weights(SPECS[name].weights).items()):
        if not key.startswith(("decoder.", "post_quant_conv.")):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == TOKEN_TENSORS[name]


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such tokenizer.*cifar10-f4-4096"):
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
