"""The autoregressive network against brute force: its likelihood, its sampler, and what it may see; MDLM's masks."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ggm_image.network import NetworkConfig
from tests.enumeration import all_states, chi_square, critical
from tests.tools.small_joint import seeded

SITES, CODES = 4, 3
STATES = all_states(SITES, CODES)
CONFIG = NetworkConfig(codebook_size=CODES, classes=0, grid=[1, SITES], width=16, depth=2, heads=2, condition_width=8)


@pytest.fixture
def network(baselines):
    torch.manual_seed(0)
    network = baselines.CausalTransformer(CONFIG).eval()
    for parameter in network.parameters():  # as initialised, every text is as likely as any other
        torch.nn.init.normal_(parameter, std=0.5)
    return network


def law_of(baselines, network) -> Tensor:
    return (-baselines.autoregressive_costs(network, STATES)).exp()


def test_the_probabilities_of_all_texts_sum_to_one(baselines, network) -> None:
    """And are far from uniform. Seen to fail with full attention, and with the tokens not shifted."""
    law = law_of(baselines, network)
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    assert float(law.max() / law.min()) > 30
    assert torch.allclose(law, (-baselines.autoregressive_costs(network, STATES, batch_size=7)).exp(), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_law_of_the_likelihood(baselines, network, temperature) -> None:
    """Chi-square; a temperature divides the logits of every site given those before.

    Seen to fail with the cached keys rotated as those of the first site, and with one uniform number for all sites.
    """
    with torch.no_grad():
        logits = network(STATES, torch.ones(STATES.shape), torch.arange(SITES))
    chosen = (logits / temperature).log_softmax(-1).gather(-1, STATES.unsqueeze(-1)).squeeze(-1)
    tokens = baselines.autoregressive(
        network, None, sites=SITES, codebook_size=CODES, generators=seeded(20_000), temperature=temperature
    )
    statistic, freedom = chi_square(tokens, chosen.sum(1).exp().double(), CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)
    assert all(block.attention.cache is None for block in network.blocks)


def test_an_answer_depends_on_the_tokens_before_it_alone(network) -> None:
    """Bit by bit; and on each of those. Seen to fail with full attention, and with the tokens not shifted."""
    rows = STATES[:20]

    def answers(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return network(tokens, torch.ones(tokens.shape), torch.arange(SITES))

    before = answers(rows)
    for site in range(SITES):
        changed = rows.clone()
        changed[:, site] = (changed[:, site] + 1) % CODES
        after = answers(changed)
        assert torch.equal(after[:, : site + 1], before[:, : site + 1])
        for later in range(site + 1, SITES):
            assert not torch.allclose(after[:, later], before[:, later], atol=1e-4)


def test_some_sites_and_one_at_a_time_are_as_all_at_once(network) -> None:
    rows, levels = STATES[::5], torch.ones(len(STATES[::5]), SITES)
    with torch.no_grad():
        whole = network(rows, levels, torch.arange(SITES))
        assert torch.allclose(network(rows, levels, torch.tensor([3, 1])), whole[:, [3, 1]], atol=1e-5)
        with network.sampling(len(rows)):
            before = torch.full_like(rows[:, 0], CODES)
            for site in range(SITES):
                assert torch.allclose(network.next_logits(before, site), whole[:, site], atol=1e-5)
                before = rows[:, site]


def test_a_saved_network_is_loaded_with_causal_attention(baselines, network, tmp_path) -> None:
    from dataclasses import asdict

    from ggm_image.pipelines.model_folder import NetworkFolder
    from ggm_image.pipelines.model_weights import export_model

    tokenizer = {"name": "bytes", "sha256": "0" * 64}
    export_model(
        tmp_path, network.state_dict(), network=asdict(CONFIG), tokenizer=tokenizer, class_names=[], training={}
    )
    again = baselines.load_causal(NetworkFolder.read(tmp_path))
    assert torch.equal(baselines.autoregressive_costs(again, STATES), baselines.autoregressive_costs(network, STATES))


def test_mdlm_masks_any_number_of_sites_as_often(baselines) -> None:
    """1 to 7 of 7 sites, each site as often: that is the weight of MDLM's bound. Seen to fail with the cosine law."""
    trainer = baselines.MDLMTrainer.__new__(baselines.MDLMTrainer)
    trainer.generator = torch.Generator().manual_seed(0)
    trainer.config = SimpleNamespace(network=SimpleNamespace(grid=[1, 7]))
    counts, sites = torch.zeros(8), torch.zeros(7)
    n = 7000
    for _ in range(n):
        query = trainer.query()
        counts[len(query.sites)] += 1
        sites[query.sites] += 1
        assert query.visited is None
    assert counts[0] == 0
    expected = n / 7
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < critical(6, 3.7)
    assert torch.allclose(sites / n, torch.full((7,), 4 / 7), atol=0.02)
