"""Spectral normalization, added to a finished network from outside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize


class SpectralNorm(nn.Module):
    """W / σ(W), σ by one step of power iteration (Miyato et al., arXiv 1802.05957, algorithm 1).

    v = Wᵀu / |Wᵀu|, u' = Wv / |Wv|, σ = u' · Wv, with u' and v constants to the gradient. Every
    pass takes one step from the buffer `u`; passes in training keep u' for the next, unless
    `frozen`, as in the released SAGAN (brain-research/self-attention-gan, ops.py), which updates
    D's vectors on the real images only. The release starts from a random u and has the step in the
    gradient; neither matters once u has converged, as it has here from the start.
    `torch.nn.utils.parametrizations.spectral_norm` departs from both: it updates the vectors in
    every pass in training, of D on fake images and in G's step too, and takes no step in
    evaluation.

    Args:
        weight: the weight to normalize; axes other than `outputs` are flattened to one.
        outputs: the axis of the output channels.
        eps: lower bound of the norms that vectors are divided by.
    """

    u: Tensor

    def __init__(self, weight: Tensor, outputs: int = 0, eps: float = 1e-12):
        super().__init__()
        self.outputs = outputs
        self.eps = eps
        self.frozen = False
        dtype = torch.promote_types(weight.dtype, torch.float32)
        u = torch.randn(weight.shape[outputs], dtype=dtype, device=weight.device)
        self.register_buffer("u", F.normalize(u, dim=0))
        for _ in range(15):  # as many as torch's own
            self(weight.detach())

    def step(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step from `u`, in single precision or better, autocast or not -> (u', σ)."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.movedim(self.outputs, 0).flatten(1).to(dtype)
            with torch.no_grad():
                v = F.normalize(matrix.mT @ self.u.to(dtype), dim=0, eps=self.eps)
                u = F.normalize(matrix @ v, dim=0, eps=self.eps)
            return u, u @ (matrix @ v)

    def forward(self, weight: Tensor) -> Tensor:
        u, sigma = self.step(weight)
        # A weight of zeros (of layers that start as the identity) stays: it has no direction.
        if self.training and not self.frozen:
            self.u.copy_(torch.where(sigma > 0, u, self.u))
        return weight / torch.where(sigma > 0, sigma, 1.0).to(weight.dtype)


def add_spectral_norm(network: nn.Module, eps: float = 1e-12) -> None:
    """Normalize the weight of every linear, convolution and embedding layer, in place.

    Layers that have it already keep it. Weights, for optimizers and `state_dict`, are afterwards
    at `LAYER.parametrizations.weight.original`, the vectors at `LAYER.parametrizations.weight.0.u`.

    Args:
        eps: 1e-12 in the release and mimicry, 1e-6 in StudioGAN.
    """
    for layer in list(network.modules()):
        wrapped = parametrize.is_parametrized(layer, "weight")
        if isinstance(layer, nn.Linear | _ConvNd | nn.Embedding) and not wrapped:
            outputs = 1 if isinstance(layer, _ConvTransposeNd) else 0
            norm = SpectralNorm(layer.weight, outputs, eps).train(layer.training)
            # unsafe: without it the check of shapes is a first pass that moves u.
            parametrize.register_parametrization(layer, "weight", norm, unsafe=True)


def _norms(network: nn.Module) -> dict[str, SpectralNorm]:
    return {name: m for name, m in network.named_modules() if isinstance(m, SpectralNorm)}


@contextmanager
def frozen_spectral_norm(network: nn.Module) -> Iterator[None]:
    """Keep the vectors `u` as they are in passes inside the block, which normalize as usual.

    In the release every pass of D is such a pass but the one on real images. There D's step divides
    by the same σ on real and fake images: take the pass on fake images first.
    """
    norms = [norm for norm in _norms(network).values() if not norm.frozen]
    for norm in norms:
        norm.frozen = True
    try:
        yield
    finally:
        for norm in norms:
            norm.frozen = False


@torch.no_grad()
def spectral_norms(network: nn.Module) -> dict[str, float]:
    """Name of each normalized layer -> estimate of σ(W), which its weight is divided by."""
    suffix = ".parametrizations.weight.0"
    names = [name.removesuffix(suffix) for name in _norms(network)]
    if not names:
        return {}
    # A parametrized layer has another class, which torch makes up: pyright does not know it.
    layers: list[Any] = [network.get_submodule(name).parametrizations for name in names]
    sigmas = torch.stack([one.weight[0].step(one.weight.original)[1] for one in layers])
    return dict(zip(names, sigmas.tolist(), strict=True))  # one transfer for all
