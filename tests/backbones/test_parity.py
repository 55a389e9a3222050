"""Our backbones equal the peers' on weights that are drawn anew, in logits and in gradients."""

from functools import partial

import pytest
import torch
import torchvision
from redraw import redraw

from attention_vision.attention import CBAM, SqueezeExcite
from attention_vision.backbones import EfficientNet, ResNet, ViT
from attention_vision.checkpoints import load_official

timm = pytest.importorskip("timm")

SE_ResNet = partial(ResNet, attention=partial(SqueezeExcite, reduction=16))

# timm rounds SE's hidden width to a multiple of 8, which changes depths 18 and 34 alone.
rounded_se = partial(SqueezeExcite, reduction=16, divisor=8)

# The peer, ours, and the batch that both see.
FULL, SMALL = (1, 3, 224, 224), (2, 3, 96, 64)
PEERS = {
    "torchvision vit_b_16": (torchvision.models.vit_b_16, partial(ViT, num_classes=1000), FULL),
    "timm vit_base_patch16_224": (partial(timm.create_model, "vit_base_patch16_224"), ViT, FULL),
    "torchvision resnet50": (torchvision.models.resnet50, partial(ResNet, 50), FULL),
    "timm seresnet18": (
        partial(timm.create_model, "seresnet18"), partial(ResNet, 18, rounded_se), SMALL,
    ),
    "timm seresnet50": (partial(timm.create_model, "seresnet50"), partial(SE_ResNet, 50), FULL),
    "timm seresnet101": (partial(timm.create_model, "seresnet101"), partial(SE_ResNet, 101), SMALL),
    "torchvision efficientnet_b0": (torchvision.models.efficientnet_b0, EfficientNet, FULL),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0"), EfficientNet, SMALL),
}  # fmt: skip
# One weight inside an attention layer of ours, that parity has to notice.
ATTENTION_WEIGHT = {
    "vit": "blocks.5.attention.qkv.weight",
    "seresnet": "stages.3.1.attention.excite.bias",
    "efficientnet": "stages.5.1.block.attention.excite.bias",
}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_equal_the_peers(name, seed):
    make_peer, make_ours, shape = PEERS[name]
    peer = redraw(make_peer().eval(), seed)
    ours = load_official(make_ours().eval(), peer.state_dict())
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)  # as ours computes
    labels = torch.tensor([3, 700])[: len(images)]

    logits = {}
    for which, model in {"peer": peer, "ours": ours}.items():
        logits[which] = model(images)
        torch.nn.functional.cross_entropy(logits[which], labels).backward()
    assert logits["peer"].std() > 0.1
    torch.testing.assert_close(
        logits["ours"], logits["peer"], rtol=0, atol=1e-4 * logits["peer"].abs().max().item()
    )

    # The gradients go through the same renaming as the weights.
    gradients = {key: p.grad for key, p in peer.named_parameters()} | dict(peer.named_buffers())
    expected = load_official(make_ours(), gradients).state_dict()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - expected[key]).norm() / expected[key].norm()
        assert error < 1e-3, (key, error)

    kind = next((kind for kind in ATTENTION_WEIGHT if kind in name), None)
    if kind:
        with torch.no_grad():
            ours.get_parameter(ATTENTION_WEIGHT[kind]).view(-1)[0] += 5.0
        assert (ours(images) - logits["peer"]).abs().max() > 1e-4 * logits["peer"].abs().max()


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (ViT, 86_567_656),  # torchvision's weight table
        (partial(ViT, width=384, heads=6), 22_050_664),  # DeiT-S
        (partial(ViT, width=192, heads=3), 5_717_416),  # DeiT-Ti
        (partial(ResNet, 18), 11_689_512),
        (partial(ResNet, 34), 21_797_672),
        (partial(ResNet, 50), 25_557_032),
        (partial(ResNet, 101), 44_549_160),
        (partial(ResNet, 152), 60_192_808),
        (partial(SE_ResNet, 18), 11_778_592),  # SE as timm's legacy_seresnet, which is the paper's
        (partial(SE_ResNet, 34), 21_958_868),
        (partial(SE_ResNet, 50), 28_088_024),
        (partial(SE_ResNet, 101), 49_326_872),
        (partial(SE_ResNet, 152), 66_821_848),
        (partial(ResNet, 18, rounded_se), 11_779_624),  # timm's seresnet18
        # CBAM's Table 4 has 11.78, 21.96, 28.09 and 49.33 M, and no depth 152: SE and 100 numbers
        # more for each of the 8, 16, 16, 33 and 50 blocks, 98 of the convolution and 2 of the norm.
        (partial(ResNet, 18, attention=CBAM), 11_778_592 + 800),
        (partial(ResNet, 34, attention=CBAM), 21_958_868 + 1_600),
        (partial(ResNet, 50, attention=CBAM), 28_088_024 + 1_600),
        (partial(ResNet, 101, attention=CBAM), 49_326_872 + 3_300),
        (partial(ResNet, 152, attention=CBAM), 66_821_848 + 5_000),
        (partial(EfficientNet, "b0"), 5_288_548),  # torchvision's weight table
        (partial(EfficientNet, "b1"), 7_794_184),
        (partial(EfficientNet, "b2"), 9_109_994),
        (partial(EfficientNet, "b3"), 12_233_232),
        (partial(EfficientNet, "b4"), 19_341_616),
    ],
)
def test_parameter_counts_are_the_published_ones(make, count):
    assert parameters(make()) == count


def test_dilated_maps_equal_torchvisions():
    peer = redraw(
        torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval(), 1
    )
    ours = load_official(ResNet(50, dilation=True).eval(), peer.state_dict())
    images = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(ours(images), peer(images), rtol=1e-3, atol=1e-3)
    assert ours.strides == (4, 8, 16, 16)
    assert ours.features(images)[-1].shape == (1, 2048, 6, 4)
