"""What a run will cost: counted without numbers, held against real tensors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ggm_image.cli.main import main
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.runtime import precision as precision_module
from ggm_image.schedule import random_training_state
from ggm_image.training import cost_estimate as module
from ggm_image.training.config import GeneratorConfig, TrainConfig
from ggm_image.training.criterion import Criterion
from ggm_image.training.optim import muon_flops
from ggm_image.training.step_time import StepTime
from tests.training.toy import CONFIG, write_cache

SIZES = NetworkConfig(codebook_size=40, classes=2, grid=[4, 5], width=32, depth=3, heads=2)
CONFIGURATION = GeneratorConfig(network=SIZES, train=TrainConfig(batch_size=6, precision="32-true", steps=50))


def really_kept(rows: int, *, recompute: bool = False) -> int:
    """Bytes of the tensors that autograd holds after a real forward pass, weights not counted."""
    network = Transformer(SIZES)
    network.recompute = recompute
    criterion = Criterion(network, CONFIGURATION.objective, torch.full((40,), 1 / 40))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tokens = torch.zeros(rows, 20, dtype=torch.int64)
        levels = torch.ones(rows, 20)
        total = criterion(tokens, levels, torch.arange(20), torch.zeros(rows).long(), tokens, levels)
    weights = {p.data_ptr() for p in network.parameters()}
    size = sum(size for place, size in kept.items() if place not in weights)
    total.backward()  # everything was alive until now
    return size


def test_activations_are_those_that_autograd_keeps() -> None:
    """Of a whole batch, from two small ones. Seen to fail with shared storages counted each time."""
    assert module.activation_bytes(CONFIGURATION) == pytest.approx(really_kept(6), rel=0.05)


def test_what_is_recomputed_is_not_kept() -> None:
    """All but the inner of the blocks; of these, one input each, and one block at a time."""
    train = replace(CONFIGURATION.train, activation_checkpointing=True)
    predicted = module.activation_bytes(replace(CONFIGURATION, train=train))
    outside = really_kept(6, recompute=True)  # inputs of blocks are held by other means than autograd's
    block = (really_kept(6) - outside) / SIZES.depth
    inputs = SIZES.depth * 6 * 20 * SIZES.width * 4
    assert predicted == pytest.approx(outside + inputs + block, rel=0.05)


def test_several_processes() -> None:
    """Rows, state and traffic are divided."""
    network = Transformer(SIZES)
    parameters = sum(p.numel() for p in network.parameters())
    block = sum(p.numel() for p in network.blocks[0].parameters())
    one = module.estimate_cost(CONFIGURATION, rate=1e9)
    two = module.estimate_cost(CONFIGURATION, devices=2, rate=1e9)
    assert (one.sent_bytes, two.sent_bytes) == (0, 4 * parameters)
    assert two.activation_bytes == module.activation_bytes(CONFIGURATION, 3)
    assert two.state_bytes == one.state_bytes == 20 * parameters
    assert two.step_seconds == pytest.approx(one.step_seconds / 2 + two.sent_bytes / module.LINKS[0])
    train = replace(CONFIGURATION.train, strategy="fsdp", accumulate=3)
    sharded = module.estimate_cost(replace(CONFIGURATION, train=train), devices=1, nodes=2, rate=1e9)
    rest = parameters - SIZES.depth * block
    assert sharded.state_bytes == 10 * parameters + 4 * (2 * rest + 3 * block)
    assert sharded.activation_bytes == module.activation_bytes(CONFIGURATION, 1)
    assert sharded.sent_bytes == 4 * parameters * 7 / 2
    assert sharded.step_seconds == pytest.approx(one.step_seconds / 2 + sharded.sent_bytes / module.LINKS[1])


def test_the_sums() -> None:
    """Seen to fail with the backward pass left out, and with the shorter of steps and minutes exchanged."""
    cost = module.estimate_cost(CONFIGURATION)
    network = Transformer(SIZES)
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.state_bytes == 20 * cost.parameters
    queried = round(module.mean_queried(4, 5, 0.4))
    assert cost.step_flops == 3 * 6 * network.flops(20, queried)
    assert cost.steps == 50
    assert cost.seconds == pytest.approx(50 * cost.step_seconds)
    CONFIGURATION.train.max_minutes = 1e-9
    try:
        assert module.estimate_cost(CONFIGURATION).steps == 1
    finally:
        CONFIGURATION.train.max_minutes = None


def test_a_step_on_a_gpu_takes_no_less_than_its_launches_and_its_memory_traffic() -> None:
    """A small network was predicted to be hundreds of times faster than its kernels can be launched."""
    small = module.estimate_cost(CONFIGURATION, rate=4e14)
    launches = 3 * module.LAUNCHES["block"] + module.LAUNCHES["rest"]
    assert small.step_seconds == pytest.approx(launches * module.LAUNCH_SECONDS)
    wide = replace(CONFIGURATION, train=replace(CONFIGURATION.train, batch_size=60_000))
    large = module.estimate_cost(wide, rate=4e14)
    moved = 3 * large.activation_bytes + 2 * large.state_bytes
    assert large.step_seconds == pytest.approx(large.step_flops / 2.6e14 + moved * module.OPERATIONS_A_BYTE / 4e14)


def test_the_products_of_muon_count_once_a_step_in_every_process() -> None:
    """With a small batch they are most of the step."""
    muon = replace(CONFIGURATION, train=replace(CONFIGURATION.train, optimizer="muon"))
    expected = muon_flops(Transformer(SIZES)) / 1e9
    for devices in (1, 2):
        costs = [module.estimate_cost(config, devices=devices, rate=1e9) for config in (CONFIGURATION, muon)]
        assert costs[1].step_seconds - costs[0].step_seconds == pytest.approx(expected)


def test_rows_that_fit_into_memory_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the product rate counts where not even one does."""
    parameters = sum(p.numel() for p in Transformer(SIZES).parameters())
    one = module.activation_bytes(CONFIGURATION) / 6
    monkeypatch.setattr(module, "product_rate", lambda device, precision: 1e9)
    for rows in (0, 2):
        available = int(2 * (20 * parameters + (rows + 0.5) * one))
        monkeypatch.setattr(module, "available_memory", lambda device, available=available: available)
        assert module.estimate_cost(CONFIGURATION).timed_rows == rows


