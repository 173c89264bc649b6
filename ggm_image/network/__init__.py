"""The denoising network."""

from .transformer import NetworkConfig, Transformer

__all__ = ["NetworkConfig", "Transformer"]
