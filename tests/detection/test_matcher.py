"""The matcher equals brute force over all assignments."""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.detection.boxes import giou
from attention_vision.detection.criterion import SetCriterion
from attention_vision.detection.matcher import HungarianMatcher
from attention_vision.errors import InputError


def outputs_of(layers: int, images: int, queries: int, classes: int) -> list[dict[str, Tensor]]:
    return [
        {
            "logits": torch.randn(images, queries, classes + 1),
            "boxes": torch.rand(images, queries, 4) * 0.5 + 0.05,
        }
        for _ in range(layers)
    ]


def target_of(objects: int, classes: int, image_id: int = 0) -> dict[str, Tensor]:
    return {
        "labels": torch.randint(classes, (objects,)),
        "boxes": torch.rand(objects, 4) * 0.5 + 0.05,
        "image_id": torch.tensor(image_id),
    }


def cost(logits: Tensor, box: Tensor, label: Tensor, wanted: Tensor) -> float:
    """Of one query and one object, as in the paper."""
    overlap = giou(box_convert(box, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
    return (-logits.softmax(-1)[label] + 5 * (box - wanted).abs().sum() - 2 * overlap).item()


def table_of(layer: dict[str, Tensor], image: int, target: dict[str, Tensor]) -> list[list[float]]:
    """Queries x objects."""
    objects = list(zip(target["labels"], target["boxes"], strict=True))
    queries = zip(layer["logits"][image], layer["boxes"][image], strict=True)
    return [[cost(*query, *one) for one in objects] for query in queries]


def least(table: list[list[float]], objects: int) -> float:
    """By trying every assignment of min(queries, objects) pairs."""
    queries = len(table)
    if objects <= queries:
        ways = permutations(range(queries), objects)
        return min(sum(table[q][o] for o, q in enumerate(way)) for way in ways)
    ways = permutations(range(objects), queries)
    return min(sum(table[q][o] for q, o in enumerate(way)) for way in ways)


@pytest.mark.filterwarnings("ignore:image .* has .* objects")
def test_500_random_cases_equal_brute_force():
    """0 to 5 objects for 1 to 5 queries, one, as many and more objects than queries among them."""
    matcher, cases, kinds = HungarianMatcher(), 0, set()
    while cases < 500:
        queries = int(torch.randint(1, 6, ()))
        counts = torch.randint(0, 6, (3,)).tolist()
        outputs = outputs_of(2, 3, queries, 4)
        targets = [target_of(count, 4) for count in counts]
        for layer, matches in zip(outputs, matcher(outputs, targets), strict=True):
            for image, (query, place) in enumerate(matches):
                table = table_of(layer, image, targets[image])
                pairs = list(zip(query.tolist(), place.tolist(), strict=True))
                count = counts[image]
                assert len(pairs) == min(queries, count)
                assert len(set(query.tolist())) == len(set(place.tolist())) == len(pairs)
                assert query.tolist() == sorted(query.tolist())
                assert query.dtype == place.dtype == torch.int64
                found = sum(table[q][o] for q, o in pairs)
                assert found == pytest.approx(least(table, count), abs=1e-5)
                kinds.add((min(count, 2), (count > queries) - (count < queries)))
                cases += 1
    # None, one and several objects; fewer than, as many as and more than queries.
    assert kinds == {(0, -1), (1, -1), (1, 0), (2, -1), (2, 0), (2, 1)}


def test_ties_are_broken_somehow_but_completely():
    """Ten equal queries, four equal objects."""
    outputs = [{"logits": torch.zeros(1, 10, 3), "boxes": torch.full((1, 10, 4), 0.3)}]
    target = {"labels": torch.ones(4, dtype=torch.int64), "boxes": torch.full((4, 4), 0.5)}
    ((query, place),) = HungarianMatcher()(outputs, [target])[0]
    assert len(query.unique()) == 4
    assert place.sort().values.tolist() == [0, 1, 2, 3]


def test_a_batch_without_objects():
    outputs = outputs_of(2, 2, 5, 3)
    for layer in HungarianMatcher()(outputs, [target_of(0, 3), target_of(0, 3)]):
        assert [(len(query), len(place)) for query, place in layer] == [(0, 0), (0, 0)]


def test_more_objects_than_queries_warns_once():
    matcher, outputs = HungarianMatcher(), outputs_of(1, 1, 3, 4)
    with pytest.warns(UserWarning, match="image 17 has 5 objects and the model only 3 queries"):
        matcher(outputs, [target_of(5, 4, 17)])
    ((query, place),) = matcher(outputs, [target_of(5, 4, 17)])[0]
    assert query.tolist() == [0, 1, 2]
    assert len(place.unique()) == 3


def test_an_image_does_not_see_the_others():
    """Alone or beside an image with more objects, and whatever the other layers say."""
    outputs, targets = outputs_of(3, 2, 6, 4), [target_of(2, 4), target_of(6, 4)]
    together = HungarianMatcher()(outputs, targets)
    for layer, matches in zip(outputs, together, strict=True):
        for image in range(2):
            one = [{key: value[image : image + 1] for key, value in layer.items()}]
            ((query, place),) = HungarianMatcher()(one, [targets[image]])[0]
            assert torch.equal(query, matches[image][0])
            assert torch.equal(place, matches[image][1])


def test_costs_are_in_single_precision_under_autocast():
    outputs, targets = outputs_of(1, 2, 6, 4), [target_of(2, 4), target_of(6, 4)]
    matcher = HungarianMatcher()
    expected = matcher.costs(outputs, targets, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matcher.costs(outputs, targets, 6), expected)
    half = [{key: value.bfloat16() for key, value in layer.items()} for layer in outputs]
    assert matcher.costs(half, targets, 6).dtype == torch.float32


def spoil(where: str, outputs: list[dict[str, Tensor]], target: dict[str, Tensor]) -> None:
    if where == "target":
        target["boxes"][0, 2] = torch.inf
    else:
        target["labels"][0] = int(where)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("target", "annotations is not finite"),
        ("4", "label 4 is none of 0..3; labels start at 0"),
        ("-1", "label -1 is none of 0..3"),
    ],
)
def test_a_cost_that_is_not_finite_names_the_image(where, words):
    outputs = outputs_of(2, 2, 6, 4)
    targets = [target_of(3, 4, 41), target_of(2, 4, 42)]
    spoil(where, outputs, targets[1])
    with pytest.raises(InputError) as caught:
        HungarianMatcher()(outputs, targets)
    assert str(caught.value).startswith("image 42: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["logits", "boxes"])
def test_a_query_that_is_not_finite_is_matched(key, value):
    """So that the loss is not finite either, which ends the run; nothing is sorted by NaN."""
    outputs = outputs_of(2, 2, 6, 4)
    outputs[1][key][1, 5] = value
    targets = [target_of(3, 4), target_of(2, 4)]
    matches = HungarianMatcher()(outputs, targets)
    assert 5 in matches[1][1][0]
    losses = SetCriterion(4, HungarianMatcher())(outputs, targets)
    assert not losses["total"].isfinite()
    assert losses["class_0"].isfinite()


def test_what_is_not_finite_only_where_padded_is_no_error():
    """Box 0 of image 1 has no area, as the boxes that fill its row up; nothing is 0 / 0."""
    outputs = outputs_of(1, 2, 6, 4)
    outputs[0]["boxes"][1] = 0
    HungarianMatcher()(outputs, [target_of(3, 4), target_of(0, 4)])
