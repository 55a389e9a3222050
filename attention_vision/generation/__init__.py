"""Image generation: SAGAN and Attention U-Net, data and scores."""

from attention_vision.attention.controls import ResidualBlock2d
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan.data import CIFAR10Images, DigitImages, FolderImages
from attention_vision.generation.gan.diff_augment import DiffAugment
from attention_vision.generation.gan.module import SAGAN, MomentumFreeAdam
from attention_vision.generation.gan.sagan import Discriminator, Generator
from attention_vision.generation.gan.scores import (
    ClassifierEvaluator,
    Evaluator,
    InceptionEvaluator,
    Unscored,
)
from attention_vision.generation.gan.spectral_norm import (
    add_spectral_norm,
    frozen_spectral_norm,
    spectral_norms,
)
from attention_vision.generation.image_to_image.degradations import (
    Degradation,
    Holes,
    LowResolution,
    Noise,
)
from attention_vision.generation.image_to_image.module import (
    ImageToImage,
    Restoration,
    Segmentation,
)
from attention_vision.generation.image_to_image.restoration_data import (
    DegradedCIFAR10,
    DegradedDigits,
    DegradedFolder,
)
from attention_vision.generation.image_to_image.segmentation_data import DigitMasks, MaskFolder
from attention_vision.generation.image_to_image.unet import (
    AttentionUNet,
    GatingSignal,
    MultiGate,
    SkipAttention,
)
from attention_vision.generation.image_to_image.volumes import VolumeFolder
from attention_vision.generation.module import GenerationModule

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
