"""Weights for parity tests: every parameter and running statistic drawn anew.

Fresh networks hide errors: a new torchvision ViT gives logits of exactly 0, and norms that start at
0 hide whatever stands before them.
"""

import torch
from torch import nn


def redraw(model: nn.Module, seed: int) -> nn.Module:
    """Weights ~ N(0, 1/fan_in), embeddings ~ N(0, 1), norm scales ~ U(0.5, 1.5), biases and other
    vectors ~ N(0, 0.1²), running means ~ N(0, 0.1²) and running variances ~ U(0.5, 1.5). Frozen
    batch norms, of whichever library, have all four as buffers and are drawn alike."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    def uniform(tensor: torch.Tensor) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    with torch.no_grad():
        for module in model.modules():
            norm = isinstance(module, nn.LayerNorm | nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
            for name, parameter in module.named_parameters(recurse=False):
                if norm and name == "weight":
                    uniform(parameter)
                elif isinstance(module, nn.Embedding):
                    normal(parameter, 1.0)
                elif parameter.ndim >= 2:
                    normal(parameter, parameter[0].numel() ** -0.5)
                else:
                    normal(parameter, 0.1)
            buffers = dict(module.named_buffers(recurse=False))
            if "running_var" in buffers:
                for name, buffer in buffers.items():
                    if name in ("weight", "running_var"):
                        uniform(buffer)
                    elif name in ("bias", "running_mean"):
                        normal(buffer, 0.1)
    return model
