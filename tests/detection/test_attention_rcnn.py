"""Faster R-CNN equals torchvision's on weights drawn anew; the head that attends is its own."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from redraw import redraw
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
)
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, box_convert

from attention_vision.attention import record_attention
from attention_vision.backbones import ResNet, ViT
from attention_vision.checkpoints import load_official
from attention_vision.checkpoints.layouts.faster_rcnn import TORCHVISION
from attention_vision.config.parser import ArgumentParser
from attention_vision.detection.attention_rcnn import (
    AttentionBoxHead,
    AttentionRCNN,
    PlainBoxHead,
    pad_to_stride,
    unpadded_sizes,
)
from attention_vision.detection.boxes import to_pixels
from attention_vision.detection.module import RCNNDetector
from attention_vision.errors import InputError

HEADS = {"plain": PlainBoxHead, "attention": AttentionBoxHead}
LOSSES = {
    "rpn_class": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
}


# Images whose shorter side is 96 go through torchvision's transform as they are.
AS_THEY_ARE = {"min_size": 96, "max_size": 200, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
EMPTY = {"weights": None, "weights_backbone": None}


def torchvisions(seed: int, eps: float) -> FasterRCNN:
    """`fasterrcnn_resnet50_fpn` as it is built where weights are given, with frozen norms of
    variances so small that `eps` shows."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = redraw(FasterRCNN(backbone, 91, **AS_THEY_ARE), seed)
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.weight *= 1e-2
            norm.running_var *= 1e-4
    overwrite_eps(model, eps)
    return model


def plain(num_classes: int = 90, eps: float = 1e-5) -> AttentionRCNN:
    norm = partial(FrozenBatchNorm2d, eps=eps)
    backbone = ResNet(50, num_classes=0, norm=norm, trainable_stages=3)
    return AttentionRCNN(num_classes, backbone, PlainBoxHead, score_threshold=0.02)


def tiny(head=AttentionBoxHead, **options: object) -> AttentionRCNN:
    backbone = ResNet(10, width=8, num_classes=0)
    numbers = {
        "num_classes": 5,
        "pyramid_channels": 16,
        "anchor_sizes": (8, 16, 32, 48, 64),
        "train_proposals": 50,
        "eval_proposals": 50,
        "sampled_proposals": 32,
    }
    return AttentionRCNN(backbone=backbone, head=partial(head, hidden=24), **(numbers | options))


def batch(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w)
        padding_mask[index, :h, :w] = False
    return images, padding_mask


def some_targets(*counts: int, classes: int = 5) -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(classes, (n,)),
            "boxes": torch.rand(n, 4) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2,
        }
        for n in counts
    ]


@pytest.mark.parametrize(("seed", "eps"), [(1, 1e-5), (2, 0.0)])
def test_losses_gradients_and_detections_equal_torchvisions(seed, eps):
    peer = torchvisions(seed, eps)
    peer.roi_heads.score_thresh = 0.02  # of 91 drawn classes few are likely
    ours = load_official(plain(eps=eps), peer.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == 41_755_286

    sizes = (96, 128), (107, 96)
    images, padding_mask = batch(*sizes)
    alone = [image[:, :h, :w] for image, (h, w) in zip(images, sizes, strict=True)]
    targets = some_targets(4, 2, classes=90)
    theirs = [
        {"labels": one["labels"] + 1, "boxes": to_pixels(one["boxes"], torch.tensor(size))}
        for one, size in zip(targets, sizes, strict=True)
    ]

    # Both draw their samples with torch.randperm, but torchvision a scale of the images before.
    peer.transform.register_forward_hook(lambda *_: torch.manual_seed(seed) and None)
    expected = peer(alone, theirs)
    sum(expected.values()).backward()
    torch.manual_seed(seed)
    losses = ours(images, padding_mask, targets)
    losses["total"].backward()
    for key, name in LOSSES.items():
        assert expected[name] > 0
        torch.testing.assert_close(losses[key], expected[name], rtol=1e-5, atol=0)
    gradients = {key: p.grad for key, p in peer.named_parameters()}
    gradients = TORCHVISION.translate(gradients)
    for key, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (gradients[key] is None), key
        if parameter.grad is not None:
            error, norm = (parameter.grad - gradients[key]).norm(), gradients[key].norm()
            # A ReLU that rounding puts on the other side of 0 moves its layer: training here has
            # frozen norms in the kernels, and channels last (test_frozen_norm is in float64).
            assert error <= 5e-3 * norm, (key, error, norm)

    with torch.no_grad():
        found = ours.eval()(images, padding_mask)
        # One by one: torchvision pads images of different sizes, and its detections move with it.
        expected = [peer.eval()([image])[0] for image in alone]
    for one, other, (h, w) in zip(found, expected, sizes, strict=True):
        assert len(other["scores"]) > 5
        assert torch.equal(one["labels"], other["labels"] - 1)
        torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-6)
        boxes = one["boxes"] * torch.tensor([w, h, w, h])
        torch.testing.assert_close(boxes, other["boxes"], rtol=0, atol=1e-4)
        assert boxes.std(0).min() > 1  # they do differ
        assert one["boxes"].min() >= 0
        assert one["boxes"].max() <= 1


