"""The denoising network."""

from ggm_image.network_config import NetworkConfig

from .transformer import Transformer

__all__ = ["NetworkConfig", "Transformer"]
