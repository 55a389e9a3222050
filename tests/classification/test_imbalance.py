"""Imbalanced classes: weights of the loss, balanced batches, accuracy per class, confusion."""

import csv
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch.nn.functional import cross_entropy, one_hot

from attention_vision.backbones import ResNet
from attention_vision.classification import Classifier, Digits, ImageFolder
from attention_vision.classification.class_weights import class_weights, weighted_cross_entropy
from attention_vision.classification.confusion import ClassAccuracy, named_accuracies
from attention_vision.errors import InputError
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.visualization.confusion import confusion_figure
from attention_vision.visualization.drawing import pixels

LABELS = [0] * 6 + [1] * 3 + [2]
NAMES = ["ant", "bee", "cow"]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    expected = compute("balanced", classes=np.arange(3), y=LABELS)
    weights = class_weights("balanced", LABELS, NAMES)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert class_weights("balanced", LABELS, [*NAMES, "dodo"])[3] == 1  # it has no image


def test_weights_in_order_and_by_name_have_a_mean_of_1() -> None:
    by_order = class_weights([1, 2, 6], LABELS, NAMES)
    by_name = class_weights({"cow": 6.0, "bee": 2}, LABELS, NAMES)
    assert torch.equal(by_order, by_name)
    assert torch.equal(by_order, class_weights({2: 6, 1: 2}, LABELS, ["0", "1", "2"]))
    assert by_order[LABELS].mean().item() == pytest.approx(1)
    assert (by_order / by_order[0]).tolist() == pytest.approx([1, 2, 6])