@pytest.mark.parametrize("name", ["coco", "fine_tune"])
def test_the_experiments_network_is_torchvisions(name):
    path = Path(__file__).parents[2] / f"experiments/detection/faster_rcnn_r50_fpn_{name}.yaml"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AttentionRCNN, "network")
    network = yaml.safe_load(path.read_text())["model"]["init_args"]["network"]
    network["init_args"]["num_classes"] = 90
    built = parser.instantiate(parser.parse_object({"network": network})).network
    assert sum(p.numel() for p in built.parameters()) == 41_755_286
    assert built.backbone.stem.norm.eps == (1e-5 if name == "coco" else 0)


def test_the_eps_of_the_weights_matters():
    state, images = torchvisions(1, 0.0).state_dict(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = [load_official(plain(eps=eps), state).pyramid_levels(images) for eps in (1e-5, 0.0)]
    error = (maps[0]["0"] - maps[1]["0"]).norm() / maps[1]["0"].norm()
    assert error > 0.1


def as_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The keys of 2019's file, `fasterrcnn_resnet50_fpn_coco-258fb6c6.pth`."""
    frozen = {key: value for key, value in state.items() if "num_batches" not in key}
    return {
        key.replace(".0.weight", ".weight").replace(".0.bias", ".bias").replace(".conv.0", ".conv")
        if key.startswith(("backbone.fpn", "rpn"))
        else key: value
        for key, value in frozen.items()
    }


def test_torchvisions_own_builder_and_the_released_files_keys_load():
    peer = redraw(fasterrcnn_resnet50_fpn(**EMPTY, **AS_THEY_ARE), 3).eval()  # with batch norms
    peer.roi_heads.score_thresh = 0.02
    old = as_released(peer.state_dict())
    assert {"backbone.fpn.inner_blocks.3.weight", "rpn.head.conv.bias"} <= old.keys()
    images, padding_mask = batch((96, 128))
    with torch.no_grad():
        (expected,) = peer(list(images))
        assert len(expected["scores"]) > 5
        for state in (peer.state_dict(), old):
            (found,) = load_official(plain().eval(), state)(images, padding_mask)
            boxes = found["boxes"] * torch.tensor([128, 96, 128, 96])
            # Batch norms round otherwise than frozen ones do, 7e-7 of the maps.
            torch.testing.assert_close(boxes, expected["boxes"], rtol=0, atol=1e-2)
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-3)


