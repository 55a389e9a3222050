"""The two networks of a GAN on random input, for `attention-vision profile`."""

from collections.abc import Sequence

import torch

from attention_vision.errors import InputError
from attention_vision.generation.gan.module import SAGAN
from attention_vision.profiling.cost import Workload


def workloads(name: str, module: SAGAN, size: Sequence[int], batch_size: int) -> list[Workload]:
    """The generator and the discriminator, each by itself.

    Raises:
        InputError: `size` is not that of the networks.
    """
    generator, discriminator = module.generator, module.discriminator
    if set(size) != {generator.size}:
        raise InputError(
            f"{name}: its networks are built for images of {generator.size} pixels, for"
            " --image_size nothing else"
        )
    device = next(module.parameters()).device
    z = torch.randn(batch_size, generator.latent, device=device)
    labels = torch.randint(max(1, generator.num_classes), (batch_size,), device=device)
    images = torch.randn(batch_size, 3, *size, device=device)
    return [
        Workload.of_network(f"{name}, generator", generator, z, labels),
        Workload.of_network(f"{name}, discriminator", discriminator, images, labels),
    ]
