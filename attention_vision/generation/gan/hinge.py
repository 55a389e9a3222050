"""The hinge loss of adversarial training."""

from torch import Tensor


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))] (SAGAN, arXiv 1805.08318, eq. 4).

    Shape: real, fake (B,) logits -> ()
    """
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-E[D(fake)] (eq. 4). Shape: (B,) logits -> ()"""
    return -fake.mean()
