"""Sizes of the transformer, typed and checked. Nothing here imports torch."""

import math
from dataclasses import dataclass, field

from ggm_image.errors import UserError

_MOST = {
    "codebook_size": 1 << 16,
    "width": 1 << 16,
    "depth": 1000,
    "heads": 1 << 12,
    "condition_width": 1 << 16,
    "mlp_ratio": 64,
    "theta": 1e12,
}
"""Beyond these a number is a mistake; the first is what token caches can hold."""


@dataclass(kw_only=True)
class NetworkConfig:
    """Sizes of the transformer.

    Attributes:
        codebook_size: V, number of codes; id V is the mask.
        classes: C, number of classes; label C is the null class. 0 for an unconditional model.
        grid: rows and columns of the training grid (any other may be asked for later).
        width: d, a multiple of ``heads``, with ``width / heads`` a multiple of 4.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP in units of ``width``.
        condition_width: width of the class embedding and of the level's hidden layer.
        theta: rotary base; see `grid_positions`.
        tied_head: use the token embedding as the head's weights.
    """

    codebook_size: int = 1024
    classes: int = 10
    grid: list[int] = field(default_factory=lambda: [8, 8])
    width: int = 320
    depth: int = 7
    heads: int = 5
    mlp_ratio: float = 4.0
    condition_width: int = 64
    theta: float = 100.0
    tied_head: bool = True

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not getattr(self, name) > 0:
                raise UserError(f"network.{name} must be positive", getattr(self, name), "give a larger number")
            if getattr(self, name) > most:
                raise UserError(
                    f"network.{name} must be at most {most:,}", getattr(self, name), "give a smaller number"
                )
        if self.classes < 0:
            raise UserError("network.classes must not be negative", self.classes, "0 is a model without classes")
        if self.classes > 1 << 24:
            raise UserError("network.classes must be at most 2^24", self.classes, "give a smaller number")
        if len(self.grid) != 2 or min(self.grid) < 1 or max(self.grid) > 4096:
            raise UserError("network.grid must be [rows, columns]", list(self.grid), "write for example [16, 16]")
        if self.width % (4 * self.heads):
            raise UserError(
                "network.width must be a multiple of 4 * heads",
                f"width {self.width}, heads {self.heads}",
                f"use width {math.ceil(self.width / (4 * self.heads)) * 4 * self.heads}",
            )
