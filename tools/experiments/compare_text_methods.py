"""The methods of tools/experiments/compare_text.py: their networks, the settings that are tried, and sampling."""

import math
from dataclasses import dataclass

import compare_methods
import torch
from baselines import (
    STRATEGIES,
    AutoregressiveTrainer,
    CausalTransformer,
    MDLMTrainer,
    autoregressive,
    autoregressive_costs,
    load_causal,
    remasking_plan,
    remdm,
)
from compare_methods import TRAINED, Row
from comparison import Sampled
from jaxtyping import Int
from torch import Tensor

from ggm_image.network import Transformer
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.pipelines.model_weights import load_network
from ggm_image.runtime.precision import native_bf16
from ggm_image.tokenizers.text import ByteTokenizer
from ggm_image.training.trainer import GeneratorTrainer

REFERENCE = "reference"
"""The network that judges samples; autoregressive as "ar", of another seed."""
TEXT_TRAINED: dict[str, tuple[type[GeneratorTrainer], str]] = {
    **{name: TRAINED[name] for name in ("ggm", "literal")},
    "mdlm": (MDLMTrainer, "cross-entropy"),
    **{name: TRAINED[name] for name in ("d3pm", "sedd")},
    "ar": (AutoregressiveTrainer, "cross-entropy"),
    REFERENCE: (AutoregressiveTrainer, "cross-entropy"),
}
TEXT_METHODS = {
    "ggm": "ggm",
    "literal": "literal",
    "mdlm": "mdlm",
    "remdm": "mdlm",
    "sedd": "sedd",
    "d3pm": "d3pm",
    "ar": "ar",
}
"""The network of each method."""
TEXT_TITLES = {
    "ggm": "GGM",
    "literal": "GGM, single draw",
    "mdlm": "MDLM",
    "remdm": "ReMDM",
    "sedd": "SEDD, uniform",
    "d3pm": "D3PM, uniform",
    "ar": "autoregressive",
}
TEMPERATURES = (0.75, 1.4)
"""Ends of what is tried; the entropy of text lies between for most."""
FEWEST = 3
"""Temperatures of a sampler at least: its figures at a given entropy lie on a line between two of them."""
BOUND_BATCH = 16
NEAR = 1.12
"""Figures are made at the chosen temperature, and at it times and by this."""


def text_structures(method: str, calls: int, sites: int) -> list[Row]:
    """What a sampler has to be told besides the temperature, for ``calls`` network calls, in the order of trying.

    Empty where the method has no sampler of so many calls. An autoregressive network has one of a call a site.
    """
    if method == "ar":
        return [{}] if calls == sites else []
    if method == "mdlm":
        return [{"curve": curve} for curve in ("linear", "cosine")]
    if method == "remdm":
        tried = {"loop": 0.02, "cap": 0.02, "rescale": 0.05, "conf": 1.0}
        assert set(tried) == set(STRATEGIES)
        return [{"strategy": strategy, "eta": eta, "curve": "linear"} for strategy, eta in tried.items()]
    if method == "ggm":
        # half of the calls revise, as in the shipped presets, or all that a first sweep cannot use; or the chain
        revise_calls = max(calls // 2, calls - sites)
        block = max(1, sites // max(1, revise_calls))
        revised = {"order": "signal", "revise_calls": revise_calls, "block": block}
        orders = [{"first_order": "bayer"}, {"confidence_noise": 4.5}]
        return [*[revised | order for order in orders], *_chains(calls, sites)]
    if method == "literal":
        return _chains(calls, sites)
    return compare_methods.structures(method, calls, sites)


def _chains(calls: int, sites: int) -> list[Row]:
    """The paper's chain in blocks, several sweeps of it; as many sweeps as there are calls a site, or 2 or 4."""
    sweeps = sorted({2, 4, max(1, calls // sites)})
    blocks = [(s, sites * s // calls) for s in sweeps]
    return [
        {"order": "schedule", "sweeps": s, "block": block}
        for s, block in blocks
        if block >= 1 and block * calls == sites * s and block <= sites // 2
    ]


def text_candidates(method: str, calls: int, sites: int, count: int) -> list[Row]:
    """The ``count`` settings that are tried: every structure at as many temperatures, evenly on a logarithmic scale.

    Of the structures as many are taken, from the first on, as leave `FEWEST` temperatures to each. What is left over
    goes to the first ones.
    """
    found = text_structures(method, calls, sites)[: max(1, count // FEWEST)]
    settings = []
    for k, structure in enumerate(found):
        own = count // len(found) + (k < count % len(found))
        settings += [{**structure, "temperature": temperature} for temperature in spread_temperatures(own)]
    return settings


def spread_temperatures(count: int) -> list[float]:
    """From end to end of `TEMPERATURES`, evenly on a logarithmic scale; the geometric mean for one."""
    low, high = map(math.log, TEMPERATURES)
    return [round(math.exp(low + (high - low) * (k / (count - 1) if count > 1 else 0.5)), 4) for k in range(count)]


def draw_text(
    method: str,
    model: Sampled,
    calls: int,
    settings: Row,
    labels: Int[Tensor, " b"],
    generators: list[torch.Generator],
) -> Int[Tensor, "b l"]:
    """One batch of tokens, as `compare_methods.draw`."""
    shared = {"codebook_size": model.tokenizer.codebook_size, "device": model.device}
    shared |= {"generators": generators, "temperature": settings["temperature"], "sites": model.grid[1]}
    if method == "ar":
        return autoregressive(model.network, labels, **shared)
    if method in ("mdlm", "remdm"):
        # without remasking every strategy is plain masked diffusion
        strategy = settings.get("strategy", "cap")
        plan = remasking_plan(strategy, calls, settings.get("eta", 0.0), curve=settings["curve"])
        return remdm(model.network, plan, labels, by_confidence=strategy == "conf", **shared)
    return compare_methods.draw(method, model, calls, settings, labels, generators)


@dataclass
class TextNetwork:
    """A trained network of text with what sampling needs: a `comparison.Sampled`."""

    network: Transformer
    device: torch.device

    def __post_init__(self) -> None:
        self.half = native_bf16(self.device)
        self.network = self.network.to(self.device, torch.bfloat16 if self.half else torch.float32)
        self.tokenizer = ByteTokenizer()
        self.grid = (1, self.network.config.grid[1])
        self.null_label = self.network.config.classes


def load_text_network(name: str, folder: NetworkFolder, device: str) -> TextNetwork:
    """The network of a name in `TEXT_TRAINED`."""
    causal = TEXT_TRAINED[name][0] is AutoregressiveTrainer
    return TextNetwork(load_causal(folder) if causal else load_network(folder)[0], torch.device(device))


def bits_of_text(name: str, network: Transformer, tokens: Int[Tensor, "n l"]) -> float:
    """-log p in bits per byte of a network in `TEXT_TRAINED`: exact if it is autoregressive, else an upper bound."""
    if isinstance(network, CausalTransformer):
        return float(autoregressive_costs(network, tokens).mean()) / tokens.shape[1] / math.log(2)
    return compare_methods.bound(name, network, tokens, None, batch_size=BOUND_BATCH) / math.log(2)
