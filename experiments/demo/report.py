"""Tables of the demos' models, and pictures of what they look at.

python experiments/demo/report.py runs/demo
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from attention_vision.classification import Digits
from attention_vision.classification.figures import saliency_maps
from attention_vision.detection import COCOAveragePrecision, DetectionData, DigitScenes
from attention_vision.detection.attention_figures import attention_sheet
from attention_vision.detection.figures import to_pil
from attention_vision.detection.panel import panel
from attention_vision.generation import SAGAN, ClassifierEvaluator, DigitImages
from attention_vision.generation.gan import figures as generated
from attention_vision.runs import load_run
from attention_vision.visualization.drawing import overlay, rgb, sheet

CLASSIFIERS = {"ViT": "vit_digits", "SE-ResNet-8": "se_resnet_digits"}
DETECTOR = "detr_digits"
GENERATOR = "sagan_digits"


def speed(forward: Callable[[], object], images: int, repeats: int = 5) -> float:
    """Images per second of a forward pass, the median of some runs."""
    forward()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - start)
    return images / float(np.median(seconds))


def size(model: LightningModule) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def classification(folder: Path) -> Path:
    """Prints accuracy, size and speed; returns the picture of where each model looks."""
    data = Digits(image_size=32, batch_size=1000)
    data.setup("validate")
    images, labels = next(iter(data.val_dataloader()))
    print(f"\n{len(images)} held-out digits, 1 thread\n")
    print(f"{'model':<14}{'accuracy':>10}{'parameters':>12}{'images/s':>10}")
    models = {name: load_run(folder / run) for name, run in CLASSIFIERS.items()}
    for name, model in models.items():
        with torch.inference_mode():
            right = (model(images).argmax(1) == labels).float().mean().item()
            rate = speed(lambda model=model: model(images), len(images))
        print(f"{name:<14}{right:>10.2%}{size(model):>12,}{rate:>10,.0f}")

    first = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    file = folder / "where_they_look.png"
    Image.fromarray(where_they_look(models, images[first], labels[first])).save(file)
    return file


def where_they_look(
    models: dict[str, LightningModule], images: Tensor, labels: Tensor
) -> np.ndarray:
    """One digit of each class, and below it where each model looks and what it reads."""
    rows, titles, names = [rgb(images)], [[str(n) for n in labels.tolist()]], ["held-out digits"]
    for name, model in models.items():
        maps, kind = saliency_maps(model.network, images)
        chances, classes = model(images).detach().softmax(1).max(1)
        rows.append(overlay(images, maps))
        pairs = zip(classes.tolist(), chances.tolist(), strict=True)
        titles.append([f"{digit} ({chance:.0%})" for digit, chance in pairs])
        names.append(f"{name}\n{kind}")
    return sheet(rows, titles, names)


def average_precision(model: LightningModule, data: DetectionData) -> dict[str, float]:
    """Of the held-out scenes, in the data's batches."""
    metric = COCOAveragePrecision()
    with torch.inference_mode():
        for index, batch in enumerate(data.val_dataloader()):
            metric.update(model.predict_step(batch, index), batch[2])
    return metric.compute()


def detection(folder: Path) -> list[Path]:
    """Prints AP, size and speed; returns pictures of boxes and of what queries attend to."""
    data: DetectionData = DigitScenes(batch_size=50)
    data.setup("validate")
    model = load_run(folder / DETECTOR)
    images, padding_mask, targets = next(iter(data.val_dataloader()))
    numbers = average_precision(model, data)
    with torch.inference_mode():
        rate = speed(lambda: model.detect(images, padding_mask), len(images))
    print(f"\n{len(data.val_images)} held-out scenes of digits\n")
    print(f"{'model':<14}{'AP':>10}{'AP50':>10}{'parameters':>12}{'images/s':>10}")
    print(
        f"{'DETR':<14}{numbers['ap']:>10.3f}{numbers['ap50']:>10.3f}{size(model):>12,}{rate:>10,.0f}"
    )
    print("\nAP by the batch that scenes are evaluated in (all are of one size: nothing is padded)")
    for mask_padding in (False, True):
        model.network.mask_padding = mask_padding
        words = []
        for data.batch_size in (1, 8):
            words.append(f"batch {data.batch_size}: {average_precision(model, data)['ap']:.4f}")
        print(f"  mask_padding {str(mask_padding).lower():<8}{'   '.join(words)}")
    model.network.mask_padding = False

    names = list(data.class_names)
    with torch.inference_mode():
        pictures = [to_pil(pixels) for pixels in rgb(images[:6])]
        truths = [box_convert(target["boxes"], "cxcywh", "xyxy") for target in targets[:6]]
        found = model.detect(images[:6], padding_mask[:6])
        boxes = panel(pictures, found, truths, names, threshold=0.5)
        queries = attention_sheet(model.network, images[0], padding_mask[0], names)
    files = [folder / "boxes.png", folder / "what_queries_attend_to.png"]
    for file, picture in zip(files, (boxes, queries), strict=True):
        Image.fromarray(picture).save(file)
    return files


def generation(folder: Path, count: int = 2000) -> list[Path]:
    """Prints what the classifier says of generated digits; returns a sample sheet and attention."""
    model: SAGAN = load_run(folder / GENERATOR)
    evaluator = ClassifierEvaluator(run=str(folder / CLASSIFIERS["SE-ResNet-8"]), samples=count)
    evaluator.prepare(DigitImages(size=model.average.size), "cpu")
    with torch.inference_mode():
        for indices in evaluator.batches(100):
            labels = indices % model.average.num_classes
            evaluator.update(model.draw(indices, labels), labels, indices)
        rate = speed(lambda: model.draw(torch.arange(100), torch.arange(100) % 10), 100)
    numbers = {key.split("_se_resnet")[0]: value for key, value in evaluator.compute().items()}
    score, right = numbers["classifier_score"], numbers["classifier_accuracy"]
    print(f"\n{count} generated digits, as SE-ResNet-8 sees them (at best a score of 10)\n")
    print(f"{'model':<14}{'score':>10}{'recognised':>11}{'parameters':>12}{'images/s':>10}")
    parameters = sum(parameter.numel() for parameter in model.average.parameters())
    print(f"{'SAGAN':<14}{score:>10.2f}{right:>11.1%}{parameters:>12,}{rate:>10,.0f}")

    labels = torch.arange(10)
    with torch.inference_mode():
        digits = generated.grid(generated.sample_rows(model, 10), 10)
        noise = model.noise(torch.arange(10))
        points = model.attention_points
        attention = generated.attention_sheet(
            model.average, noise, labels, points, [str(label) for label in labels.tolist()]
        )
    files = [folder / "generated_digits.png", folder / "where_the_generator_looked.png"]
    for file, picture in zip(files, (digits, attention), strict=True):
        Image.fromarray(picture).save(file)
    return files


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # as the runs: where cores are busy a second thread costs time
    looks = classification(folder)
    boxes, queries = detection(folder)
    digits, attention = generation(folder)
    print(f"\nwhere each classifier looks: {looks}")
    print(f"what DETR finds: {boxes}\nwhere its queries look: {queries}")
    print(f"what SAGAN makes: {digits}\nwhere it looked: {attention}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
