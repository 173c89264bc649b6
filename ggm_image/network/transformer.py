"""The denoiser: a transformer over a 2D grid of tokens, each with its own noise level.

Legend: ``b`` batch, ``h w`` grid rows and columns, ``l = h * w`` sites, ``k`` queried sites, ``v`` codes,
``d`` width, ``e`` heads, ``dh = d / e``.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ggm_image.network.config import NetworkConfig
from ggm_image.network.layers import LayerNorm, Mlp
from ggm_image.network.positions import Positions, grid_positions, rotate
from ggm_image.runtime.compile import allow_recompilations

LEVEL_WAVES = 16
"""Cosines of the level: enough to tell 0.9 from 1, the difference between a trusted and a known token."""

SMALL_GRID = 256
"""Sites up to which the whole attention matrix is cheap to keep for the backward pass."""

SITE_WAVES = 4
"""Frequencies of the absolute coordinates for each axis."""

Sites = Int64[Tensor, " k"] | Int64[Tensor, "b k"]
"""Queried sites: the same ones for the whole batch, or each image's own."""


def _attention_kernel(q: Tensor) -> AbstractContextManager[None]:
    """The kernels to choose from, in this order, independent of what the caller has switched on or off.

    On a CPU the flash kernel's backward pass costs several times the plain products on a small grid. On CUDA cuDNN's
    is left out: it makes a plan, of tens of milliseconds, for every new number of queried sites. Switching costs as
    much as some kernels, so nothing is done where the switches stand right, as `isolated` sets them.
    """
    on_cpu = q.device.type == "cpu"
    if on_cpu and q.shape[2] <= SMALL_GRID and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    if not on_cpu and q.device.type != "cuda":
        return nullcontext()
    switches = torch.backends.cuda
    if not torch.compiler.is_compiling():
        plain = switches.flash_sdp_enabled() and switches.math_sdp_enabled()
        if plain and (on_cpu or (switches.mem_efficient_sdp_enabled() and not switches.cudnn_sdp_enabled())):
            return nullcontext()
    if on_cpu:
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


class Attention(nn.Module):
    """Full attention with normalised queries and keys (arXiv 2302.05442) and axial rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm = LayerNorm(width // heads, affine=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Float[Tensor, "b l d"], positions: Positions, sites: Sites | None = None
    ) -> Float[Tensor, "b k d"]:
        """What all sites, or the queried ``sites`` alone, take from all sites."""
        own_positions = positions
        if sites is None:
            q, k, v = self._heads(self.qkv(x), 3)  # (b, e, l, dh) each
        else:
            d = x.shape[2]
            own_positions = positions.at(sites)
            (q,) = self._heads(F.linear(at_sites(x, sites), self.qkv.weight[:d]), 1)  # (b, e, k, dh)
            k, v = self._heads(F.linear(x, self.qkv.weight[d:]), 2)  # (b, e, l, dh) each
        q = rotate(self.norm(q), own_positions).to(v.dtype)  # (b, e, k, dh)
        k = rotate(self.norm(k), positions).to(v.dtype)  # (b, e, l, dh)
        with _attention_kernel(q):
            y = F.scaled_dot_product_attention(q, k, v)  # (b, e, k, dh)
        return self.project(y.transpose(1, 2).flatten(2))  # (b, k, d)

    def _heads(self, x: Float[Tensor, "b n md"], parts: int) -> Float[Tensor, "m b e n dh"]:
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """Attention and MLP, each normalised, modulated and gated by the class (adaLN-single, arXiv 2310.00426)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.width
        self.table = nn.Parameter(torch.empty(6, d))
        self.norm_1 = LayerNorm(d, affine=False)
        self.attention = Attention(d, config.heads)
        self.norm_2 = LayerNorm(d, affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        condition: Float[Tensor, "b 6 d"],
        positions: Positions,
        sites: Sites | None = None,
    ) -> Float[Tensor, "b k d"]:
        """The new residual stream: of all sites, or of the queried ``sites`` alone."""
        modulation = (condition + self.table).to(x.dtype).unsqueeze(2)  # (b, 6, 1, d)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation.unbind(1)  # (b, 1, d) each
        y = self.norm_1(x).to(x.dtype) * (1 + scale_1) + shift_1  # (b, l, d)
        kept = x if sites is None else at_sites(x, sites)
        x = kept + gate_1 * self.attention(y, positions, sites)  # (b, k, d)
        y = self.norm_2(x).to(x.dtype) * (1 + scale_2) + shift_2  # (b, k, d)
        return x + gate_2 * self.mlp(y)  # (b, k, d)


