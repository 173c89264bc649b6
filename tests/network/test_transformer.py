"""The network: what its answer may and may not depend on, and how exact it is."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.network.transformer import _attention_kernel
from ggm_image.runtime.numerics import isolated

V, C, L = 20, 3, 12
SITES = torch.tensor([7, 0, 4])


def make_network(**changes: Any) -> Transformer:
    """A small network with all its parameters at work (as initialised, class and levels have no effect)."""
    torch.manual_seed(0)
    network = Transformer(
        NetworkConfig(
            **{"codebook_size": V, "classes": C, "grid": [3, 4], "width": 32, "depth": 2, "heads": 2} | changes
        )
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def make_batch(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, V, (batch, L), generator=generator)
    tokens[:, SITES] = V
    return tokens, torch.rand(batch, L, generator=generator), torch.randint(0, C, (batch,), generator=generator)


@pytest.mark.parametrize("tied", [True, False])
def test_shape_and_type(tied: bool) -> None:
    logits = make_network(tied_head=tied)(*make_batch()[:2], SITES)
    assert logits.shape == (4, 3, V)
    assert logits.dtype == torch.float32


def test_the_level_of_a_masked_site_is_of_no_effect() -> None:
    # Seen to fail without `masked_fill` in `embed`.
    network, (tokens, levels, labels) = make_network(), make_batch()
    changed = levels.clone()
    changed[:, SITES] = 1 - changed[:, SITES]
    assert torch.equal(network(tokens, levels, SITES, labels), network(tokens, changed, SITES, labels))


@pytest.mark.parametrize("what", ["level", "token", "label"])
def test_everything_else_is_of_effect(what: str) -> None:
    # Seen to fail with the levels or the class left out of `embed`.
    network, (tokens, levels, labels) = make_network(), make_batch()
    before = network(tokens, levels, SITES, labels)
    if what == "level":
        levels[:, 2] = 1 - levels[:, 2]
    elif what == "token":
        tokens[:, 2] = (tokens[:, 2] + 1) % V
    else:
        labels = (labels + 1) % C
    assert ((network(tokens, levels, SITES, labels) - before).abs().amax(dim=(1, 2)) > 1e-3).all()


def test_queried_sites_alone_are_the_same_as_all_sites() -> None:
    # Seen to fail with the sites sorted, and with rows and columns exchanged in the per-row gather.
    network, (tokens, levels, labels) = make_network(), make_batch()
    everywhere = network(tokens, levels, torch.arange(L), labels)
    torch.testing.assert_close(network(tokens, levels, SITES, labels), everywhere[:, SITES])
    own = torch.stack([torch.randperm(L, generator=torch.Generator().manual_seed(k))[:3] for k in range(4)])
    picked = torch.stack([everywhere[row, own[row]] for row in range(4)])
    torch.testing.assert_close(network(tokens, levels, own, labels), picked)


def test_no_label_is_the_null_class() -> None:
    network, (tokens, levels, _) = make_network(), make_batch()
    null = torch.full((4,), C)
    assert torch.equal(network(tokens, levels, SITES), network(tokens, levels, SITES, null))
    assert make_network(classes=0)(tokens, levels, SITES).isfinite().all()


def test_a_larger_grid_than_in_training() -> None:
    network = make_network()
    tokens = torch.randint(0, V, (2, 5 * 7), generator=torch.Generator().manual_seed(0))
    logits = network(tokens, torch.ones(2, 35), torch.arange(35), grid=(5, 7))
    assert logits.shape == (2, 35, V)
    assert logits.isfinite().all()
    other = network(tokens, torch.ones(2, 35), torch.arange(35), grid=(7, 5))
    assert not torch.allclose(logits, other)


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_half_precision_is_near(how: str) -> None:
    # bfloat16 keeps 8 bits: 2 blocks and logits of size about 2 stay within 0.1, and within 0.02 on average.
    network, (tokens, levels, labels) = make_network(), make_batch()
    exact = network(tokens, levels, SITES, labels)
    if how == "weights":
        rough = network.to(torch.bfloat16)(tokens, levels, SITES, labels)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(tokens, levels, SITES, labels)
    assert rough.dtype == torch.float32
    error = (rough - exact).abs() / exact.std()
    assert 0 < error.mean() < 0.02
    assert error.max() < 0.1


def test_attention_on_a_gpu_takes_flash_first_and_never_cudnn() -> None:
    """cuDNN's kernel makes a plan for every number of queried sites. Seen to fail with torch's own order."""
    query = SimpleNamespace(device=torch.device("cuda"), shape=(1, 2, 64, 16))
    with _attention_kernel(query):  # type: ignore[arg-type]
        order = [SDPBackend(k) for k in torch._C._get_sdp_priority_order()]
        first = [backend for backend in order if backend != SDPBackend.CUDNN_ATTENTION][:3]
        assert first == [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with isolated():  # the switches stand right, and touching them costs as much as a kernel
        assert isinstance(_attention_kernel(query), nullcontext)  # type: ignore[arg-type]


def test_training_and_inference_attend_alike() -> None:
    """The CPU uses another attention kernel where gradients are wanted."""
    network, (tokens, levels, labels) = make_network(), make_batch()
    without = network(tokens, levels, SITES, labels)
    network.requires_grad_(True)
    with torch.enable_grad():
        torch.testing.assert_close(network(tokens, levels, SITES, labels).detach(), without)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it
def test_compiled_is_eager_and_one_graph_serves_all_blocks() -> None:
    import torch._dynamo as dynamo

    network, (tokens, levels, labels) = make_network(depth=3).requires_grad_(True), make_batch()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        network.zero_grad()
        logits = network(tokens, levels, SITES, labels)
        logits.square().sum().backward()
        gradient = network.blocks[0].attention.qkv.weight.grad  # type: ignore[union-attr]
        assert isinstance(gradient, torch.Tensor)
        return logits.detach(), gradient.clone()

    expected = run()
    dynamo.reset()
    dynamo.utils.counters.clear()
    network.compile_blocks()
    for got, want in zip(run(), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 3  # embedding, block, last block
    assert not dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("tied", [True, False])
def test_initial_logits_are_small_and_classless(tied: bool) -> None:
    torch.manual_seed(0)
    sizes = {"codebook_size": V, "classes": C, "grid": [3, 4], "width": 64, "depth": 3, "heads": 2}
    network = Transformer(NetworkConfig(**sizes, tied_head=tied))
    tokens, levels, labels = make_batch()
    logits = network(tokens, levels, SITES, labels)
    assert logits.abs().max() < 1
    assert torch.equal(logits, network(tokens, levels, SITES))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(12, dtype=torch.long))
    loss.backward()
    unused = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # The class reaches the loss only once `condition.weight` has left zero, the level once its last layer has.
    assert unused == {"classes.weight", "level.0.weight", "level.0.bias"}


@pytest.mark.parametrize("tied", [True, False])
def test_codes_that_look_alike_start_alike(tied: bool) -> None:
    """In the embedding and in the head; rows keep their size. Seen to fail with columns that are not standardised."""
    torch.manual_seed(0)
    network = Transformer(NetworkConfig(codebook_size=200, classes=C, grid=[3, 4], width=64, heads=2, tied_head=tied))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    vectors = torch.randn(200, 6) * torch.tensor([1.0, 1, 1, 100, 1, 0]) + 3
    network.start_from_codes(vectors, torch.Generator().manual_seed(0))
    alike = torch.pdist(vectors[:, :5] / vectors[:, :5].std(0))
    for weight, name in ((network.tokens.weight[:-1], "tokens.weight"), (network.head, "head")):
        if weight is not None:
            weight = weight.detach()
            assert torch.corrcoef(torch.stack([alike, torch.pdist(weight)]))[0, 1] > 0.6
            assert float(weight.std() / before[name][:200].std()) == pytest.approx(1, abs=0.15)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"tokens.weight"} if tied else changed == {"tokens.weight", "head"}
    assert torch.equal(network.tokens.weight[-1], before["tokens.weight"][-1]), "the mask is no code"


def test_codes_that_are_all_the_same_change_nothing() -> None:
    network = Transformer(NetworkConfig(codebook_size=V, classes=C, grid=[3, 4], width=64, heads=2))
    before = network.tokens.weight.clone()
    network.start_from_codes(torch.ones(V, 4), torch.Generator())
    assert torch.equal(network.tokens.weight, before)


def test_the_published_size() -> None:
    network = Transformer(NetworkConfig())
    assert 8_500_000 < sum(p.numel() for p in network.parameters()) <= 9_500_000


@pytest.mark.parametrize("queried", [1, 5, 12])
def test_operations_are_those_of_the_products(queried: int) -> None:
    """Against torch's own counter of matrix products."""
    network = make_network(depth=3, width=64, mlp_ratio=3.5).requires_grad_(True)
    tokens, levels, labels = make_batch(1)
    with FlopCounterMode(display=False) as counter:
        network(tokens, levels, torch.arange(queried), labels)
    positions = 2 * L * (4 * 4) * 64  # of the table of the sites, which `flops` leaves out
    assert network.flops(L, queried) == counter.get_total_flops() - positions


BAD: list[tuple[dict[str, Any], str]] = [
    ({"width": 30}, "use width 32"),
    ({"depth": 0}, "network.depth must be greater than 0"),
    ({"grid": [8]}, "network.grid must have at least 2 items"),
    ({"classes": -1}, "network.classes must be greater than or equal to 0"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkConfig(**{"width": 32, "heads": 2} | changes)


def test_gradients_are_finite_at_the_ends_of_the_level() -> None:
    network = make_network().requires_grad_(True)
    tokens, levels, labels = make_batch()
    levels[0], levels[1] = 0.0, 1.0
    network(tokens, levels, SITES, labels).logsumexp(-1).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.slow
def test_one_graph_of_the_last_block_serves_every_number_of_sites() -> None:
    """But one site. Seen to fail at f183d35: a graph for the first number, and another for the second."""
    import torch._dynamo as dynamo

    network, (tokens, levels, labels) = make_network(depth=2).requires_grad_(False), make_batch()
    dynamo.reset()
    dynamo.utils.counters.clear()
    network.compile_blocks()
    for count in (5, 3, 9, 2):
        sites = torch.arange(count)
        network(tokens, levels, sites, labels)
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 3  # embedding, block, last block
    dynamo.reset()
