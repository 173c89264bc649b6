"""`start=`: a run that starts from a trained model, with classes of its own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.network import Transformer
from ggm_image.pipelines.model_folder import WEIGHTS, find_model
from ggm_image.pipelines.model_weights import load_network
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.initialization import initialize_network
from ggm_image.training.run import train_generator
from tests.training.toy import write_cache

pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture
def train(config: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, data: Path, *overrides: str, **options: Any) -> Path:
        return train_generator(
            config, data, tmp_path / name, overrides=overrides, device="cpu", report=lambda line: None, **options
        )

    return run


@pytest.fixture
def model(train: Callable[..., Path], tmp_path: Path) -> Path:
    """A trained model of the classes left and right."""
    return train("first", write_cache(tmp_path / "tokens"), "train.learning_rate=0.01")


def test_every_weight_is_taken_over_and_classes_by_name(config: Path, model: Path, tmp_path: Path) -> None:
    """Seen to fail with classes taken by their number, and with new ones left at random."""
    manifest = TokenCache.open(tmp_path / "tokens").manifest
    others = replace(manifest, class_names=["up", "right", "down"])
    settings = load_config(GeneratorConfig, config, [f"start={model}", "network.classes=3", "network.grid=[5,4]"])
    network, said = Transformer(settings.network), list[str]()
    initialize_network(network, settings, others, said.append)
    trained = load_network(find_model(model))[0].state_dict()
    for name, value in network.state_dict().items():
        if name != "classes.weight":
            assert torch.equal(value, trained[name]), name
    left_right_null = trained["classes.weight"]
    assert torch.equal(network.classes.weight, left_right_null[[2, 1, 2, 2]])
    assert said == [f"start: {model}, classes known to it: right"]


def test_the_run_learns_from_there_on_and_resumes_without_it(
    train: Callable[..., Path], config: Path, model: Path, tmp_path: Path
) -> None:
    # a rate of nearly nothing: the exported weights are the model's
    still = ["train.learning_rate=1e-12", "train.steps=2", "train.weights_dtype=float32"]
    again = train("again", tmp_path / "tokens", f"start={model}", *still)
    taken, trained = (load_network(find_model(folder))[0].state_dict() for folder in (again, model))
    assert all(torch.allclose(taken[name], trained[name], atol=1e-6) for name in trained)
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    with pytest.raises(UserError, match="no such model"):
        train("third", tmp_path / "tokens", f"start={model}")
    assert not (tmp_path / "third").exists()
    # Seen to fail with the model looked for in a resumed run too.
    train("again", tmp_path / "tokens", f"start={model}", "train.steps=3", *still[::2], resume=True)


def test_models_that_do_not_fit_are_refused_before_anything_is_written(
    train: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    other = write_cache(tmp_path / "other", sha256="cd" * 32)
    cases: list[tuple[Path, list[str], str]] = [
        (other, [], r"tokenizer of the tokens .* toy \(abababababab\).* toy \(cdcdcdcdcdcd\)"),
        (tokens, ["network.width=16"], r"network\.width .*model in start \(16 against 32\); set network\.width=32"),
        (tokens, ["network.tied_head=false"], r"network\.tied_head .*False against True"),
    ]
    for data, overrides, match in cases:
        with pytest.raises(UserError, match=match):
            train("run", data, f"start={model}", *overrides)
    weights = model / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="must be a whole safetensors file"):
        train("run", tokens, f"start={model}")
    assert not (tmp_path / "run").exists()
