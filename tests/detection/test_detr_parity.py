"""DETR equals Hugging Face's on weights drawn anew, and reads every layout of its weights."""

from functools import partial

import pytest
import torch
from redraw import redraw
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.attention import AttentionPool, SqueezeExcite, record_attention
from attention_vision.backbones import ResNet, ViT
from attention_vision.checkpoints import load_official
from attention_vision.detection.attention_rcnn import AttentionRCNN
from attention_vision.detection.criterion import SetCriterion
from attention_vision.detection.detr import DETR
from attention_vision.detection.matcher import HungarianMatcher
from attention_vision.errors import InputError

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")

TINY = {"width": 32, "heads": 4, "encoder_layers": 2, "decoder_layers": 3, "hidden": 48}


def hugging_face(**config: object) -> nn.Module:
    config = {"use_pretrained_backbone": False, "auxiliary_loss": False, "num_labels": 91} | config
    return transformers.DetrForObjectDetection(transformers.DetrConfig(**config)).eval()


def sharpen(model: nn.Module) -> nn.Module:
    """Drawn at random, attention is so even that all queries answer alike; nothing would show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 4
    return model


def batch(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images padded at the right and at the bottom, and where."""
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    padding_mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        images[index, :, :h, :w] = torch.randn(3, h, w)
        padding_mask[index, :h, :w] = False
    return images, padding_mask


