"""How fast detection is: a training step of DETR-R50 against transformers, AP against pycocotools.

    python experiments/benchmarks/detection.py --threads 2              # CPU, 15 minutes
    python experiments/benchmarks/detection.py --clock cpu --only AP    # where the machine is busy

A step of DETR is forward, matching and loss of six decoder layers, backward and AdamW, on two
images of which one is padded. Both sides have random weights, frozen batch norms, the dropout of
the release (of attention, inside the feed-forward networks and of branches; that of transformers is
of branches alone by default), and train the stages 2 to 4 of their ResNet, the transformer and the
heads: as many parameters.
AP is measured from tensors to the twelve numbers for ours, from finished lists of annotations for
the peer; both must agree, or the row fails. See `frame` for the options and for what is measured.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import torch
from frame import Row, Side, Step, main, training_flops
from torch import Tensor, nn
from torchvision.ops import box_convert

from attention_vision.backbones import ResNet
from attention_vision.detection import DETR, COCOAveragePrecision, HungarianMatcher, SetCriterion
from attention_vision.detection.boxes import to_pixels

Scene = tuple[Tensor, Tensor, list[dict[str, Tensor]]]
IMAGES, DETECTIONS, CLASSES = 1000, 100, 80


def scene(height: int, width: int, device: str) -> Scene:
    """Two images, the second of 5/6 of the width, with 4 and 9 objects."""
    images, padding = torch.randn(2, 3, height, width), torch.zeros(2, height, width).bool()
    padding[1, :, width * 5 // 6 :] = True
    targets = [{"boxes": boxes(n), "labels": torch.randint(90, (n,))} for n in (4, 9)]
    targets = [{key: x.to(device) for key, x in target.items()} for target in targets]
    return images.masked_fill(padding[:, None], 0).to(device), padding.to(device), targets


def boxes(count: int) -> Tensor:
    return torch.cat((0.3 + 0.4 * torch.rand(count, 2), 0.05 + 0.5 * torch.rand(count, 2)), 1)


def training_step(
    network: nn.Module, loss_of: Callable[[], Tensor], device: str, toy: bool
) -> Step:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    assert toy or sum(weight.numel() for weight in weights) == 41_302_368
    optimizer = torch.optim.AdamW(weights, lr=1e-5, weight_decay=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def detr(toy: bool) -> DETR:
    """DETR-R50, or a network of a few channels."""
    if not toy:
        return DETR()
    small = {"width": 32, "heads": 2, "hidden": 32, "encoder_layers": 1, "decoder_layers": 1}
    return DETR(backbone=ResNet(8, width=8), **small)


def ours(
    given: Scene, layout: torch.memory_format, toy: bool = False, compiled: bool = False
) -> Step:
    images, padding, targets = given
    device = images.device.type
    network = detr(toy).to(device).to(memory_format=layout).train()
    criterion = SetCriterion(91, HungarianMatcher()).to(device)
    images = images.to(memory_format=layout)
    forward = torch.compile(network) if compiled else network
    return training_step(
        network, lambda: criterion(forward(images, padding), targets)["total"], device, toy
    )


def theirs(
    given: Scene, layout: torch.memory_format, toy: bool = False, compiled: bool = False
) -> Step:
    """Hugging Face's, which freezes all of its own ResNet: it looks for other names."""
    import transformers

    images, padding, targets = given
    device = images.device.type
    small, of_backbone = {}, {}
    if toy:
        of_backbone = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4}
        small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        for part in ("encoder", "decoder"):
            small |= {f"{part}_attention_heads": 2, f"{part}_ffn_dim": 32}
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=transformers.ResNetConfig(out_features=["stage4"], **of_backbone),
        auxiliary_loss=True, num_labels=91, attention_dropout=0.1, activation_dropout=0.1, **small,
    )  # fmt: skip
    network: nn.Module = transformers.DetrForObjectDetection(config)
    for name, weight in network.named_parameters():
        if ".backbone." in name:
            weight.requires_grad_(any(f"stages.{stage}." in name for stage in (1, 2, 3)))
    network = network.to(device).to(memory_format=layout).train()
    images, mask = images.to(memory_format=layout), (~padding).long()
    labels = [{"class_labels": one["labels"], "boxes": one["boxes"]} for one in targets]
    forward = torch.compile(network) if compiled else network
    return training_step(network, lambda: forward(images, mask, labels=labels).loss, device, toy)


