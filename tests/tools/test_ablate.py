"""The ablations: each change is what its row says."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ggm_image import objective
from ggm_image.cli.main import main
from ggm_image.glauber import heat_bath, uniform_noise
from ggm_image.network import NetworkConfig
from tests.models import tiny_tokenizer_folder
from tests.tools.test_compare_objectives import CONFIG, Means

TOOLS = Path(__file__).parents[2] / "tools"
V = 7
SIZES = NetworkConfig(codebook_size=V, classes=2, grid=[3, 4], width=32, depth=2, heads=2)


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("benchmarks", "experiments", "figures"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    module = importlib.import_module("ablate")
    for name in ("ablate", "compare_methods", "compare_tables", "baselines", "experiments", "quality_vs_cost"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def test_the_direct_loss_is_the_binary_one_at_the_same_signal_logits(ablate: ModuleType) -> None:
    """Seen to fail with log contrast added, and with the noise draws unweighted."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, V, generator=generator, dtype=torch.float64)
    x_0 = torch.randint(V, (50,), generator=generator)
    level = torch.rand(50, generator=generator, dtype=torch.float64)
    noise = uniform_noise(V).double()
    u = heat_bath(logits, level, noise) - noise.log()
    for contrast in (1.0, 64.0):
        expected = objective.loss("binary", logits, x_0, level, None, noise, contrast=contrast)
        assert ablate.direct_loss(u, x_0, level, contrast).mean() == pytest.approx(float(expected), rel=1e-6)


def test_the_direct_network_shows_the_clean_token_under_its_heat_bath(ablate: ModuleType) -> None:
    """heat_bath of what it gives is its own softmax. Seen to fail with level and 1 - level exchanged."""
    network = randomised(ablate.DirectTransformer(SIZES))
    torch.nn.init.normal_(network.head_bias, std=0.05)
    torch.nn.init.zeros_(network.tokens.weight)  # small logits: q - (1 - level) pi is positive everywhere
    tokens = torch.randint(V, (3, 12), generator=torch.Generator().manual_seed(1))
    sites = torch.tensor([2, 7])
    tokens[:, sites] = V
    levels = torch.full((3, 12), 0.7)
    u = super(ablate.DirectTransformer, network).forward(tokens, levels, sites)
    shown = heat_bath(network(tokens, levels, sites), 0.7, uniform_noise(V))
    assert torch.allclose(shown, u.log_softmax(-1), atol=1e-5)
    asked = levels.clone()
    asked[:, sites] = 0.0
    clean = levels.clone()
    clean[:, sites] = 1.0
    assert torch.equal(network(tokens, asked, sites), network(tokens, clean, sites))


def test_the_direct_network_is_told_the_queried_level_and_the_others_are_not(ablate: ModuleType) -> None:
    for kind, differs in ((ablate.DirectTransformer, True), (ablate.Transformer, False)):
        network = randomised(kind(SIZES))
        tokens = torch.full((1, 12), 3)
        tokens[0, 5] = V
        samples = []
        for level in (0.3, 0.8):
            levels = torch.full((1, 12), 0.9)
            levels[0, 5] = level
            samples.append(
                super(kind, network).forward(tokens, levels, torch.tensor([5]))
                if differs
                else network(tokens, levels, torch.tensor([5]))
            )
        assert torch.equal(*samples) != differs


def test_one_time_is_one_number(ablate: ModuleType) -> None:
    """The highest level counts, and how the others are spread does not."""
    network = randomised(ablate.OneTimeTransformer(SIZES))
    tokens = torch.randint(V, (1, 12), generator=torch.Generator().manual_seed(2))
    levels = torch.rand(1, 12, generator=torch.Generator().manual_seed(3))
    same = levels.masked_fill(levels < levels.max(), 0.01)
    sites = torch.tensor([1])
    assert torch.equal(network(tokens, levels, sites), network(tokens, same, sites))
    assert not torch.equal(network(tokens, levels, sites), network(tokens, levels * 0.5, sites))


def test_learned_positions_are_the_only_ones(ablate: ModuleType) -> None:
    """Without its vectors the network cannot tell sites apart; with them it can."""
    network = randomised(ablate.LearnedTransformer(SIZES))
    generator = torch.Generator().manual_seed(4)
    tokens, order = torch.randint(V, (1, 12), generator=generator), torch.randperm(12, generator=generator)
    levels, every = torch.ones(1, 12), torch.arange(12)

    def moves_along() -> bool:
        straight = network(tokens, levels, every)[:, order]
        return torch.allclose(straight, network(tokens[:, order], levels, every), atol=1e-5)

    assert not moves_along()
    torch.nn.init.zeros_(network.site.weight)
    assert moves_along()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_every_row_trains_and_draws(
    ablate: ModuleType, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    tokenizer = tiny_tokenizer_folder(tmp_path / "tokenizer")
    assert main(["encode", str(class_folder), str(tmp_path / "tokens"), "--tokenizer", str(tokenizer)]) == 0
    monkeypatch.setattr(ablate, "BATCH", 6)
    monkeypatch.setitem(ablate.ROWS, "block 64", (ablate.Block16Trainer, []))  # the tiny grid has 16 sites
    tokens, out = str(tmp_path / "tokens"), tmp_path / "ablate"
    arguments = [tokens, tokens, str(class_folder), "--config", str(tmp_path / "config.yaml"), "--steps", "1"]
    arguments += ["--features", str(tmp_path / "means.pt"), "--seeds", "1", "-n", "6"]
    arguments += ["--processes", "0", "--out", str(out)]
    assert ablate.run(ablate.main, arguments) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["task"]["row"] for row in rows] == list(ablate.ROWS)
    assert all(2 < row["masked"] < 6 and row["fd_signal"] > 0 and row["fd_schedule"] > 0 for row in rows)
    assert [row["task"]["row"] for row in rows if "nll" not in row] == ["marginal noise"]
    assert (out / "ablate.md").read_text().count("\n") == len(ablate.ROWS) + 2
    assert ablate.run(ablate.main, [*arguments, "--rows", "defualt"]) == 2


def test_features_that_are_no_file_have_a_hash_too(ablate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--features` takes what `ggm-image fid` takes. Seen to fail with the hash of a file of that name."""
    for name, sha256, expected in (("efficientnet-lite0", "5e" * 32, "5e" * 32), ("timm:a.b", None, "timm:a.b")):
        found = SimpleNamespace(name=name, sha256=sha256)
        monkeypatch.setattr(ablate, "load_extractor", lambda asked, found=found: found if asked == found.name else None)
        assert ablate.hash_of_features(name) == expected


def test_a_row_is_compared_with_the_default_of_its_seed(ablate: ModuleType, tmp_path: Path) -> None:
    """Seen to fail with the difference of the means over all seeds of either."""
    results = ablate.Results(tmp_path / "results.json", {})
    for row, seed, masked in [("default", 0, 6.0), ("default", 1, 7.0), ("default", 2, 1.0), ("direct", 0, 6.5)]:
        results.add({"task": {"row": row, "seed": seed}, "nll": 1.0, "masked": masked})
    results.add({"task": {"row": "direct", "seed": 1}, "nll": 1.0, "masked": 7.5})
    results.add({"task": {"row": "one time", "seed": 3}, "nll": 1.0, "masked": 7.5})
    lines = ablate.table(results).splitlines()
    assert [line.split("|")[-3].strip() for line in lines[2:]] == ["", "+0.500 ± 0.000", ""]
