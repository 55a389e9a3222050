"""Deformable DETR equals Hugging Face's on weights drawn anew, and reads every layout of them."""

import copy

import pytest
import torch
from redraw import redraw
from test_detr_parity import batch, before_transformers_5, sharpen
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.attention import record_attention
from attention_vision.backbones import ResNet
from attention_vision.checkpoints import load_official
from attention_vision.detection import DeformableDETR, FocalMatcher, FocalSetCriterion
from attention_vision.errors import InputError

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")

CLASSES, QUERIES = 5, 7
TINY = {"width": 32, "heads": 4, "encoder_layers": 2, "decoder_layers": 3, "hidden": 48}
VARIANTS = {
    "as released": {},
    "refine": {"refine": True},
    "two-stage": {"refine": True, "two_stage": True},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
NARROW = {
    "model_type": "resnet", "depths": [1] * 4, "embedding_size": 8, "hidden_sizes": [8, 16, 32, 64],
    "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip


def hugging_face(seed: int, refine: bool = False, two_stage: bool = False, **more) -> nn.Module:
    config = transformers.DeformableDetrConfig(
        auxiliary_loss=True, num_labels=CLASSES, num_queries=QUERIES,
        two_stage_num_proposals=QUERIES, with_box_refine=refine, two_stage=two_stage, d_model=32,
        encoder_layers=2, decoder_layers=3, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4, class_cost=2,
        **more or {"backbone_config": NARROW},
    )  # fmt: skip
    peer = transformers.DeformableDetrForObjectDetection(config).eval()
    if refine:  # transformers 5 ties the heads of all layers, which the release has apart
        for name in ("class_embed", "bbox_embed"):
            heads = nn.ModuleList(copy.deepcopy(head) for head in getattr(peer, name))
            setattr(peer, name, heads)
            if getattr(peer.model.decoder, name) is not None:
                setattr(peer.model.decoder, name, heads)
    return sharpen(redraw(peer, seed))


def small(backbone: tuple[int, int] = (10, 8), **options: object) -> DeformableDETR:
    """With a ResNet of this depth and width."""
    depth, width = backbone
    resnet = ResNet(depth, width=width, norm=FrozenBatchNorm2d, trainable_stages=3)
    return DeformableDETR(CLASSES, QUERIES, resnet, **TINY | options).eval()


def some_targets() -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(CLASSES, (n,)),
            "boxes": torch.rand(n, 4) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2,
        }
        for n in (4, 2)
    ]