def some_targets() -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(91, (n,)),
            "boxes": torch.rand(n, 4) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2,
        }
        for n in (5, 2)
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_outputs_losses_matching_and_gradients_equal_hugging_face(seed):
    peer = sharpen(redraw(hugging_face(), seed))
    ours = load_official(DETR().eval(), peer.state_dict())
    images, padding_mask = batch((96, 128), (70, 101))
    targets = some_targets()
    labels = [{"class_labels": one["labels"], "boxes": one["boxes"]} for one in targets]
    theirs = peer(images, (~padding_mask).long(), labels=labels)
    outputs = ours(images, padding_mask)

    assert len(outputs) == 6
    assert theirs.logits.std(1).mean() > 0.01  # queries do differ
    torch.testing.assert_close(outputs[-1]["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs[-1]["boxes"], theirs.pred_boxes, rtol=0, atol=1e-4)

    criterion = SetCriterion(91, HungarianMatcher(), auxiliary=False)
    same = [{"logits": theirs.logits.detach(), "boxes": theirs.pred_boxes.detach()}]
    matcher = transformers.loss.loss_for_object_detection.HungarianMatcher(1, 5, 2)
    expected = matcher({"logits": same[0]["logits"], "pred_boxes": same[0]["boxes"]}, labels)
    for pair, other in zip(criterion.matcher(same, targets)[0], expected, strict=True):
        assert torch.equal(torch.stack(pair), torch.stack(other))
    losses = criterion(same, targets)
    for our_name, name in {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}.items():
        torch.testing.assert_close(losses[our_name], theirs.loss_dict[name], rtol=0, atol=1e-5)

    sum(theirs.loss_dict[name] for name in ("loss_ce", "loss_bbox", "loss_giou")).backward()
    losses = criterion(outputs, targets)
    (losses["class"] + losses["box"] + losses["giou"]).backward()
    # The gradients go through the same renaming as the weights. Hugging Face trains all of timm's
    # ResNet, we what the release trains.
    gradients = {key: p.grad for key, p in peer.named_parameters()} | dict(peer.named_buffers())
    gradients = load_official(DETR(), gradients).state_dict()
    errors, norms = [], []
    for key, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert key.startswith(("backbone.stem.", "backbone.stages.0."))
            continue
        error, norm = (parameter.grad - gradients[key]).norm(), gradients[key].norm()
        errors.append(error)
        norms.append(norm)
        # One ReLU of 400,000 that rounding puts on the other side of 0 moves its layer by 2e-3; in
        # double precision the gradients agree to 1e-13. Rounding is all there is in the gradient of
        # the keys' bias, which moves no softmax, and of the scores of the first decoder layer,
        # whose state is 0 and whose values are all the same.
        exact_zero = key.endswith("qkv.bias") or "decoder.0.self_attention.qkv" in key
        assert error < 5e-3 * norm + (1e-5 if exact_zero else 0), (key, error, norm)
    assert torch.stack(errors).norm() < 1e-3 * torch.stack(norms).norm()

    with torch.no_grad():  # one weight of a decoder layer, that parity has to notice
        ours.get_parameter("transformer.decoder.3.cross_attention.qkv.weight")[:256] *= 1.1
        moved = ours(images, padding_mask)[-1]["logits"] - theirs.logits
    assert moved.abs().max() > 1e-4


def test_parameter_counts_are_the_releases():
    ours = DETR()
    assert sum(p.numel() for p in ours.parameters()) == 41_524_768
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == 41_302_368


def before_transformers_5(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {".o_proj.": ".out_proj.", ".mlp.fc": ".fc"}
    names["model.backbone.model."] = "model.backbone.conv_encoder.model."
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    # Norms of torch, as they were before they were frozen, count batches.
    state["model.backbone.conv_encoder.model.bn1.num_batches_tracked"] = torch.tensor(7)
    return state


def official_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the inverse of Hugging Face's conversion script."""
    names = {
        "model.backbone.model.": "backbone.0.body.",
        "model.query_position_embeddings.": "query_embed.",
        "model.input_projection.": "input_proj.",
        "class_labels_classifier.": "class_embed.",
        "bbox_predictor.": "bbox_embed.",
        "model.decoder.layernorm.": "transformer.decoder.norm.",
        "model.encoder.": "transformer.encoder.",
        "model.decoder.": "transformer.decoder.",
        ".encoder_attn.": ".multihead_attn.",
        ".o_proj.": ".out_proj.",
        ".mlp.fc": ".linear",
        ".self_attn_layer_norm.": ".norm1.",
        ".encoder_attn_layer_norm.": ".norm2.",
    }
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    for key in list(state):
        number = "3" if "decoder" in key else "2"
        state[key.replace("final_layer_norm", f"norm{number}")] = state.pop(key)
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return state


SMALL = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "num_queries": 7, "num_labels": 5, "backbone": "resnet18",
}  # fmt: skip


def small(**options: object) -> DETR:
    backbone = ResNet(18, norm=FrozenBatchNorm2d, trainable_stages=3, **options)
    return DETR(5, 7, backbone, **TINY).eval()


@pytest.mark.parametrize("layout", [dict, before_transformers_5, official_release])
def test_every_layout_loads(layout):
    peer = sharpen(redraw(hugging_face(**SMALL), 3))
    ours = load_official(small(), layout(peer.state_dict()))
    images, padding_mask = batch((64, 75), (51, 64))
    theirs = peer(images, (~padding_mask).long())
    torch.testing.assert_close(
        ours(images, padding_mask)[-1]["boxes"], theirs.pred_boxes, rtol=0, atol=1e-5
    )


def test_hugging_faces_own_resnet_loads():
    """Without timm; dilation there needs timm."""
    config = {"model_type": "resnet", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    config |= {"layer_type": "basic", "out_features": ["stage4"]}
    peer = redraw(hugging_face(**SMALL | {"backbone_config": config}), 4)
    ours = load_official(small(), peer.state_dict())
    images, padding_mask = batch((64, 75), (51, 64))
    theirs = peer(images, (~padding_mask).long())
    torch.testing.assert_close(
        ours(images, padding_mask)[-1]["boxes"], theirs.pred_boxes, rtol=0, atol=1e-5
    )


def test_dc5_equals_hugging_face():
    peer = redraw(hugging_face(**SMALL | {"backbone": "resnet50", "dilation": True}), 5)
    backbone = ResNet(50, norm=FrozenBatchNorm2d, dilation=True)
    ours = load_official(DETR(5, 7, backbone, **TINY).eval(), peer.state_dict())
    images, padding_mask = batch((64, 75), (51, 64))
    theirs = peer(images, (~padding_mask).long())
    outputs = ours(images, padding_mask)[-1]
    torch.testing.assert_close(outputs["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs["boxes"], theirs.pred_boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "dilated"), [("detr-r50-e632da11.pth", False), ("detr-r50-dc5-f0156ef5.pth", True)]
)
def test_a_dilated_detr_is_told_by_its_name(name, dilated, tmp_path):
    """Its weights have the same names and shapes."""
    right, wrong = (
        DETR(5, 7, ResNet(18, width=8, norm=FrozenBatchNorm2d, dilation=one), **TINY)
        for one in (dilated, not dilated)
    )
    torch.save({"model": right.state_dict()}, tmp_path / name)
    load_official(right, tmp_path / name)
    with pytest.raises(InputError, match=f"set its backbone's dilation to {str(dilated).lower()}"):
        load_official(wrong, tmp_path / name)


def test_other_classes_are_refused_by_name_or_left_out():
    state = redraw(hugging_face(**SMALL), 6).state_dict()
    ours = DETR(2, 7, ResNet(18, norm=FrozenBatchNorm2d), **TINY)
    with pytest.raises(InputError, match="detects 5 classes, the model 2: set num_classes to 5"):
        load_official(ours, state)
    head = ours.class_head.weight.clone()
    load_official(ours, state, leave_out=("class_head.",))
    assert torch.equal(ours.class_head.weight, head)
    assert torch.equal(ours.projection.weight, state["model.input_projection.weight"])


@pytest.mark.parametrize("pool", [None, AttentionPool])
@pytest.mark.parametrize("build", [DETR, AttentionRCNN])
def test_a_backbone_still_classifies_once_a_detector_has_its_maps(build, pool):
    given = {} if pool is None else {"pool": pool}
    backbone = redraw(ResNet(18, width=8, num_classes=7, **given), 3).eval()
    images = torch.randn(2, 3, 64, 64)
    keys, logits = list(backbone.state_dict()), backbone(images)
    detector = build(5, backbone=backbone)
    assert torch.equal(backbone(images), logits)
    assert list(backbone.state_dict()) == keys
    assert backbone.num_classes == 7
    own = dict(detector.backbone.named_parameters())
    assert all(key.startswith(("stem.", "stages.")) for key in own)
    assert all(own[key] is backbone.get_parameter(key) for key in own)
    assert detector.backbone.num_classes == 0
    assert detector.backbone(images).shape == (2, backbone.channels[-1])


def test_backbones_start_from_classifiers():
    classifier = redraw(ResNet(18, num_classes=10), 7)
    backbone = load_official(
        ResNet(18, num_classes=0, norm=FrozenBatchNorm2d),
        classifier.state_dict(),
        leave_out=("head.",),
    )
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        backbone.eval().features(images)[-1], classifier.eval().features(images)[-1]
    )


def tiny_detr(depth: int = 10, stem: str = "cifar", seed: int = 1, **options: object) -> DETR:
    attention = options.pop("attention", nn.Identity)
    dilation = options.pop("dilation", False)
    backbone = ResNet(
        depth, attention, stem=stem, width=16, norm=FrozenBatchNorm2d, dilation=dilation
    )
    return redraw(DETR(4, 9, backbone, **TINY | options).eval(), seed)


VARIANTS = {
    "ResNet-10, stride 8": {},
    "ResNet-20, stride 4": {"depth": 20},
    "ResNet-50, stride 32": {"depth": 50, "stem": "imagenet"},
    "DC5": {"depth": 50, "stem": "imagenet", "dilation": True},
    "pre-norm": {"norm_first": True},
    "learned positions": {"position": "learned"},
    "without encoder": {"encoder_layers": 0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_image_has_the_same_boxes_alone_and_padded_beside_a_larger_one(name):
    images, padding_mask = batch((51, 70), (75, 93))
    alone = images[:1, :, :51, :70], padding_mask[:1, :51, :70]
    error = {}
    for mask_padding in (False, True):
        model = tiny_detr(**VARIANTS[name], mask_padding=mask_padding)
        with torch.no_grad():
            together, single = model(images, padding_mask), model(*alone)
        assert len(together) == 3
        assert together[-1]["logits"].shape == (2, 9, 5)
        error[mask_padding] = max(
            (a[key][0] - b[key][0]).abs().max().item()
            for a, b in zip(together, single, strict=True)
            for key in ("boxes", "logits")
        )
    assert error[True] < 1e-4
    assert error[False] > error[True]


def test_attention_that_pools_over_the_map_depends_on_padding():
    images, padding_mask = batch((51, 70), (75, 93))
    error = []
    for attention in (nn.Identity, partial(SqueezeExcite, reduction=4)):
        model = tiny_detr(attention=attention).backbone
        one = model.features(images[:1, :, :51, :70])[-1]
        both = model.features(images, padding_mask)[-1]
        hidden = padding_mask[:, ::8, ::8]
        assert not both.movedim(1, -1)[hidden].any()
        error.append((both[:1, :, : one.shape[2], : one.shape[3]] - one).abs().max())
    assert error[0] < 1e-4 < error[1]


def test_every_attention_can_be_looked_at():
    model = tiny_detr()
    images, padding_mask = batch((32, 48), (48, 40))
    with record_attention(model) as maps:
        model(images, padding_mask)
    assert len(maps) == 2 + 2 * 3
    weights = maps["transformer.decoder.2.cross_attention"]  # (B, h, Q, K)
    assert weights.shape == (2, 4, 9, 6 * 6)
    assert not weights.movedim(-1, 1)[padding_mask[:, ::8, ::8].flatten(1)].any()


def test_heads_are_in_single_precision_under_autocast_and_every_parameter_is_trained():
    model = tiny_detr(depth=20).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*batch((32, 48), (48, 40)))
    assert outputs[-1]["boxes"].dtype == torch.float32
    sum(layer[key].square().sum() for layer in outputs for key in layer).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DETR(4, 9, ViT(32, 8, 32, 2, 2), mask_padding=True), "needs a ResNet, not ViT"),
        (lambda: DETR(4, 9, ResNet(10), width=36, heads=8), "width 36"),
        (lambda: DETR(4, 0, ResNet(10)), "num_queries"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_a_configuration_file_builds_it():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DETR, "network")
    config = {
        "num_classes": 3,
        "num_queries": 5,
        "position": "learned",
        "backbone": {"class_path": "attention_vision.backbones.ResNet", "init_args": {"depth": 10}},
    }
    network = parser.instantiate(parser.parse_object({"network": config})).network
    assert network.queries.weight.shape == (5, 256)
    assert network.backbone.strides[-1] == 32
