"""Scores of generated images that name their evaluator, exact at any number of processes.

An Inception Score is only comparable to another one of the same evaluator, splits and number of
samples: the same SAGAN weights were scored 8.68 and 9.12 by two evaluators, and FID against 10,000
or 50,000 images differs by points. So every key carries all of these:
`is_inception2015_10splits_50000`, `fid_inception2015_train50000_fake50000`. A network that is not
the Inception of 2015 gives no Inception Score: of a classifier of this package it is
`classifier_score_NAME_...`.

    evaluator.prepare(data, device)            # once: the network, statistics of training images
    evaluator.reset()
    for indices in evaluator.batches(100):     # of this process
        evaluator.update(images, labels, indices)
    evaluator.compute()                        # key -> number, the same in all processes

The formulas are torch-fidelity's own functions, in float64, on what all processes gathered, in the
order of the samples' numbers. Images are scored as the 8-bit files that would be saved of them.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from attention_vision.backbones import Backbone
from attention_vision.checkpoints import load_official, read
from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData

# The statistics of the training images are summed in this many parts, whatever the number of
# processes, and the parts added in one order: the last bit of a sum depends on the order.
PARTS = 8
REFERENCE_BATCH = 100


class Inception2015(nn.Module):
    """The Inception of TensorFlow's 2015 release, as the published scores use it, from a file.

    Images (B, 3, H, W) uint8 -> features (B, 2048) and logits (B, 1008) without the bias, which the
    original graph left out as well; resized to 299 x 299 as TensorFlow 1 did.

    Raises InputError when the file is missing or is of another network.
    """

    def __init__(self, file: Path):
        super().__init__()
        read(file)  # tensors only: torch-fidelity would unpickle anything
        try:
            with torch.random.fork_rng(devices=[]):  # building draws weights that loading replaces
                self.network = FeatureExtractorInceptionV3(
                    "inception", ["2048", "logits_unbiased"], str(file)
                )
        except RuntimeError as error:
            raise InputError(
                f"{file} is not the 2015 Inception: give the file of {URL_INCEPTION_V3}"
            ) from error
        self.fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images)


class RunClassifier(nn.Module):
    """The best (else the last) network of a classification run, with its data's normalisation.

    Images (B, 3, H, W) uint8 of any size -> pooled features (B, C) and logits (B, num_classes).

    Raises InputError when the folder holds no such run, or no checkpoint.
    """

    def __init__(self, run: Path):
        super().__init__()
        if not (run / "config.yaml").is_file():
            raise InputError(f"{run} holds no run: train the classifier that scores first")
        config = yaml.safe_load((run / "config.yaml").read_text())
        if config.get("task") != "classification":
            raise InputError(f"{run} is a run of {config.get('task')}, not of classification")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Backbone, "network")
        parser.add_subclass_arguments(LightningDataModule, "data")
        parts = {"network": config["model"]["network"], "data": config["data"]}
        with torch.random.fork_rng(devices=[]):
            built = parser.instantiate(parser.parse_object(parts))
        kept = [run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        state = read(next((file for file in kept if file.is_file()), kept[0]))["state_dict"]
        self.network = load_official(
            built.network,
            {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")},
        )
        self.num_classes, self.size = built.network.num_classes, built.data.image_size
        self.register_buffer("mean", torch.tensor(built.data.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(built.data.std).view(-1, 1, 1))
        self.requires_grad_(False).eval()
        digest = hashlib.sha256(str(self.size).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        self.fingerprint = digest.hexdigest()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.float() / 255
        if images.shape[2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        network = self.network
        features = network.pool(network.tokens((images - self.mean) / self.std))
        return features, network.head(features)


class Moments:
    """Mean and covariance of features, summed in float64."""

    def __init__(self, width: int, device: torch.device):
        self.count = 0
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        """(B, width)"""
        features = features.to(self.total)
        self.count += len(features)
        self.total += features.sum(0)
        self.products += features.mT @ features

    def merge(self, other: "Moments") -> None:
        self.count += other.count
        self.total += other.total
        self.products += other.products

    def statistics(self) -> dict[str, Any]:
        """As torch-fidelity takes them: `mu` (width,) and `sigma` (width, width), unbiased."""
        mean = self.total / self.count
        covariance = (self.products - self.count * mean.outer(mean)) / (self.count - 1)
        return {"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()}


class Reference(NamedTuple):
    """What is kept of the training images."""

    count: int
    statistics: dict[str, Any]
    features: Tensor  # (n, C) of the images that stand for the manifold of real ones


class Evaluator:
    """Base of the evaluators: a subclass builds its network and names its numbers.

    Args:
        samples: generated images that are scored.
        splits: parts of the samples whose scores are averaged, 10 in the paper of Salimans et al.
        neighbours: k of precision and recall (Kynkaanniemi et al. 2019): an image lies on a
            manifold when it is no farther from one of its images than that one's k-th neighbour.
        manifold: images of each kind that stand for its manifold, 0 for no precision and recall.
        cache: folder of the training images' statistics; ~/.cache/attention_vision by default.

    Raises:
        InputError: numbers that do not go together.
    """

    network: nn.Module | None = None
    reference: Reference | None = None

    def __init__(
        self, samples: int, splits: int, neighbours: int, manifold: int, cache: str | None
    ):
        if not 1 <= splits <= samples or samples < 2:
            raise InputError(f"samples {samples} cannot be divided into splits {splits}")
        if manifold and not 0 < neighbours < min(manifold, samples):
            raise InputError(
                f"neighbours {neighbours} is not in 1..{min(manifold, samples) - 1}: there are"
                f" {min(manifold, samples)} images in a manifold"
            )
        self.samples, self.splits = samples, splits
        self.neighbours, self.manifold = neighbours, manifold
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.cache = Path(cache or Path(home) / "attention_vision" / "statistics")
        self.reset()

    def build(self) -> nn.Module:
        """Images (B, 3, H, W) uint8 -> features (B, C), logits (B, K); with a `fingerprint`."""
        raise NotImplementedError

    def name(self) -> str:
        """Of the evaluator, in keys; known once the network is built."""
        raise NotImplementedError

    def numbers(self, logits: Tensor, labels: Tensor | None) -> dict[str, float]:
        """What follows from the logits (n, K) of all samples; includes "score"."""
        raise NotImplementedError

    frechet: str  # start of the Frechet distance's key

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Builds the network and takes the statistics of the training images, or their cache.

        All processes call it. Raises InputError when the network cannot be had.
        """
        self.device = torch.device(device)
        if self.network is None:
            self.network = self.build()
        self.network.to(self.device)
        images = data.dataset("train", 0)
        found, file = None, None
        if rank() == 0:
            digest = hashlib.sha256(self.network.fingerprint.encode())
            digest.update(f"{self.manifold} {fingerprint(images, data)}".encode())
            file = self.cache / f"{self.name()}_{digest.hexdigest()[:16]}.pt"
            found = read_reference(file)
        if not broadcast(found is not None):
            found = self.measure(images, data)
            if found is not None:
                write_reference(file, found)
        self.reference = found

    def reset(self) -> None:
        """Forgets the samples."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._seen = 0

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Numbers (B,) of the samples that this process makes, batch by batch.

        Batches go to the processes in turn, so that each holds the same samples at any number of
        processes: convolutions round differently in batches of different sizes.
        """
        batches = torch.arange(self.samples).split(batch_size)
        yield from batches[rank() :: processes()]

    def update(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Adds generated images.

        Args:
            images: (B, 3, H, W) in -1..1.
            labels: (B,) classes that were asked for, None without classes.
            indices: (B,) the samples' numbers over all processes, which decide their order, as
                `batches` gives them. Without them the k-th image of process r of n is k * n + r.

        Raises InputError for images that are not finite.
        """
        if not images.isfinite().all():
            raise InputError(
                "generated images are not finite: the generator has diverged, lower the learning"
                " rates or start from an earlier checkpoint"
            )
        if indices is None:
            indices = torch.arange(self._seen, self._seen + len(images)) * processes() + rank()
        self._seen += len(images)
        if labels is None:
            labels = torch.full((len(images),), -1)
        features, logits = self._extract(images)
        self._rows.append((indices.cpu(), labels.cpu(), features.cpu(), logits.cpu()))

    def compute(self) -> dict[str, float]:
        """Numbers by key, and the one that chooses the best checkpoint as "score".

        All processes call it, and get the same. Raises InputError for too few samples.
        """
        rows = tuple(torch.cat(column) for column in zip(*self._rows, strict=True))
        rows = tuple(
            torch.cat(column) for column in zip(*filter(None, gathered(rows)), strict=True)
        )
        there = broadcast(len(rows[0].unique()) if rows else 0)
        if there < self.samples:
            raise InputError(
                f"{there} generated images are too few for a score of {self.samples}: generate"
                " more, or lower the evaluator's samples"
            )
        numbers = None
        if rank() == 0:
            indices, labels, features, logits = rows
            order = first_of_each(indices)[: self.samples]
            asked = labels[order] if (labels[order] >= 0).all() else None
            numbers = self.numbers(logits[order], asked) | self.distances(features[order])
        return broadcast(numbers)

    def distances(self, features: Tensor) -> dict[str, float]:
        """How far the samples' features (n, C) are from the training images'."""
        if self.reference is None:
            return {}
        moments = Moments(features.shape[1], exact(self.device))
        for chunk in features.split(5000):
            moments.add(chunk)
        distance = fid_statistics_to_metric(
            moments.statistics(), self.reference.statistics, verbose=False
        )
        of = f"train{self.reference.count}_fake{len(features)}"
        numbers = {
            f"{self.frechet}_{self.name()}_{of}": distance["frechet_inception_distance"],
        }
        real, fake = self.reference.features, features[: self.manifold]
        if min(len(real), len(fake)) > self.neighbours:
            measured = prc_features_to_metric(
                fake.to(self.device),
                real.to(self.device),
                prc_neighborhood=self.neighbours,
                prc_batch_size=5000,
                save_cpu_ram=True,
                verbose=False,
            )
            of = f"{self.name()}_k{self.neighbours}_train{len(real)}_fake{len(fake)}"
            numbers |= {f"{key}_{of}": measured[key] for key in ("precision", "recall")}
        return numbers

    def measure(self, images: Dataset, data: GenerationData) -> Reference | None:
        """The statistics of the training images on rank zero, None on the others."""
        chosen = manifold_of(len(images), self.manifold)
        batches = torch.arange(len(images)).split(REFERENCE_BATCH)
        parts, kept = [], []
        for part in range(rank(), PARTS, processes()):
            moments = None
            loaded = DataLoader(
                images,
                batch_sampler=[batch.tolist() for batch in batches[part::PARTS]],
                num_workers=data.num_workers,
            )
            for indices, (batch, _) in zip(batches[part::PARTS], loaded, strict=True):
                features, _ = self._extract(batch)
                if moments is None:
                    moments = Moments(features.shape[1], exact(self.device))
                moments.add(features)
                mine = torch.isin(indices, chosen)
                kept.append((indices[mine], features.cpu()[mine]))
            if moments is not None:
                parts.append((part, moments.count, moments.total.cpu(), moments.products.cpu()))
        everything = gathered((parts, kept))
        if rank():
            return None
        whole = None
        for _, count, total, products in sorted(
            (part for parts, _ in everything for part in parts), key=lambda part: part[0]
        ):
            if whole is None:
                whole = Moments(len(total), torch.device("cpu"))
            whole.count += count
            whole.total += total
            whole.products += products
        rows = [pair for _, kept in everything for pair in kept]
        indices, features = (torch.cat(column) for column in zip(*rows, strict=True))
        return Reference(whole.count, whole.statistics(), features[indices.argsort()])

    @torch.no_grad()
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in -1..1 -> features (B, C), logits (B, K), in float32."""
        images = to_bytes(images.to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # bf16 would move the scores
            return self.network(images)


class InceptionEvaluator(Evaluator):
    """Inception Score (Salimans et al. 2016), FID (Heusel et al. 2017), precision and recall.

    The published numbers are of 50,000 samples, 10 splits (1 in StudioGAN) and the Inception of
    2015. With other weights the keys name these by the start of their SHA-256.

    Args:
        weights: torch-fidelity's file of weights; None takes it from torch.hub's folder, and
            downloads it to there when it is missing.
    """

    frechet = "fid"

    def __init__(
        self,
        samples: int = 50000,
        splits: int = 10,
        weights: str | None = None,
        neighbours: int = 3,
        manifold: int = 10000,
        cache: str | None = None,
    ):
        super().__init__(samples, splits, neighbours, manifold, cache)
        self.weights = weights

    def build(self) -> nn.Module:
        return Inception2015(inception_file(self.weights))

    def name(self) -> str:
        start = self.network.fingerprint[:8]
        return "inception2015" if start in URL_INCEPTION_V3 else f"inception-{start}"

    def numbers(self, logits: Tensor, labels: Tensor | None) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        of = f"{self.name()}_{self.splits}splits_{len(logits)}"
        return {"score": mean, f"is_{of}": mean, f"is_std_{of}": std}


class ClassifierEvaluator(Evaluator):
    """The same formulas with a classifier of this package, and how often it agrees with the label.

    The classifier score is the formula of the Inception Score: at best the number of classes.

    Args:
        run: folder of a classification run; its best checkpoint scores, else its last.
    """

    frechet = "frechet_classifier"

    def __init__(
        self,
        run: str,
        samples: int = 2000,
        splits: int = 10,
        neighbours: int = 3,
        manifold: int = 10000,
        cache: str | None = None,
    ):
        super().__init__(samples, splits, neighbours, manifold, cache)
        self.run = Path(run)

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Raises InputError when the data has other classes than the classifier."""
        self.network = self.build()
        if data.num_classes not in (0, self.network.num_classes):
            raise InputError(
                f"{self.run} tells {self.network.num_classes} classes apart, the data has"
                f" {data.num_classes}: score with a classifier of the same classes"
            )
        super().prepare(data, device)

    def build(self) -> nn.Module:
        return RunClassifier(self.run)

    def name(self) -> str:
        return self.run.name

    def numbers(self, logits: Tensor, labels: Tensor | None) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        of = f"{self.name()}_{self.splits}splits_{len(logits)}"
        numbers = {
            "score": mean,
            f"classifier_score_{of}": mean,
            f"classifier_score_std_{of}": std,
        }
        if labels is not None:
            right = (logits.argmax(1) == labels).double().mean().item()
            numbers[f"classifier_accuracy_{self.name()}_{len(logits)}"] = right
        return numbers


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) of each split: mean and standard deviation over them.

    The samples (n, K) are shuffled first, always alike, since they may come class by class.
    """
    found = isc_features_to_metric(logits, splits)
    return found["inception_score_mean"], found["inception_score_std"]


def inception_file(weights: str | None) -> Path:
    """The weights' file; downloaded if no other is named. Raises InputError where that fails."""
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"no Inception weights {weights}: download {URL_INCEPTION_V3} to it")
        return Path(weights)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if not file.is_file() and rank() == 0:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            start = file.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), start, progress=False)
        except (OSError, RuntimeError):  # offline, or cut short
            pass
    if not broadcast(file.is_file()):
        raise InputError(
            f"no Inception weights {file}, and no way to download them: fetch {URL_INCEPTION_V3}"
            " elsewhere and put it there, set the evaluator's weights to it, or score with a"
            " classifier (ClassifierEvaluator)"
        )
    return file


