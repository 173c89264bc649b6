"""The tokens of a seed stay what they are: both samplers against stored tokens, one hexadecimal digit a token.

`python -m tests.sampler.test_golden` writes the file again. That changes what every seed gives, on purpose only.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.schedule import Schedule

GOLDEN = Path(__file__).with_name("golden_tokens.json")
HEIGHT, WIDTH, CODES, NULL = 5, 6, 16, 3
SKEWED = torch.arange(1, CODES + 1).float() / sum(range(1, CODES + 1))
PATTERNS = torch.full((4, HEIGHT * WIDTH), -1)
PATTERNS[:2, 3:17], PATTERNS[2:, ::4] = 5, 9


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TABLE = torch.randn(4096, CODES, generator=seeded(0))


def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
    """Logits from a table, by the tokens, the levels to three digits, the site and the class."""
    places = torch.arange(1, tokens.shape[1] + 1)
    seen = (tokens * places**2).sum(1, keepdim=True) * 31 + ((levels * 1000).round().long() * places).sum(1, True)
    row = seen + sites.expand(len(tokens), -1) * 7 + (0 if labels is None else 1001 * labels[:, None])
    return 1.5 * TABLE[row % len(TABLE)]


SCHEDULE = {"kind": "schedule", "sweeps": 3, "block": 7}
SIGNAL = {"kind": "signal", "calls": 6, "revise_calls": 7, "block": 8}
CASES: dict[str, dict[str, Any]] = {
    "schedule": SCHEDULE,
    "schedule one site a step": {"kind": "schedule", "sweeps": 2, "block": 1},
    "schedule one generator": SCHEDULE | {"generator": "one"},
    "schedule noise and known": SCHEDULE | {"noise": SKEWED, "known": PATTERNS},
    "schedule guidance": SCHEDULE | {"guidance": {"weight": 2.5}},
    "schedule guidance ramp": SCHEDULE | {"guidance": {"weight": 2.5, "power": 1.5}},
    "schedule truncated": SCHEDULE | {"truncation": {"temperature": 0.8, "top_k": 9, "top_p": 0.9}},
    "signal": SIGNAL,
    "signal one generator": SIGNAL | {"generator": "one"},
    "signal without Gumbel noise": SIGNAL | {"confidence_noise": 0.0},
    "signal noise and known": SIGNAL | {"noise": SKEWED, "known": PATTERNS},
    "signal guidance": SIGNAL | {"guidance": {"weight": 2.5}},
    "signal guidance ramp": SIGNAL | {"guidance": {"weight": 2.5, "power": 1.0}},
    "signal guidance ramp and known": SIGNAL | {"guidance": {"weight": 2.5, "power": 2.0}, "known": PATTERNS},
    "signal no class": SIGNAL | {"guidance": {"weight": 0.0}},
    "signal temperature": SIGNAL | {"truncation": {"temperature": 0.7}},
    "signal top-k": SIGNAL | {"truncation": {"top_k": 3}, "revise_share": 0.5},
    "signal top-p": SIGNAL | {"truncation": {"top_p": 0.8}},
    "halton": SIGNAL | {"first_order": "halton"},
    "bayer noise and known": SIGNAL | {"first_order": "bayer", "noise": SKEWED, "known": PATTERNS},
    "halton guidance ramp": SIGNAL | {"first_order": "halton", "guidance": {"weight": 3.0, "power": 1.0}},
    "halton float64 noise": SIGNAL | {"first_order": "halton", "noise": SKEWED.double()},
}


def draw(kind: str, generator: str = "list", **options: Any) -> Tensor:
    rows = 4
    guidance, truncation = options.pop("guidance", {"weight": 1.0}), options.pop("truncation", {})
    network = truncated(guided(denoiser, null_label=NULL, **guidance), **truncation)
    common = {
        "codebook_size": CODES,
        "labels": torch.arange(rows) % NULL,
        "generator": seeded(7) if generator == "one" else [seeded(20 + k) for k in range(rows)],
        **{name: options.pop(name) for name in ("noise", "known") if name in options},
    }
    if kind == "schedule":
        return sample(network, Schedule.round_robin(HEIGHT, WIDTH, **options), rows, **common)
    return sample_signal(network, rows, height=HEIGHT, width=WIDTH, **options, **common)


def digits(tokens: Tensor) -> list[str]:
    return ["".join(f"{token:x}" for token in row) for row in tokens.tolist()]


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_a_seed_are_those_stored(name: str) -> None:
    assert digits(draw(**CASES[name])) == json.loads(GOLDEN.read_text())[name]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: digits(draw(**options)) for name, options in CASES.items()}, indent=1) + "\n")
