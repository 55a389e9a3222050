"""DeiT, with and without its distillation token, against timm and by its published sizes."""

from functools import partial

import pytest
import torch
from redraw import redraw
from torch.nn.functional import cross_entropy

from attention_vision.backbones import DistilledToken, ViT
from attention_vision.checkpoints import load_official

DeiT = partial(ViT, pool=DistilledToken)
TINY, SMALL = {"width": 192, "heads": 3}, {"width": 384, "heads": 6}


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("deit_tiny_patch16_224", partial(ViT, **TINY)),
        ("deit_tiny_distilled_patch16_224", partial(DeiT, **TINY)),
        ("deit_small_distilled_patch16_224", partial(DeiT, **SMALL)),
    ],
)
def test_logits_and_gradients_equal_timms(name, make, seed):
    timm = pytest.importorskip("timm")
    peer = redraw(timm.create_model(name), seed)
    ours = load_official(make(), peer.state_dict())
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([3, 700])

    with torch.no_grad():
        expected, logits = peer.eval()(images), ours.eval()(images)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()

    if "distilled" in name:
        peer.set_distilled_training()
    for model in (peer, ours):
        outputs = model.train()(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert len(outputs) == 1 + ("distilled" in name)
        # unlike weights, so that heads in each other's place are noticed
        sum((1 + n) * cross_entropy(y, labels) for n, y in enumerate(outputs)).backward()
    gradients = {key: p.grad for key, p in peer.named_parameters()}
    expected = load_official(make(), gradients).state_dict()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - expected[key]).norm() / expected[key].norm()
        assert error < 1e-3, (key, error)


@pytest.mark.parametrize(
    ("sizes", "millions"), [(TINY, 5.91), (SMALL, 22.44), ({}, 87.34)], ids=["Ti", "S", "B"]
)
def test_parameters_are_the_published_ones(sizes, millions):
    """REFERENCES: mmpretrain's table of DeiT, distilled."""
    count = sum(parameter.numel() for parameter in DeiT(**sizes).parameters())
    assert round(count / 1e6, 2) == millions


def small(**arguments):
    return DeiT(16, 4, width=16, depth=2, heads=2, **arguments)


def test_a_pair_in_training_its_mean_in_evaluation():
    network = redraw(small(num_classes=3), 0)
    images = torch.randn(2, 3, 16, 16)
    classes, distillation = network.train()(images)
    assert classes.shape == distillation.shape == (2, 3)
    assert not torch.allclose(classes, distillation)
    torch.testing.assert_close(network.eval()(images), (classes + distillation) / 2)


def test_both_tokens_stay_out_of_the_map_and_of_relative_positions():
    network = redraw(small(num_classes=0, position="relative"), 0).eval()
    images = torch.randn(1, 3, 16, 12)
    assert network.features(images)[0].shape == (1, 16, 4, 3)
    assert network.tokens(images).shape == (1, 2 + 12, 16)
    assert network(images).shape == (1, 16)
    bias = network.bias(network.biases[0], (4, 3))
    assert bias.shape == (2, 14, 14)
    assert not bias[:, :2].any()
    assert not bias[:, :, :2].any()
