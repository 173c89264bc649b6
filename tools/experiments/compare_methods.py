"""The methods of tools/experiments/compare_objectives.py: their networks, the settings that are tried, and sampling."""

import math

import torch
from baselines import (
    D3PMTrainer,
    DuoTrainer,
    GIDDTrainer,
    MaskedTrainer,
    MaskUniform,
    SEDDTrainer,
    UniformState,
    ancestral,
    any_order_bound,
    critic,
    d3pm_log_score,
    d3pm_step,
    halton,
    interpolating_bound,
    remasking_plan,
    remdm,
    score_bound,
    sedd_step,
    tau_leap,
)
from comparison import Sampled
from experiments import Row
from jaxtyping import Int
from torch import Tensor

from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.schedule import Schedule
from ggm_image.training.trainer import GeneratorTrainer

TRAINED: dict[str, tuple[type[GeneratorTrainer], str]] = {
    "ggm": (GeneratorTrainer, "binary"),
    "literal": (GeneratorTrainer, "binary-sampled"),
    "masked": (MaskedTrainer, "cross-entropy"),
    "d3pm": (D3PMTrainer, "cross-entropy"),
    "sedd": (SEDDTrainer, "cross-entropy"),  # this class and those below bring their own loss
    "gidd": (GIDDTrainer, "cross-entropy"),
    "duo": (DuoTrainer, "cross-entropy"),
}
METHODS = {
    "ggm": "ggm",
    "literal": "literal",
    "maskgit": "masked",
    "halton": "masked",
    "critic": "masked",
    "remdm-cap": "masked",
    "remdm-rescale": "masked",
    "remdm-conf": "masked",
    "remdm-loop": "masked",
    "d3pm": "d3pm",
    "sedd": "sedd",
    "gidd": "gidd",
    "duo": "duo",
}
"""The network of each method."""
TITLES = {
    "ggm": "GGM",
    "literal": "GGM, single draw",
    "maskgit": "MaskGIT",
    "halton": "masked, Halton order",
    "critic": "masked, self-criticised",
    "remdm-cap": "ReMDM, cap",
    "remdm-rescale": "ReMDM, rescale",
    "remdm-conf": "ReMDM, confidence",
    "remdm-loop": "ReMDM, loop",
    "d3pm": "D3PM, uniform",
    "sedd": "SEDD, uniform",
    "gidd": "GIDD",
    "duo": "Duo",
}
TEMPERATURES = (0.45, 1.1)
WEIGHTS = (1.25, 6.0)
POWERS = (0.0, 0.5, 1.0, 2.0)
"""Ranges of the temperature and of the guidance weight, and the powers with which the weight grows, see `guided`."""
STEPS = (5**0.5 / 2 - 0.5, 2**0.5 - 1, 3**0.5 - 1)
"""Of three additive sequences modulo 1."""
PAPER = {"temperature": 1.0, "guidance": 3.0, "guidance_power": 0.0}
"""The first settings of every method: as in its paper, with a plain guidance weight where there is guidance."""


