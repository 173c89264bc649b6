"""Optimizers by name: Muon against its definition, resumed states, schedules."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.tokenizers.vq.vqgan import VQGAN, DDConfig
from ggm_image.training import optim
from ggm_image.training.config import TrainConfig
from ggm_image.training.run import train_generator
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from tests.training.toy import CONFIG, write_cache

OPTIMIZERS = ("adamw", "muon")
SETTINGS = optim.OptimizerSettings(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.98))


def tiny_network() -> Transformer:
    torch.manual_seed(0)
    return Transformer(NetworkConfig(codebook_size=7, classes=2, grid=[2, 2], width=8, depth=2, heads=1))


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference_update(gradient: torch.Tensor) -> torch.Tensor:
    """The quintic iteration on the singular values, in float64."""
    u, s, v = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def test_a_step_of_muon_is_its_definition() -> None:
    """Two steps: momentum with Nesterov, the spectral iteration, the scale of AdamW, decoupled decay."""
    matrices = [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4), (3, 2, 2, 2))]
    before = [p.detach().double() for p in matrices]
    bias = nn.Parameter(torch.zeros(3))
    muon = optim.Muon(matrices, torch.optim.AdamW([bias]), lr=0.02, weight_decay=0.5, momentum=0.9, dtype=torch.float32)
    average = [torch.zeros_like(p) for p in before]
    for _ in range(2):
        for p in (*matrices, bias):
            p.grad = torch.randn_like(p)
        muon.step()
        for k, p in enumerate(matrices):
            assert p.grad is not None
            average[k] = 0.9 * average[k] + 0.1 * p.grad.double()
            ahead = (0.1 * p.grad.double() + 0.9 * average[k]).flatten(1)
            update = reference_update(ahead) * 0.2 * math.sqrt(max(ahead.shape))
            before[k] = before[k] * (1 - 0.02 * 0.5) - 0.02 * update.view(p.shape)
    for expected, found in zip(before, matrices, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    assert bias.abs().min() > 0


def test_operations_of_muon_are_those_of_its_products() -> None:
    """All matrices of the blocks, in whichever way round is cheaper; the embedding and the head are not among them."""
    network = tiny_network()
    give_gradients(network, 0)
    muon = optim.make_optimizer("muon", network, SETTINGS)
    with FlopCounterMode(display=False) as counter:
        muon.step()
    assert optim.muon_flops(network) == counter.get_total_flops() > 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon needs torch 2.9")
def test_muon_is_that_of_torch() -> None:
    """Ours in bfloat16, as torch always has it; the products of a batch may round differently."""
    for shape in ((12, 4), (4, 12), (6, 6)):
        ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
        other = nn.Parameter(torch.zeros(1))
        muon = optim.Muon([ours], torch.optim.AdamW([other]), lr=0.02, weight_decay=0.1, momentum=0.95)
        torchs = torch.optim.Muon(  # type: ignore[attr-defined]
            [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        for _ in range(3):
            ours.grad = torch.randn(shape)
            theirs.grad = ours.grad.clone()
            muon.step()
            torchs.step()
        moved = (theirs - 1).square().mean().sqrt()
        assert (ours - theirs).square().mean().sqrt() < 0.02 * moved


def test_hidden_matrices_are_those_of_the_blocks() -> None:
    network = tiny_network()
    muon = optim.make_optimizer("muon", network, SETTINGS)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in muon.param_groups]
    kinds = ("attention.qkv.weight", "attention.project.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert groups[0] == {f"blocks.{k}.{kind}" for k in range(2) for kind in kinds}
    assert set.union(*groups) == set(names.values())
    assert sum(map(len, groups)) == len(names)
    assert [group["weight_decay"] for group in muon.param_groups] == [0.1, 0.1, 0.0]
    decayed, plain = optim.parameter_groups(network, 0.1)
    assert groups[0] | groups[1] == {names[id(p)] for p in decayed["params"]}
    assert groups[2] == {names[id(p)] for p in plain["params"]}


def test_all_but_the_hidden_matrices_is_stepped_by_adamw() -> None:
    both = [tiny_network() for _ in range(2)]
    steps = [optim.make_optimizer(name, network, SETTINGS) for name, network in zip(OPTIMIZERS, both, strict=True)]
    for seed in range(2):
        for network, step in zip(both, steps, strict=True):
            give_gradients(network, seed)
            step.step()
    for name, p in both[0].named_parameters():
        same = torch.equal(p, both[1].get_parameter(name))
        assert same != optim.is_hidden(both[0], name), name


@pytest.mark.parametrize("fused", [False, True])
def test_a_resumed_muon_goes_on_bit_for_bit(fused: bool, tmp_path: Path) -> None:
    settings = optim.OptimizerSettings(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.98), fused=fused)
    whole, cut = tiny_network(), tiny_network()
    first = optim.make_optimizer("muon", whole, settings)
    second = optim.make_optimizer("muon", cut, settings)
    for seed in range(4):
        if seed == 2:
            torch.save({"network": cut.state_dict(), "optimizer": second.state_dict()}, tmp_path / "state.pt")
            cut = tiny_network()
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            cut.load_state_dict(state["network"])
            second = optim.make_optimizer("muon", cut, settings)
            second.load_state_dict(optim.regrouped(state["optimizer"], cut))
        for network, step in ((whole, first), (cut, second)):
            give_gradients(network, seed)
            for group in step.param_groups:
                group["lr"] = 0.01 * (seed + 1)
            step.step()
    for name, p in whole.named_parameters():
        assert torch.equal(p, cut.get_parameter(name)), name


def test_kernels_of_a_tokenizer_are_hidden_too() -> None:
    config = TokenizerTrainConfig()
    config.architecture.ddconfig = DDConfig(ch=32, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[], resolution=8)
    with torch.device("meta"):
        model = VQGAN(config.architecture, name="x")
    hidden = [name for name, _ in model.named_parameters() if optim.is_hidden(model, name)]
    assert "encoder.down.0.block.0.conv1.weight" in hidden
    assert not any(name.endswith(("conv_in.weight", "conv_out.weight", "embedding.weight")) for name in hidden)


def test_an_optimizer_from_outside_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []

    def make(module: nn.Module, settings: optim.OptimizerSettings) -> torch.optim.Optimizer:
        made.append(module)
        return torch.optim.SGD(module.parameters(), lr=settings.learning_rate)

    with pytest.raises(UserError, match=r"train\.optimizer must be one of adamw, muon \(sgd\)"):
        TrainConfig(optimizer="sgd")
    monkeypatch.setitem(optim.OPTIMIZERS, "sgd", optim.OptimizerKind(make))
    (tmp_path / "config.yaml").write_text(CONFIG)
    train_generator(
        tmp_path / "config.yaml",
        write_cache(tmp_path / "tokens"),
        tmp_path / "run",
        overrides=["train.steps=1", "train.optimizer=sgd"],
        device="cpu",
        report=lambda line: None,
    )
    assert len(made) == 1


def test_muon_trains_and_is_compared_at_a_resume(
    tmp_path: Path, no_curves: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    cache = write_cache(tmp_path / "tokens")

    def run(name: str, *overrides: str, resume: bool = False) -> list[str]:
        said: list[str] = []
        train_generator(
            tmp_path / "config.yaml",
            cache,
            tmp_path / name,
            overrides=overrides,
            resume=resume,
            device="cpu",
            report=said.append,
        )
        return said

    run("whole", "train.steps=4", "train.optimizer=muon", "train.schedule=wsd", "train.log_every=1")
    run("run", "train.steps=2", "train.optimizer=muon", "train.schedule=wsd")
    with pytest.raises(UserError, match=r"train\.optimizer must be that of the run that is resumed \(adamw"):
        run("run", "train.steps=4", resume=True)
    said = run("run", "train.steps=4", "train.optimizer=muon", resume=True)
    assert any("train.schedule wsd -> cosine" in line for line in said)
    state: dict[str, Any] = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert sum("momentum_buffer" in entry for entry in state["optimizer"]["state"].values()) == 8


def test_muon_refuses_sharded_parameters() -> None:
    with pytest.raises(UserError) as error:
        optim.make_optimizer("muon", tiny_network(), SETTINGS, sharded=True)
    assert "set train.strategy=ddp, or train.optimizer=adamw" in str(error.value)
    optim.check_optimizer("adamw", sharded=True)
    with pytest.raises(UserError, match="needs hidden matrices"):
        optim.make_optimizer("muon", nn.Linear(2, 2), SETTINGS)


def test_wsd_is_constant_and_falls_to_zero() -> None:
    def rate(step: int, progress: float) -> float:
        return optim.learning_rate(
            2.0, step=step, warmup_steps=10, progress=progress, final_share=0.1, schedule="wsd", decay_fraction=0.25
        )

    assert rate(4, 0.0) == pytest.approx(1.0)
    assert [rate(100, p) for p in (0.2, 0.5, 0.75)] == pytest.approx([2.0, 2.0, 2.0])
    assert [rate(100, p) for p in (0.875, 1.0)] == pytest.approx([1.0, 0.0])
    with pytest.raises(UserError, match=r"train\.decay_fraction must be greater than 0"):
        TrainConfig(decay_fraction=0.0)


def test_the_average_follows_a_module_without_its_state_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    """`state_dict` took milliseconds of every step. Tied weights, buffers and integers are averaged as before."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module.register_buffer("lost", torch.ones(2), persistent=False)
    average = optim.EMA(module, 0.5)
    before = {name: value.clone() for name, value in average.state.items()}
    assert "lost" not in before
    monkeypatch.setattr(torch.nn.Module, "state_dict", lambda *_, **__: pytest.fail("a state_dict was made"))
    for step in (1000, 1001):
        with torch.no_grad():
            for value in (*module.parameters(), module[1].running_mean):
                value.add_(1.0)
            module[1].num_batches_tracked.add_(3)
        average.update(module, step)
    for name, value in average.state.items():
        if name == "1.num_batches_tracked":
            assert int(value) == 6
        elif name == "1.running_var":
            assert torch.equal(value, before[name])
        else:
            # half of the way to 1, then half of the way to 2
            assert torch.allclose(value - before[name], torch.tensor(1.25)), name
