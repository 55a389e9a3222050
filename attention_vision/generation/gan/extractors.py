"""Networks that extract features and logits of images for the scores, from weights on disk."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    FeatureExtractorInceptionV3,
)

from attention_vision.checkpoints.load import labels_of, read
from attention_vision.checkpoints.preprocessing import data_of_run
from attention_vision.checkpoints.run_network import trained_classifier
from attention_vision.errors import InputError
from attention_vision.training.distributed import broadcast, rank


class Extractor(nn.Module):
    """Base: images (B, 3, H, W) uint8 -> features (B, C) and logits (B, K).

    Attributes:
        name: part of the keys of its scores.
        fingerprint: changes with the weights and the image size.
        num_classes: K.
    """

    name: str
    fingerprint: str
    num_classes: int


class Inception2015(Extractor):
    """The network of TensorFlow's release of 2015, by torch-fidelity, with weights from a file.

    Images (B, 3, H, W) uint8 -> features (B, 2048) and logits (B, 1008); resized to 299 x 299 as
    in TensorFlow 1, and without the last bias, which the first implementation left out.

    Raises InputError if the file is not readable or of another network.
    """

    num_classes = 1008

    def __init__(self, file: Path):
        super().__init__()
        read(file)  # tensors and nothing else: torch-fidelity would unpickle anything
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception", ["2048", "logits_unbiased"], str(file)
            )
        except RuntimeError:
            raise InputError(
                f"{file} is not the Inception of 2015: take the file {URL_INCEPTION_V3}"
            ) from None
        self.fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()
        start = self.fingerprint[:8]  # the release has it in its file's name
        self.name = "inception2015" if start in URL_INCEPTION_V3 else f"inception-{start}"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images)


class RunClassifier(Extractor):
    """The network of a classification run, with the image size and normalization of its data.

    Images (B, 3, H, W) uint8 of any size -> pooled features (B, C) and logits (B, num_classes).

    Attributes:
        class_names: of its classes; empty if its checkpoint has none.

    Raises InputError if the folder does not contain such a run, or a checkpoint that fits.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, run: Path):
        super().__init__()
        self.network, config = trained_classifier(run)
        data: Any = data_of_run(run, config)
        self.num_classes, self.size = self.network.num_classes, data.image_size
        self.register_buffer("mean", torch.tensor(data.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(data.std)[:, None, None])
        labels = labels_of(run)
        self.class_names = labels.class_names if labels else ()
        self.name = run.absolute().name
        digest = hashlib.sha256(str(self.size).encode())
        for name, tensor in self.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self._warn(config["model"].get("label_smoothing", 0.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.float() / 255
        if images.shape[2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        features = self.network.pool(self.network.tokens((images - self.mean) / self.std))
        return features, self.network.head(features)

    def _warn(self, label_smoothing: float) -> None:
        """Warn of a classifier trained with smoothed labels: it scores even real images low."""
        if label_smoothing:
            off = label_smoothing / self.num_classes
            on = 1 - label_smoothing + off
            entropy = -on * math.log(on) - (self.num_classes - 1) * off * math.log(off)
            most = self.num_classes * math.exp(-entropy)
            rank_zero_warn(
                f"{self.name} was trained with label_smoothing {label_smoothing}: its scores end"
                f" near {most:.1f} instead of {self.num_classes}"
            )


def inception_file(weights: str | None) -> Path:
    """The file of weights, downloaded if none is named. Raises InputError if there is none."""
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(
                f"no file of Inception weights {weights}: download {URL_INCEPTION_V3} to it"
            )
        return Path(weights)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if rank() == 0 and not file.is_file():
        start = file.stem.rsplit("-", 1)[1]  # of the SHA-256
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), start, progress=False)
        except (OSError, RuntimeError):  # offline, or cut short
            pass
    broadcast(None)  # rank zero has tried
    if not file.is_file():
        raise InputError(
            f"no Inception weights {file} and no connection: download {URL_INCEPTION_V3} to it or"
            " to model.scorer.weights; or set model.scorer to ClassifierEvaluator and"
            " model.scorer.run to a run of classification; or to Unscored for no score at all"
        )
    return file
