"""Samplers: the reverse Glauber chain on a fixed schedule, and the order that follows the signal logit.

Legend: `b` batch, `l` sites, `k` queried sites, `v` codes; the mask id is V.

    denoiser(tokens (B, L), levels (B, L), sites (K,) or (B, K), labels (B,) or None) -> clean logits (B, K,
    V)

Tokens at `sites` hold the mask id. Any callable of that shape will do: a network, `guided`, `truncated`, or
an exact denoiser in a test.

`sample` follows arXiv 2405.17035: from x_T ~ pi, for t = T-1..0, draw the sites of step t from the heat bath
at their levels before step t. With an exact denoiser, one site a step and final level 0 it is exact.
`sample_signal` is ours: one sweep of MaskGIT's decoding (arXiv 2202.04200), whose confidence is the signal
logit, or of a fixed order, then revision of the tokens that look like noise. It is not exact.

Every random number is a uniform drawn before the first step, on the CPU, in a fixed order per image, so
that image k of a list of generators depends on its own generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import check_tokens, checked_noise, draw_codes_of, heat_bath_probs, uniform_noise
from ggm_image.schedule import Schedule, order_sites
from ggm_image.settings import FIRST_ORDERS

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Callback = Callable[[int, Tensor], None]
Generators = torch.Generator | Sequence[torch.Generator] | None


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    batch: int,
    *,
    codebook_size: int,
    labels: Int[Tensor, " b"] | None = None,
    known: Int[Tensor, "b l"] | None = None,
    noise: Float[Tensor, " v"] | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, "b l"]:
    """Draw token grids by running the chain backwards.

        x_T ~ noise;   for t = T-1..0:   x_{t,i} ~ level_{t,i} p0(. | x_{t,-B}) + (1 - level_{t,i}) noise,  i
        in B_t

    Args:
        denoiser: gives the clean-token logits, see the module.
        schedule: the chain's steps; it is restricted to the unknown sites where `known` is given.
        batch: B, images to draw.
        codebook_size: V.
        labels: class of each image, handed on to the denoiser.
        known: the token where known, -1 where to be filled, (B, L). Known sites keep their token and level 1
            and are never queried. Rows are sampled together with the rows that have the same sites
            unknown, so different patterns in a batch cost one run each.
        noise: distribution over the codes, (V,); uniform where None, and always the one of training.
        generator: one generator for the batch or one an image (CPU).
        callback: called as callback(t, x_t) for t = T..0 (not where rows of `known` have different patterns).
        device: where to work; that of `known`, `labels` or `noise` where None, else the CPU.

    Returns:
        Tokens, (B, L), int64.

    Raises:
        UserError: shapes or values that do not fit, or a denoiser that gives NaN.
    """
    sites_total = schedule.height * schedule.width

    def draw(job: _Job, unknown: Tensor) -> Tensor:
        return _run_schedule(job, schedule.restricted(unknown))

    job = _job(denoiser, batch, sites_total, codebook_size, labels, known, noise, generator, callback, device)
    return _by_pattern(job, draw)


@torch.no_grad()
def sample_signal(
    denoiser: Denoiser,
    batch: int,
    *,
    height: int,
    width: int,
    codebook_size: int,
    calls: int,
    revise_calls: int = 0,
    revise_share: float = 0.25,
    block: int | None = None,
    confidence_noise: float = 4.5,
    first_order: str = "signal",
    labels: Int[Tensor, " b"] | None = None,
    known: Int[Tensor, "b l"] | None = None,
    noise: Float[Tensor, " v"] | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, "b l"]:
    """Draw token grids most signal first, then revise what looks like noise.

    Call n = 1..calls queries every unplaced site (mask id, level 0), draws its token a ~ p0, and places the
    sites of highest log p0(a) - log noise(a) + confidence_noise (1 - n/calls) Gumbel, so that
    floor(U cos(pi/2 n/calls)) of the U unknown sites are left: with uniform noise, MaskGIT's decoding. Or, by the
    same law, the next sites of a fixed order are queried and placed: "halton" is arXiv 2503.17076's. Then
    a revision call masks the next spread (Bayer) block, all else at level 1, and draws anew the
    `revise_share` of it whose old token has the lowest signal logit. Not exact: the choice of sites looks at
    the tokens.

    Args:
        denoiser, batch, codebook_size, labels, known, noise, generator, device: as `sample`.
        height, width: the grid.
        calls: network calls of the first sweep, >= 1; at most one an unknown site is made.
        revise_calls: network calls after it.
        revise_share: share of a block in [0, 1] that is drawn anew, at least one site.
        block: sites queried in a revision call; a quarter of the grid where None.
        confidence_noise: Gumbel noise on the confidence at the start; it falls linearly to 0.
        first_order: which sites the first sweep places first: "signal", or an order of `order_sites`, "halton" or
            "bayer".
        callback: called as callback(calls left, tokens); unplaced sites hold the mask id V.

    Returns:
        Tokens, (B, L), int64.

    Raises:
        UserError: as `sample`, or a setting out of range.
    """
    if calls < 1 or revise_calls < 0:
        raise UserError("network calls must be positive", f"{calls}, then {revise_calls}", "pass calls >= 1")
    if not 0 <= revise_share <= 1:
        raise UserError("the share to revise must lie in [0, 1]", revise_share, "e.g. 0.25")
    if not confidence_noise >= 0:
        raise UserError("the confidence noise must not be negative", confidence_noise, "0 turns it off")
    if first_order not in FIRST_ORDERS:
        raise UserError("the first order is none", first_order, f"choose one of {', '.join(FIRST_ORDERS)}")
    order = None if first_order == "signal" else order_sites(height, width, first_order)  # type: ignore[arg-type]
    block = max(1, height * width // 4) if block is None else block
    spread = Schedule.round_robin(height, width, sweeps=1, block=block)

    def draw(job: _Job, unknown: Tensor) -> Tensor:
        if order is None:
            x = _place_by_signal(job, int(unknown.sum()), calls, confidence_noise, revise_calls)
        else:
            x = _place_in_order(job, order[unknown[order]], calls, revise_calls)
        return _revise(job, x, spread.restricted(unknown).blocks, revise_calls, revise_share)

    job = _job(denoiser, batch, height * width, codebook_size, labels, known, noise, generator, callback, device)
    return _by_pattern(job, draw)


def guided(denoiser: Denoiser, weight: float, null_label: int, *, power: float = 0.0) -> Denoiser:
    """Classifier-free guidance on the clean-token logits: u = u_uncond + w (u_cond - u_uncond).

        w = 1 + (weight - 1) m^power,   m = the mean level of the row's sites

    With power 0 the weight is the same throughout. With a larger one it grows while the picture comes to be: what
    is placed first, and decides the view, is drawn from the class as it is, and the rest is made to fit it. Muse
    (arXiv 2301.00704) lets it grow linearly with the step; here it is the share of the picture that is there.

    w = 1 is the denoiser itself and 0 the unconditional one, a call each; any other doubles the batch.
    `null_label` is the class id that stands for "no class".
    """
    if not math.isfinite(weight):
        raise UserError("the guidance weight must be finite", weight, "1 turns guidance off")
    if not (power >= 0 and math.isfinite(power)):
        raise UserError("the power of guidance must not be negative", power, "0 is the same weight throughout")
    if weight == 1:
        return denoiser

    def guided_denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise UserError("guidance needs classes", "no labels", "pass labels, or weight 1")
        w: float | Tensor = weight
        if power > 0:
            w = 1 + (weight - 1) * levels.float().mean(dim=1).pow(power)[:, None, None]  # (B, 1, 1)
            if bool((w == 1).all()):
                return denoiser(tokens, levels, sites, labels)
        null = torch.full_like(labels, null_label)
        if power == 0 and weight == 0:
            return denoiser(tokens, levels, sites, null)
        both_sites = sites if sites.ndim == 1 else sites.repeat(2, 1)
        both = denoiser(tokens.repeat(2, 1), levels.repeat(2, 1), both_sites, torch.cat([labels, null]))
        conditional, unconditional = both.chunk(2)
        mixed = unconditional + w * (conditional - unconditional)
        # A row of weight 1 gets what it would get alone: the sum above rounds.
        return torch.where(w == 1, conditional, mixed) if isinstance(w, Tensor) else mixed

    return guided_denoiser


def truncated(
    denoiser: Denoiser, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Denoiser:
    """Temperature, then top-k, then top-p on the clean-token logits; ruled-out codes get -inf.

    top_k keeps the k likeliest codes (and ties with the last), top_p the smallest set of likeliest codes
    that holds at least that probability. All off is the denoiser itself.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError("the temperature must be positive", temperature, "1 turns it off")
    if top_k is not None and top_k < 1:
        raise UserError("top-k must be at least 1", top_k, "leave it out to turn it off")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("top-p must lie in (0, 1]", top_p, "1 turns it off")
    if temperature == 1 and top_k is None and top_p in (None, 1):
        return denoiser

    def truncated_denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        logits = denoiser(tokens, levels, sites, labels).float() / temperature
        if top_k is not None and top_k < logits.shape[-1]:
            least = logits.topk(top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if top_p is not None and top_p < 1:
            ordered, codes = logits.sort(dim=-1, descending=True)
            probs = ordered.softmax(-1)
            beyond = probs.cumsum(-1) - probs >= top_p  # the likelier codes alone hold top_p
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, codes, beyond), -torch.inf)
        return logits

    return truncated_denoiser


