"""Noised objects: the papers' formulas, who sees whom, and what they are trained on."""

import pytest
import torch
from redraw import redraw
from torch import Tensor
from torch._dynamo.utils import counters
from torchvision.ops import FrozenBatchNorm2d, generalized_box_iou

from attention_vision.backbones import ResNet
from attention_vision.detection import DeformableDETR, Denoising, FocalMatcher, FocalSetCriterion
from attention_vision.detection import criterion as criterion_module
from attention_vision.detection.denoising import LEAST
from attention_vision.errors import InputError

CLASSES, QUERIES = 4, 6
DINO = {"mixed_queries": True, "look_forward_twice": True}


def objects_of(*counts: int) -> list[dict[str, Tensor]]:
    return [
        {
            "labels": torch.randint(CLASSES, (n,)),
            "boxes": torch.rand(n, 4) * torch.tensor([0.4, 0.4, 0.3, 0.3]) + 0.2,
        }
        for n in counts
    ]


def model(**options: object) -> DeformableDETR:
    backbone = ResNet(8, width=8, num_classes=0, norm=FrozenBatchNorm2d)
    network = DeformableDETR(
        CLASSES, QUERIES, backbone, refine=True, two_stage=True, width=16, heads=2,
        encoder_layers=1, decoder_layers=2, hidden=16, dropout=0.0, **options,
    )  # fmt: skip
    return redraw(network, 0)


def batch() -> tuple[Tensor, Tensor]:
    padding_mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    padding_mask[1, :, 40:] = True
    return torch.randn(2, 3, 64, 64), padding_mask


def corners(box: Tensor) -> list[float]:
    x, y, w, h = box.tolist()
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


@pytest.mark.parametrize("contrastive", [True, False])
def test_a_plain_loop_draws_the_same(contrastive):
    targets = objects_of(3, 1, 0)
    denoising = Denoising(14, label_noise=0.5, box_noise=0.8, contrastive=contrastive)
    torch.manual_seed(5)
    noised = denoising.draw(targets, CLASSES, torch.zeros(1))
    size = 6 if contrastive else 3
    count = 14 // size * size
    assert noised.size == size
    assert noised.labels.shape == noised.objects.shape == (3, count)

    torch.manual_seed(5)
    anew = torch.rand(3, count) < 0.5
    others = torch.randint(CLASSES, (3, count))
    if contrastive:
        sign = torch.randint(0, 2, (3, count, 4)) * 2 - 1
    share = torch.rand(3, count, 4)
    for image, target in enumerate(targets):
        for place in range(count):
            index, further = place % 3, contrastive and place % 6 >= 3
            if index >= len(target["labels"]):
                assert noised.objects[image, place] == -2
                continue
            assert noised.objects[image, place] == (-1 if further else index)
            label, box = target["labels"][index], target["boxes"][index]
            expected = others[image, place] if anew[image, place] else label
            assert noised.labels[image, place] == expected
            found, part = noised.boxes[image, place], share[image, place]
            w, h = box[2:].tolist()
            if contrastive:
                moves = [
                    sign[image, place, k].item() * (part[k].item() + further) * side / 2 * 0.8
                    for k, side in enumerate((w, h, w, h))
                ]
                left, top, right, low = (
                    min(1, max(0, edge + move))
                    for edge, move in zip(corners(box), moves, strict=True)
                )
                moved = ((left + right) / 2, (top + low) / 2, right - left, low - top)
            else:
                reach = (w / 2, h / 2, w, h)
                moved = [
                    number + (2 * part[k].item() - 1) * reach[k] * 0.8
                    for k, number in enumerate(box.tolist())
                ]
            moved = [min(0.999, max(0.001, number)) for number in moved]
            assert found.tolist() == pytest.approx(moved, abs=1e-6)
    assert (noised.boxes[..., 2:] == LEAST).any() == contrastive  # corners that passed each other


def test_groups_see_themselves_and_the_queries_which_do_not_see_them():
    noised = Denoising(9, contrastive=False).draw(objects_of(3, 1), CLASSES, torch.zeros(1))
    mask = noised.mask(QUERIES)[:, 0]
    for image, count in enumerate((3, 1)):
        for place in range(QUERIES + 9):
            for seen in range(QUERIES + 9):
                group, other = (place - QUERIES) // 3, (seen - QUERIES) // 3
                real = (seen - QUERIES) % 3 < count
                own = place >= QUERIES and group == other and real
                assert mask[image, place, seen] == (seen < QUERIES or own)


@pytest.mark.parametrize("options", [{}, DINO])
def test_without_groups_it_is_the_model_without(options):
    """In evaluation, and in training what the queries compute."""
    plain = model(**options)
    noisy = model(**options, denoising=Denoising(8))
    noisy.load_state_dict(plain.state_dict(), strict=False)
    images, padding_mask = batch()
    expected = plain(images, padding_mask)
    for outputs in (
        noisy.eval()(images, padding_mask, objects_of(2, 1)),
        noisy.train()(images, padding_mask, objects_of(2, 1)),
    ):
        for one, other in zip(outputs, expected, strict=True):
            for key, value in other.items():
                torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-5)
    assert outputs[0]["noised_logits"].shape == (2, 8, CLASSES)