def test_other_classes_and_heads_start_from_the_rest_of_torchvisions():
    state = as_released(redraw(fasterrcnn_resnet50_fpn(**EMPTY), 4).state_dict())
    ours = RCNNDetector(plain(num_classes=3))
    before = {key: value.clone() for key, value in ours.network.state_dict().items()}
    with pytest.raises(InputError, match="detects 90 classes, the model 3: set num_classes to 90"):
        load_official(ours.network, state)
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, before[key]), key
    load_official(ours.network, state, ours.of_classes)
    for key, value in ours.network.state_dict().items():
        assert torch.equal(value, before[key]) == ("predictor" in key), key

    attends = RCNNDetector(AttentionRCNN(3))
    load_official(attends.network, state, attends.of_classes)
    theirs = state["rpn.head.conv.weight"]
    assert torch.equal(attends.network.rpn.head.conv[0][0].weight, theirs)


@pytest.mark.parametrize("build", [fasterrcnn_resnet50_fpn_v2, maskrcnn_resnet50_fpn])
def test_torchvisions_other_detectors_are_refused(build):
    with pytest.raises(
        InputError, match=r"Faster R-CNN of torchvision\) does not fit .* not in the model"
    ):
        load_official(plain(), build(**EMPTY).state_dict())


def test_sizes_of_the_two_heads_are_as_the_docstring_says():
    sizes = [sum(p.numel() for p in head(256, 91).parameters()) for head in HEADS.values()]
    assert sizes == [14_362_055, 3_824_583]


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_head_shapes_also_without_proposals(head):
    head = head(16, 6, hidden=24)
    for count in (7, 0):
        logits, deltas = head(torch.randn(count, 16, 7, 7))
        assert logits.shape == (count, 6)
        assert deltas.shape == (count, 24)


def test_attention_starts_as_the_mean_under_torchvisions_predictor():
    head = AttentionBoxHead(16, 6, hidden=24)
    proposals = torch.randn(3, 16, 7, 7)
    with record_attention(head) as maps:
        logits, deltas = head(proposals)
    torch.testing.assert_close(maps["pool"], torch.full((3, 1, 6, 9), 1 / 9))
    plain = FastRCNNPredictor(24, 6)
    plain.load_state_dict(head.predictor.state_dict())
    places = head.layers(proposals).flatten(2).mT + head.position()
    expected = plain(places.relu().mean(1))
    torch.testing.assert_close((logits, deltas), expected)


def test_order_of_classes_is_free():
    head = redraw(AttentionBoxHead(16, 6, hidden=24), 1)
    proposals, order = torch.randn(3, 16, 7, 7), torch.tensor([3, 0, 5, 1, 4, 2])
    logits, deltas = head(proposals)
    with torch.no_grad():
        head.pool.query.copy_(head.pool.query[order])
        for layer, per_class in ((head.predictor.cls_score, 1), (head.predictor.bbox_pred, 4)):
            for parameter in (layer.weight, layer.bias):
                rows = parameter.unflatten(0, (6, per_class))
                parameter.copy_(rows[order].flatten(0, 1))
        permuted, boxes = head(proposals)
    torch.testing.assert_close(permuted, logits[:, order])
    torch.testing.assert_close(boxes.unflatten(1, (6, 4)), deltas.unflatten(1, (6, 4))[:, order])
    # A class looks by its own query: no other's logit moves with it.
    with torch.no_grad():
        head.pool.query[2] += 1
        moved = (head(proposals)[0] - permuted).abs().amax(0) > 1e-6
    assert moved.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_gradients_reach_every_parameter(head):
    model = redraw(tiny(head), 1)
    model(*batch((64, 64), (50, 64)), some_targets(3, 2))["total"].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("counts", [(0, 3), (0, 0)])
def test_images_without_objects_train(head, counts):
    model = tiny(head)
    losses = model(*batch((64, 64), (50, 64)), some_targets(*counts))
    assert set(losses) == {"total", *LOSSES}
    assert all(loss.isfinite() for loss in losses.values())
    losses["total"].backward()  # data-parallel training waits for the gradient of every parameter
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_crowds_are_not_trained_on():
    model, inputs = tiny(), batch((64, 64))
    alone = some_targets(2)
    crowd = {key: torch.cat((value, value[:1])) for key, value in some_targets(1)[0].items()}
    both = [{key: torch.cat((alone[0][key], crowd[key])) for key in crowd}]
    both[0]["iscrowd"] = torch.tensor([0, 0, 1, 1])
    losses = []
    for targets in (alone, both):
        torch.manual_seed(0)
        losses.append(model(*inputs, targets)["total"])
    assert torch.equal(*losses)


