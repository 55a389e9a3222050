"""Pixels of boxes, and overlaps that equal torchvision's."""

import torch
from torchvision.ops import generalized_box_iou

from attention_vision.detection.boxes import giou, to_pixels


def corners(n: int) -> torch.Tensor:
    low, size = torch.rand(2, n, 2)
    return torch.cat((low, low + size), 1)


def test_pixels_are_of_height_and_width():
    boxes = torch.tensor([[0.5, 0.5, 1.0, 0.5]])
    size = torch.tensor([100, 40])  # (h, w)
    assert to_pixels(boxes, size).tolist() == [[0.0, 25.0, 40.0, 75.0]]


def test_giou_equals_torchvisions_paired_and_all_against_all():
    a, b = corners(40), corners(30)
    expected = generalized_box_iou(a, b)
    torch.testing.assert_close(giou(a[:, None], b), expected)
    torch.testing.assert_close(giou(a[:30], b), expected[:30].diagonal())


def test_giou_of_boxes_without_area_is_finite_and_so_is_its_gradient():
    point, line = [0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.8, 0.3]
    away, whole = [0.7, 0.6, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0]
    boxes = torch.tensor([point, line, away, whole], requires_grad=True)
    values = giou(boxes[:, None], boxes)
    assert values.isfinite().all()
    assert values[3, 3] == 1
    assert values[0, 2] == -1  # nothing but hull
    assert values[0, 0] == 0
    values.sum().backward()
    assert boxes.grad.isfinite().all()