def at_sites(x: Float[Tensor, "b l d"], sites: Sites) -> Float[Tensor, "b k d"]:
    """The rows of some sites: the same ones for the whole batch, or each image's own."""
    if sites.dim() == 1:
        return x.index_select(1, sites)
    return x.gather(1, sites.unsqueeze(2).expand(-1, -1, x.shape[2]))


class Transformer(nn.Module):
    """Clean-token logits at the queried sites, given all tokens and the level of each.

    The queried sites hold the mask id, so the answer is a conditional given the other sites. Inside, the level of
    a masked site counts as 0: there is no token to trust, and the answer cannot depend on it.

    Args:
        config: sizes.

    Attributes:
        recompute: keep only what goes into each block, and compute the rest again in the backward pass.
    """

    recompute = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        d, c = config.width, config.condition_width
        self.tokens = nn.Embedding(config.codebook_size + 1, d)  # the last is the mask
        self.classes = nn.Embedding(config.classes + 1, c)  # the last is the null class
        self.level = nn.Sequential(nn.Linear(LEVEL_WAVES, c), nn.SiLU(), nn.Linear(c, 2 * d))
        self.site = nn.Linear(4 * SITE_WAVES, d, bias=False)
        self.condition = nn.Linear(c, 6 * d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(d)
        self.head_bias = nn.Parameter(torch.empty(config.codebook_size))
        self.head = None if config.tied_head else nn.Parameter(torch.empty(config.codebook_size, d))
        self._positions: dict[tuple[int, int, torch.device], Positions] = {}
        self._compiled = False
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """All initial values, in one place. Residual branches start small, and the class without any effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.in_features))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self._blocks():
            for branch in (block.attention.project, block.mlp.fc2):
                branch.weight.mul_(1 / math.sqrt(2 * self.config.depth))
            nn.init.zeros_(block.table)
            block.table[2::3] = 1.0  # the gates
        # A head of its own leaves the embedding free to outweigh what the first blocks add; a tied one, whose products
        # are the logits, must start small, and is moved by the frequencies of the codes before it means anything.
        nn.init.normal_(self.tokens.weight, std=0.02 if self.head is None else 1.0)
        nn.init.trunc_normal_(self.site.weight, std=0.002 if self.head is None else 0.3)
        nn.init.normal_(self.classes.weight, std=1.0)
        nn.init.zeros_(self.level[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.head_bias)
        if self.head is not None:
            nn.init.normal_(self.head, std=0.02)

    @torch.no_grad()
    def start_from_codes(
        self, vectors: Float[Tensor, "v e"], generator: torch.Generator, *, share: float = 0.9
    ) -> None:
        """Initialise codes that look similar with similar rows, in the embedding and in the head.

        What is learnt of one code then serves its neighbours from the first step on. Rows keep their size: a random
        projection of the standardised vectors takes the place of ``share`` of each, the rest stays noise.

        Args:
            vectors: (v, e) the tokenizer's codes, `Tokenizer.codebook_embeddings`.
            generator: of the projections.
            share: correlation in [0, 1] of a row with its projected code.
        """
        vectors = vectors.detach().float().cpu()
        deviation, mean = torch.std_mean(vectors, dim=0)
        varied = deviation > 1e-6 * deviation.max()  # a column that is the same for all codes says nothing
        if not varied.any():
            return
        codes = ((vectors - mean) / deviation)[:, varied] / math.sqrt(int(varied.sum()))  # (v, e')
        for weight in (self.tokens.weight[:-1], self.head):
            if weight is not None:
                projection = torch.randn(codes.shape[1], self.config.width, generator=generator)
                weight.copy_(math.sqrt(1 - share**2) * weight + share * weight.std() * (codes @ projection))

    def forward(
        self,
        tokens: Int64[Tensor, "b l"],
        levels: Float[Tensor, "b l"],
        sites: Sites,
        labels: Int64[Tensor, " b"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b k v"]:
        """Logits of ``p0(a) = P(x_{0,i} = a | all other sites)`` at the queried sites.

        Args:
            tokens: (b, l) codes in [0, v), or v (the mask) at sites to be judged without their token.
            levels: (b, l) probability in [0, 1] that each token is still the clean one; of no effect where masked.
            sites: (k,) or (b, k) sites in [0, l) whose logits are wanted.
            labels: (b,) classes in [0, classes), ``classes`` for the null class; None is the null class everywhere.
            grid: rows and columns, the training grid by default; rows * columns must be l.

        Returns:
            (b, k, v) logits, float32 for any precision inside.
        """
        return self.logits(self.features(tokens, levels, sites, labels, grid))  # (b, k, v)

    def features(
        self,
        tokens: Int64[Tensor, "b l"],
        levels: Float[Tensor, "b l"],
        sites: Sites,
        labels: Int64[Tensor, " b"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b k d"]:
        """The residual stream after the last block, at the queried sites; arguments as in `forward`."""
        positions = self.positions(grid, tokens.device)
        if self._compiled and sites.shape[-1] > 1:
            torch._dynamo.maybe_mark_dynamic(sites, sites.dim() - 1)
        if labels is None:
            labels = tokens.new_full((tokens.shape[0],), self.config.classes)  # (b,)
        x, condition = self.embed(tokens, levels, labels, positions)  # (b, l, d), (b, 6, d)
        for block in self.blocks[:-1]:
            x = self._run(block, x, condition, positions)  # (b, l, d)
        return self._run(self.blocks[-1], x, condition, positions, sites)  # (b, k, d)

    def _run(self, block: nn.Module, *arguments: object) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    def logits(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        """The head: logits of the clean token, float32."""
        weight = self.tokens.weight[:-1] if self.head is None else self.head  # (v, d)
        return F.linear(self.norm(features), weight, self.head_bias).float()

    def embed(
        self,
        tokens: Int64[Tensor, "b l"],
        levels: Float[Tensor, "b l"],
        labels: Int64[Tensor, " b"],
        positions: Positions,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b 6 d"]]:
        """What the blocks start from: tokens modulated by their levels; the class as shifts, scales and gates."""
        dtype = self.site.weight.dtype
        levels = self.seen_levels(tokens, levels.float())  # (b, l)
        harmonics = torch.arange(LEVEL_WAVES, device=levels.device, dtype=torch.float32) * math.pi  # (waves,)
        waves = (levels.unsqueeze(2) * harmonics).cos().to(dtype)  # (b, l, waves)
        scale, shift = self.level(waves).chunk(2, dim=2)  # (b, l, d) each
        x = self.tokens(tokens) * (1 + scale) + shift + self.site(positions.waves.to(dtype))  # (b, l, d)
        condition = self.condition(F.silu(self.classes(labels))).unflatten(1, (6, -1))  # (b, 6, d)
        return x.to(scale.dtype), condition  # the residual stream runs in the precision of the matrix products

    def seen_levels(self, tokens: Int64[Tensor, "b l"], levels: Float[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """The levels that the network receives: 0 at masked sites."""
        return levels.masked_fill(tokens == self.config.codebook_size, 0.0)

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_blocks` was called."""
        return self._compiled

    def compile_blocks(self) -> None:
        """Compile the embedding and the blocks (one graph serves all but the last); the results stay the same.

        `features` marks the number of queried sites as dynamic, so one graph of the last block serves every K >= 2.
        """
        allow_recompilations()
        self._compiled = True
        self.embed = torch.compile(self.embed, dynamic=False)  # type: ignore[method-assign]
        for block in self.blocks[:-1]:
            block.compile(dynamic=False)
        self.blocks[-1].compile()  # the number of queried sites varies

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def positions(self, grid: tuple[int, int] | None, device: torch.device) -> Positions:
        """The tables of a grid, kept after the first use."""
        height, width = grid or tuple(self.config.grid)
        key = (height, width, device)
        if key not in self._positions:
            head_width = self.config.width // self.config.heads
            with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
                self._positions[key] = grid_positions(
                    height,
                    width,
                    head_width,
                    theta=self.config.theta,
                    waves=SITE_WAVES,
                    is_line=self.config.grid[0] == 1,  # what it was trained on, not what is asked for now
                    device=device,
                )
        return self._positions[key]

    def flops(self, sites: int, queried: int) -> int:
        """Multiply-adds times two of one forward pass of one image (a training step costs three times as much).

        Args:
            sites: l, sites of the grid.
            queried: k, sites with logits.
        """
        c = self.config
        every = 2 * c.width**2  # keys and values
        own = 2 * c.width**2 + 2 * c.width * int(c.width * c.mlp_ratio) + 2 * sites * c.width
        level = LEVEL_WAVES * c.condition_width + c.condition_width * 2 * c.width
        trunk = sites * (c.depth * every + (c.depth - 1) * own + level)
        return 2 * (trunk + queried * (own + c.width * c.codebook_size) + 6 * c.width * c.condition_width)