BACKBONES = {
    "ResNet, four maps": partial(ResNet, 10, width=16, num_classes=0, stem="cifar"),
    "ResNet, three maps": partial(ResNet, 20, width=16, num_classes=10, stem="cifar"),
    "ResNet, dilated": partial(ResNet, 10, width=16, dilation=True),
    "ViT, one map": partial(ViT, 64, 8, 32, 2, 2, num_classes=10),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("first_stage", [1, -1])
def test_any_backbone_trains_and_detects(name, first_stage):
    backbone = BACKBONES[name]()
    stages = len(backbone.strides)
    first_stage = first_stage if first_stage > 0 else min(2, stages)
    model = AttentionRCNN(
        5,
        backbone,
        partial(AttentionBoxHead, hidden=24),
        pyramid_channels=16,
        first_stage=first_stage,
        train_proposals=50,
        eval_proposals=50,
        score_threshold=0.0,
        detections=10,
    )
    assert model.rpn.anchor_generator.sizes[0] == (8 * backbone.strides[first_stage - 1],)
    images, padding_mask = batch((64, 64), (64, 48))
    assert model(images, padding_mask, some_targets(2, 1))["total"].isfinite()
    with torch.no_grad(), record_attention(model) as maps:
        found = model.eval()(images, padding_mask)
    for one in found:
        assert one["boxes"].shape == (10, 4)
        assert one["scores"].shape == (10,)
        assert one["labels"].min() >= 0
        assert one["labels"].max() < 5
        assert one["boxes"].min() >= 0
        assert one["boxes"].max() <= 1
    weights = maps["roi_heads.box_head.pool"]
    assert weights.shape[1:] == (1, 6, 9)
    assert len(weights) <= 100
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_sizes_come_from_the_mask_and_maps_fill_the_stride():
    images, padding_mask = batch((33, 50), (40, 21))
    assert unpadded_sizes(padding_mask).tolist() == [[33, 50], [40, 21]]
    assert pad_to_stride(images, 32).shape == (2, 3, 64, 64)
    assert pad_to_stride(images[..., :32, :32], 32).shape == (2, 3, 32, 32)


def test_pooling_does_not_depend_on_the_first_batch():
    first, second = redraw(tiny(), 1).eval(), redraw(tiny(), 1).eval()
    inputs = batch((96, 64))
    with torch.no_grad():
        first(*batch((33, 33)))
        for one, other in zip(first(*inputs), second(*inputs), strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_leaves_geometry_in_single_precision():
    model, inputs = redraw(tiny(score_threshold=0.0), 1), batch((64, 64), (50, 64))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*inputs, some_targets(2, 3))
        with torch.no_grad():
            found = model.eval()(*inputs)
    losses["total"].backward()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    for one in found:
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        pixels = one["boxes"] * 64
        assert not torch.equal(pixels, pixels.bfloat16().float())


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_learns_a_scene_by_heart(head):
    model = tiny(head, num_classes=2)
    images, padding_mask = batch((64, 64), (64, 64))
    corners = torch.tensor([[8.0, 8, 28, 28], [30, 34, 60, 58]])
    for label, (left, top, right, bottom) in enumerate(corners.int().tolist()):
        images[:, label, top:bottom, left:right] += 3
    boxes = box_convert(corners, "xyxy", "cxcywh") / 64
    targets = [{"labels": torch.tensor([0, 1]), "boxes": boxes}] * 2
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(images, padding_mask, targets)["total"].backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()(images, padding_mask)[0]
    for label, expected in enumerate(corners):
        best = found["boxes"][found["labels"] == label][0]
        torch.testing.assert_close(best * 64, expected, rtol=0, atol=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 5])}, "image 7: label 5 is none of 0..4; labels start at 0"),
        ({"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]])}, "has no area"),
        ({"boxes": torch.full((2, 4), torch.nan)}, "image 7: the box .* is not finite"),
    ],
)
def test_impossible_targets_are_named(change, message):
    good, bad = some_targets(1, 2)
    with pytest.raises(InputError, match=message):
        tiny()(*batch((64, 64), (64, 64)), [good, bad | {"image_id": 7} | change])


