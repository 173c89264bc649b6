"""Configs: complete, typed, and helpful where they are wrong."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config, save_config
from ggm_image.io.resources import resource_dir
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.training.config import GeneratorConfig, complete_network
from ggm_image.training.run_record import config_record, generator_record_of
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.validation import build

SHIPPED = sorted(p for p in resource_dir("configs").glob("*.yaml") if not p.name.startswith("tokenizer"))

SIZES = {
    "celebahq256": (1024, 0, (16, 16)),
    "ffhq256": (1024, 0, (16, 16)),
    "imagenet256": (16384, 1000, (16, 16)),
    "imagenet256-f8": (8192, 1000, (32, 32)),
    "photos64": (4096, 0, (16, 16)),
    "robots64": (2048, 12, (8, 8)),
    "books": (256, 0, (1, 256)),
    "text": (256, 0, (1, 256)),
}
"""What the token caches that they name have."""


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("network: {width: 32, heads: 2}\ntrain: {steps: 7}\n")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_is_complete_and_builds(path: Path) -> None:
    from omegaconf import OmegaConf

    config = load_config(GeneratorConfig, path)
    written = OmegaConf.to_container(OmegaConf.load(path))
    assert written == asdict(config), "a shipped file names every key, so that no default can change it"
    codes, classes, grid = SIZES.get(path.stem, (4096, 10, (8, 8)))
    with torch.device("meta"):
        network = Transformer(complete_network(config.network, codebook_size=codes, classes=classes, grid=grid))
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert f"{millions:.0f} million" in path.read_text() or f"{millions:.1f} million" in path.read_text()


def test_overrides_and_round_trip(yaml: Path, tmp_path: Path) -> None:
    config = load_config(GeneratorConfig, yaml, ["train.batch_size=9", "network.grid=[2,3]", "train.max_minutes=1.5"])
    assert (config.train.steps, config.train.batch_size, config.train.max_minutes) == (7, 9, 1.5)
    assert config.network.grid == [2, 3]
    save_config(tmp_path / "saved.yaml", config)
    assert load_config(GeneratorConfig, tmp_path / "saved.yaml") == config
    assert build(GeneratorConfig, asdict(config)) == config


def test_a_config_with_the_old_name_of_a_key_is_read_and_saved_with_the_new_one(tmp_path: Path) -> None:
    old, new, saved = tmp_path / "old.yaml", tmp_path / "new.yaml", tmp_path / "saved.yaml"
    old.write_text("train: {steps: 7, validate_pictures: '${train.steps}'}\n")
    new.write_text("train: {steps: 7, validate_images: 50}\n")
    assert load_config(GeneratorConfig, old).train.validate_images == 7
    for path, key in ((old, "images"), (old, "pictures"), (new, "images"), (new, "pictures")):
        config = load_config(GeneratorConfig, path, [f"train.validate_{key}=9"])
        assert config.train.validate_images == 9
    save_config(saved, config)
    assert "validate_images: 9" in saved.read_text()
    assert "validate_pictures" not in saved.read_text()
    old.write_text("train: {validate_images: 7, validate_pictures: 8}\n")
    with pytest.raises(UserError, match=r"^config key train\.validate_pictures is the old name of train\.validate_im"):
        load_config(GeneratorConfig, old)


def test_a_checkpoint_with_the_old_name_of_a_key_is_read() -> None:
    """In its record, or, of an earlier version, in its config."""
    config = asdict(GeneratorConfig())
    config["train"]["validate_pictures"] = config["train"].pop("validate_images") + 1
    for checkpoint in ({"record": {"train.validate_pictures": 1001, "train.steps": 3}}, {"config": config}):
        record = generator_record_of(checkpoint)
        assert record["train.validate_images"] == 1001
        assert "train.validate_pictures" not in record
    assert len(record) == len(config_record(asdict(GeneratorConfig())))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown config key.*did you mean train.steps"),
        ("steps=3", "unknown config key.*did you mean train.steps"),
        ("trian.steps=3", "unknown config key.*did you mean train"),
        ("train.steps=many", "train.steps must be a valid integer.*many"),
        ("train.steps=true", "train.steps must be a number"),
        ("train.steps=1.5", "train.steps must be a valid integer"),
        ("train.clip=.inf", "train.clip must be a finite number"),
        ("train.weight_decay=true", "train.weight_decay must be a number"),
        ("train.max_minutes=-1", "train.max_minutes must be greater than 0"),
        ("train.betas=[0.9]", "train.betas.*at least 2 items"),
        ("train.betas=[0.9,1]", "train.betas.1 must be less than 1"),
        ("train.logger=wandb,paper", "train.logger must be one or more of"),
        ("train.steps=-3", "train.steps must be greater than 0"),
        ("train.ema_decay=1.5", "train.ema_decay must be less than or equal to 1"),
        ("objective.masked=-0.1", "objective.masked must be greater than or equal to 0"),
        ("objective.lattice=1.5", "objective.lattice must be less than or equal to 1"),
        ("train.precision=fp8", "train.precision must be one of auto, bf16-mixed, 32-true"),
        ("train.compile=maybe", "train.compile must be true, false or auto"),
        ("network.grid=[0,2]", "network.grid.0 must be greater than 0"),
        ("network.codebook_size=0", "network.codebook_size must be greater than 0"),
        ("train.strategy=deepspeed", "train.strategy must be one of auto, ddp, fsdp"),
        ("train.accumulate=0", "train.accumulate must be greater than 0"),
        ("network.width=33", "network.width must be a multiple"),
        ("network=3", "network must hold keys"),
        ("train.steps", "written key=value"),
        ("=3", "written key=value"),
    ],
)
def test_bad_overrides(yaml: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(GeneratorConfig, yaml, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "must be YAML"),
        ("- 1\n- 2\n", "must hold keys and values"),
        ("train: {stesp: 4}\n", "did you mean train.steps"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(GeneratorConfig, path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(GeneratorConfig, tmp_path / "none.yaml")


def test_a_network_that_leaves_its_facts_open(yaml: Path) -> None:
    """Seen to fail at f183d35: what was left out meant 10 classes, 1024 codes and 8 x 8 tokens."""
    for overrides in ([], ["network.classes=null", "network.grid=null", "network.codebook_size=null"]):
        entries = load_config(GeneratorConfig, yaml, overrides).network
        assert (entries.codebook_size, entries.classes, entries.grid) == (None, None, None)
        network = complete_network(entries, codebook_size=7, classes=0, grid=(2, 3))
        assert network == NetworkConfig(codebook_size=7, classes=0, grid=[2, 3], width=32, heads=2)
    stated = load_config(GeneratorConfig, yaml, ["network.classes=4"]).network
    assert complete_network(stated, codebook_size=7, classes=5, grid=(2, 3)).classes == 4


@pytest.mark.parametrize("path", sorted(resource_dir("configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_leave_precision_and_compilation_to_the_machine(path: Path) -> None:
    schema: type = TokenizerTrainConfig if path.stem.startswith("tokenizer") else GeneratorConfig
    train = load_config(schema, path).train
    assert (train.precision, train.compile) == ("auto", "auto")


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("presets={fast: 1000}", "presets.fast must be a valid dictionary"),
        ("presets={fast: {sweps: 2}}", "unknown sampler setting .*sweps.*did you mean sweeps"),
        ("presets={fast: {block: 0}}", "block"),
    ],
)
def test_presets_are_checked_before_the_training(override: str, match: str) -> None:
    """Seen to fail when a preset was first read by the model that came out of the run."""
    with pytest.raises(UserError, match=match):
        load_config(GeneratorConfig, "cifar10", [override])
