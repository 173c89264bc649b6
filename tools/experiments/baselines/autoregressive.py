"""An autoregressive network of the same sizes: the project's transformer with causal attention.

    log p(x) = sum_i log p(x_i | x_1 ... x_{i-1})

Tokens are shifted by one site, the mask id stands before the first, and a site takes from itself and the sites before
it. Nothing else of the network changes, so it has as many parameters, and its weights the same names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines.base import sample_uniforms
from ggm_image.glauber import sample_codes
from ggm_image.io.safetensors import load_weights
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.network.positions import Positions, rotate
from ggm_image.network.transformer import Attention, at_sites
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.schedule import Query
from ggm_image.training.trainer import GeneratorTrainer


class CausalAttention(Attention):
    """`Attention` in which a site takes from itself and the sites before it, with the weights of a full one.

    Attributes:
        cache: keys and values of the sites before, while a text is sampled; then one site more is given at a time.
    """

    cache: tuple[Tensor, Tensor] | None = None

    def __init__(self, full: Attention) -> None:
        nn.Module.__init__(self)
        self.heads, self.qkv, self.norm, self.project = full.heads, full.qkv, full.norm, full.project

    def forward(self, x: Tensor, positions: Positions, sites: Tensor | None = None) -> Tensor:
        q, k, v = self._heads(self.qkv(x), 3)  # (b, e, l, dh) each
        q = rotate(self.norm(q), positions).to(v.dtype)
        k = rotate(self.norm(k), positions).to(v.dtype)
        if self.cache is not None:
            k, v = torch.cat([self.cache[0], k], dim=2), torch.cat([self.cache[1], v], dim=2)
            self.cache = k, v
        # with gradients the plain products are faster on a CPU, see `network.transformer`
        with sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.cache is None)
        y = self.project(y.transpose(1, 2).flatten(2))  # (b, l, d)
        return y if sites is None else at_sites(y, sites)


class CausalTransformer(Transformer):
    """The answer at a site is log p(token | the tokens before it), whatever stands at the site and after it."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        for block in self._blocks():
            block.attention = CausalAttention(block.attention)

    def features(
        self,
        tokens: Int[Tensor, "b l"],
        levels: Float[Tensor, "b l"],
        sites: Int[Tensor, " k"],
        labels: Int[Tensor, " b"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b k d"]:
        first = tokens.new_full((len(tokens), 1), self.config.codebook_size)
        return super().features(torch.cat([first, tokens[:, :-1]], 1), torch.ones_like(levels), sites, labels, grid)

    @contextmanager
    def sampling(self, rows: int) -> Iterator[None]:
        """While it lasts, `next_logits` may be called, site after site from the first on."""
        c, weight = self.config, self.site.weight
        empty = weight.new_empty(rows, c.heads, 0, c.width // c.heads)
        layers = [block.attention for block in self._blocks()]
        try:
            for layer in layers:
                layer.cache = (empty, empty)
            yield
        finally:
            for layer in layers:
                layer.cache = None

    def next_logits(
        self, before: Int[Tensor, " b"], site: int, labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b v"]:
        """The answer at a site, given the token before it; those further back are in the caches."""
        positions = Positions(*(table[site : site + 1] for table in self.positions(None, before.device)))
        if labels is None:
            labels = torch.full_like(before, self.config.classes)
        x, condition = self.embed(before[:, None], torch.ones_like(before[:, None]), labels, positions)
        for block in self.blocks:
            x = block(x, condition, positions)
        return self.logits(x[:, 0])


class AutoregressiveTrainer(GeneratorTrainer):
    """Maximum likelihood: cross-entropy at every site."""

    def make_network(self) -> CausalTransformer:
        return CausalTransformer(self.config.network)

    def query(self) -> Query:
        height, width = self.config.network.grid
        return Query(torch.arange(height * width), None)

    def corrupt(self, x_0: Int[Tensor, "b l"], query: Query) -> tuple[Tensor, Tensor]:
        return x_0, torch.ones(x_0.shape, device=x_0.device)


def load_causal(folder: NetworkFolder) -> CausalTransformer:
    """The network of a model folder that `AutoregressiveTrainer` wrote, in float32 on the CPU."""
    network = CausalTransformer(folder.network)
    load_weights(network, folder.weights)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def autoregressive(
    network: CausalTransformer,
    labels: Int[Tensor, " b"] | None,
    *,
    sites: int,
    codebook_size: int,
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Sample tokens from the first site to the last, a call each, which computes that site alone."""
    (uniforms,) = sample_uniforms(generators, (1, sites), device)  # (b, l)
    x = torch.full((len(generators), sites + 1), codebook_size, device=device)
    with network.sampling(len(generators)):
        for site in range(sites):
            logits = network.next_logits(x[:, site], site, labels) / temperature
            x[:, site + 1] = sample_codes(logits.log_softmax(-1), uniforms[:, site])
    return x[:, 1:]


@torch.no_grad()
def autoregressive_costs(
    network: CausalTransformer, tokens: Int[Tensor, "n l"], *, batch_size: int = 64
) -> Float[Tensor, " n"]:
    """-log p of every row, nats; labels are of no class."""
    device, every = network.site.weight.device, torch.arange(tokens.shape[1], device=network.site.weight.device)
    found = []
    for part in tokens.split(batch_size):
        own = part.to(device).long()
        logits = network(own, torch.ones(own.shape, device=device), every)
        found.append(F.cross_entropy(logits.transpose(1, 2).float(), own, reduction="none").double().sum(1).cpu())
    return torch.cat(found)
