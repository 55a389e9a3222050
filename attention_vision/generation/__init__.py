"""Image generation: SAGAN and Attention U-Net, data and scores."""

from attention_vision.generation.data import (
    CIFAR10Images,
    DigitImages,
    FolderImages,
    GenerationData,
)
from attention_vision.generation.degradations import Degradation, Holes, LowResolution, Noise
from attention_vision.generation.degraded import DegradedCIFAR10, DegradedDigits, DegradedFolder
from attention_vision.generation.diff_augment import DiffAugment
from attention_vision.generation.image_to_image import ImageToImage, Restoration, Segmentation
from attention_vision.generation.masks import DigitMasks, MaskFolder
from attention_vision.generation.module import SAGAN, GenerationModule, MomentumFreeAdam
from attention_vision.generation.sagan import Discriminator, Generator, ResidualBlock2d
from attention_vision.generation.scores import (
    ClassifierEvaluator,
    Evaluator,
    InceptionEvaluator,
    Unscored,
)
from attention_vision.generation.spectral_norm import (
    add_spectral_norm,
    frozen_spectral_norm,
    spectral_norms,
)
from attention_vision.generation.unet import AttentionUNet, GatingSignal, MultiGate, SkipAttention
from attention_vision.generation.volumes import VolumeFolder

__all__ = [
    "SAGAN",
    "AttentionUNet",
    "CIFAR10Images",
    "ClassifierEvaluator",
    "Degradation",
    "DegradedCIFAR10",
    "DegradedDigits",
    "DegradedFolder",
    "DiffAugment",
    "DigitImages",
    "DigitMasks",
    "Discriminator",
    "Evaluator",
    "FolderImages",
    "GatingSignal",
    "GenerationData",
    "GenerationModule",
    "Generator",
    "Holes",
    "ImageToImage",
    "InceptionEvaluator",
    "LowResolution",
    "MaskFolder",
    "MomentumFreeAdam",
    "MultiGate",
    "Noise",
    "ResidualBlock2d",
    "Restoration",
    "Segmentation",
    "SkipAttention",
    "Unscored",
    "VolumeFolder",
    "add_spectral_norm",
    "frozen_spectral_norm",
    "spectral_norms",
]