@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ([1.0, 2.0], "has 2 weights, the data 3 classes"),
        ({"cat": 2.0}, "there is no class cat; the data has ant, bee, cow"),
        ([1.0, -1.0, 1.0], "negative or not finite"),
        ([0.0, 0.0, 0.0], "every training image has a weight of 0"),
    ],
)
def test_weights_that_do_not_fit(chosen, line: str) -> None:
    with pytest.raises(InputError, match=line):
        class_weights(chosen, LABELS, NAMES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_a_sum_over_classes(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator)
    labels = torch.tensor([0, 0, 1, 2, 0, 1, 0])
    mixed = torch.rand(7, 3, generator=generator).softmax(1)
    weights = torch.tensor([0.5, 1.0, 3.0])
    for targets, soft in ((labels, one_hot(labels, 3).float()), (mixed, mixed)):
        smoothed = soft * (1 - smoothing) + smoothing / 3
        expected = -(weights * smoothed * logits.log_softmax(1)).sum(1).mean()
        loss = weighted_cross_entropy(logits, targets, weights, smoothing)
        torch.testing.assert_close(loss, expected)
        plain = weighted_cross_entropy(logits, targets, None, smoothing)
        assert torch.equal(plain, cross_entropy(logits, targets, label_smoothing=smoothing))
        ones = weighted_cross_entropy(logits, targets, torch.ones(3), smoothing)
        torch.testing.assert_close(ones, plain)
    halves = [weighted_cross_entropy(*part, weights, 0.0) for part in zip(
        logits[:6].split(3), labels[:6].split(3), strict=True)]  # fmt: skip
    whole = weighted_cross_entropy(logits[:6], labels[:6], weights, 0.0)
    torch.testing.assert_close(sum(halves) / 2, whole)  # in batches and processes of any size


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten ants, four bees and two cows to train on; one bee and two cows to validate on."""
    root = tmp_path_factory.mktemp("animals")
    for split, counts in (("train", (10, 4, 2)), ("val", (4, 1, 2))):
        for name, count in zip(NAMES, counts, strict=True):
            for number in range(count):
                picture(root / split / name / f"{number}.png", number)
    return root


def animals(folder: Path, **more: object) -> ImageFolder:
    return ImageFolder(str(folder), image_size=8, batch_size=4, num_workers=0, seed=0, **more)


def network(num_classes: int = 3) -> ResNet:
    return ResNet(depth=8, width=4, num_classes=num_classes, stem="cifar")


def trainer(folder: Path, **more: object) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **{"logger": False, **more},
    )


def test_balanced_batches(folder: Path) -> None:
    data = animals(folder, balanced=True)
    data.setup("fit")
    loader = data.train_dataloader()
    labels = torch.cat([labels for _, labels in loader]).tolist()
    assert len(labels) == 16  # an epoch stays as long
    counts = Counter(labels)
    assert {counts[label] for label in range(3)} <= {5, 6}
    plain = animals(folder)
    plain.setup("fit")
    counts = Counter(torch.cat([labels for _, labels in plain.train_dataloader()]).tolist())
    assert counts == {0: 10, 1: 4, 2: 2}
    with pytest.raises(InputError, match=r"data.balanced and data.repeats"):
        animals(folder, balanced=True, repeats=3)


def test_the_loss_that_is_trained_on_is_weighted(folder: Path, tmp_path: Path) -> None:
    losses = {}
    for name, chosen in (("plain", None), ("balanced", "balanced"), ("cows", {"cow": 1e6})):
        torch.manual_seed(0)
        module = Classifier(network(), partial(torch.optim.SGD, lr=0.0), class_weights=chosen)
        state = set(module.state_dict())
        run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        data = animals(folder, balanced=name == "cows")
        run.fit(module, data)
        first = animals(folder, balanced=data.balanced)
        first.setup("fit")
        images, labels = next(iter(first.train_dataloader()))
        logits = module.train()(images).detach()
        each = cross_entropy(logits, labels, reduction="none")
        weights = torch.tensor({"plain": [1, 1, 1], "balanced": [16 / 30, 16 / 12, 16 / 6],
                                "cows": [0, 0, 8]}[name])  # fmt: skip
        losses[name] = run.callback_metrics["train/loss"].item()
        assert losses[name] == pytest.approx((weights[labels] * each).mean().item(), rel=1e-4)
        assert set(module.state_dict()) == state  # they follow from the data, and are not saved
    assert len({round(loss, 3) for loss in losses.values()}) == 3


def test_an_average_of_weights_is_that_of_a_plain_loss(folder: Path, tmp_path: Path) -> None:
    """Its copy of the module has the same buffers in the same order, statistics of norms too."""
    states = []
    for chosen in (None, [2.0, 2.0, 2.0]):
        torch.manual_seed(0)
        module = Classifier(network(), class_weights=chosen, ema_decay=0.5)
        trainer(tmp_path, max_steps=2, limit_val_batches=1).fit(module, animals(folder))
        states.append(module.network.state_dict())
    plain, weighted = states
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], value, msg=name)


def test_balancing_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    module = Classifier(network(), class_weights="balanced")
    with pytest.raises(InputError, match=r"balanced and data.balanced both balance"):
        trainer(tmp_path).fit(module, animals(folder, balanced=True))


def test_each_class_its_accuracy_and_the_confusion_matrix(folder: Path, tmp_path: Path) -> None:
    module = Classifier(network())
    answers = iter([0, 0, 0, 1, 2, 2, 0])  # for four ants, a bee and two cows
    module.forward = lambda images: torch.eye(3)[[next(answers) for _ in images]]
    (values,) = trainer(tmp_path).validate(module, animals(folder), verbose=False)
    assert values["val/top1"] == pytest.approx(4 / 7)
    of = {name: values[f"val/top1_of/{name}"] for name in NAMES}
    assert of == pytest.approx({"ant": 3 / 4, "bee": 0, "cow": 1 / 2})
    assert values["val/top1_macro"] == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    with (tmp_path / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["class", *NAMES],
        ["ant", "3", "1", "0"],
        ["bee", "0", "0", "1"],
        ["cow", "1", "0", "1"],
    ]


def test_a_class_without_images_has_no_accuracy() -> None:
    metric = ClassAccuracy(4)
    metric.update(torch.eye(4)[[0, 1, 3, 1]], torch.tensor([0, 1, 1, 1]))
    values = named_accuracies(metric.compute(), ["a", "b", "c", "d"])
    assert values == pytest.approx(
        {"top1_macro": (1 + 2 / 3) / 2, "top1_of/a": 1, "top1_of/b": 2 / 3}
    )
    many = named_accuracies(torch.full((101,), 0.5), [str(number) for number in range(101)])
    assert many == {"top1_macro": 0.5}


def test_a_fit_draws_the_confusion_matrix(tmp_path: Path) -> None:
    module = Classifier(network(10))
    data = Digits(image_size=8, batch_size=64, per_class=7)
    trainer(tmp_path, logger=MetricsCSV(str(tmp_path)), max_epochs=2).fit(module, data)
    (picture,) = (tmp_path / "pictures").glob("val_confusion_*.png")  # of the last epoch
    assert picture.stat().st_size > 1000
    with (tmp_path / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert sum(int(row[name]) for row in rows for name in "0123456789") == 355
    for row in rows:  # the last validation's
        right = int(row[row["class"]]) / sum(int(row[name]) for name in "0123456789")
        assert float(last[f"val/top1_of/{row['class']}"]) == pytest.approx(right)


def test_the_picture_is_darker_where_more_images_are() -> None:
    def draw(counts: np.ndarray, names: list[str]) -> np.ndarray:
        return pixels(confusion_figure(counts, names))

    few, many = draw(np.diag([9, 1]), ["a", "b"]), draw(np.array([[9, 0], [1, 0]]), ["a", "b"])
    assert few.shape == many.shape
    assert few.dtype == np.uint8
    assert not np.array_equal(few, many)
    assert draw(np.eye(100, dtype=int), [f"class {n}" for n in range(100)]).shape == (1000, 1000, 3)
