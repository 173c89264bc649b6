"""A denoiser that keeps what it is asked, and seeded generators."""

import torch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder:
    """Random logits that depend on the tokens alone; keeps every question."""

    def __init__(self, codes: int, seed: int = 0) -> None:
        self.codes, self.asked = codes, []
        self.table = torch.randn(4096, codes, generator=seeded(seed))

    def __call__(self, tokens, levels, sites, labels):
        self.asked.append((tokens.clone(), levels.clone(), sites.clone(), labels))
        index = sites.expand(len(tokens), -1)
        weight = torch.arange(1, tokens.shape[1] + 1) ** 2
        question = (tokens * weight).sum(1, keepdim=True) * 31 + index * 7
        if labels is not None:
            question = question + 1001 * labels[:, None]
        return 2 * self.table[question % 4096]
