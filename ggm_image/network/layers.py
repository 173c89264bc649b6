"""The two layers that timm would provide, with its parameter names: importing timm costs more than importing torch."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer norm with timm's epsilon; without parameters unless ``affine``."""

    def __init__(self, width: int, *, affine: bool = True) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=affine)


class Mlp(nn.Module):
    """Two linear layers without biases, and max(0, x)^2 between them (arXiv 2109.08668).

    In their study it is as good as GELU, and it needs no transcendental function.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        return self.fc2(F.relu(self.fc1(x)).square())