@pytest.mark.parametrize(
    ("variant", "seed"),
    [(variant, seed) for variant in VARIANTS for seed in (1, 2)],
)
def test_outputs_losses_and_gradients_equal_hugging_face(variant, seed):
    variant = VARIANTS[variant]
    peer = hugging_face(seed, **variant).requires_grad_()  # all of its own ResNet is frozen
    ours = load_official(small(**variant), peer.state_dict())
    images, padding_mask = batch((64, 96), (50, 75))
    targets = some_targets()
    labels = [{"class_labels": one["labels"], "boxes": one["boxes"]} for one in targets]
    theirs = peer(images, (~padding_mask).long(), labels=labels)
    outputs = ours(images, padding_mask)

    assert len(outputs) == 3
    assert theirs.logits.std(1).mean() > 0.01  # queries do differ
    torch.testing.assert_close(outputs[-1]["logits"], theirs.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs[-1]["boxes"], theirs.pred_boxes, rtol=0, atol=1e-4)
    for one, other in zip(outputs, theirs.auxiliary_outputs, strict=False):
        torch.testing.assert_close(one["logits"], other["logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(one["boxes"], other["pred_boxes"], rtol=0, atol=1e-4)
    if "two_stage" in variant:
        valid = theirs.enc_outputs_coord_logits.isfinite().all(-1)
        for key, other in {
            "logits": theirs.enc_outputs_class,
            "boxes": theirs.enc_outputs_coord_logits.sigmoid(),
        }.items():
            proposals = outputs[-1][f"proposal_{key}"]
            torch.testing.assert_close(proposals[valid], other[valid], rtol=0, atol=1e-4)
        assert (~valid).any()
        # Hugging Face leaves out the release's loss of the proposals.
        outputs[-1] = {key: outputs[-1][key] for key in ("logits", "boxes")}

    criterion = FocalSetCriterion(CLASSES, FocalMatcher(), class_weight=1.0)
    losses = criterion(outputs, targets)
    names = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    for ours_name, name in names.items():
        for layer in ("", "_0", "_1"):
            value = losses[ours_name + layer]
            torch.testing.assert_close(value, theirs.loss_dict[name + layer], rtol=0, atol=1e-5)
    torch.testing.assert_close(losses["total"], theirs.loss, rtol=1e-5, atol=1e-5)

    theirs.loss.backward()
    losses["total"].backward()
    gradients = {
        key: torch.zeros_like(value) if value.grad is None else value.grad
        for key, value in peer.named_parameters(remove_duplicate=False)
    } | dict(peer.named_buffers())
    gradients = load_official(small(**variant), gradients).state_dict()
    errors, norms = [], []
    for key, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert key.startswith(("backbone.stem.", "backbone.stages.0."))
            continue
        if parameter.grad is None:  # of the proposals alone
            assert gradients[key].abs().max() == 0
            continue
        errors.append((parameter.grad - gradients[key]).norm())
        norms.append(gradients[key].norm())
    assert torch.stack(errors).norm() < 1e-3 * torch.stack(norms).norm()

    with torch.no_grad():  # one weight of a decoder layer, that parity has to notice
        ours.get_parameter("decoder.1.cross_attention.offsets.bias")[:4] += 0.1
        moved = ours(images, padding_mask)[-1]["logits"] - theirs.logits
    assert moved.abs().max() > 1e-4


def official_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the model code of fundamentalvision/Deformable-DETR."""
    names = {
        "model.backbone.model.": "backbone.0.body.",
        "model.query_position_embeddings.": "query_embed.",
        "model.input_proj.": "input_proj.",
        "model.": "transformer.",
        ".encoder_attn.": ".cross_attn.",
        ".o_proj.": ".out_proj.",
        ".mlp.fc": ".linear",
    }
    for new, old in names.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    for key in list(state):
        decoder = "decoder" in key
        norms = {
            "self_attn_layer_norm": "norm2" if decoder else "norm1",
            "encoder_attn_layer_norm": "norm1",
            "final_layer_norm": "norm3" if decoder else "norm2",
        }
        for new, old in norms.items():
            if new in key:
                state[key.replace(new, old)] = state.pop(key)
    for key in [key for key in state if ".q_proj." in key]:
        parts = [state.pop(key.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        state[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return state


def shared_once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As saved by libraries that write a tensor once, here where all layers share their heads."""
    return {
        key: value
        for key, value in state.items()
        if not (key.startswith(("class_embed.", "bbox_embed.")) and ".0." not in key[:14])
    }


@every_variant
def test_every_layout_loads(variant):
    peer = hugging_face(3, backbone="resnet18", use_pretrained_backbone=False, **variant)
    ours = load_official(small((18, 64), **variant), peer.state_dict())
    images, padding_mask = batch((64, 75), (51, 64))
    theirs = peer(images, (~padding_mask).long())
    boxes = ours(images, padding_mask)[-1]["boxes"]
    torch.testing.assert_close(boxes, theirs.pred_boxes, rtol=0, atol=1e-5)

    expected = {key: value.clone() for key, value in ours.state_dict().items()}
    layouts = [before_transformers_5, official_release]
    if not variant:  # otherwise every layer has heads of its own
        layouts.append(shared_once)
    for layout in layouts:
        state = layout(peer.state_dict())
        assert state.keys() != peer.state_dict().keys()
        with torch.no_grad():
            for value in ours.state_dict().values():
                value.zero_()
        for key, value in load_official(ours, state).state_dict().items():
            assert torch.equal(value, expected[key]), (layout.__name__, key)


def test_parameter_counts_are_the_releases():
    # README of the release: 40, 41 and 41 M.
    with torch.device("meta"):
        variants = [DeformableDETR(**variant) for variant in VARIANTS.values()]
    counts = [sum(p.numel() for p in variant.parameters()) for variant in variants]
    assert [round(count / 1e6) for count in counts] == [40, 41, 41]


def test_other_classes_are_refused_by_name_or_left_out():
    state = hugging_face(6).state_dict()
    ours = DeformableDETR(2, QUERIES, ResNet(10, width=8, norm=FrozenBatchNorm2d), **TINY)
    with pytest.raises(InputError, match="detects 5 classes, the model 2: set num_classes to 5"):
        load_official(ours, state)
    head = ours.class_head[0].weight.clone()
    load_official(ours, state, leave_out=("class_head.",))
    assert torch.equal(ours.class_head[0].weight, head)
    assert torch.equal(ours.levels.weight, state["model.level_embed"])


def test_points_of_every_layer_are_recorded():
    model = redraw(small(refine=True), 0)
    images, padding_mask = batch((64, 75), (51, 64))
    with record_attention(model) as maps:
        model(images, padding_mask)
    points = maps["decoder.2.cross_attention"]
    assert points.shape == (2, 4, QUERIES, 4, 4, 3)
    assert maps["decoder.2.self_attention"].shape == (2, 4, QUERIES, QUERIES)
    assert len(maps) == 2 + 2 * 3


@every_variant
def test_every_parameter_is_trained_also_in_bf16(variant):
    model = redraw(small(**variant), 1).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*batch((64, 48), (48, 40)))
    assert outputs[-1]["boxes"].dtype == torch.float32
    losses = FocalSetCriterion(CLASSES, FocalMatcher())(outputs, some_targets())
    losses["total"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_levels_beyond_the_backbones_are_convolved(levels):
    images, padding_mask = batch((64, 75), (51, 64))
    shapes = small(levels=levels).pyramid(images, padding_mask).shapes
    assert (
        shapes
        == {
            1: [(2, 3)],
            2: [(2, 3), (1, 2)],
            5: [(8, 10), (4, 5), (2, 3), (1, 2), (1, 1)],
        }[levels]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"two_stage": True}, "two_stage needs refine"),
        ({"look_forward_twice": True}, "look_forward_twice needs refine"),
        ({"refine": True, "mixed_queries": True}, "mixed_queries needs two_stage"),
        ({"width": 30}, "width 30"),
        ({"levels": 0}, "levels is 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, words):
    with pytest.raises(InputError, match=words):
        small(**options)