def test_losses_of_noised_objects_by_loops():
    targets = objects_of(3, 1)
    noised = Denoising(12).draw(targets, CLASSES, torch.zeros(1))
    logits, boxes = torch.randn(2, 12, CLASSES), torch.rand(2, 12, 4) * 0.5 + 0.2
    outputs = [
        {
            "logits": torch.randn(2, QUERIES, CLASSES),
            "boxes": torch.rand(2, QUERIES, 4),
            "noised_logits": logits,
            "noised_boxes": boxes,
            "noised_objects": noised.objects,
        }
    ]
    losses = FocalSetCriterion(CLASSES, FocalMatcher())(outputs, targets)
    focal = distance = overlap = 0.0
    for image, target in enumerate(targets):
        for place in range(12):
            if place % 3 >= len(target["labels"]):
                continue
            near = place % 6 < 3
            for label in range(CLASSES):
                p = logits[image, place, label].sigmoid().item()
                if near and label == target["labels"][place % 3]:
                    focal -= 0.25 * (1 - p) ** 2 * torch.tensor(p).log().item()
                else:
                    focal -= 0.75 * p**2 * torch.tensor(1 - p).log().item()
            if near:
                wanted, found = target["boxes"][place % 3], boxes[image, place]
                distance += (wanted - found).abs().sum().item()
                pair = (torch.tensor([corners(one)]) for one in (wanted, found))
                overlap += 1 - generalized_box_iou(*pair).item()
    found = 2 * 4  # two groups of four objects
    assert losses["class_noised"].item() == pytest.approx(focal / found, rel=1e-4)
    assert losses["box_noised"].item() == pytest.approx(distance / found, rel=1e-4)
    assert losses["giou_noised"].item() == pytest.approx(overlap / found, rel=1e-4)
    parts = {"class": 2, "box": 5, "giou": 2}
    total = sum(w * (losses[key] + losses[f"{key}_noised"]) for key, w in parts.items())
    torch.testing.assert_close(losses["total"], total)


def test_processes_with_other_numbers_of_groups_share_one_divisor(monkeypatch):
    """The mean over two processes is the sum over both, divided by the pairs of both."""
    network = model(denoising=Denoising(12)).train()
    criterion = FocalSetCriterion(CLASSES, FocalMatcher())
    images, padding_mask = batch()
    processes = [
        (network(images, padding_mask, targets), targets)
        for targets in (objects_of(3, 1), objects_of(1, 0))
    ]
    sums, pairs = [], []
    monkeypatch.setattr(
        criterion_module, "mean_over_processes", lambda x: pairs.append(x.item()) or x / x
    )
    for outputs, targets in processes:
        sums.append(criterion(outputs, targets))
    pairs = pairs[2::3]  # of the queries, of the proposals, of the noised objects
    assert pairs == [2 * 4, 6 * 1]
    monkeypatch.setattr(
        criterion_module, "mean_over_processes", lambda x: torch.full_like(x, sum(pairs) / 2)
    )
    for key in ("class_noised", "box_noised", "giou_noised"):
        mean = sum(criterion(*process)[key] for process in processes) / 2
        torch.testing.assert_close(mean, sum(one[key] for one in sums) / sum(pairs))


@pytest.mark.parametrize(("counts", "auxiliary"), [((2, 1), True), ((0, 0), True), ((2, 1), False)])
def test_every_parameter_has_a_gradient_also_without_objects(counts, auxiliary):
    network = model(**DINO, denoising=Denoising(8)).train()
    images, padding_mask = batch()
    targets = objects_of(*counts)
    outputs = network(images, padding_mask, targets)
    criterion = FocalSetCriterion(CLASSES, FocalMatcher(), auxiliary=auxiliary, class_aware=True)
    criterion(outputs, targets)["total"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_compiled_it_is_the_same_and_is_not_compiled_anew_for_other_numbers_of_objects():
    network = model(**DINO, denoising=Denoising(12), levels=2).train()
    images, padding_mask = batch()

    def step(*counts: int) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        network.zero_grad()
        outputs = network(images, padding_mask, objects_of(*counts))
        found = [value for layer in outputs for value in layer.values()]
        sum(value.square().sum() for value in found if value.requires_grad).backward()
        graphs = counters["stats"]["unique_graphs"]
        return [*found, *(parameter.grad for parameter in network.parameters())], graphs

    numbers = [(3, 1), (4, 0), (0, 0), (1, 1), (2, 5)]
    expected = [step(*one)[0] for one in numbers]
    counters.clear()
    network.compile(backend="eager")
    compiled = [step(*one) for one in numbers]
    for (found, _), wanted in zip(compiled, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    graphs = [count for _, count in compiled]
    assert 0 < graphs[0] < graphs[1] == graphs[-1]  # the second has made their sizes dynamic


@pytest.mark.parametrize("twice", [False, True])
def test_looking_forward_twice_trains_the_layer_before(twice):
    network = model(look_forward_twice=twice)
    images, padding_mask = batch()
    outputs = network(images, padding_mask)
    outputs[-1]["boxes"].sum().backward()
    first = network.box_head[0][-1].weight.grad
    assert (first is not None and first.abs().max() > 0) == twice
    plain = model()(images, padding_mask)
    torch.testing.assert_close(outputs[-1]["boxes"], plain[-1]["boxes"])


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_named(label):
    network, targets = model(denoising=Denoising(8)).train(), objects_of(2, 1)
    targets[1] |= {"labels": torch.tensor([label]), "image_id": 7}
    outputs = network(*batch(), targets)  # without asking outside the embedding of the labels
    with pytest.raises(InputError, match=rf"image 7: .* label {label} is none of 0\.\.3"):
        FocalSetCriterion(CLASSES, FocalMatcher())(outputs, targets)


def test_denoising_needs_queries_that_start_from_boxes():
    with pytest.raises(InputError, match="denoising needs two_stage"):
        DeformableDETR(CLASSES, QUERIES, ResNet(8), denoising=Denoising())
