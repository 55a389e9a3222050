"""Output of `predict` of a detector: results.json and pictures."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from attention_vision.data.image_files import path_below
from attention_vision.data.loading import data_of
from attention_vision.data.samples import output_names
from attention_vision.detection.data import Batch, read_annotated
from attention_vision.detection.figures import draw_detections
from attention_vision.errors import InputError
from attention_vision.ranges import Probability, checked
from attention_vision.training.distributed import gather
from attention_vision.training.logging import draws_pictures, run_folder
from attention_vision.training.progress import say

NOT_MEASURED = 0.5  # score of the pictures of a detector whose run has no report
LONGEST = 1600  # pixels of the longer side of a picture: as large as a screen
LOSSY = (".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif")


class Found(NamedTuple):
    """The detections of one image, best first."""

    image_id: int
    file_name: str
    boxes: np.ndarray  # (k, 4) float32: x, y, width, height in pixels of the file
    scores: np.ndarray  # (k,) float32
    labels: np.ndarray  # (k,)


@checked
class DetectionResults(Callback):
    """Writes results.json in COCO's results format and pictures/NAME_boxes.png.

    A picture is at most 1,600 pixels long, and a JPEG where its image is a lossy file too.

    A row of results.json has COCO's `image_id`, `category_id`, `bbox` and `score`, and besides them
    `file_name`, relative to the folder of images as are the pictures, and `category_name`.
    `image_id` is that of an instances file of the data if it describes the folder, else the place
    in the order of the paths, which is said. Rows are in the order of the image ids, the best
    first, at any number of processes. Both lie in the run folder, beside metrics.csv. With
    loaders alone, which have no folder of images and no names of classes, nothing is written.

    Expects from `predict_step` per image `boxes` (k, 4) xyxy in pixels of the file, `scores` and
    `labels` (k,). Raises InputError when they are not finite.

    Args:
        threshold: the least score that the pictures show; None is the one with the largest mean F1
            in the report of the run's validation, and 0.5 without a report. results.json has all
            detections: AP needs them.
        pictures: draw them.
    """

    def __init__(self, threshold: Probability | None = None, pictures: bool = True):
        self.threshold, self.pictures = threshold, pictures
        self._shown = NOT_MEASURED if threshold is None else threshold
        self._found: list[Found] = []
        self._names: dict[str, Path] = {}

    def on_predict_start(self, trainer: Trainer, module: LightningModule) -> None:
        if (data := data_of(trainer)) is None:
            return
        if self.threshold is None:
            self._shown = reported_score(run_folder(trainer) / "per_class.csv")
            if self.pictures and draws_pictures(trainer):
                say(f"pictures show detections with a score of {self._shown:.3g} or more")
        self._names = output_names(data.predict_images.files, data.images)
        if not getattr(data.predict_images, "described", True):
            say(
                "image_id of results.json is the place of the image in its folder, which no"
                " instances file of the data describes; file_name names it"
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: list[dict[str, Tensor]],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if (data := data_of(trainer)) is None:
            return
        for detections, target in zip(outputs, batch[2], strict=True):
            path = target["path"]
            file_name = path_below(path, data.images).as_posix()
            detections = {key: value.detach().cpu() for key, value in detections.items()}
            self._found.append(found(int(target["image_id"]), file_name, detections))
            if self.pictures and draws_pictures(trainer):
                height, width = target["orig_size"].tolist()
                image = draw_detections(
                    read_annotated(path, (width, height)), detections, data.class_names,
                    self._shown, longest=LONGEST,
                )  # fmt: skip
                name = f"{self._names[path]}_boxes{picture_suffix(path)}"
                file = run_folder(trainer) / "pictures" / name
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file, quality=90)

    def on_predict_end(self, trainer: Trainer, module: LightningModule) -> None:
        images = sorted(
            (one for part in gather(self._found) for one in part), key=lambda image: image.image_id
        )
        self._found = []
        if not trainer.is_global_zero or data_of(trainer) is None:
            return
        file = run_folder(trainer) / "results.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8") as opened:  # row by row: there may be millions
            separator = "[\n"
            data = data_of(trainer)
            for row in rows(images, data.category_ids, data.class_names):
                opened.write(separator + json.dumps(row))
                separator = ",\n"
            opened.write("[]\n" if separator == "[\n" else "\n]\n")


def found(image_id: int, file_name: str, detections: dict[str, Tensor]) -> Found:
    order = detections["scores"].argsort(descending=True, stable=True)
    boxes, scores, labels = (detections[key][order] for key in ("boxes", "scores", "labels"))
    if not (boxes.isfinite().all() and scores.isfinite().all()):
        raise InputError(
            f"a box or score predicted for {file_name} is not finite: the network has diverged,"
            " predict with an earlier checkpoint"
        )
    low, high = boxes.float().chunk(2, -1)
    return Found(
        image_id,
        file_name,
        np.concatenate((low.numpy(), (high - low).numpy()), -1),
        scores.float().numpy(),
        labels.numpy(),
    )


def reported_score(file: Path) -> float:
    """The score of the largest mean F1 in a report's table of classes, see `DetectionReport`."""
    if not file.is_file():
        return NOT_MEASURED
    with file.open(encoding="utf-8", newline="") as opened:
        row = next(csv.DictReader(opened), {})
    return float(row.get("score") or NOT_MEASURED)


def rows(
    images: list[Found], category_ids: Sequence[int], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Rows of results.json; numbers have the digits that tell one float32 from the next."""
    for image in images:
        for box, score, label in zip(image.boxes, image.scores, image.labels, strict=True):
            yield {
                "image_id": image.image_id,
                "category_id": int(category_ids[label]),
                "bbox": [float(str(number)) for number in box],
                "score": float(str(score)),
                "file_name": image.file_name,
                "category_name": names[label],
            }


def picture_suffix(path: str) -> str:
    """A photograph's pixels are approximate: a lossless picture of it is ten times as large."""
    return ".jpg" if Path(path).suffix.lower() in LOSSY else ".png"
