"""How fast Inception Score and FID are computed, against torch-fidelity with the same network.

    python experiments/benchmarks/scores.py            # one thread of a CPU, 3 minutes

Weights are random, so that nothing is downloaded; the statistics of the real images are in each
side's cache, as in every validation of a run but the first. Both sides start from generated images
and must report the same numbers, or the row fails. See `frame` for the options.
"""

import atexit
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
import torch_fidelity
from frame import Row, Side, Step, main
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan.extractors import Extractor
from attention_vision.generation.gan.scores import InceptionEvaluator

BATCH = 64


@cache
def folder() -> Path:
    """Caches and weights of both sides, removed at the end."""
    kept = tempfile.TemporaryDirectory()
    atexit.register(kept.cleanup)
    return Path(kept.name)


class Pictures(GenerationData):
    """Random images that stand for real ones."""

    class_names = ("picture",)

    def __init__(self, count: int):
        super().__init__(32, BATCH, 0, None)
        self.images = images(count, 1)

    def dataset(self, split: str, seed: int) -> list[tuple[Tensor, int]]:
        return [(image, 0) for image in self.images]


def images(count: int, seed: int) -> Tensor:
    """(count, 3, 32, 32) in -1..1, of few and of many gray levels: classes must differ."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, 32, 32, generator=generator)
    return noise * torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1


class Bytes(torch.utils.data.Dataset):
    """Images in -1..1 as torch-fidelity reads them."""

    def __init__(self, images: Tensor):
        self.images = (images * 127.5 + 127.5).round().byte()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def convolutions(width: int) -> nn.Module:
    """A small random network: what the scores cost beside a network."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, width, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers).requires_grad_(False)


class Convolutions(Extractor):
    """Ours: features, and 10 of them as logits."""

    name, fingerprint, num_classes = "convolutions", "0", 10

    def __init__(self, width: int):
        super().__init__()
        self.network = convolutions(width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images.float() / 255)
        return features, 10 * features[:, :10]


class ConvolutionEvaluator(InceptionEvaluator):
    def __init__(self, width: int, *settings: object, **more: object):
        super().__init__(*settings, **more)
        self.width = width

    def build(self) -> Extractor:
        return Convolutions(self.width)


class TheirConvolutions(FeatureExtractorBase):
    width = 0  # set before it is built

    def __init__(self, name: str, features_list: list[str], **_: object):
        super().__init__(name, features_list)
        self.network = convolutions(self.width)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"isc": "logits", "fid": "features"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network(images.float() / 255)
        found = {"features": features, "logits": 10 * features[:, :10]}
        return tuple(found[name] for name in self.features_list)


@cache
def inception_file() -> str:
    """Random weights of the Inception of 2015."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = folder() / "inception.pth"
    load, FeatureExtractorInceptionV3.load_state_dict = (
        FeatureExtractorInceptionV3.load_state_dict, lambda *_: None
    )  # fmt: skip
    try:
        torch.save({}, file)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(file))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = load
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # so that a signal comes through
            nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), file)
    return str(file)


def ours(count: int, width: int | None, expected: dict[str, float]) -> Step:
    settings = {"splits": 10, "manifold": 0, "cache": str(folder())}
    if width is None:
        evaluator = InceptionEvaluator(count, weights=inception_file(), **settings)
    else:
        evaluator = ConvolutionEvaluator(width, count, **settings)
    evaluator.prepare(Pictures(count), "cpu")
    generated = images(count, 2)
    labels = torch.zeros(count, dtype=torch.long)

    def step() -> None:
        evaluator.reset()
        for indices in evaluator.batches(BATCH):
            evaluator.update(generated[indices], labels[indices], indices)
        numbers = evaluator.compute()
        keep(expected, numbers["score"], next(v for k, v in numbers.items() if "fid_" in k))

    return step


def theirs(count: int, width: int | None, expected: dict[str, float]) -> Step:
    if width is None:
        network = {
            "feature_extractor": "inception-v3-compat",
            "feature_extractor_weights_path": inception_file(),
        }
    else:
        TheirConvolutions.width = width
        name = f"convolutions-{width}"
        torch_fidelity.register_feature_extractor(name, TheirConvolutions)
        network = {"feature_extractor": name}
    generated, real = Bytes(images(count, 2)), Bytes(images(count, 1))

    def step() -> None:
        numbers = torch_fidelity.calculate_metrics(
            input1=generated, input2=real, isc=True, fid=True, cuda=False, batch_size=BATCH,
            input2_cache_name=f"real{count}", cache_root=str(folder()), verbose=False, **network,
        )  # fmt: skip
        keep(
            expected, numbers["inception_score_mean"], numbers["frechet_inception_distance"]
        )  # fmt: skip

    return step


def keep(expected: dict[str, float], score: float, distance: float) -> None:
    """Compare with the numbers of the first call.

    Raises:
        ArithmeticError: they differ.
    """
    for key, value in {"score": score, "fid": distance}.items():
        first = expected.setdefault(key, value)
        if abs(value - first) > 1e-4 * abs(first):
            raise ArithmeticError(f"{key}: {value} differs from {first}")


def rows(device: str, smoke: bool) -> Iterator[Row]:
    """Scores are computed on the CPU alone here, since features are compared exactly."""
    sizes = ((64, 8),) if smoke else ((2_000, 2048), (64, None))
    for count, width in sizes:
        given = (count, width, {})
        network = "Inception" if width is None else "a small network"
        sides = [
            Side("ours", partial(ours, *given)),
            Side("torch-fidelity", partial(theirs, *given)),
        ]
        note = f"features of {width or 2048} numbers, random weights, real images in the cache"
        name = f"IS and FID of {count:,} images, {network}"
        yield Row(name, sides, images=count, turns=3, memory=False, note=note)


if __name__ == "__main__":
    main(rows)
