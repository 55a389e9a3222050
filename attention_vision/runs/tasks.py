"""The tasks of the command; each is imported when it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import LightningDataModule, LightningModule

from attention_vision.config.build import Link, Node


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

    @property
    def nodes(self) -> dict[str, Node]:
        """What the keys `model` and `data` of a config build."""
        return {"model": Node(self.model, self.choose_model), "data": Node(self.data)}

    @property
    def links(self) -> list[Link]:
        """The data's number of classes goes to every network."""
        model = "model.init_args" if self.choose_model else "model"
        targets = (f"{model}.{network}.init_args.num_classes" for network in self.networks)
        return [Link("data.num_classes", target) for target in targets]


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