def test_impossible_options_are_named():
    with pytest.raises(InputError, match="2 anchor_sizes for 5 levels, of strides 4, 8, 16,"):
        tiny(anchor_sizes=(8, 16))
    with pytest.raises(InputError, match=r"first_stage is 5: it has to be in 1\.\.4"):
        tiny(first_stage=5)
    with pytest.raises(ValueError, match="targets are needed"):
        tiny()(*batch((64, 64)))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_configured_by_one_line(head):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    path = f"{head.__module__}."
    config = parser.parse_object(
        {
            "network": {
                "class_path": f"{path}AttentionRCNN",
                "init_args": {
                    "num_classes": 5,
                    "backbone": {"class_path": "attention_vision.backbones.ResNet",
                                 "init_args": {"depth": 10, "width": 8, "num_classes": 0}},
                    "pyramid_channels": 16,
                    "anchor_sizes": [8, 16, 32, 48, 64],
                    "head": {"class_path": f"{path}{head.__name__}", "init_args": {"hidden": 24}},
                },
            }
        }
    )  # fmt: skip
    network = parser.instantiate(config).network
    assert isinstance(network.roi_heads.box_head, head)


def test_detections_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    model = tiny(score_threshold=0.0).eval()
    sizes = (64, 48), (40, 64), (64, 48), (33, 35)
    images, padding_mask = batch(*sizes)
    with torch.no_grad():
        together = model(images, padding_mask)
        for image, (height, width), found in zip(images, sizes, together, strict=True):
            alone = image[None, :, :height, :width]
            (one,) = model(alone, torch.zeros(1, height, width, dtype=torch.bool))
            assert len(one["scores"]) > 0
            torch.testing.assert_close(found, one, rtol=0, atol=1e-5)


def test_an_image_whose_maps_are_not_finite_has_no_finite_detection():
    model = tiny(score_threshold=0.0).eval()
    images, padding_mask = batch((64, 64), (64, 64))
    images[1, 0, 0, 0] = torch.nan
    with torch.no_grad():
        sound, broken = model(images, padding_mask)
    assert sound["scores"].isfinite().all()
    assert len(broken["scores"]) == 1
    assert broken["scores"].isnan().all()
    assert broken["boxes"].isnan().all()


def test_no_proposals_and_no_objects_are_no_division_by_zero(monkeypatch):
    model = tiny()
    images, padding_mask = batch((64, 64))
    monkeypatch.setattr(
        model.rpn, "filter_proposals", lambda *_: ([torch.zeros(0, 4)], [torch.zeros(0)])
    )
    losses = model(images, padding_mask, some_targets(0))
    assert losses["class"] == losses["box"] == 0
    assert losses["total"].isfinite()
    losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # which other processes would wait for
        assert parameter.grad.isfinite().all(), name


def test_what_is_compiled_depends_on_the_size_of_images_alone():
    model = AttentionRCNN(5, ResNet(8, width=8), partial(PlainBoxHead, hidden=16), 8, 3)
    counters.clear()
    model.compile(backend="eager")
    steps = [(64, 2, 1), (64, 0, 3), (96, 5, 5), (64, 1, 0), (96, 2, 7), (64, 0, 0)]
    graphs = []
    for side, *counts in steps:
        losses = model(*batch((64, side), (64, side)), some_targets(*counts))
        assert losses["total"].isfinite()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 1, 2, 2, 2, 2]  # the second is of any size
