"""Spectral normalization, added to a finished network from outside."""

from collections.abc import Iterator, Sequence
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
        self.shared: Tensor | None = None  # the normalized weight, inside `shared_spectral_norm`
        dtype = torch.promote_types(weight.dtype, torch.float32)
        u = torch.randn(weight.shape[outputs], dtype=dtype, device=weight.device)
        self.register_buffer("u", F.normalize(u, dim=0))
        for _ in range(15):  # as many as torch's own
            self(weight.detach())

    def forward(self, weight: Tensor) -> Tensor:
        return normalize([(self, weight)])[0] if self.shared is None else self.shared

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (outputs, rest), the latter as it lies in memory: σ has no order of it."""
        weight = weight.movedim(self.outputs, 0)
        return (weight.movedim(1, -1) if _channels_last(weight) else weight).flatten(1)

    def like(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        weight = weight.movedim(self.outputs, 0)
        if _channels_last(weight):
            matrix = matrix.view(weight.movedim(1, -1).shape).movedim(-1, 1)
        return matrix.view(weight.shape).movedim(0, self.outputs)


Pair = tuple[SpectralNorm, Tensor]  # with the weight that it normalizes


def _channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


def step(group: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of power iteration for n weights of one shape, as one product of matrices.

    In single precision or better, autocast or not. The vectors are not moved; a weight of zeros
    (of layers that start as the identity) has no direction, and keeps its u.

    Returns:
        the weights as matrices (n, outputs, rest), u' (n, outputs) and σ (n,)
    """
    norms = [norm for norm, _ in group]
    matrices = torch.stack([norm.matrix(weight) for norm, weight in group])
    dtype = torch.promote_types(matrices.dtype, torch.float32)
    with torch.autocast(matrices.device.type, enabled=False):
        exact = matrices.to(dtype)
        # Vectors are rows, (n, 1, ...): a batched product with columns is ten times slower on CPUs.
        with torch.no_grad():
            old = torch.stack([norm.u for norm in norms]).to(dtype)[:, None]
            v = F.normalize(old @ exact, dim=-1, eps=norms[0].eps)
        product = v @ exact.mT
        u = F.normalize(product.detach(), dim=-1, eps=norms[0].eps)
        sigma = (u * product).sum((1, 2))
        return matrices, torch.where(sigma[:, None] > 0, u[:, 0], old[:, 0]), sigma


def normalize(pairs: Sequence[Pair]) -> list[Tensor]:
    """Normalize weights, those of one shape together, and move the vectors where they move."""
    normalized: dict[SpectralNorm, Tensor] = {}
    for group in _by_shape(pairs):
        matrices, u, sigma = step(group)
        divisor = torch.where(sigma > 0, sigma, 1.0).to(matrices.dtype)  # zeros stay zeros
        quotients = (matrices / divisor[:, None, None]).unbind()
        for (norm, weight), quotient, moved in zip(group, quotients, u, strict=True):
            normalized[norm] = norm.like(quotient, weight)
            if norm.training and not norm.frozen:
                norm.u.copy_(moved)
    return [normalized[norm] for norm, _ in pairs]


def _by_shape(pairs: Sequence[Pair]) -> list[list[Pair]]:
    groups: dict[tuple, list[Pair]] = {}
    for norm, weight in pairs:
        key = (norm.matrix(weight).shape, weight.dtype, weight.device, norm.eps)
        groups.setdefault(key, []).append((norm, weight))
    return list(groups.values())


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


def _pairs(network: nn.Module) -> dict[str, Pair]:
    """Name of each normalized layer -> its norm and its weight, as it is trained."""
    found = {}
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            # A parametrized layer has another class, which torch makes up: pyright does not know.
            parametrization: Any = layer.parametrizations
            if isinstance(parametrization.weight[0], SpectralNorm):
                found[name] = parametrization.weight[0], parametrization.weight.original
    return found


@contextmanager
def shared_spectral_norm(network: nn.Module) -> Iterator[None]:
    """Normalize all weights now, at once; passes inside the block share them, and one gradient.

    It is one pass to the vectors, however many there are in the block, and a tenth of the
    operators: weights of one shape are normalized together. Weights must not change inside.
    """
    pairs = [pair for pair in _pairs(network).values() if pair[0].shared is None]
    for (norm, _), weight in zip(pairs, normalize(pairs), strict=True):
        norm.shared = weight
    try:
        yield
    finally:
        for norm, _ in pairs:
            norm.shared = None


@contextmanager
def frozen_spectral_norm(network: nn.Module) -> Iterator[None]:
    """Keep the vectors `u` as they are in passes inside the block, which normalize as usual.

    In the release every pass of D is such a pass but the one on real images. There D's step divides
    by the same σ on real and fake images.
    """
    norms = [norm for norm, _ in _pairs(network).values() if not norm.frozen]
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
    pairs = _pairs(network)
    groups = _by_shape(list(pairs.values()))
    if not groups:
        return {}
    sigmas = torch.cat([step(group)[2] for group in groups]).tolist()  # one transfer for all
    of_norm = dict(zip((norm for group in groups for norm, _ in group), sigmas, strict=True))
    return {name: of_norm[norm] for name, (norm, _) in pairs.items()}
