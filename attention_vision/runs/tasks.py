"""The table of tasks, which imports neither torch nor a task until it is asked for one.

A further task is one folder, two functions and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, LightningModule

    from attention_vision.config.build import Link, Node
    from attention_vision.profiling.cost import Workload
    from attention_vision.visualization.explainer import DrawOptions, Explainer


@dataclass(frozen=True)
class Classes:
    """The classes of a task.

    Args:
        model: the LightningModule, or the base of several.
        data: the base of the task's data classes.
    """

    model: type[LightningModule]
    data: type[LightningDataModule]


@dataclass(frozen=True)
class Tools:
    """The functions of a task's folder behind the commands `explain` and `profile`.

    Args:
        explainer: (module, names of the classes or none, options) -> what draws its attention.
        image_size: data -> sides of a training image, without its channels.
        workloads: (name, module, image size, batch size) -> its networks on random images.
    """

    explainer: Callable[[Any, Sequence[str], DrawOptions], Explainer]
    image_size: Callable[[Any], tuple[int, ...]]
    workloads: Callable[[str, Any, Sequence[int], int], list[Workload]]


@dataclass(frozen=True)
class Task:
    """A task of the command.

    Args:
        summary: a line for `attention-vision --help`.
        classes: imports its classes.
        tools: imports the functions behind `explain` and `profile`.
        best: the logged key that chooses best.ckpt.
        higher_is_better: whether a larger value of it is better.
        choose_model: whether the config names the model by `class_path`.
        networks: constructor arguments of the model that receive `data.num_classes`; a given model
            may have only some of them.
        predictions: names of what predict may write into the run folder.
    """

    summary: str
    classes: Callable[[], Classes]
    tools: Callable[[], Tools]
    best: str
    higher_is_better: bool = True
    choose_model: bool = False
    networks: tuple[str, ...] = ("network",)
    predictions: tuple[str, ...] = ("predictions.csv",)

    @property
    def model(self) -> type[LightningModule]:
        return self.classes().model

    @property
    def data(self) -> type[LightningDataModule]:
        return self.classes().data

    @property
    def nodes(self) -> dict[str, Node]:
        """Classes that the keys `model` and `data` of a config build."""
        from attention_vision.config.build import Node

        return {"model": Node(self.model, self.choose_model), "data": Node(self.data)}

    @property
    def links(self) -> list[Link]:
        """The data's number of classes goes to every network."""
        from attention_vision.config.build import Link

        model = "model.init_args" if self.choose_model else "model"
        targets = (f"{model}.{network}.init_args.num_classes" for network in self.networks)
        return [Link("data.num_classes", target) for target in targets]


def classification() -> Classes:
    from attention_vision.classification import ClassificationData, Classifier

    return Classes(Classifier, ClassificationData)


def classification_tools() -> Tools:
    from attention_vision.classification.explanation import ClassifierExplainer
    from attention_vision.classification.workload import image_size, workloads

    return Tools(ClassifierExplainer, image_size, workloads)


def detection() -> Classes:
    from attention_vision.detection import DetectionData, Detector

    return Classes(Detector, DetectionData)


def detection_tools() -> Tools:
    from attention_vision.detection.explanation import DetectorExplainer
    from attention_vision.detection.workload import image_size, workloads

    return Tools(DetectorExplainer, image_size, workloads)


def generation() -> Classes:
    from attention_vision.generation import GenerationData, GenerationModule

    return Classes(GenerationModule, GenerationData)


def generation_tools() -> Tools:
    from attention_vision.generation.explanation import explainer
    from attention_vision.generation.workload import image_size, workloads

    return Tools(explainer, image_size, workloads)


TASKS = {
    "classification": Task(
        "train, validate, test and apply image classifiers",
        classification,
        classification_tools,
        best="val/top1",
    ),
    "detection": Task(
        "the same for object detectors: DETR, Deformable DETR, Faster and Attention R-CNN",
        detection,
        detection_tools,
        best="val/ap",
        choose_model=True,
        predictions=("results.json",),
    ),
    "generation": Task(
        "the same for image generators: SAGAN, and Attention U-Net from image to image",
        generation,
        generation_tools,
        best="val/score",
        choose_model=True,
        networks=("network", "generator", "discriminator"),
        predictions=("results", "samples", "pictures"),
    ),
}
