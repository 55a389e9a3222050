"""Every mechanism in every slot of every task: two steps of training move all of its weights."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attention_vision.attention import (
    DeformableAttention,
    DeformableSelfAttention2d,
    FeatureAttention,
    MultiHeadAttention,
    TokenAttention,
)
from attention_vision.backbones import (
    CCT,
    CompactResNet,
    ConvTokenizer,
    MaxPool,
    MeanPool,
    ResNet,
    Swin,
    ViT,
)
from attention_vision.detection import (
    DETR,
    AttentionRCNN,
    DeformableDETR,
    DeformableDETRDetector,
    DETRDetector,
    RCNNDetector,
)
from attention_vision.generation import AttentionUNet, Discriminator, Generator
from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss
from attention_vision.generation.image_to_image.unet import SkipAttention
from attention_vision.profiling.mechanisms import contract, mechanisms

CLASSES = 3
Task = tuple[nn.Module, Callable[[], Tensor]]  # a network, and the loss of a step


def labels(count: int = 4) -> Tensor:
    return torch.arange(count) % CLASSES


def classify(network: nn.Module, size: int = 16) -> Task:
    images = torch.randn(4, 3, size, size)
    return network, lambda: cross_entropy(network(images), labels())


def resnet(attention: FeatureAttention, **options) -> Task:
    small = {"width": 8, "stem": "cifar", "num_classes": CLASSES}
    return classify(ResNet(10, attention, **small, **options))


def compact(attention: FeatureAttention = nn.Identity, pool=MaxPool) -> Task:
    return classify(CompactResNet(attention, CLASSES, (8, 8, 8), pool=pool), size=32)


def vit(attention: TokenAttention = MultiHeadAttention, pool=MeanPool) -> Task:
    return classify(ViT(16, 4, 16, 2, 2, CLASSES, attention=attention, pool=pool))


def swin(attention: TokenAttention | None = None, pool=MeanPool) -> Task:
    network = Swin(
        16, 2, 8, (1, 1), (1, 2), num_classes=CLASSES, window=2, attention=attention, pool=pool
    )
    return classify(network)


def cct(attention: TokenAttention = MultiHeadAttention, pool=MeanPool) -> Task:
    return classify(
        CCT(16, 16, 2, 2, CLASSES, ConvTokenizer, attention, pool, stochastic_depth=0.0)
    )


def detect(detector: DETRDetector | DeformableDETRDetector | RCNNDetector) -> Task:
    images, padding = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.5], [0.7, 0.6, 0.3, 0.3]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 2])}] * 2
    return detector.network, lambda: detector.losses((images, padding, targets))["total"]


def detr(attention: FeatureAttention = nn.Identity) -> Task:
    backbone = ResNet(8, attention, width=8, num_classes=0)
    network = DETR(
        CLASSES, 4, backbone, width=16, heads=2, encoder_layers=1, decoder_layers=1, hidden=16
    )
    return detect(DETRDetector(network))


def deformable_detr(attention: FeatureAttention = nn.Identity) -> Task:
    backbone = ResNet(8, attention, width=8, num_classes=0)
    network = DeformableDETR(
        CLASSES, 4, backbone, width=16, heads=2, encoder_layers=1, decoder_layers=1, hidden=16
    )
    return detect(DeformableDETRDetector(network))


def rcnn(attention: FeatureAttention = nn.Identity) -> Task:
    backbone = ResNet(8, attention, width=8, num_classes=0)
    few = {"train_proposals": 20, "sampled_proposals": 8}
    return detect(RCNNDetector(AttentionRCNN(CLASSES, backbone, pyramid_channels=8, **few)))


def gan(
    of_generator: FeatureAttention, of_discriminator: FeatureAttention
) -> tuple[nn.Module, ...]:
    return (
        Generator(16, CLASSES, 8, 16, of_generator),
        Discriminator(16, CLASSES, 16, of_discriminator),
    )


def generator(attention: FeatureAttention) -> Task:
    network, judge = gan(attention, nn.Identity)
    z = torch.randn(4, 8)
    return network, lambda: generator_loss(judge(network(z, labels()), labels()))


def discriminator(attention: FeatureAttention) -> Task:
    _, network = gan(nn.Identity, attention)
    real, fake = torch.randn(2, 4, 3, 16, 16)
    return network, lambda: discriminator_loss(network(real, labels()), network(fake, labels()))


def unet(attention: Callable[[int, int], nn.Module]) -> Task:
    network = AttentionUNet(3, CLASSES, width=8, depth=2, attention=attention, gated_levels=(1, 2))
    images, targets = torch.randn(2, 3, 16, 16), torch.randint(CLASSES, (2, 16, 16))
    return network, lambda: cross_entropy(network(images), targets)


def skip(attention: FeatureAttention) -> Task:
    return unet(partial(SkipAttention, attention=attention))


# Slots by what they take. Of the cross contract a mechanism has places of its own.
SLOTS: dict[str, dict[str, Callable[..., Task]]] = {
    "feature": {
        "ResNet blocks": resnet,
        "ResNet stages": partial(resnet, attention_at="stages"),
        "CompactResNet stages": compact,
        "ResNet end": partial(resnet, attention_at="stages", attention_stages=(4,)),
        "DETR backbone": detr,
        "R-CNN backbone": rcnn,
        "generator": generator,
        "discriminator": discriminator,
        "U-Net skips": skip,
    },
    "token": {"ViT blocks": vit, "Swin blocks": swin, "CCT blocks": cct},
    "pool": {
        "ResNet pool": lambda pool: resnet(nn.Identity, pool=pool),
        "CompactResNet pool": lambda pool: compact(pool=pool),
        "ViT pool": lambda pool: vit(pool=pool),
        "Swin pool": lambda pool: swin(pool=pool),
        "CCT pool": lambda pool: cct(pool=pool),
    },
    "cross": {"U-Net gates": unet},
}
BUILT_IN = {  # places that are no slot
    "MultiHeadAttention in DETR": ("MultiHeadAttention", detr),
    "AttentionPool in R-CNN's box head": ("AttentionPool", rcnn),
    "DeformableAttention in its 2-D form": (
        "DeformableAttention",
        partial(resnet, DeformableSelfAttention2d),
    ),
    "DeformableAttention in Deformable DETR": ("DeformableAttention", deformable_detr),
}
NARROW = {"reduction": 2}  # of 8 channels; by default one hidden unit would be left, often dead


def walk() -> Iterator[tuple[str, str, Callable[[], Task]]]:
    """Id, mechanism and task of every pair."""
    for name, kind in mechanisms().items():
        narrow = NARROW if "reduction" in signature(kind).parameters else {}
        slots = {} if kind is DeformableAttention else SLOTS[contract(kind)]  # it is built in
        for slot, put in slots.items():
            yield f"{name} in {slot}", name, partial(put, partial(kind, **narrow))
    for place, (name, build) in BUILT_IN.items():
        yield place, name, build


PAIRS = list(walk())


@pytest.mark.parametrize(("name", "build"), [pair[1:] for pair in PAIRS], ids=[p[0] for p in PAIRS])
def test_two_steps_move_every_weight_of_the_mechanism(name, build):
    network, loss = build()
    kind = mechanisms()[name]
    parts = [part for part in network.train().modules() if type(part) is kind]
    assert parts
    weights = {
        (place, key): weight
        for place, part in enumerate(parts)
        for key, weight in part.named_parameters()
    }
    start = {key: weight.detach().clone() for key, weight in weights.items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in (1, 2):
        optimizer.zero_grad()
        value = loss()
        assert value.isfinite()
        value.backward()
        optimizer.step()
        still = {key for key, weight in weights.items() if torch.equal(weight, start[key])}
        if step == 1:  # where gamma is 0, the rest has to wait for it
            assert not any(key.endswith("gamma") for _, key in still), still
    assert not still
    assert all(weight.isfinite().all() for weight in weights.values())


def test_every_mechanism_has_a_slot():
    assert {name for _, name, _ in PAIRS} == set(mechanisms())
    assert {contract(kind) for kind in mechanisms().values()} == set(SLOTS)