def test_mean_queried_is_that_of_training() -> None:
    generator = torch.Generator().manual_seed(5)
    for cosine in (0.4, 1.0):
        found = [len(random_training_state(1, 8, 8, generator=generator, cosine=cosine).sites) for _ in range(2000)]
        assert module.mean_queried(8, 8, cosine) == pytest.approx(sum(found) / len(found), rel=0.1)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_rates_are_measured_in_time(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow a product is: 2048 of a side took minutes on a CPU without bf16. Seen to fail without the break."""
    seconds, sides = [0.0], []

    def mm(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> None:
        assert a.dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
        sides.append(len(a))
        seconds[0] += 2 * len(a) ** 3 / 1e8  # a tenth of a GFLOP a second

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(module, "now", lambda device: seconds[0])
    assert module.product_rate(torch.device("cpu"), precision) == pytest.approx(1e8)
    assert set(sides) == {256}
    assert seconds[0] < 2


def test_the_cost_is_that_of_the_precision_that_the_run_will_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail at f183d35: the rate was that of bf16, whatever the run used."""
    asked: list[str] = []

    def time_steps(config: GeneratorConfig, device: str, *, rows: int, queried: int) -> StepTime:
        asked.append(config.train.precision)
        return StepTime(0.25, 0.5, rows)

    monkeypatch.setattr(module, "time_steps", time_steps)
    auto = replace(CONFIGURATION, train=replace(CONFIGURATION.train, precision="auto"))
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(precision_module, "native_bf16", lambda device, native=native: native)
        cost = module.estimate_cost(auto)
        assert (asked[-1], cost.precision) == (expected, expected)
        assert (cost.step_seconds, cost.timed_rows) == (0.25 + 6 * 0.5, 6)
        same = replace(CONFIGURATION, train=replace(CONFIGURATION.train, precision=expected))
        assert cost.activation_bytes == module.activation_bytes(same)
    assert module.estimate_cost(CONFIGURATION).precision == "32-true"
    assert auto.train.precision == "auto"


def test_a_dry_run_says_the_cost_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "native_bf16", lambda device: False)
    (tmp_path / "c.yaml").write_text(CONFIG.replace("precision: 32-true", "precision: auto"))
    cache = write_cache(tmp_path / "tokens")
    arguments = ["train", str(tmp_path / "c.yaml"), "--data", str(cache), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*arguments, "--device", "cpu"]) == 0
    found = capsys.readouterr()
    for word in (
        "parameters",
        "TFLOP",
        "GiB: ",
        "12 steps",
        "rows that were timed in 32-true",
        "40 rows, seen 2.4 times",
    ):
        assert word in found.out
    assert "precision: 32-true, as this CPU has no bf16" in found.err
    assert "timing a few steps" in found.err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "network.codebook_size=17"]) == 2
    assert "set network.codebook_size=16" in capsys.readouterr().err
    sharded = ["--devices", "2", "--strategy", "fsdp", "train.optimizer=muon"]
    assert main([*arguments, *sharded]) == 2
    assert "train.optimizer=muon needs whole matrices" in capsys.readouterr().err
