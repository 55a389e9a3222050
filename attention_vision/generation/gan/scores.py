"""Scores of generated images that name their evaluator, exact at any number of processes.

An Inception Score compares with another one of the same evaluator, splits and number of samples
only: the same SAGAN weights were scored 8.68 and 9.12 by two evaluators, and FID moves by points
with the number of images. So every key carries all of these: `is_inception2015_10splits_50000`,
`fid_inception2015_train50000_fake50000`. A network that is not the Inception of 2015 gives no
Inception Score: of a classifier of this package it is `classifier_score_NAME_...`.

    evaluator.prepare(data, device)            # once: the network, statistics of training images
    evaluator.reset()
    for indices in evaluator.batches(100):     # of this process
        evaluator.update(images, labels, indices)
    evaluator.compute()                        # key -> number, the same in all processes

The numbers are torch-fidelity's, in float64, of what all processes gathered, in the order of the
samples' numbers. Images are scored as the 8-bit files that would be saved of them.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan.extractors import Inception2015, RunClassifier, inception_file
from attention_vision.generation.gan.real_statistics import (
    REFERENCE_BATCH,
    Moments,
    Reference,
    fingerprint,
    in_order,
    to_bytes,
)
from attention_vision.training.distributed import broadcast, gather, rank, world_size

# The statistics of the training images are summed in this many parts, whatever the number of
# processes, and the parts added in one order: the last bit of a sum depends on the order.
PARTS = 8
SHUFFLE = 2020  # torch-fidelity's seed: classes that come in turn must not decide the splits


class Evaluator:
    """Base of the evaluators: a subclass builds its network and names its numbers.

    Args:
        samples: generated images that are scored.
        splits: parts of the samples whose scores are averaged; the paper of the Inception Score
            has 10.
        neighbours: k of precision and recall (Kynkaanniemi et al. 2019): an image lies on the
            manifold of others when it is as close to one of them as that one's k-th neighbour.
        manifold: how many images of each kind stand for their manifold, 0 for no precision and
            recall.
        cache: folder for the statistics of training images; ~/.cache/attention_vision/statistics
            where none is given.

    Raises:
        InputError: numbers that do not go together.
    """

    fid: str  # how the keys name the Frechet distance of this evaluator's features

    def __init__(
        self, samples: int, splits: int, neighbours: int, manifold: int, cache: str | None
    ):
        if samples < 2 or not 1 <= splits <= samples:
            raise InputError(f"scorer: {samples} samples cannot be divided into {splits} splits")
        if manifold and not 1 <= neighbours < min(manifold, samples):
            raise InputError(
                f"scorer: neighbours {neighbours} is not in 1..{min(manifold, samples) - 1}, the"
                " other images of a manifold"
            )
        self.samples, self.splits = samples, splits
        self.neighbours, self.manifold = neighbours, manifold
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.cache = Path(cache or Path(home) / "attention_vision" / "statistics")
        self.network: nn.Module | None = None
        self.reset()

    def build(self) -> nn.Module:
        """A network that maps images (B, 3, H, W) uint8 to features (B, C) and logits (B, K).

        Its `name` stands in the keys, its `fingerprint` changes with its weights. Raises InputError
        when it cannot be had.
        """
        raise NotImplementedError

    def check(self, data: GenerationData) -> None:
        """Raises InputError for data that the network cannot score."""

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """What follows from the logits (n, K) and labels (n,) of all samples; "score" among it."""
        raise NotImplementedError

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Builds the network and takes the statistics of the training images, or their cache.

        These are of `data.dataset("train", ...)` as evaluation sees it, without augmentation. All
        processes call it. Raises InputError for a network that cannot be had or does not fit.
        """
        self.device = torch.device(device)
        self.conditional = data.num_classes > 0
        if self.network is None:
            # A network built in inference mode, as validation is, could be used nowhere else; and
            # building draws weights that loading replaces.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                self.network = self.build().requires_grad_(False).eval()
        self.check(data)
        self.network.to(self.device)
        images = data.dataset("train", 0)
        if len(images) <= max(1, self.neighbours):
            raise InputError(f"{len(images)} training images are too few to compare with")
        self.reference = self._reference(images, data.num_workers)

    def reset(self) -> None:
        """Forgets the samples."""
        self._rows: list[tuple[Tensor, ...]] = []  # indices, labels, features, logits
        self._seen = 0

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Numbers (B,) of the samples that this process is to make, batch by batch.

        Whole batches go to the processes in turn: convolutions round differently in batches of
        different sizes, so that the samples are the same at any number of processes.
        """
        yield from torch.arange(self.samples).split(batch_size)[rank() :: world_size()]

    def update(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Adds generated images.

        Args:
            images: (B, 3, H, W) in -1..1.
            labels: (B,) classes that were asked for, None without classes.
            indices: (B,) numbers of the samples over all processes, which decide their order: a
                repeated one counts once. Without them the k-th image of process r of n is
                k * n + r, as a DistributedSampler deals.

        Raises InputError for images that are not finite.
        """
        check_finite(images)
        if labels is None:
            labels = torch.full((len(images),), -1)
        if indices is None:
            indices = torch.arange(self._seen, self._seen + len(images)) * world_size() + rank()
        self._seen += len(images)
        features, logits = self._extract(images)
        self._rows.append((indices.cpu(), labels.cpu(), features.cpu(), logits.cpu()))

    def compute(self) -> dict[str, float]:
        """Numbers by key; the one under "score" chooses the best checkpoint.

        All processes call it, and get the same. Raises InputError for too few samples.
        """
        rows = [row for rows in gather(self._rows) for row in rows]
        columns = [torch.cat(column) for column in zip(*rows, strict=True)]
        found = broadcast(len(columns[0].unique()) if columns else 0)
        if found < self.samples:
            raise InputError(
                f"{found} generated images are fewer than the scorer's {self.samples} samples:"
                " generate more, or lower samples"
            )
        if rank():
            return broadcast(None)
        order = first_of_each(columns[0])[: self.samples]
        _, labels, features, logits = (column[order] for column in columns)
        return broadcast(self.numbers(logits, labels) | self._distances(features))

    def _distances(self, features: Tensor) -> dict[str, float]:
        """How the features (n, C) of all samples lie to those of the training images."""
        device, name = self.device, self.network.name
        moments = Moments()
        for chunk in features.split(5000):
            moments.add(chunk.to(exact(device)))
        distance = fid_statistics_to_metric(
            moments.statistics(), self.reference.statistics, verbose=False
        )
        counts = f"train{self.reference.count}_fake{len(features)}"
        numbers = {f"{self.fid}_{name}_{counts}": distance["frechet_inception_distance"]}
        if self.manifold:
            real, fake = self.reference.features, features[some(len(features), self.manifold)]
            measured = prc_features_to_metric(
                fake.to(device),
                real.to(device),
                prc_neighborhood=self.neighbours,
                prc_batch_size=5000,
                save_cpu_ram=True,
                verbose=False,
            )
            of = f"{name}_k{self.neighbours}_train{len(real)}_fake{len(fake)}"
            numbers |= {f"{key}_{of}": measured[key] for key in ("precision", "recall")}
        return numbers

    def _reference(self, images: Dataset, num_workers: int) -> Reference | None:
        """Of the training images, on rank zero; from the cache where it holds the same images'."""
        kept, file = None, None
        if rank() == 0:
            key = f"{self.network.fingerprint} {fingerprint(images, num_workers)} {self.manifold}"
            digest = hashlib.sha256(key.encode()).hexdigest()[:16]
            file = self.cache / f"{self.network.name}_{digest}.pt"
            kept = Reference.read(file)
        if broadcast(kept is not None):
            return kept
        measured = self._measure(images, num_workers)
        if measured is not None:
            measured.write(file)
        return measured

    def _measure(self, images: Dataset, num_workers: int) -> Reference | None:
        """The statistics of the images, on rank zero; all processes take their share."""
        chosen = some(len(images), self.manifold)
        batches = torch.arange(len(images)).split(REFERENCE_BATCH)
        mine = [n for n in range(len(batches)) if n % PARTS % world_size() == rank()]
        parts, rows = defaultdict(Moments), []
        loaded = in_order(images, [batches[n] for n in mine], num_workers)
        for n, (pixels, _) in zip(mine, loaded, strict=True):
            features, _ = self._extract(pixels)
            parts[n % PARTS].add(features.to(exact(self.device)))
            wanted = torch.isin(batches[n], chosen)
            rows.append((batches[n][wanted], features.cpu()[wanted]))
        shares = gather(({n: part.cpu() for n, part in parts.items()}, rows))
        if rank():
            return None
        parts = {n: part for share, _ in shares for n, part in share.items()}
        whole = Moments()
        for n in sorted(parts):
            whole.merge(parts[n])
        kept = (row for _, rows in shares for row in rows)
        indices, features = (torch.cat(column) for column in zip(*kept, strict=True))
        return Reference(whole.count, whole.statistics(), features[indices.argsort()])

    @torch.no_grad()
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in -1..1 -> features (B, C) and logits (B, K), float32."""
        images = to_bytes(images.to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # half precision moves the scores
            return self.network(images)


class InceptionEvaluator(Evaluator):
    """Inception Score (Salimans et al. 2016), FID (Heusel et al. 2017), precision and recall.

    Published numbers are of 50,000 samples and the Inception of 2015, in 10 splits (1 in
    StudioGAN), with FID against the training images. Other weights of that network are named in
    the keys by the start of their SHA-256. Precision and recall in the paper are of VGG-16's
    features; here of Inception's, as in StudioGAN.

    Args:
        samples, splits, neighbours, manifold, cache: see `Evaluator`.
        weights: torch-fidelity's file; where none is given, that in torch.hub's folder, which is
            downloaded if it is not there.
    """

    fid = "fid"

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

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        of = f"{self.network.name}_{self.splits}splits_{len(logits)}"
        return {"score": mean, f"is_{of}": mean, f"is_std_{of}": std}


class ClassifierEvaluator(Evaluator):
    """The same numbers by a classifier of this package, and how often it sees the class asked for.

    The classifier score has the formula of the Inception Score and is at most the number of
    classes. It compares generators that one classifier scored, nothing else.

    Args:
        samples, splits, neighbours, manifold, cache: see `Evaluator`.
        run: folder of a classification run, of which the best checkpoint is taken, else the last.
    """

    fid = "frechet_classifier"

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
        self.run = run

    def build(self) -> nn.Module:
        return RunClassifier(Path(self.run))

    def check(self, data: GenerationData) -> None:
        """Raises InputError when the data has other classes than the classifier."""
        if self.conditional and data.num_classes != self.network.num_classes:
            raise InputError(
                f"{self.run} tells {self.network.num_classes} classes apart and the data has"
                f" {data.num_classes}: score with a classifier of the same classes"
            )

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        name, count = self.network.name, len(logits)
        of = f"{name}_{self.splits}splits_{count}"
        numbers = {"score": mean, f"classifier_score_{of}": mean, f"classifier_score_std_{of}": std}
        if self.conditional:
            right = (logits.argmax(1) == labels).double().mean().item()
            numbers[f"classifier_accuracy_{name}_{count}"] = right
        return numbers


class Unscored(Evaluator):
    """Measures nothing, and needs no weights: a run has no best.ckpt, and its last is taken.

    Validation draws 64 images all the same, and ends a run whose generator has diverged.
    """

    def __init__(self):  # no `samples`, which a swap by flag would keep from another evaluator
        super().__init__(samples=64, splits=1, neighbours=0, manifold=0, cache=None)

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Nothing: there is no network, and training images are not looked at."""

    def update(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Raises InputError for images that are not finite."""
        check_finite(images)

    def compute(self) -> dict[str, float]:
        return {}


def check_finite(images: Tensor) -> None:
    if not images.isfinite().all():
        raise InputError(
            "generated images are not finite: the generator has diverged, lower the learning"
            " rates or start from an earlier checkpoint"
        )


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) over a split: its mean and deviation over the splits.

    The mean KL is the entropy of the mean less the mean entropy, which a probability of 0 does not
    make NaN. The samples' logits (n, K) are shuffled first, always in the same way.
    """
    order = np.random.RandomState(SHUFFLE).permutation(len(logits))
    probabilities = logits[order].double().softmax(1)
    bounds = [split * len(logits) // splits for split in range(splits + 1)]
    scores = []
    for begin, end in pairwise(bounds):
        split = probabilities[begin:end]
        information = (
            torch.special.entr(split.mean(0)).sum() - torch.special.entr(split).sum(1).mean()
        )
        scores.append(information.exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def some(count: int, most: int) -> Tensor:
    """Up to `most` of `count` indices, always the same random ones, ascending."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def first_of_each(indices: Tensor) -> Tensor:
    """Places of the distinct numbers among `indices`, ascending by number; of equals the first."""
    ordered, places = indices.sort(stable=True)
    return places[torch.cat((ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]))]


def exact(device: torch.device) -> torch.device:
    """Where to sum in float64: Apple's GPUs have none."""
    return torch.device("cpu") if device.type == "mps" else device
