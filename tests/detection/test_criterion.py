"""The loss equals the official formula layer by layer, and one process equals two."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from redraw import redraw
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import FrozenBatchNorm2d, box_convert, generalized_box_iou

from attention_vision.backbones import ResNet
from attention_vision.detection.criterion import FocalSetCriterion, SetCriterion
from attention_vision.detection.deformable_detr import DeformableDETR
from attention_vision.detection.denoising import Denoising
from attention_vision.detection.detr import DETR
from attention_vision.detection.matcher import FocalMatcher, HungarianMatcher
from attention_vision.errors import InputError

CLASSES = 4


def tiny_detr() -> DETR:
    """Three decoder layers, no dropout."""
    backbone = ResNet(10, stem="cifar", width=8, norm=FrozenBatchNorm2d)
    model = DETR(
        CLASSES, 9, backbone, width=32, heads=4, encoder_layers=1, decoder_layers=3, hidden=48,
        dropout=0.0,
    )  # fmt: skip
    return redraw(model, 1)


def tiny_dino() -> DeformableDETR:
    """With all that DINO adds; its noise moves nothing, so that all processes draw the same."""
    backbone = ResNet(10, stem="cifar", width=8, norm=FrozenBatchNorm2d)
    model = DeformableDETR(
        CLASSES, 9, backbone, refine=True, two_stage=True, mixed_queries=True,
        look_forward_twice=True, denoising=Denoising(1, label_noise=0.0, box_noise=0.0), width=16,
        heads=2, encoder_layers=1, decoder_layers=2, hidden=16, dropout=0.0, levels=3,
    )  # fmt: skip
    return redraw(model, 1)


def scenes(counts: list[int]) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Images of one size, of which every second is padded."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(len(counts), 3, 32, 32, generator=generator)
    padding_mask = torch.zeros(len(counts), 32, 32, dtype=torch.bool)
    padding_mask[1::2, 24:] = True
    targets = [
        {
            "labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.1,
            "iscrowd": torch.zeros(count, dtype=torch.int64),
        }
        for count in counts
    ]
    return images.masked_fill(padding_mask[:, None], 0), padding_mask, targets


def official(
    layer: dict[str, Tensor], targets: list[dict[str, Tensor]], pairs: list, weight: float
) -> dict[str, Tensor]:
    """facebookresearch/detr, models/detr.py, of one decoder layer."""
    classes = torch.full(layer["logits"].shape[:2], CLASSES)
    distance, overlap = torch.zeros(()), torch.zeros(())
    for image, (query, place) in enumerate(pairs):
        classes[image, query] = targets[image]["labels"][place]
        predicted, wanted = layer["boxes"][image, query], targets[image]["boxes"][place]
        distance = distance + F.l1_loss(predicted, wanted, reduction="sum")
        corners = (box_convert(boxes, "cxcywh", "xyxy") for boxes in (predicted, wanted))
        overlap = overlap + (1 - generalized_box_iou(*corners).diagonal()).sum()
    weights = torch.ones(CLASSES + 1)
    weights[-1] = weight
    count = max(1, sum(len(target["labels"]) for target in targets))
    return {
        "class": F.cross_entropy(layer["logits"].transpose(1, 2), classes, weights),
        "box": distance / count,
        "giou": overlap / count,
    }


@pytest.mark.parametrize("counts", [[3, 1, 5], [4, 0, 2], [0, 0]])
def test_every_layer_equals_the_official_formula(counts):
    images, padding_mask, targets = scenes(counts)
    outputs = tiny_detr()(images, padding_mask)
    matcher = HungarianMatcher()
    losses = SetCriterion(CLASSES, matcher, no_object_weight=0.2)(outputs, targets)
    total = 0
    for index, (layer, pairs) in enumerate(zip(outputs, matcher(outputs, targets), strict=True)):
        expected = official(layer, targets, pairs, 0.2)
        for key, value in expected.items():
            name = key if index == 2 else f"{key}_{index}"
            torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-6)
        total += expected["class"] + 5 * expected["box"] + 2 * expected["giou"]
    torch.testing.assert_close(losses["total"], total, rtol=1e-6, atol=1e-6)
    assert len(losses) == 1 + 3 * 3


def test_without_auxiliary_losses_only_the_last_layer_counts():
    images, padding_mask, targets = scenes([3, 1])
    outputs = tiny_detr()(images, padding_mask)
    criterion = SetCriterion(CLASSES, HungarianMatcher(), auxiliary=False)
    losses = criterion(outputs, targets)
    assert set(losses) == {"total", "class", "box", "giou"}
    assert losses["total"] == criterion(outputs[-1:], targets)["total"]


def test_a_batch_without_objects_reaches_every_parameter():
    model = tiny_detr()
    images, padding_mask, targets = scenes([0, 0])
    losses = SetCriterion(CLASSES, HungarianMatcher())(model(images, padding_mask), targets)
    assert losses["box"] == losses["giou"] == 0
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_crowds_are_left_out():
    images, padding_mask, targets = scenes([3, 2])
    outputs = tiny_detr()(images, padding_mask)
    criterion = SetCriterion(CLASSES, HungarianMatcher())
    expected = criterion(outputs, targets)
    crowd = {
        "labels": torch.tensor([1]),
        "boxes": torch.tensor([[0.5, 0.5, 0.9, 0.9]]),
        "iscrowd": torch.tensor([1]),
    }
    targets[0] = {key: torch.cat((crowd[key], value)) for key, value in targets[0].items()}
    assert criterion(outputs, targets) == expected


def test_more_objects_than_queries_divide_by_all_objects():
    images, padding_mask, targets = scenes([12, 1])
    outputs = tiny_detr()(images, padding_mask)
    matcher = HungarianMatcher()
    with pytest.warns(UserWarning, match="raise num_queries"):
        losses = SetCriterion(CLASSES, matcher)(outputs, targets)
    pairs = matcher(outputs[-1:], targets)[0]
    expected = official(outputs[-1], targets, pairs, 0.1)
    torch.testing.assert_close(losses["box"], expected["box"])


def test_labels_that_start_at_one_are_refused():
    images, padding_mask, targets = scenes([3, 2])
    targets[1] |= {"labels": torch.tensor([1, CLASSES]), "image_id": 8}
    with pytest.raises(InputError, match=r"image 8: .* label 4 is none of 0\.\.3"):
        SetCriterion(CLASSES, HungarianMatcher())(tiny_detr()(images, padding_mask), targets)


def test_losses_are_in_single_precision_under_autocast():
    images, padding_mask, targets = scenes([3, 2])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = tiny_detr()(images, padding_mask)
        losses = SetCriterion(CLASSES, HungarianMatcher())(outputs, targets)
    assert all(value.dtype == torch.float32 for value in losses.values())


# The network and the loss by name, and what of the loss is compared.
DETR_PARTS, DINO_PARTS = ("class", "box", "giou"), ("box_proposals", "class_noised", "giou_noised")
KINDS = {
    "DETR": (tiny_detr, SetCriterion(CLASSES, HungarianMatcher()), DETR_PARTS),
    "DETR, class weights of all": (
        tiny_detr, SetCriterion(CLASSES, HungarianMatcher(), sync_class_weight=True), DETR_PARTS,
    ),
    "DINO": (
        tiny_dino, FocalSetCriterion(CLASSES, FocalMatcher(), class_aware=True),
        DETR_PARTS + DINO_PARTS,
    ),
}  # fmt: skip


def step(model: torch.nn.Module, kind: str, counts: list[int], images: slice) -> dict[str, object]:
    """Losses and gradients of each part, of some images of a batch."""
    pictures, padding_mask, targets = scenes(counts)
    _, criterion, parts = KINDS[kind]
    noised = (targets[images],) if kind == "DINO" else ()
    result = {}
    for part in ("total", *parts):
        model.zero_grad()
        losses = criterion(model(pictures[images], padding_mask[images], *noised), targets[images])
        key = part if part == "total" or "proposals" in part else f"{part}_0"
        # So that data-parallel training finds every parameter used, by whichever part.
        (losses[key] + 0 * losses["total"]).backward()
        result[part] = (
            losses[key].detach(),
            {
                name.removeprefix("module."): parameter.grad.clone()
                for name, parameter in model.named_parameters()
            },
        )
    return result


# Objects of four images, of which each process has two.
COUNTS = {"equal": [3, 2, 4, 1], "unequal": [5, 2, 0, 1], "none": [3, 2, 0, 0]}


def of_one_process(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    images = slice(2 * rank, 2 * rank + 2)
    results = {}
    for kind, (network, *_) in KINDS.items():
        model = DistributedDataParallel(network().train())
        for name, counts in COUNTS.items():
            results[name, kind] = step(model, kind, counts, images)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    torch.multiprocessing.spawn(of_one_process, (tmp_path,), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    differs = []
    for name, kind in results[0]:
        joined = step(KINDS[kind][0]().train(), kind, COUNTS[name], slice(None))
        for part, (loss, gradients) in joined.items():
            both = [result[name, kind][part] for result in results]
            error = (sum(value for value, _ in both) / 2 - loss).abs().max().item()
            for key, gradient in gradients.items():
                assert torch.equal(both[0][1][key], both[1][1][key])
                error = max(error, (both[0][1][key] - gradient).abs().max().item())
            if error > 1e-5 * max(1, max(one.abs().max() for one in gradients.values())):
                differs.append((name, kind, part))
    # Only the release's class term, and with it the total, at unequal numbers of objects.
    unequal = [(name, "DETR") for name in ("unequal", "none")]
    assert differs == [(*one, part) for one in unequal for part in ("total", "class")]


@pytest.mark.parametrize("sync", [False, True])
def test_nothing_that_weighs_is_a_loss_of_zero(sync):
    """Images without objects, and queries without an object that weigh 0: 0 / 0 otherwise."""
    model = tiny_detr()
    criterion = SetCriterion(
        CLASSES, HungarianMatcher(), no_object_weight=0.0, sync_class_weight=sync
    )
    images, padding_mask, targets = scenes([0, 0])
    losses = criterion(model(images, padding_mask), targets)
    assert all(loss == 0 for loss in losses.values())
    losses["total"].backward()
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
