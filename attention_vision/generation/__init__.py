"""Image generation: SAGAN and Attention U-Net, data and scores."""

from attention_vision.generation.sagan import Discriminator, Generator, ResidualBlock2d
from attention_vision.generation.spectral_norm import (
    add_spectral_norm,
    frozen_spectral_norm,
    spectral_norms,
)

__all__ = [
    "Discriminator",
    "Generator",
    "ResidualBlock2d",
    "add_spectral_norm",
    "frozen_spectral_norm",
    "spectral_norms",
]
