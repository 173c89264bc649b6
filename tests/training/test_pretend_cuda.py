"""Training on a pretended GPU: no operation mixes devices, and a step waits for nothing.

Gradients are not pretended: the backward pass needs a real device, so `_Fabric` only leaves zeros.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.tokenizers.registry import load_tokenizer
from ggm_image.training import evaluation
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet
from ggm_image.training.distributed import DistributedContext
from ggm_image.training.evaluation import val_nll
from ggm_image.training.logging import fetch
from ggm_image.training.trainer import GeneratorTrainer
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.trainer import TokenizerTrainer
from ggm_image.validation import build
from tests.models import tiny_tokenizer_folder
from tests.pretend_cuda import CUDA, Log, pretend_cuda

V, ROWS = 32, 12


class _Generator(torch.Generator):
    """A CPU generator that says where it was made for."""

    def __new__(cls, device: Any = "cpu") -> "_Generator":
        made = super().__new__(cls)
        made.pretended = torch.device(device)  # type: ignore[attr-defined]
        return made

    @property
    def device(self) -> torch.device:
        return self.pretended  # type: ignore[attr-defined, no-any-return]


class _Fabric:
    """One process on the pretended device, in mixed precision."""

    device, global_rank, world_size, strategy = CUDA, 0, 1, None

    def setup_module(self, module: nn.Module) -> Any:
        self.module = module.to(CUDA)

        def forward(*values: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                return module(*(x.float() if x.is_floating_point() else x for x in values)).float()

        return forward

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def no_backward_sync(self, module: Any, enabled: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.device == CUDA
        leave_zeros(self.module)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16)


def leave_zeros(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [])
    with pretend_cuda() as found:
        yield found


def make_trainer(tmp_path: Path, *, classes: int = 2, **parts: dict[str, Any]) -> GeneratorTrainer:
    values: dict[str, Any] = {
        "network": {
            "codebook_size": V, "classes": classes, "grid": [4, 4], "width": 16, "depth": 2, "heads": 2,
            "condition_width": 8,
        },
        "train": {"batch_size": 4, "compile": False, "start_from_codes": False} | parts.pop("train", {}),
    }  # fmt: skip
    config = build(GeneratorConfig, values | parts)
    tokens = torch.randint(0, V, (ROWS, 16), dtype=torch.int32)
    data = TokenSet(tokens, torch.randint(0, classes + 1, (ROWS,)))
    folder = tiny_tokenizer_folder(tmp_path / "tokenizer")
    manifest = Manifest(
        tokenizer_name="tiny",
        tokenizer_sha256=load_tokenizer(folder).sha256,
        tokenizer_source=str(folder),
        codebook_size=V,
        grid=(4, 4),
        image_size=16,
        class_names=[str(k) for k in range(classes)],
        preprocessing={},
        source={},
        items=ROWS,
    )
    context = DistributedContext(_Fabric())  # type: ignore[arg-type]
    return GeneratorTrainer(config, manifest, data, data, tmp_path / "run", context=context, report=lambda line: None)


CASES = {
    "binary": {},
    "binary-sampled": {"objective": {"name": "binary-sampled"}},
    "cross-entropy": {"objective": {"name": "cross-entropy"}},
    "cross-entropy-noisy": {"objective": {"name": "cross-entropy-noisy"}},
    "random sets": {"objective": {"lattice": 0.0}},
    "blocks": {"objective": {"lattice": 1.0}},
    "accumulation": {"train": {"accumulate": 2}},
    "muon": {"train": {"optimizer": "muon"}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_for_nothing(case: str, log: Log, tmp_path: Path) -> None:
    """Seen to fail at f183d35: one wait for the noise, and six copies a step."""
    trainer = make_trainer(tmp_path, **CASES[case])
    trainer.train_step()
    log.clear()
    for _ in range(3):
        values = trainer.train_step()
    assert not log.mixed
    assert not log.waits
    assert sum(log.copies.values()) == 3  # rows and sites, once a step
    fetch(values)
    assert sum(log.waits.values()) == 1


def test_data_that_does_not_fit_comes_in_one_copy(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (100, 100))
    trainer = make_trainer(tmp_path)
    trainer.train_step()
    log.clear()
    trainer.train_step()
    assert not log.mixed
    assert not log.waits
    assert sum(log.copies.values()) == 1


def test_the_noise_of_a_gpu_is_resumed(log: Log, tmp_path: Path) -> None:
    """Rows and sites come from the CPU's generator, all else from the device's: both are in the checkpoint."""

    def batch(trainer: GeneratorTrainer) -> list[list[float]]:
        return [value.flatten().double().cpu().tolist() for value in trainer._batch()]

    first = make_trainer(tmp_path)
    assert first.noise_generator.device == CUDA
    batch(first)
    state = {name: value for name, value in first.state_dict().items() if name in ("generator", "noise_generator")}
    order = first.order.state_dict()
    expected = batch(first)
    second = make_trainer(tmp_path)
    second.generator.set_state(state["generator"])
    second.order.load_state_dict(order)
    assert batch(second) != expected  # the device's generator is missing
    second.generator.set_state(state["generator"])
    second.order.load_state_dict(order)
    second._load_noise_generator(state)
    assert batch(second) == expected


def test_validation_waits_once(log: Log, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    network = trainer.averaged()
    assert trainer.averaged() is network
    log.clear()
    with trainer.fabric.autocast():
        val_nll(network, trainer.held_out, trainer.noise, batch_size=5)
    assert not log.mixed
    assert sum(log.waits.values()) == 2  # the noise, and the result
    batches, figures = 3, len(evaluation.FIGURES)
    assert sum(log.copies.values()) == batches * figures


@pytest.mark.parametrize("classes", [0, 2])
def test_sample_grids_mix_no_devices(classes: int, log: Log, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, classes=classes)
    said: list[str] = []
    trainer.say = said.append
    trainer._sample()
    assert not said
    assert trainer._grid_path().is_file()
    assert not log.mixed


@pytest.mark.parametrize(("decoder_only", "judged_from"), [(False, 1.0), (False, 0.0), (True, 1.0)])
def test_a_tokenizers_step_waits_for_nothing(
    decoder_only: bool, judged_from: float, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, against the discriminator, and the decoder alone. It used to read every logged value."""
    folder = tiny_tokenizer_folder(tmp_path / "tokenizer")
    start = load_tokenizer(folder)
    config = TokenizerTrainConfig(start=str(folder))
    config.architecture = start.config  # type: ignore[attr-defined]
    config.loss.perceptual, config.loss.adversarial_start = 0.0, judged_from
    config.train.compile, config.train.restart_every, config.train.decoder_only = False, 1, decoder_only
    monkeypatch.setattr(torch.autograd, "backward", lambda roots, gradients: leave_zeros(trainer.model))
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: leave_zeros(trainer.discriminator))
    trainer = TokenizerTrainer(config, "cuda")
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device=CUDA)

    def weighted(self: Any, terms: dict[str, torch.Tensor], reconstruction: torch.Tensor) -> Any:
        return torch.zeros_like(reconstruction), {}

    monkeypatch.setattr(TokenizerTrainer, "_weighted_gradient", weighted)
    trainer.train_step(trainer.augmented(images))
    log.clear()
    values = trainer.train_step(trainer.augmented(images))
    assert ("discriminator" in values) == (judged_from == 0)
    assert not log.mixed
    assert not log.waits
    assert not log.copies
    fetch(values)
    assert sum(log.waits.values()) == 1
