"""Scores of generated images that name their evaluator, exact at any number of processes.

An Inception Score compares with another one of the same evaluator, splits and number of samples
only: the same SAGAN weights were scored 8.68 and 9.12 by two evaluators, and FID moves by points
with the number of images. So every key has all of these: `is_inception2015_10splits_50000`,
`fid_inception2015_train50000_fake50000`. A network that is not the Inception of 2015 yields no
Inception Score: of a classifier of this package it is `classifier_score_NAME_...`.

    evaluator.prepare(data, device)            # once: the network, statistics of training images
    evaluator.reset()
    for indices in evaluator.batches(100):     # of this process
        evaluator.update(images, labels, indices)
    evaluator.compute()                        # key -> number, the same in all processes

The numbers are torch-fidelity's, in float64, of all processes' samples in the order of their
indices. Images are scored as the 8-bit files that would be saved of them.

torchmetrics' FID and Inception Score are not used: FID adds up sums per process, so that its last
digits depend on the number of processes, and counts an image twice that a sampler repeats; the
Inception Score shuffles by the random state of the run; each metric runs the network by itself,
and none keeps the statistics of the training images.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from attention_vision.data.labels import labels_by_name
from attention_vision.errors import InputError
from attention_vision.generation.data import GenerationData
from attention_vision.generation.gan.extractors import (
    Extractor,
    Inception2015,
    RunClassifier,
    inception_file,
)
from attention_vision.generation.gan.real_statistics import (
    Images,
    Moments,
    Reference,
    fingerprint,
    fixed_subset,
    float64_device,
    measure_reference,
)
from attention_vision.generation.gan.samples import Samples, to_uint8
from attention_vision.ranges import Count, NonNegativeInt, checked
from attention_vision.training.distributed import broadcast, rank, world_size

SHUFFLE = 2020  # torch-fidelity's seed: classes that come in turn must not decide the splits


@checked
class Evaluator:
    """Base of the evaluators: a subclass builds its network and names its numbers.

    Args:
        samples: number of generated images that are scored.
        splits: parts of the samples whose scores are averaged; the paper of the Inception Score
            has 10.
        neighbours: k of precision and recall (Kynkaanniemi et al. 2019): an image lies on the
            manifold of others when it is as close to one of them as that one's k-th neighbor.
        manifold: number of images of each kind that stand for their manifold, 0 for no precision
            and recall.
        cache: folder for the statistics of training images; by default
            ~/.cache/attention_vision/statistics.

    Raises:
        InputError: numbers that do not go together.
    """

    fid: str  # name of the Frechet distance of this evaluator's features in the keys

    def __init__(
        self,
        samples: Count,
        splits: Count,
        neighbours: NonNegativeInt,  # 0 where nothing is compared
        manifold: NonNegativeInt,
        cache: str | None,
    ):
        if samples < 2 or splits > samples:
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
        self._network: Extractor | None = None
        self.reset()

    @property
    def network(self) -> Extractor:
        """Raises RuntimeError before `prepare`."""
        if self._network is None:
            raise RuntimeError(f"{type(self).__name__}: call prepare first")
        return self._network

    def build(self) -> Extractor:
        """Build the network that is scored by. Raises InputError if its weights are missing."""
        raise NotImplementedError

    def check(self, data: GenerationData) -> None:
        """Raise InputError for data that the network cannot score."""

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Numbers by key from logits (n, K) and labels (n,) of all samples; one is "score"."""
        raise NotImplementedError

    def find(self, data: GenerationData) -> None:
        """Raise InputError before training for a network that `prepare` would miss; base: nothing.

        All processes call it.
        """

    def _load(self, data: GenerationData) -> None:
        """Build the network once, and check the data."""
        self.conditional = data.num_classes > 0
        if self._network is None:
            # A network built in inference mode, as validation is, could be used nowhere else; and
            # building draws weights that loading replaces.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                self._network = self.build().requires_grad_(False).eval()
        self.check(data)

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Build the network; measure the training images, or read their statistics from the cache.

        The images are those of `data.dataset("train", ...)` as in evaluation, without augmentation.
        All processes call it. Raises InputError for a network that is missing or does not fit.
        """
        self.device = torch.device(device)
        self._load(data)
        self.network.to(self.device)
        images: Images = data.dataset("train", 0)
        if len(images) <= max(1, self.neighbours):
            raise InputError(f"{len(images)} training images are too few to compare with")
        self.reference = self._reference(images, data.num_workers)

    def reset(self) -> None:
        """Forget the samples."""
        self.generated = Samples()

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Indices (B,) of the samples that this process has to generate, batch by batch.

        Whole batches go to the processes in turn: convolutions round differently in batches of
        different sizes, so that the samples are the same at any number of processes.
        """
        yield from torch.arange(self.samples).split(batch_size)[rank() :: world_size()]

    def update(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Add generated images.

        Args:
            images: (B, 3, H, W) in -1..1.
            labels: (B,) classes that were asked for, None without classes.
            indices: see `Samples.add`.

        Raises InputError for images that are not finite.
        """
        check_finite(images)
        self.generated.add(*self._extract(images), labels, indices)

    def compute(self) -> dict[str, float]:
        """Numbers by key; the one under "score" chooses the best checkpoint.

        All processes call it and receive the same. Raises InputError for too few samples.
        """
        gathered = self.generated.gather(self.samples)
        if gathered is None:
            return broadcast(None)
        numbers = self.numbers(gathered.logits, gathered.labels)
        return broadcast(numbers | self._distances(gathered.features))

    def _distances(self, features: Tensor) -> dict[str, float]:
        """Frechet distance, precision and recall of features (n, C) against the training images."""
        device, name, reference = self.device, self.network.name, self.reference
        assert reference is not None  # on rank zero
        moments = Moments()
        for chunk in features.split(5000):
            moments.add(chunk.to(float64_device(device)))
        distance = fid_statistics_to_metric(
            moments.statistics(), reference.statistics, verbose=False
        )
        counts = f"train{reference.count}_fake{len(features)}"
        numbers = {f"{self.fid}_{name}_{counts}": distance["frechet_inception_distance"]}
        if self.manifold:
            real, fake = reference.features, features[fixed_subset(len(features), self.manifold)]
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

    def _reference(self, images: Images, num_workers: int) -> Reference | None:
        """Statistics of the training images, on rank zero; from the cache if it has the same."""
        kept, file = None, None
        if rank() == 0:
            key = f"{self.network.fingerprint} {fingerprint(images, num_workers)} {self.manifold}"
            digest = hashlib.sha256(key.encode()).hexdigest()[:16]
            file = self.cache / f"{self.network.name}_{digest}.pt"
            kept = Reference.read(file)
        if broadcast(kept is not None):
            return kept
        measured = measure_reference(images, self._extract, self.device, self.manifold, num_workers)
        if measured is not None and file is not None:
            measured.write(file)
        return measured

    @torch.no_grad()
    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in -1..1 -> features (B, C) and logits (B, K), float32."""
        images = to_uint8(images.to(self.device))
        with torch.autocast(self.device.type, enabled=False):  # half precision moves the scores
            return self.network(images)


@checked
class InceptionEvaluator(Evaluator):
    """Inception Score (Salimans et al. 2016), FID (Heusel et al. 2017), precision and recall.

    Published numbers are of 50,000 samples and the Inception of 2015, in 10 splits (1 in
    StudioGAN), with FID against the training images. Other weights of that network are named in
    the keys by the start of their SHA-256. Precision and recall use VGG-16's features in the paper,
    Inception's here, as in StudioGAN.

    Args:
        samples, splits, neighbours, manifold, cache: see `Evaluator`.
        weights: torch-fidelity's file; by default the one in torch.hub's folder, which is
            downloaded if it is not there.
    """

    fid = "fid"

    def __init__(
        self,
        samples: Count = 50000,
        splits: Count = 10,
        weights: str | None = None,
        neighbours: Count = 3,
        manifold: NonNegativeInt = 10000,
        cache: str | None = None,
    ):
        super().__init__(samples, splits, neighbours, manifold, cache)
        self.weights = weights

    def find(self, data: GenerationData) -> None:
        self._load(data)

    def build(self) -> Extractor:
        return Inception2015(inception_file(self.weights))

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        of = f"{self.network.name}_{self.splits}splits_{len(logits)}"
        return {"score": mean, f"is_{of}": mean, f"is_std_{of}": std}


@checked
class ClassifierEvaluator(Evaluator):
    """The same numbers by a classifier of this package, and its accuracy on the classes asked for.

    The classifier score has the formula of the Inception Score and is at most the number of
    classes. It compares generators that one classifier scored, nothing else. Classes are compared
    by their names, so that their order may differ.

    Args:
        samples, splits, neighbours, manifold, cache: see `Evaluator`.
        run: folder of a classification run, whose best checkpoint is taken, or else its last.
    """

    fid = "frechet_classifier"

    def __init__(
        self,
        run: str,
        samples: Count = 2000,
        splits: Count = 10,
        neighbours: Count = 3,
        manifold: NonNegativeInt = 10000,
        cache: str | None = None,
    ):
        super().__init__(samples, splits, neighbours, manifold, cache)
        self.run = run
        self.judged_names: Sequence[str] = ()

    def find(self, data: GenerationData) -> None:
        self._load(data)

    def build(self) -> RunClassifier:
        judge = RunClassifier(Path(self.run))
        self.judged_names = judge.class_names
        return judge

    def check(self, data: GenerationData) -> None:
        """Raise InputError if the data has other classes than the classifier."""
        self.judged_labels = torch.arange(self.network.num_classes)
        if self.conditional and data.num_classes != self.network.num_classes:
            raise InputError(
                f"{self.run} tells {self.network.num_classes} classes apart and the data has"
                f" {data.num_classes}: score with a classifier of the same classes"
            )
        if self.conditional and self.judged_names:
            names = [str(name) for name in data.class_names]
            self.judged_labels = torch.tensor(labels_by_name(self.judged_names, names, self.run))

    def numbers(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        mean, std = inception_score(logits, self.splits)
        name, count = self.network.name, len(logits)
        of = f"{name}_{self.splits}splits_{count}"
        numbers = {"score": mean, f"classifier_score_{of}": mean, f"classifier_score_std_{of}": std}
        if self.conditional:
            right = (
                (logits.argmax(1) == self.judged_labels.to(labels)[labels]).double().mean().item()
            )
            numbers[f"classifier_accuracy_{name}_{count}"] = right
        return numbers


class Unscored(Evaluator):
    """Measures nothing and needs no weights: a run has no best.ckpt, and its last is taken.

    Validation generates 64 images all the same, and ends a run whose generator has diverged.
    """

    def __init__(self):  # no `samples`, which a swap by flag would keep from another evaluator
        super().__init__(samples=64, splits=1, neighbours=0, manifold=0, cache=None)

    def prepare(self, data: GenerationData, device: torch.device | str) -> None:
        """Do nothing: there is no network, and training images are not read."""

    def update(
        self, images: Tensor, labels: Tensor | None = None, indices: Tensor | None = None
    ) -> None:
        """Raise InputError for images that are not finite."""
        check_finite(images)

    def compute(self) -> dict[str, float]:
        return {}


def check_finite(images: Tensor) -> None:
    """Raise InputError for images that are not finite."""
    if not images.isfinite().all():
        raise InputError(
            "generated images are not finite: the generator has diverged, lower the learning"
            " rates or start from an earlier checkpoint"
        )


def inception_score(logits: Tensor, splits: int) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)) over a split: mean and standard deviation over splits.

    The mean KL is the entropy of the mean less the mean entropy, which is not NaN at a probability
    of 0. The samples' logits (n, K) are shuffled first, always in the same way.
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
