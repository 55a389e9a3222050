"""The tasks of the command; each is imported when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import LightningDataModule, LightningModule


@dataclass(frozen=True)
class Task:
    """What the command has to know about a task.

    Args:
        model: the LightningModule, or the base of several.
        data: the base of the task's data classes.
        best: the logged key that chooses best.ckpt.
        higher_is_better: whether more of it is better.
        choose_model: whether the config names the model by `class_path`.
        networks: the model's arguments that the data's number of classes goes to; of those of a
            task, a model that is chosen has some.
        predictions: what predict writes into the run folder.
    """

    model: type[LightningModule]
    data: type[LightningDataModule]
    best: str
    higher_is_better: bool = True
    choose_model: bool = False
    networks: tuple[str, ...] = ("network",)
    predictions: str = "predictions.csv"


def classification() -> Task:
    from attention_vision.classification import ClassificationData, Classifier

    return Task(Classifier, ClassificationData, best="val/top1")


def detection() -> Task:
    from attention_vision.detection import DetectionData, Detector

    return Task(
        Detector, DetectionData, best="val/ap", choose_model=True, predictions="results.json"
    )


def generation() -> Task:
    from attention_vision.generation import GenerationData, GenerationModule

    return Task(
        GenerationModule,
        GenerationData,
        best="val/score",
        choose_model=True,
        networks=("network", "generator", "discriminator"),
        predictions="pictures",
    )


TASKS: dict[str, Callable[[], Task]] = {
    "classification": classification,
    "detection": detection,
    "generation": generation,
}