def structures(method: str, calls: int, sites: int) -> list[Row]:
    """What else a sampler has to be told for ``calls`` network calls, its paper's choice first; empty where it has no
    sampler of so many calls."""
    found: list[Row] = []
    if method in ("ggm", "literal"):
        for revise_calls in (0, calls // 8, calls // 4, calls // 2) if method == "ggm" else ():
            if revise_calls == 1 or calls - revise_calls > sites:
                continue
            revised = {"revise_calls": revise_calls, "block": max(1, sites // max(1, revise_calls))}  # each site once
            found.append({"order": "signal", **revised, "confidence_noise": 4.5})
            found.append({"order": "signal", **revised, "first_order": "halton"})
        for sweeps in (1, 2, 4):
            block = sites * sweeps // calls
            if block * calls == sites * sweeps and 1 <= block <= sites // 2:
                found.append({"order": "schedule", "sweeps": sweeps, "block": block})
        # one of a kind only once: with few calls several shares of revision are none
        return [entry for k, entry in enumerate(found) if entry not in found[:k]]
    if method == "halton":
        return [{}] if calls <= sites else []
    if method == "maskgit":
        return [{"confidence_noise": noise} for noise in (4.5, 8.0, 2.0)] if calls <= sites else []
    if method == "critic":
        return [{"confidence_noise": noise} for noise in (4.5, 8.0, 2.0)]
    if method.startswith("remdm"):
        etas = {"remdm-conf": (1.0, 0.5), "remdm-loop": (0.02, 0.05, 0.11)}.get(method, (0.02, 0.1, 0.3))
        return [{"eta": eta, "curve": curve} for eta in etas for curve in ("linear", "cosine")]
    if method == "gidd":
        shares = sorted({0, calls // 8, calls // 4, calls // 2})
        return [
            {"curve": curve, "corrections": n, "corrected": corrected}
            for n in shares
            for corrected in ((1, max(2, sites // 16)) if n else (0,))
            for curve in ("linear", "cosine")
        ]
    if method == "duo":
        return [{"curve": curve, "greedy": greedy} for greedy in (False, True) for curve in ("linear", "cosine")]
    levels = (1e-3, 2e-2) if method == "sedd" else (1e-3,)
    return [{"curve": curve, "first_level": level} for level in levels for curve in ("linear", "cosine")]


def candidates(method: str, calls: int, sites: int, count: int, *, guidance: bool = False) -> list[Row]:
    """The ``count`` settings that are tried for ``calls`` network calls; none where the method cannot make so many.

    The first is the paper's. The structures take turns; the temperature and, with guidance, its weight and power follow
    low-discrepancy sequences. The temperature differs in all of them, so that every method has as many settings,
    however many structures it has.
    """
    found = structures(method, calls, sites)
    if not found:
        return []
    first = {**found[0], "temperature": PAPER["temperature"]}
    settings = [first | ({"guidance": PAPER["guidance"], "guidance_power": 0.0} if guidance else {})]
    for k in range(1, count):
        temperature, weight, power = ((0.5 + k * step) % 1 for step in STEPS)
        entry = {**found[k % len(found)], "temperature": _between(TEMPERATURES, temperature)}
        if guidance:
            entry |= {"guidance": _between(WEIGHTS, weight), "guidance_power": POWERS[int(power * len(POWERS))]}
        settings.append(entry)
    return settings


def _between(ends: tuple[float, float], x: float) -> float:
    """On a logarithmic scale."""
    return round(math.exp(math.log(ends[0]) + x * math.log(ends[1] / ends[0])), 4)


def draw(
    method: str,
    model: Sampled,
    calls: int,
    settings: Row,
    labels: Int[Tensor, " b"],
    generators: list[torch.Generator],
) -> Int[Tensor, "b l"]:
    """One batch of tokens. A guided call is two passes of the network."""
    height, width = model.grid
    sites, codes, b = height * width, model.tokenizer.codebook_size, len(generators)
    network, temperature = model.network, settings["temperature"]
    if "guidance" in settings:
        network = guided(network, settings["guidance"], model.null_label, power=settings["guidance_power"])
    shared: Row = {"codebook_size": codes, "device": model.device}
    if "order" in settings or method == "maskgit":
        denoiser = truncated(network, temperature=temperature)
        common = {**shared, "labels": labels, "generator": generators}
        if settings.get("order") == "schedule":
            schedule = Schedule.round_robin(height, width, sweeps=settings["sweeps"], block=settings["block"])
            return sample(denoiser, schedule, b, **common)
        revise_calls = settings.get("revise_calls", 0)
        return sample_signal(
            denoiser,
            b,
            height=height,
            width=width,
            calls=calls - revise_calls,
            revise_calls=revise_calls,
            block=settings.get("block"),
            confidence_noise=settings.get("confidence_noise", 0.0),
            first_order=settings.get("first_order", "signal"),
            **common,
        )
    shared |= {"generators": generators, "temperature": temperature}
    if method == "halton":
        return halton(network, calls, labels, height=height, width=width, **shared)
    if method == "critic":
        noise = settings["confidence_noise"]
        return critic(network, calls, labels, height=height, width=width, confidence_noise=noise, **shared)
    if method.startswith("remdm"):
        strategy = method.removeprefix("remdm-")
        plan = remasking_plan(strategy, calls, settings["eta"], curve=settings["curve"])
        return remdm(network, plan, labels, sites=sites, by_confidence=strategy == "conf", **shared)
    if method in ("gidd", "duo"):
        del shared["codebook_size"]
        process = MaskUniform(codes) if method == "gidd" else UniformState(codes)
        entries = {name: settings[name] for name in ("curve", "greedy", "corrections", "corrected") if name in settings}
        steps = calls - settings.get("corrections", 0)
        return ancestral(network, process, steps, labels, sites=sites, **entries, **shared)
    step = {"d3pm": d3pm_step, "sedd": sedd_step}[method]
    curve, first_level = settings["curve"], settings["first_level"]
    return tau_leap(network, step, calls, labels, sites=sites, curve=curve, first_level=first_level, **shared)


@torch.inference_mode()
def bound(
    name: str,
    network: torch.nn.Module,
    tokens: Int[Tensor, "n l"],
    labels: Int[Tensor, " n"] | None,
    *,
    seed: int = 0,
    batch_size: int = 100,
) -> float:
    """Upper bound on -log p of tokens, nats per token, of a network of `TRAINED`; labels are the network's.

    Networks that fill masked sites are asked for another number of them in every batch.
    """
    generator, every = torch.Generator().manual_seed(seed), torch.arange(tokens.shape[1])
    codes, device = network.config.codebook_size, next(network.parameters()).device

    def answer(x_t: Tensor, levels: Tensor, sites: Tensor, own: Tensor | None) -> Tensor:
        own = None if own is None else own.to(device)
        return network(x_t.to(device), levels.float().to(device), sites.to(device), own).cpu().double()

    if name in ("d3pm", "sedd"):

        def log_score(x_t: Tensor, levels: Tensor, own: Tensor | None) -> Tensor:
            found = answer(x_t, levels, every, own)
            return d3pm_log_score(found, x_t, levels[:, :1, None].double()) if name == "d3pm" else found

        return score_bound(log_score, tokens, labels, codebook_size=codes, generator=generator)
    if name in ("gidd", "duo"):
        process = MaskUniform(codes) if name == "gidd" else UniformState(codes)

        def log_clean(z: Tensor, levels: Tensor, own: Tensor | None) -> Tensor:
            return answer(z, levels, every, own).log_softmax(-1)

        return interpolating_bound(log_clean, process, tokens, labels, generator=generator)
    return any_order_bound(answer, tokens, labels, codebook_size=codes, generator=generator, batch_size=batch_size)
