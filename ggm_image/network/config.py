"""Sizes of the transformer, typed and checked. Nothing here imports torch."""

import math
from dataclasses import field
from typing import Annotated

from pydantic import Field

from ggm_image.errors import UserError
from ggm_image.validation import Number, Whole, checked

# Beyond these a number is a mistake; the first is what token caches can hold.
CodebookSize = Annotated[Whole, Field(gt=0, le=1 << 16)]
Classes = Annotated[Whole, Field(ge=0, le=1 << 24)]
Grid = Annotated[list[Annotated[Whole, Field(gt=0, le=4096)]], Field(min_length=2, max_length=2)]
Width = Annotated[Whole, Field(gt=0, le=1 << 16)]


@checked("network")
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

    codebook_size: CodebookSize = 1024
    classes: Classes = 10
    grid: Grid = field(default_factory=lambda: [8, 8])
    width: Width = 320
    depth: Annotated[Whole, Field(gt=0, le=1000)] = 7
    heads: Annotated[Whole, Field(gt=0, le=1 << 12)] = 5
    mlp_ratio: Annotated[Number, Field(gt=0, le=64)] = 4.0
    condition_width: Width = 64
    theta: Annotated[Number, Field(gt=0, le=1e12)] = 100.0
    tied_head: bool = True

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise UserError(
                "network.width must be a multiple of 4 * heads",
                f"width {self.width}, heads {self.heads}",
                f"use width {math.ceil(self.width / (4 * self.heads)) * 4 * self.heads}",
            )
