"""Networks leave by `torch.export`, with batches of any size."""

from functools import partial

import torch

from attention_vision.attention import AttentionPool, LocalGlobalAttention, WindowAttention
from attention_vision.backbones import ViT


def test_an_exported_network_takes_batches_of_any_size():
    network = ViT(
        image_size=16, patch_size=4, width=8, depth=2, heads=2, num_classes=3,
        attention=partial(WindowAttention, window=2),
        alternate=partial(LocalGlobalAttention, window=2), pool=AttentionPool,
    ).eval()  # fmt: skip
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=batch)
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(exported.module()(images), network(images))
