"""Scores equal torch-fidelity's, name their evaluator, and do not depend on the processes."""

import json
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity
import yaml
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from attention_vision.attention import SqueezeExcite
from attention_vision.backbones import ResNet
from attention_vision.classification import Classifier, Digits
from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan import real_statistics, scores
from attention_vision.generation.gan.data import FolderImages
from attention_vision.generation.gan.extractors import RunClassifier
from attention_vision.generation.gan.real_statistics import fixed_subset
from attention_vision.generation.gan.scores import (
    ClassifierEvaluator,
    Evaluator,
    InceptionEvaluator,
    inception_score,
)

SAMPLES = 37  # no multiple of anything


class TinyNetwork(nn.Module):
    """Stands for the Inception: convolutions, 6 features of many magnitudes, 10 logits."""

    name, fingerprint = "tiny", "0"

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator))
        self.head = nn.Parameter(3 * torch.randn(6, 10, generator=generator))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = nn.functional.conv2d(images.float() / 128 - 1, self.kernel)
        features = maps.relu().mean((2, 3))
        # Float64 sums of such features depend on their order.
        return (4 * features).exp(), features @ self.head


class TinyEvaluator(InceptionEvaluator):
    def build(self) -> nn.Module:
        return TinyNetwork()


class Noise(GenerationData):
    """23 training images of 8 x 8 pixels."""

    class_names = tuple("abcdefghij")

    def __init__(self, change: float = 0.0, classes: int = 10):
        super().__init__(8, 4, 0, None)
        self.change, self.class_names = change, self.class_names[:classes]

    def dataset(self, split: str, seed: int) -> list[tuple[Tensor, int]]:
        images = pictures(torch.arange(1000, 1023))
        images[-1, 0, 0, 0] += self.change
        return [(image, number % 10) for number, image in enumerate(images)]


def pictures(indices: Tensor) -> Tensor:
    """(B, 3, 8, 8) in -1..1, each from its own number."""
    streams = (torch.Generator().manual_seed(index) for index in indices.tolist())
    return torch.stack([torch.rand(3, 8, 8, generator=stream) * 2 - 1 for stream in streams])


def scored(evaluator: Evaluator, data: GenerationData | None = None) -> dict[str, float]:
    """Of pictures in batches of 5, each labelled with the last digit of its number."""
    evaluator.prepare(data or Noise(), "cpu")
    evaluator.reset()
    for indices in evaluator.batches(5):
        evaluator.update(pictures(indices), indices % 10, indices)
    return evaluator.compute()


def bytes_of(images: Tensor) -> Tensor:
    return (images * 127.5 + 127.5).round().byte()


def test_numbers_are_those_of_torch_fidelity(tmp_path: Path) -> None:
    evaluator = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path), manifold=12)
    numbers = scored(evaluator)

    network = TinyNetwork()
    fake, logits = (x.detach() for x in network(bytes_of(pictures(torch.arange(SAMPLES)))))
    train = torch.stack([image for image, _ in Noise().dataset("train", 0)])
    real = network(bytes_of(train))[0].detach()

    inception = isc_features_to_metric(logits, splits=4)
    assert 1 < inception["inception_score_mean"] < 10
    statistics = (fid_features_to_statistics(x.double()) for x in (fake, real))
    distance = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    chosen = fixed_subset(SAMPLES, 12)
    torch.testing.assert_close(evaluator.reference.features, real[fixed_subset(23, 12)])
    manifold = prc_features_to_metric(
        fake[chosen], real[fixed_subset(23, 12)], prc_neighborhood=3, verbose=False
    )
    assert 0 < manifold["precision"] < 1
    expected = {
        "score": inception["inception_score_mean"],
        "is_tiny_4splits_37": inception["inception_score_mean"],
        "is_std_tiny_4splits_37": inception["inception_score_std"],
        "fid_tiny_train23_fake37": distance,
        "precision_tiny_k3_train12_fake12": manifold["precision"],
        "recall_tiny_k3_train12_fake12": manifold["recall"],
    }
    assert numbers == pytest.approx(expected, abs=1e-6)


def test_precision_is_of_the_generated_images(tmp_path: Path) -> None:
    """Copies of one training image are all like training images, which are not all like them."""
    evaluator = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path), manifold=12)
    evaluator.prepare(Noise(), "cpu")
    (image, _) = Noise().dataset("train", 0)[0]
    evaluator.update(image.expand(SAMPLES, -1, -1, -1), None, torch.arange(SAMPLES))
    numbers = evaluator.compute()
    assert numbers["precision_tiny_k3_train12_fake12"] == 1
    assert numbers["recall_tiny_k3_train12_fake12"] < 0.2


