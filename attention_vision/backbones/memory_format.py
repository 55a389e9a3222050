"""The order in memory of the maps that a network computes."""

import torch
from torch import Tensor, nn


def arranged(network: nn.Module, maps: Tensor) -> Tensor:
    """Maps (B, C, H, W) with channels last in memory where it is faster: in training, on a CPU.

    Layers keep the format of their input, whatever that of their weights. In this one oneDNN does
    not reorder the maps around each convolution, norms and pools read adjacent channels, and tokens
    are a view of the map. Evaluation adds up in the order of the releases; volumes stay as given.
    """
    if not network.training or maps.device.type != "cpu" or maps.dim() != 4:
        return maps
    return maps.contiguous(memory_format=torch.channels_last)