def found(images: int) -> tuple[list[dict[str, Tensor]], list[dict]]:
    """Predictions and targets: half of the detections lie near an object."""
    predictions, targets = [], []
    size = torch.tensor([480, 640])
    for image_id in range(images):
        count = int(torch.randint(1, 15, ()))
        true, labels = boxes(count), torch.randint(CLASSES, (count,))
        near, of_object = torch.rand(DETECTIONS) < 0.5, torch.randint(count, (DETECTIONS,))
        moved = true[of_object] * (1 + 0.1 * torch.randn(DETECTIONS, 4))
        guessed = torch.randint(CLASSES, (DETECTIONS,))
        predictions.append(
            {
                "boxes": to_pixels(torch.where(near[:, None], moved, boxes(DETECTIONS)), size),
                "scores": torch.rand(DETECTIONS),
                "labels": torch.where(near, labels[of_object], guessed),
            }
        )
        targets.append(
            {
                "boxes": true,
                "labels": labels,
                "area": true[:, 2] * true[:, 3] * size.prod() * 0.7,
                "iscrowd": (torch.rand(count) < 0.03).long(),
                "image_id": image_id,
                "orig_size": size,
            }
        )
    return predictions, targets


def our_numbers(given: tuple, expected: list) -> Step:
    def step() -> None:
        metric = COCOAveragePrecision()
        for start in range(0, len(given[0]), 8):
            metric.update(*(part[start : start + 8] for part in given))
        agree(expected, list(metric.compute().values()))

    return step


def their_numbers(given: tuple, expected: list) -> Step:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: dict[str, list] = {
        "images": [{"id": image_id} for image_id in range(len(given[0]))],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": [],
    }
    results = []
    for predicted, target in zip(*given, strict=True):
        image_id = {"image_id": target["image_id"]}
        corners = to_pixels(target["boxes"].double(), target["orig_size"].double())
        columns = (box_convert(corners, "xyxy", "xywh"), *(target[k] for k in ("labels", "area")))
        for box, label, area, crowd in zip(
            *(column.tolist() for column in (*columns, target["iscrowd"])), strict=True
        ):
            one = {"category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
            truth["annotations"].append({"id": len(truth["annotations"]) + 1} | image_id | one)
        columns = (box_convert(predicted["boxes"].double(), "xyxy", "xywh"), predicted["labels"])
        for box, label, score in zip(
            *(column.tolist() for column in (*columns, predicted["scores"])), strict=True
        ):
            results.append({"category_id": label, "bbox": box, "score": score} | image_id)

    def step() -> None:
        with redirect_stdout(io.StringIO()):
            truths = COCO()
            truths.dataset = truth
            truths.createIndex()
            evaluation = COCOeval(truths, truths.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        agree(expected, list(evaluation.stats))

    return step


def agree(expected: list[float], numbers: list[float]) -> None:
    """Compare with the numbers of the first call.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    if not expected:
        expected += numbers
    np.testing.assert_allclose(numbers, expected, rtol=1e-14)


def rows(device: str, smoke: bool) -> Iterator[Row]:
    images = 20 if smoke else IMAGES
    given, numbers = found(images), []
    sides = [
        Side("ours", partial(our_numbers, given, numbers)),
        Side("pycocotools", partial(their_numbers, given, numbers)),
    ]
    yield Row(
        f"AP of {images:,} images", sides, images=images, targets={"pycocotools": 6},
        memory=False, turns=5, note=f"{DETECTIONS} detections an image, {CLASSES} classes",
    )  # fmt: skip
    height, width = (64, 96) if smoke else (800, 1066) if device == "cuda" else (480, 640)
    batch = scene(height, width, device)
    flops = training_flops(detr(smoke).to(device), *batch[:2])
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    yield Row(
        f"DETR-R50, {height}x{width}",
        [
            Side(who, partial(build, batch, layout, smoke), variant)
            for who, build in (("ours", ours), ("transformers", theirs))
            for variant, layout in layouts.items()
        ],
        images=2, flops=flops, targets={"transformers": 1.3}, turns=5,
        note="FLOPs as if all of the backbone were trained: stem and first stage are frozen",
    )  # fmt: skip


if __name__ == "__main__":
    main(rows)