@pytest.mark.parametrize("classes", [2, 10])
def test_sure_and_balanced_predictions_score_the_number_of_classes(classes: int) -> None:
    certain = torch.eye(classes).repeat(7, 1)
    for logits in (certain.log(), certain * 2000):  # a probability of 0 is not NaN
        assert inception_score(logits, 1)[0] == pytest.approx(classes, abs=1e-9)


@pytest.mark.parametrize("splits", [1, 5])
def test_constant_predictions_score_one(splits: int) -> None:
    logits = torch.randn(10).expand(43, 10)
    mean, deviation = inception_score(logits, splits)
    assert mean == pytest.approx(1, abs=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def in_a_process(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    evaluator = TinyEvaluator(SAMPLES, 4, cache=str(folder / "cache"))
    numbers = [scored(evaluator) for _ in range(2)]
    assert sum(map(len, evaluator.batches(5))) == (20, 17)[rank]
    (folder / f"{rank}.json").write_text(json.dumps(numbers))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_statistics, "REFERENCE_BATCH", 2)  # 12 batches in 8 parts
    torch.multiprocessing.start_processes(in_a_process, (tmp_path,), 2, start_method="fork")
    one = scored(TinyEvaluator(SAMPLES, 4, cache=str(tmp_path / "one")))
    for rank in range(2):  # measured the first time, from the cache the second
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [one, one]


def test_order_and_repeats_do_not_matter(tmp_path: Path) -> None:
    one = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path))
    expected = scored(one)
    one.reset()
    for indices in reversed(list(one.batches(5))):
        one.update(pictures(indices), None, indices)
    one.update(pictures(torch.tensor([3])), None, torch.tensor([3]))
    assert one.compute() == expected


def test_numbers_of_samples_may_be_left_out(tmp_path: Path) -> None:
    one = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path))
    expected = scored(one)
    one.reset()
    for indices in one.batches(5):
        one.update(pictures(indices))
    assert one.compute() == expected


def test_too_few_images_are_one_line(tmp_path: Path) -> None:
    one = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path))
    one.prepare(Noise(), "cpu")
    with pytest.raises(InputError, match=r"^0 generated images are fewer than the scorer's 37 sam"):
        one.compute()
    one.update(pictures(torch.arange(36)))
    with pytest.raises(InputError, match=r"^36 generated.*: generate more, or lower samples$"):
        one.compute()


def test_images_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    one = TinyEvaluator(SAMPLES, 4, cache=str(tmp_path))
    one.prepare(Noise(), "cpu")
    with pytest.raises(InputError, match="the generator has diverged"):
        one.update(torch.full((1, 3, 8, 8), torch.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 9}, "9 samples cannot be divided into 10 splits"),
        ({"samples": 1, "splits": 1}, "1 samples cannot be divided"),
        ({"splits": 0}, "splits is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"samples": 20, "neighbours": 20}, "neighbours 20 is not in 1..19"),
    ],
)
def test_numbers_that_do_not_go_together_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InceptionEvaluator(**arguments)


