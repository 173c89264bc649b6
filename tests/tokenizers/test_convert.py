"""Published layouts as folders of safetensors: the same tokens, the same pixels, the same identity."""

from pathlib import Path

import pytest
import torch

from ggm_image.data.decode import check_tokenizer
from ggm_image.data.encode import encode
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.tokenizers.convert import convert_tokenizer
from ggm_image.tokenizers.registry import find_tokenizer, load_tokenizer, published_spec
from tests.tokenizers import layouts
from tests.tokenizers.layouts import LAYOUTS, pictures


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_changes_but_the_file(name: str, tmp_path: Path) -> None:
    source = find_tokenizer(LAYOUTS[name][1](tmp_path / "published"))
    made = convert_tokenizer(source, tmp_path / "out")
    old, new = load_tokenizer(source.folder / source.file), load_tokenizer(tmp_path / "out")
    tokens = old.encode(pictures())
    assert torch.equal(new.encode(pictures()), tokens)
    assert torch.equal(new.decode(tokens), old.decode(tokens))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.yaml", "model.safetensors"]
    assert made.sha256 == sha256_file(tmp_path / "out" / "model.safetensors") != old.sha256
    assert (new.sha256, new.name) == (old.sha256, old.name)
    again = convert_tokenizer(made, tmp_path / "again")  # our own folder is a layout too
    assert again.sha256 == made.sha256


def test_caches_go_on_with_the_converted_one(tmp_path: Path, flat_folder: Path) -> None:
    path = layouts.taming(tmp_path / "published")
    cache = encode(flat_folder, tmp_path / "cache", load_tokenizer(path), image_size=8)
    convert_tokenizer(find_tokenizer(path), tmp_path / "same", name="mine")
    check_tokenizer(cache, load_tokenizer(tmp_path / "same"))
    assert load_tokenizer(tmp_path / "same").name == "mine"
    convert_tokenizer(find_tokenizer(path), tmp_path / "rounded", half=True)
    rounded = load_tokenizer(tmp_path / "rounded")
    assert rounded.sha256 == sha256_file(tmp_path / "rounded" / "model.safetensors")
    with pytest.raises(UserError, match="the tokenizer that made it"):
        check_tokenizer(cache, rounded)


def test_a_damaged_converted_file_is_refused(tmp_path: Path) -> None:
    # its own hash is checked, not the identity that stands for it
    convert_tokenizer(find_tokenizer(layouts.taming(tmp_path / "published")), tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UserError, match="must have SHA-256"):
        load_tokenizer(tmp_path / "out")


def test_what_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    path = layouts.taming(tmp_path / "published")
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.ones(1)}}, path)
    with pytest.raises(UserError):
        convert_tokenizer(find_tokenizer(path), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["published"]


def test_a_known_name_gives_the_sizes(tmp_path: Path) -> None:
    path = layouts.taming(tmp_path / "published")
    spec = published_spec(path, like="vqgan-imagenet-f16-1024")
    assert (spec.name, spec.family, spec.codebook_size) == ("vqgan-imagenet-f16-1024", "taming", 1024)
    assert spec.weights == path
    with pytest.raises(UserError, match=r"expected \(256, 256, 1, 1\)|must fit the architecture"):
        convert_tokenizer(spec, tmp_path / "out")
