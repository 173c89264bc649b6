"""Figures of a model's presets, and whether what is shipped belongs together."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from ggm_image.io.files import sha256_file
from ggm_image.io.resources import resource_dir
from ggm_image.pipelines.figures import QUALITY, preset_figures
from ggm_image.pipelines.model_folder import NetworkFolder, shipped_models
from ggm_image.tokenizers.spec import TokenizerSpec
from ggm_image.tokenizers.text import ByteTokenizer
from tests.models import tiny_model_folder

SHIPPED = {model.name: model for model in shipped_models()}


def test_a_preset_has_the_figures_of_its_settings(tmp_path: Path) -> None:
    """Seen to fail with rows told apart by their block alone, and with the first row instead of the largest."""
    model = NetworkFolder.read(tiny_model_folder(tmp_path))
    assert preset_figures(model) == {}
    best = asdict(model.settings("best"))
    rows = [
        {"settings": best | {"guidance": best["guidance"] + 1}, "n": 90, "distance": 1.0},
        {"settings": best, "n": 50, "distance": 2.0},
        {"settings": best, "n": 70, "distance": 3.0, "note": "x"},
    ]
    (model.folder / QUALITY).write_text(json.dumps({"results": rows}))
    assert preset_figures(model) == {"best": {"n": 70, "distance": 3.0, "note": "x"}}


@pytest.mark.parametrize(
    "text", ["[", "[]", "{}", '{"results": [{}]}', '{"results": [{"settings": {"x": 1}, "n": 1}]}', '{"results": 3}']
)
def test_another_file_of_that_name_has_no_figures(text: str, tmp_path: Path) -> None:
    model = NetworkFolder.read(tiny_model_folder(tmp_path))
    (model.folder / QUALITY).write_text(text)
    assert preset_figures(model) == {}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_belongs_together(name: str) -> None:
    """Model, tokenizer, presets, figures and samples are of the same weights."""
    model = SHIPPED[name]
    described = (model.folder / "config.yaml").read_text()
    if model.modality == "text":
        codebook_size, identity = ByteTokenizer().codebook_size, ByteTokenizer().identity
    else:
        tokenizer = TokenizerSpec.read(resource_dir("tokenizers") / model.tokenizer_name)
        codebook_size, identity = tokenizer.codebook_size, {"tokenizer_sha256": tokenizer.identity or tokenizer.sha256}
        identity |= {"decoder_sha256": tokenizer.decoder} if tokenizer.decoder else {}
        assert sha256_file(tokenizer.weights) == tokenizer.sha256
        described += (tokenizer.folder / "config.yaml").read_text()
    assert model.tokenizer_source == ""
    assert (model.tokenizer_sha256, model.network.codebook_size) == (identity["tokenizer_sha256"], codebook_size)
    identity |= {"model_sha256": sha256_file(model.weights)}
    samples = json.loads((model.folder / "samples" / "manifest.json").read_bytes())
    records = [samples]
    if (model.folder / QUALITY).is_file():
        records.append(json.loads((model.folder / QUALITY).read_bytes())["protocol"])
    for record in records:
        assert {key: value for key, value in record.items() if key.endswith("_sha256") and key in HASHES} == identity
    assert samples["settings"] == asdict(model.settings("best"))
    assert samples.get("classes", [])[: model.network.classes] == model.class_names
    assert not re.search(r"[ \"'](/|~/)\w", described), "a path of the machine that trained it"


HASHES = {"model_sha256", "tokenizer_sha256", "decoder_sha256"}


def test_shipped_presets_are_those_of_the_configs() -> None:
    from ggm_image.io.config_schema import load_config
    from ggm_image.sampler.settings import Settings
    from ggm_image.training.config import GeneratorConfig

    for name, model in SHIPPED.items():
        config = load_config(GeneratorConfig, name)
        assert {preset: Settings.of(dict(entries)) for preset, entries in config.presets.items()} == {
            preset: model.settings(preset) for preset in model.presets
        }
        assert config.network.width == model.network.width
