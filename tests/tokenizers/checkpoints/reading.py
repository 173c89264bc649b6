"""Every tensor of a weights file, read and compared with what the file says of it."""

from pathlib import Path

import torch

from ggm_image.tokenizers.checkpoints.reader import open_weights


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with open_weights(path) as tensors:
        for tensor in tensors.values():
            value = tensor.read()
            assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype)
            assert value.is_contiguous()
        return {name: tensor.read() for name, tensor in tensors.items()}
