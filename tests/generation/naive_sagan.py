"""The released SAGAN written plainly, as functions of its weights by name: what tests compare with.

brain-research/self-attention-gan: blocks enlarge before and shrink after both convolutions of the
shortcut's side, norms are written out, attention is a matrix of all pairs, and each pass says
whether the vectors of spectral normalisation move.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


class Naive:
    """One network's weights, vectors and running statistics, by the names of the real network."""

    def __init__(self, network: torch.nn.Module):
        self.parameters: Weights = {
            name.replace("parametrizations.weight.original", "weight"): p.detach().clone()
            for name, p in network.named_parameters()
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.u: Weights = {
            name.removesuffix(".parametrizations.weight.0.u"): buffer.clone()
            for name, buffer in network.named_buffers()
            if name.endswith(".u")
        }
        self.running: Weights = {
            name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name
        }

    def weight(self, layer: str, move: bool) -> Tensor:
        """W / σ(W); W itself where the layer has no vector."""
        w = self.parameters[f"{layer}.weight"]
        if layer not in self.u:
            return w
        matrix = w.reshape(w.shape[0], -1)
        with torch.no_grad():
            v = matrix.T @ self.u[layer]
            v = v / v.square().sum().sqrt()
            u = matrix @ v
            u = u / u.square().sum().sqrt()
        if move:
            self.u[layer] = u
        return w / (u[:, None] * matrix * v).sum()

    def conv(self, x: Tensor, layer: str, move: bool) -> Tensor:
        w = self.weight(layer, move)
        return F.conv2d(x, w, self.parameters.get(f"{layer}.bias"), padding=w.shape[-1] // 2)

    def linear(self, x: Tensor, layer: str, move: bool) -> Tensor:
        return x @ self.weight(layer, move).T + self.parameters[f"{layer}.bias"]

    def batch_norm(self, x: Tensor, name: str) -> Tensor:
        """In training: the batch's statistics, and running ones of momentum 0.1."""
        mean = x.mean((0, 2, 3))
        centred = x - mean[:, None, None]
        variance = centred.square().mean((0, 2, 3))
        count = x.numel() / x.shape[1]
        unbiased = variance * count / (count - 1)
        for key, value in (("running_mean", mean), ("running_var", unbiased)):
            self.running[f"{name}.{key}"] = (
                0.9 * self.running[f"{name}.{key}"] + 0.1 * value.detach()
            )
        return centred / (variance + 1e-5).sqrt()[:, None, None]

    def class_norm(self, x: Tensor, labels: Tensor, name: str) -> Tensor:
        scale = self.parameters[f"{name}.scale"][labels][:, :, None, None]
        return (
            self.batch_norm(x, f"{name}.norm") * scale
            + self.parameters[f"{name}.shift"][labels][:, :, None, None]
        )

    def attention(self, x: Tensor, name: str, move: bool) -> Tensor:
        if f"{name}.gamma" not in self.parameters:
            return x
        theta, phi, g = (self.conv(x, f"{name}.{k}", move) for k in ("query", "key", "value"))
        b, _, h, w = x.shape
        phi, g = (m.reshape(b, -1, h // 2, 2, w // 2, 2).amax((3, 5)) for m in (phi, g))
        pairs = torch.einsum("bchw,bcij->bhwij", theta, phi)
        weights = pairs.exp() / pairs.exp().sum((3, 4), keepdim=True)
        y = torch.einsum("bhwij,bcij->bchw", weights, g)
        return x + self.parameters[f"{name}.gamma"] * self.conv(y, f"{name}.out", move)


def enlarge(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def shrink(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def generator(net: Naive, z: Tensor, labels: Tensor, doublings: int) -> Tensor:
    x = net.linear(z, "linear", True).reshape(len(z), -1, 4, 4)
    for i in range(doublings):
        block = f"blocks.{i}"
        y = enlarge(F.relu(net.class_norm(x, labels, f"{block}.norm1")))
        y = net.conv(y, f"{block}.conv1", True)
        y = F.relu(net.class_norm(y, labels, f"{block}.norm2"))
        y = net.conv(y, f"{block}.conv2", True)
        x = net.conv(enlarge(x), f"{block}.shortcut", True) + y
        x = net.attention(x, f"{block}.attention", True)
    x = net.batch_norm(x, "norm") * net.parameters["norm.weight"][:, None, None]
    x = x + net.parameters["norm.bias"][:, None, None]
    return torch.tanh(net.conv(F.relu(x), "conv", True))


def discriminator(
    net: Naive, x: Tensor, labels: Tensor, blocks: int, halvings: int, move: bool
) -> Tensor:
    for i in range(blocks):
        block = f"blocks.{i}"
        y = net.conv(x if i == 0 else F.relu(x), f"{block}.conv1", move)
        y = net.conv(F.relu(y), f"{block}.conv2", move)
        if i == 0:
            x = net.conv(shrink(x), f"{block}.shortcut", move)
        elif f"{block}.shortcut.weight" in net.parameters:
            x = net.conv(x, f"{block}.shortcut", move)
            x = shrink(x) if i < halvings else x
        x = x + (shrink(y) if i < halvings else y)
        x = net.attention(x, f"{block}.attention", move)
    x = F.relu(x).sum((2, 3))
    return net.linear(x, "linear", move)[:, 0] + (net.weight("embedding", move)[labels] * x).sum(1)
