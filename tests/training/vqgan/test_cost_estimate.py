"""What a tokenizer's run will cost: counted without numbers, held against real tensors."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.io.resources import resource_dir
from ggm_image.runtime.memory import available_memory
from ggm_image.training.vqgan import cost_estimate as module
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.run import train_tokenizer
from ggm_image.training.vqgan.trainer import TokenizerTrainer
from tests.training.vqgan.test_run import CONFIG

GIB = 1 << 30


@pytest.fixture
def config(tmp_path: Path) -> TokenizerTrainConfig:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    return load_config(TokenizerTrainConfig, path, ["loss.adversarial_start=0", "train.batch_size=6"])


def forecast(config: TokenizerTrainConfig, **changes: int) -> module.TokenizerCostEstimate:
    return module.estimate_tokenizer_cost(config, images=10, kept_bytes=GIB, rate=1e9, **changes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("patch_size", [1, 2])
def test_memory_and_operations_are_those_of_a_real_step(config: TokenizerTrainConfig, patch_size: int) -> None:
    """By the allocator's records. Seen to fail without the discriminator, with the weights among what is kept, and with
    a reconstruction that is not put together from its patches, which ended every dry run of tokenizer_robots64.
    """
    config.architecture.ddconfig.resolution = 32
    config.architecture.ddconfig.patch_size = patch_size
    cost, trainer = forecast(config), TokenizerTrainer(config, "cpu")
    images = torch.rand(6, 3, 32, 32) * 2 - 1
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(images)
    # the adaptive weights take gradients at the last layer besides
    assert cost.step_flops <= counter.get_total_flops() < 1.35 * cost.step_flops
    for optimizer in (trainer.optimizer, trainer.d_optimizer):
        optimizer.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train_step(images)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert cost.activation_bytes == pytest.approx(peak, rel=0.15)
    model = sum(p.numel() for p in trainer.model.parameters())
    codes = trainer.model.quantize.embedding.weight.numel()
    judge = sum(p.numel() for p in trainer.discriminator.parameters())
    assert cost.parameters == model
    assert cost.state_bytes == 20 * (model - codes) + 8 * codes + 16 * judge
    assert cost.data_bytes == 10 * 3 * 32 * 32


def test_a_decoder_alone_and_no_discriminator_cost_less(config: TokenizerTrainConfig) -> None:
    cost = forecast(config)
    without = forecast(replace(config, loss=replace(config.loss, adversarial_start=1.0)))
    decoder = forecast(replace(config, train=replace(config.train, decoder_only=True)))
    assert without.image_bytes < cost.image_bytes
    assert without.step_flops < cost.step_flops
    assert decoder.image_bytes < 0.8 * cost.image_bytes
    assert decoder.state_bytes < cost.state_bytes
    assert forecast(replace(config, loss=replace(config.loss, perceptual=1.0))).step_flops > 2 * cost.step_flops


def test_the_batch_that_fits_fits(config: TokenizerTrainConfig) -> None:
    cost = forecast(config)
    fits = cost.largest_batch(GIB)
    sizes = [replace(cost, batch_size=n).bytes for n in (fits, fits + 1)]
    assert sizes[0] <= module.MARGIN * GIB < sizes[1]
    assert cost.largest_batch(cost.state_bytes) == 0


@pytest.mark.parametrize("name", ["tokenizer_f16", "tokenizer_cifar10"])
def test_the_quick_bound_is_one(name: str) -> None:
    """Else a run that does not fit would be let through."""
    path = resource_dir("configs") / f"{name}.yaml"
    found = load_config(TokenizerTrainConfig, path, ["train.batch_size=2", "train.precision=32-true"])
    found.architecture.ddconfig.resolution = 32
    assert 2 * forecast(found).bytes < module._most_bytes(found, 10, GIB)


def test_a_run_that_does_not_fit_is_refused(
    config: TokenizerTrainConfig, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail at f183d35: the machine began to swap."""
    room = 2 * forecast(config).bytes
    monkeypatch.setattr(module, "available_memory", lambda device: room)
    yaml, out = tmp_path / "tiny.yaml", tmp_path / "run"
    overrides = ["loss.adversarial_start=0", "train.batch_size=600"]
    with pytest.raises(UserError, match=r"more memory than is available .*batch_size=600.*; set train.batch_size=\d"):
        train_tokenizer(yaml, class_folder, out, overrides=overrides)
    assert not out.exists()
    monkeypatch.setattr(TokenizerTrainer, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # it has begun
        train_tokenizer(yaml, class_folder, out, overrides=overrides, force=True)


def test_a_dry_run_says_the_cost_and_leaves_nothing(
    class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    arguments = ["train-tokenizer", str(tmp_path / "tiny.yaml"), "--data", str(class_folder)]
    assert main([*arguments, "--out", str(tmp_path / "run"), "--dry-run", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for word in ("parameters", "TFLOP", "images/s", "GiB: ", "8 steps", "12 images, seen 2.67 times", "at most"):
        assert word in out
    assert not (tmp_path / "run").exists()


def test_available_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert available_memory(cpu, tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     2000 kB\n")
    assert available_memory(cpu, tmp_path) == 2000 << 10
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("500000\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(cpu, tmp_path) == 2000 << 10
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.stat").write_text("anon 3\ninactive_file 100000\n")
    assert available_memory(cpu, tmp_path) == 600_000
    assert available_memory(torch.device("meta")) is None


def test_rates_are_measured_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow they are: a fixed size took ten minutes on a CPU without bf16. Seen to fail without the break."""
    sides: list[int] = []
    monkeypatch.setattr(module, "_timed", lambda run, device: (sides.append(run.args[0].shape[2]), 0.01 * 8)[1])
    assert module.convolution_rate(torch.device("cpu"), "32-true", seconds=0.5) > 0
    assert set(sides) == {8}