@dataclass(frozen=True)
class _Job:
    """Checked inputs of one sampling run, all on its device."""

    denoiser: Denoiser
    batch: int
    sites_total: int
    codebook_size: int
    labels: Tensor | None
    known: Tensor | None
    noise: Tensor
    generator: Generators
    callback: Callback | None

    @property
    def device(self) -> torch.device:
        return self.noise.device

    def rows(self, rows: Tensor) -> _Job:
        """The same run for some of the images."""
        generator = self.generator
        if isinstance(generator, Sequence):
            generator = [generator[k] for k in rows.tolist()]
        return replace(
            self,
            batch=len(rows),
            labels=None if self.labels is None else self.labels[rows],
            known=None if self.known is None else self.known[rows],
            generator=generator,
        )

    def uniforms(self, count: int) -> Float[Tensor, "b count"]:
        """All random numbers of the run, `count` an image."""
        if isinstance(self.generator, Sequence):
            drawn = torch.empty(self.batch, count, dtype=torch.float64)
            for row, generator in zip(drawn, self.generator, strict=True):
                torch.rand(count, generator=generator, dtype=torch.float64, out=row)
        else:
            drawn = torch.rand(self.batch, count, generator=self.generator, dtype=torch.float64)
        if self.device.type == "mps":  # has no float64; rounding must not reach 1
            return drawn.float().clamp(max=1 - 2**-24).to(self.device)
        return drawn.to(self.device)

    def query(self, tokens: Tensor, levels: Tensor, sites: Tensor) -> Tensor:
        """Clean logits (B, K, V) at `sites`, which are masked in the denoiser's input only."""
        index = sites.expand(self.batch, -1)
        masked = tokens.scatter(1, index, self.codebook_size)
        logits = self.denoiser(masked, levels, sites, self.labels)
        expected = (*index.shape, self.codebook_size)
        if logits.shape != expected:
            raise UserError("the denoiser gives logits of a wrong shape", tuple(logits.shape), f"return {expected}")
        return logits

    def signal(self, probs: Float[Tensor, "b k v"], tokens: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The signal logit of each token, up to the constant log keep/(1-keep)."""
        tokens = tokens.clamp(max=self.codebook_size - 1)  # a row without a distribution: reported at the end
        return (probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) / self.noise[tokens]).log()

    def report(self, t: int, tokens: Tensor) -> None:
        if self.callback is not None:
            self.callback(t, tokens.clone())


def _job(
    denoiser: Denoiser,
    batch: int,
    sites_total: int,
    codebook_size: int,
    labels: Tensor | None,
    known: Tensor | None,
    noise: Tensor | None,
    generator: Generators,
    callback: Callback | None,
    device: torch.device | str | None,
) -> _Job:
    if batch < 1 or codebook_size < 1:
        raise UserError("batch and codebook size must be positive", f"{batch}, {codebook_size}", "pass >= 1")
    if device is None:
        given = [x.device for x in (known, labels, noise) if x is not None]
        device = given[0] if given else "cpu"
    if labels is not None and labels.shape != (batch,):
        raise UserError("labels must hold one class an image", tuple(labels.shape), f"pass shape ({batch},)")
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise UserError("generators must be one an image", len(generator), f"pass a list of {batch}")
    if known is not None:
        if known.shape != (batch, sites_total):
            raise UserError("known does not fit", tuple(known.shape), f"pass shape ({batch}, {sites_total})")
        check_tokens(known, codebook_size, lowest=-1)
        known = known.to(device, torch.int64)
    noise = checked_noise(uniform_noise(codebook_size) if noise is None else noise, codebook_size).to(device)
    labels = None if labels is None else labels.to(device)
    return _Job(denoiser, batch, sites_total, codebook_size, labels, known, noise, generator, callback)


def _by_pattern(job: _Job, draw: Callable[[_Job, Tensor], Tensor]) -> Int[Tensor, "b l"]:
    """Run rows with the same unknown sites together: their schedule is the same and they share every call."""
    if job.known is None:
        tokens = draw(job, torch.ones(job.sites_total, dtype=torch.bool))
    else:
        patterns, row_pattern = (job.known < 0).cpu().unique(dim=0, return_inverse=True)
        if len(patterns) > 1 and job.callback is not None:
            raise UserError(
                "a callback needs the same known sites in every image",
                f"{len(patterns)} patterns",
                "sample them one by one",
            )
        tokens = torch.empty_like(job.known)
        for p, unknown in enumerate(patterns):
            rows = (row_pattern == p).nonzero().squeeze(1)
            tokens[rows.to(job.device)] = draw(job.rows(rows) if len(patterns) > 1 else job, unknown)
    if int(tokens.max()) >= job.codebook_size:  # how `draw_codes` marks a row without a distribution
        raise UserError("the denoiser gave no distribution", "NaN, or every code ruled out", "check its logits")
    return tokens


def _run_schedule(job: _Job, schedule: Schedule) -> Int[Tensor, "b l"]:
    steps = schedule.steps
    widest = max((len(step.sites) for step in steps), default=0)
    uniforms = job.uniforms(job.sites_total + len(steps) * widest)
    first, rest = uniforms.split([job.sites_total, len(steps) * widest], dim=1)
    x = draw_codes_of(job.noise.expand(*first.shape, -1), first)
    if job.known is not None:
        x = torch.where(job.known < 0, x, job.known)
    blocks = [sites.to(job.device) for sites in schedule.blocks]
    job.report(len(steps), x)
    for t in reversed(range(len(steps))):
        sites = blocks[t % len(blocks)]
        levels = schedule.levels(t).to(job.device)
        logits = job.query(x, levels.expand_as(x), sites)
        probs = heat_bath_probs(logits, levels[sites], job.noise)
        x[:, sites] = draw_codes_of(probs, rest[:, t * widest : t * widest + len(sites)])
        job.report(t, x)
    return x


def _place_by_signal(
    job: _Job, unknown: int, calls: int, confidence_noise: float, calls_after: int
) -> Int[Tensor, "b l"]:
    """One adaptive sweep: query all masked sites, place those whose token is signal most surely."""
    calls = min(calls, unknown)
    u_token, u_gumbel = job.uniforms(2 * calls * job.sites_total).unflatten(1, (2, calls, job.sites_total)).unbind(1)
    x = torch.full((job.batch, job.sites_total), job.codebook_size, device=job.device)
    if job.known is not None:
        x = torch.where(job.known < 0, x, job.known)
    levels = (x != job.codebook_size).float()
    sites = (levels == 0).nonzero()[:, 1].view(job.batch, unknown)
    job.report(calls + calls_after, x)
    for n in range(calls):
        probs = torch.softmax(job.query(x, levels, sites).to(job.noise.dtype), dim=-1)
        tokens = draw_codes_of(probs, u_token[:, n].gather(1, sites))
        gumbel = -(-u_gumbel[:, n].gather(1, sites).log()).log()
        confidence = job.signal(probs, tokens) + confidence_noise * (1 - (n + 1) / calls) * gumbel
        place = sites.shape[1] - _left_masked(unknown, sites.shape[1], n, calls)
        ranked = confidence.argsort(dim=1, descending=True, stable=True)
        placed, rest = ranked[:, :place], ranked[:, place:].sort(dim=1).values
        x = x.scatter(1, sites.gather(1, placed), tokens.gather(1, placed))
        levels = levels.scatter(1, sites.gather(1, placed), 1.0)
        sites = sites.gather(1, rest)
        job.report(calls - 1 - n + calls_after, x)
    return x


def _place_in_order(job: _Job, order: Int[Tensor, " u"], calls: int, calls_after: int) -> Int[Tensor, "b l"]:
    """One sweep over the unknown sites in a fixed order: query the next of them and place them all."""
    unknown = len(order)
    calls = min(calls, unknown)
    uniforms = job.uniforms(job.sites_total)
    x = torch.full((job.batch, job.sites_total), job.codebook_size, device=job.device)
    if job.known is not None:
        x = torch.where(job.known < 0, x, job.known)
    job.report(calls + calls_after, x)
    placed = 0
    for n in range(calls):
        until = unknown - _left_masked(unknown, unknown - placed, n, calls)
        block = order[placed:until].to(job.device)
        probs = torch.softmax(job.query(x, (x != job.codebook_size).float(), block).to(job.noise.dtype), dim=-1)
        x[:, block] = draw_codes_of(probs, uniforms[:, block])
        placed = until
        job.report(calls - 1 - n + calls_after, x)
    return x


def _revise(
    job: _Job, x: Int[Tensor, "b l"], blocks: Sequence[Int[Tensor, " _"]], calls: int, share: float
) -> Int[Tensor, "b l"]:
    """Judge one block a call, and draw anew the share of it that looks most like noise."""
    calls = calls if blocks else 0
    uniforms = job.uniforms(calls * job.sites_total).unflatten(1, (calls, job.sites_total))
    levels = torch.ones(job.sites_total, dtype=torch.float32, device=job.device).expand_as(x)
    for n in range(calls):
        block = blocks[n % len(blocks)].to(job.device)
        probs = torch.softmax(job.query(x, levels, block).to(job.noise.dtype), dim=-1)
        count = max(1, round(share * len(block)))
        worst = job.signal(probs, x[:, block]).topk(count, dim=1, largest=False).indices
        drawn = draw_codes_of(probs, uniforms[:, n, block])
        x = x.scatter(1, block[worst], drawn.gather(1, worst))
        job.report(calls - 1 - n, x)
    return x


def _left_masked(unknown: int, left: int, n: int, calls: int) -> int:
    """Sites still masked after call n = 0..calls-1: the cosine law, with at least one placed in each call."""
    if n == calls - 1:
        return 0
    lawful = math.floor(unknown * math.cos(math.pi / 2 * (n + 1) / calls))
    return max(min(lawful, left - 1), calls - 1 - n)
