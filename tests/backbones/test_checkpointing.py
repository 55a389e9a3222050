"""Activation checkpointing: the same step bit by bit, with less memory."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from attention_vision.attention import SqueezeExcite, record_attention
from attention_vision.backbones import CCT, Backbone, EfficientNet, ResNet, Swin, ViT
from attention_vision.backbones.checkpointing import checkpoint_blocks

NETWORKS: dict[str, Callable[..., Backbone]] = {
    "ViT": lambda **on: ViT(
        32, 8, 32, 3, 2, 5, dropout=0.1, stochastic_depth=0.3, position="relative", **on
    ),
    "CCT": lambda **on: CCT(16, 32, 3, 2, 5, dropout=0.1, stochastic_depth=0.3, **on),
    "Swin": lambda **on: Swin(
        32, width=16, depths=(2, 2), heads=(2, 4), window=4, num_classes=5, dropout=0.1,
        stochastic_depth=0.3, **on,
    ),
    "ResNet": lambda **on: ResNet(
        20, SqueezeExcite, 5, stem="cifar", width=16, stochastic_depth=0.3, **on
    ),
    "Bottleneck": lambda **on: ResNet(50, num_classes=5, width=16, stochastic_depth=0.3, **on),
    "EfficientNet": lambda **on: EfficientNet(num_classes=5, stochastic_depth=0.3, **on),
}  # fmt: skip


def step(network: Backbone, images: Tensor) -> tuple[list[Tensor], int]:
    """Gradients of a step, and bytes of activations that its forward pass keeps."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    torch.manual_seed(1)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(images).square().mean()
    loss.backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    return gradients, sum(size for place, size in kept.items() if place not in weights)


@pytest.fixture(params=NETWORKS)
def pair(request) -> tuple[Backbone, Backbone, Tensor]:
    """A network, the same one with checkpointing, and images."""
    torch.manual_seed(0)
    plain = NETWORKS[request.param]().train()
    checkpointed = NETWORKS[request.param](checkpointing=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    size = 16 if request.param == "CCT" else 32
    return plain, checkpointed, torch.randn(3, 3, size, size)


def test_a_step_is_bit_equal_and_keeps_less(pair: tuple[Backbone, Backbone, Tensor]):
    plain, checkpointed, images = pair
    wanted, kept = step(plain, images)
    gradients, kept_checkpointed = step(checkpointed, images)
    assert len(wanted) == len(list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(wanted, gradients, strict=True))
    assert kept_checkpointed < 0.6 * kept
    buffers, again = dict(plain.named_buffers()), dict(checkpointed.named_buffers())
    assert all(torch.equal(buffer, again[name]) for name, buffer in buffers.items())
    assert checkpointed.layers() == plain.layers()


@pytest.mark.parametrize("name", ["ViT", "ResNet"])
def test_recorded_maps_keep_their_gradient(name: str):
    torch.manual_seed(0)
    plain = NETWORKS[name]().train()
    checkpointed = deepcopy(plain)
    checkpoint_blocks(checkpointed)
    results = []
    for network in (plain, checkpointed):
        torch.manual_seed(1)
        with record_attention(network, gradients=True) as maps:
            loss = network(torch.ones(2, 3, 32, 32)).mean()
        (loss + sum(one.square().mean() for one in maps.values())).backward()
        results.append([weight.grad for weight in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_compiled_blocks_are_checkpointed():
    torch.manual_seed(0)
    plain = ResNet(8, num_classes=5, stem="cifar", width=16).train()
    checkpointed = deepcopy(plain)
    checkpoint_blocks(checkpointed)
    checkpointed.compile(backend="aot_eager")
    images = torch.randn(3, 3, 16, 16)
    wanted, _ = step(plain, images)
    gradients, _ = step(checkpointed, images)
    for a, b in zip(wanted, gradients, strict=True):
        torch.testing.assert_close(a, b)
    norm = "stages.0.0.norm1.running_mean"
    torch.testing.assert_close(checkpointed.get_buffer(norm), plain.get_buffer(norm))