def test_precision_and_recall_can_be_left_out(tmp_path: Path) -> None:
    numbers = scored(TinyEvaluator(SAMPLES, 4, cache=str(tmp_path), manifold=0))
    assert [key.split("_")[0] for key in numbers] == ["score", "is", "is", "fid"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that training images were measured."""
    times: list[int] = []
    measure = scores.measure_reference

    def noted(*arguments: object) -> object:
        times.append(1)
        return measure(*arguments)

    monkeypatch.setattr(scores, "measure_reference", noted)
    return times


def test_statistics_are_kept_until_the_data_changes(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = partial(TinyEvaluator, SAMPLES, 4, cache=str(tmp_path))
    first = scored(evaluate())
    assert scored(evaluate()) == first
    assert len(measured) == 1
    changed = scored(evaluate(), Noise(change=0.02))  # one channel of one pixel, by 2 or 3 of 255
    assert len(measured) == 2
    assert changed["fid_tiny_train23_fake37"] != first["fid_tiny_train23_fake37"]
    monkeypatch.setattr(TinyNetwork, "fingerprint", "1")
    scored(evaluate())
    assert len(measured) == 3

    for file in tmp_path.iterdir():  # damaged ones are measured again
        file.write_bytes(file.read_bytes()[:100])
    assert scored(evaluate()) == first
    assert len(measured) == 4


def test_a_changed_image_file_is_noticed(tmp_path: Path, measured: list[int]) -> None:
    for number in range(12):
        file = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)

    def evaluate(size: int = 8) -> None:
        data = FolderImages(str(tmp_path / "data"), size, num_workers=0)
        TinyEvaluator(SAMPLES, 4, cache=str(tmp_path / "cache")).prepare(data, "cpu")

    evaluate()
    evaluate()
    assert len(measured) == 1
    evaluate(16)
    assert len(measured) == 2
    os.utime(file, (0, 0))
    evaluate()
    assert len(measured) == 3
    file.unlink()
    evaluate()
    assert len(measured) == 4


def test_a_disk_that_takes_nothing_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="are not kept"):
        scored(TinyEvaluator(SAMPLES, 4, cache=str(tmp_path / "file" / "cache")))


def test_too_few_training_images_are_one_line(tmp_path: Path) -> None:
    data = Noise()
    data.dataset = lambda split, seed: Noise().dataset(split, seed)[:3]
    with pytest.raises(InputError, match=r"^3 training images are too few to compare with"):
        TinyEvaluator(SAMPLES, 4, cache=str(tmp_path)).prepare(data, "cpu")


def test_the_random_stream_of_the_run_stays(tmp_path: Path) -> None:
    torch.manual_seed(7)
    scored(TinyEvaluator(SAMPLES, 4, cache=str(tmp_path)))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


# The Inception of 2015


def test_the_inception_loads_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = fidelity.FeatureExtractorInceptionV3(
            "theirs", ["2048", "logits_unbiased"], str(file)
        )
    torch.save(theirs.state_dict(), file)
    evaluator = InceptionEvaluator(2, 1, str(file), 1, manifold=0, cache=str(tmp_path))
    data = Noise()
    data.dataset = lambda split, seed: Noise().dataset(split, seed)[:2]  # 1 s per image
    state = torch.get_rng_state()
    with torch.inference_mode():  # as Lightning validates
        evaluator.prepare(data, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.is_inference() or p.requires_grad for p in evaluator.network.parameters())

    images = pictures(torch.arange(1))
    evaluator.update(images)
    ((_, _, features, logits),) = evaluator.generated.rows
    expected = theirs(bytes_of(images))
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)
    torch.testing.assert_close((features, logits), expected, rtol=0, atol=0)
    # Other weights than the release's do not carry its name.
    assert evaluator.network.name == f"inception-{evaluator.network.fingerprint[:8]}"


@pytest.mark.parametrize("kind", ["text", "other", "missing"])
def test_a_wrong_file_of_weights_is_one_line(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "weights.pth"
    if kind == "text":
        file.write_text("<html>not found</html>")
    elif kind == "other":
        torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(InputError) as error:
        InceptionEvaluator(weights=str(file)).prepare(Noise(), "cpu")
    expected = {
        "text": "not readable as a state dict",
        "other": f"is not the Inception of 2015: take the file {fidelity.URL_INCEPTION_V3}",
        "missing": f"download {fidelity.URL_INCEPTION_V3} to it",
    }
    assert str(file) in str(error.value)
    assert expected[kind] in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_weights_offline_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError) as error:
        InceptionEvaluator().prepare(Noise(), "cpu")
    line, name = str(error.value), "weights-inception-2015-12-05-6726825d.pth"
    assert "\n" not in line
    assert str(tmp_path / "checkpoints" / name) in line
    assert f"download {fidelity.URL_INCEPTION_V3} to it" in line
    assert "ClassifierEvaluator" in line
    assert "or to Unscored" in line


# Classifiers of this package


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of a ResNet-8 on digits of 16 pixels, as the command leaves it."""
    network = ResNet(8, partial(SqueezeExcite, reduction=4), num_classes=10, stem="cifar", width=8)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.weight, 0.5, 2)
    folder = tmp_path / "demo" / "se_resnet_digits"
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(
        {"state_dict": Classifier(network).state_dict()}, folder / "checkpoints" / "last.ckpt"
    )
    attention = {
        "class_path": "attention_vision.attention.SqueezeExcite",
        "init_args": {"reduction": 4},
    }
    config = {
        "task": "classification",
        "model": {
            "network": {
                "class_path": "attention_vision.backbones.ResNet",
                "init_args": {
                    "depth": 8,
                    "attention": attention,
                    "num_classes": 10,
                    "stem": "cifar",
                    "width": 8,
                },
            },
            "label_smoothing": 0.0,
        },
        "data": {
            "class_path": "attention_vision.classification.Digits",
            "init_args": {"image_size": 16, "batch_size": 64},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    network.eval()
    return folder


def test_a_classifier_sees_images_as_its_own_data_shows_them(run: Path) -> None:
    ours = RunClassifier(run).eval()
    data = Digits(image_size=16)
    data.setup("validate")
    images = torch.stack([data.val_images[index][0] for index in range(20)])
    raw = torch.stack([data.val_images.source[index][0] for index in range(20)])
    features, logits = ours(raw.expand(-1, 3, -1, -1))
    torch.testing.assert_close(logits, ours.network(images))
    assert features.shape == (20, 32)
    small = nn.functional.avg_pool2d(raw.float(), 2).byte().expand(-1, 3, -1, -1)
    assert ours(small)[1].shape == (20, 10)  # other sizes are resized


def test_a_classifier_scores_under_its_own_name(run: Path, tmp_path: Path) -> None:
    numbers = scored(ClassifierEvaluator(str(run), SAMPLES, 4, cache=str(tmp_path)))
    name = "se_resnet_digits"
    assert list(numbers) == [
        "score",
        f"classifier_score_{name}_4splits_37",
        f"classifier_score_std_{name}_4splits_37",
        f"classifier_accuracy_{name}_37",
        f"frechet_classifier_{name}_train23_fake37",
        f"precision_{name}_k3_train23_fake37",
        f"recall_{name}_k3_train23_fake37",
    ]
    logits = RunClassifier(run).eval()(bytes_of(pictures(torch.arange(SAMPLES))))[1]
    accuracy = (logits.argmax(1) == torch.arange(SAMPLES) % 10).double().mean().item()
    assert numbers[f"classifier_accuracy_{name}_37"] == accuracy
    expected = isc_features_to_metric(logits.detach(), splits=4)["inception_score_mean"]
    assert numbers["score"] == pytest.approx(expected, abs=1e-6)

    plain = scored(ClassifierEvaluator(str(run), SAMPLES, 4, cache=str(tmp_path)), Noise(classes=0))
    assert numbers.keys() - plain.keys() == {f"classifier_accuracy_{name}_37"}


def test_a_classifier_of_other_classes_is_one_line(run: Path, tmp_path: Path) -> None:
    evaluator = ClassifierEvaluator(str(run), SAMPLES, 4, cache=str(tmp_path))
    with pytest.raises(InputError, match="tells 10 classes apart and the data has 3: score with"):
        evaluator.prepare(Noise(classes=3), "cpu")


def name_classes(run: Path, names: Sequence[str]) -> None:
    """Give the checkpoint of a run the names of its classes."""
    file = run / "checkpoints" / "last.ckpt"
    kept = torch.load(file, weights_only=True)
    torch.save(kept | {"Digits": {"class_names": list(names)}}, file)


def test_the_classes_of_a_classifier_are_found_by_name(run: Path, tmp_path: Path) -> None:
    def accuracy(names: str) -> float:
        name_classes(run, names)
        numbers = scored(ClassifierEvaluator(str(run), SAMPLES, 4, cache=str(tmp_path)))
        return numbers["classifier_accuracy_se_resnet_digits_37"]

    logits = RunClassifier(run).eval()(bytes_of(pictures(torch.arange(SAMPLES))))[1]
    said, asked = logits.argmax(1), torch.arange(SAMPLES) % 10
    assert accuracy("abcdefghij") == (said == asked).double().mean().item()
    assert accuracy("jihgfedcba") == (said == 9 - asked).double().mean().item()
    with pytest.raises(InputError, match=r"a is not among the 10 classes"):
        accuracy("bcdefghijk")


def test_a_classifier_trained_with_smoothed_labels_is_a_warning(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["label_smoothing"] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunClassifier(run)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match=r"label_smoothing 0.1: its scores end near 6.1 instead"):
        RunClassifier(run)


def test_other_folders_are_one_line(run: Path, tmp_path: Path) -> None:
    def error(folder: Path) -> str:
        with pytest.raises(InputError) as raised:
            ClassifierEvaluator(str(folder)).prepare(Noise(), "cpu")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert "does not contain a run: train the classifier" in error(tmp_path / "nowhere")
    checkpoint = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {}}, checkpoint)
    assert f"{checkpoint} is not a checkpoint of a classifier" in error(run)
    checkpoint.unlink()
    assert "has no checkpoint" in error(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["network"]["class_path"] = "attention_vision.backbones.NoNet"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "config.yaml" in error(run)
    (run / "config.yaml").write_text("task: detection\n")
    assert "is not a run of classification, but of detection" in error(run)