def to_bytes(images: Tensor) -> Tensor:
    """-1..1 -> uint8, rounded as a saved image is."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).byte()


def fingerprint(images: Dataset, data: GenerationData) -> str:
    """SHA-256 of all images, as 8-bit numbers, and their labels, in their order."""
    digest = hashlib.sha256()
    for batch, labels in DataLoader(images, REFERENCE_BATCH, num_workers=data.num_workers):
        digest.update(str(tuple(batch.shape)).encode())
        digest.update(to_bytes(batch).numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


def manifold_of(count: int, manifold: int) -> Tensor:
    """Which of `count` images stand for their manifold: always the same random ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:manifold]


def read_reference(file: Path) -> Reference | None:
    """What was kept; None where nothing was, or was cut short."""
    try:
        kept = torch.load(file, weights_only=True)
    except Exception:
        return None
    statistics = {name: kept[name].numpy() for name in ("mu", "sigma")}
    return Reference(kept["count"], statistics, kept["features"])


def write_reference(file: Path, reference: Reference) -> None:
    statistics = {name: torch.from_numpy(value) for name, value in reference.statistics.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")  # two runs may write at once
    torch.save({"count": reference.count, "features": reference.features, **statistics}, part)
    part.replace(file)


def first_of_each(indices: Tensor) -> Tensor:
    """Places of the distinct indices, in their order; of equal ones the first."""
    places: dict[int, int] = {}
    for place, index in enumerate(indices.tolist()):
        places.setdefault(index, place)
    return torch.tensor([places[index] for index in sorted(places)], dtype=torch.int64)


def exact(device: torch.device) -> torch.device:
    """Where to sum in float64: Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """The values of all processes on rank zero, none on the others; all of them call it."""
    if processes() == 1:
        return [value]
    values = [None] * processes() if rank() == 0 else None
    torch.distributed.gather_object(value, values)
    return values or []


def broadcast(value: Any) -> Any:
    """Rank zero's value, in all processes."""
    if processes() == 1:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]
