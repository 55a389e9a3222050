"""Files that `predict` of an image-to-image network writes into the run folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from PIL import Image
from torch import Tensor

from attention_vision.data.loading import data_of
from attention_vision.data.samples import output_names
from attention_vision.generation.image_to_image.figures import panel
from attention_vision.generation.image_to_image.mask_codes import MaskCodes
from attention_vision.training.logging import draws_pictures, run_folder

RESULTS = "results"


class ImageToImageResults(Callback):
    """Writes results/NAME.png, or .npy for volumes, and pictures/NAME.png.

    A result is a restored image, or a mask with the numbers, gray levels or colors of `data.codes`
    (class numbers if the data has none), in the size of its file. The picture shows input and
    result side by side, and the gates. NAME is the file's path below the folder of images, without
    the suffix unless two files differ in that alone. With loaders alone, which do not tell a folder
    of images, nothing is written.
    """

    def __init__(self) -> None:
        self._names: dict[str, Path] = {}

    def on_predict_start(self, trainer: Any, module: LightningModule) -> None:
        if (data := data_of(trainer)) is not None:
            self._names = output_names(data.predict_images.files, data.images)

    def on_predict_batch_end(
        self,
        trainer: Any,
        module: Any,
        outputs: Tensor,
        batch: tuple[Tensor, list[str], list[torch.Size]],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        data, folder = data_of(trainer), run_folder(trainer)
        if data is None:
            return
        for inputs, result, path, size in zip(batch[0], outputs, batch[1], batch[2], strict=True):
            name = self._names[path]
            write(folder / RESULTS / name, result.cpu(), size, getattr(data, "codes", None))
            if not draws_pictures(trainer):
                continue
            picture = panel(
                module.network, module.objective, inputs[None], class_names=data.class_names
            )
            file = folder / "pictures" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)


def write(file: Path, result: Tensor, size: torch.Size, codes: MaskCodes | None) -> None:
    """Write an image (3, H, W) in 0..1, a mask (H, W) or (D, H, W), enlarged to `size`.

    Args:
        file: without the suffix.
        codes: how a mask writes its classes; None for the class numbers.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if result.is_floating_point():
        pixels = (result * 255).round().byte().movedim(0, -1).numpy()
        Image.fromarray(pixels).save(f"{file}.png")
        return
    if tuple(result.shape) != tuple(size):
        result = F.interpolate(result[None, None].float(), tuple(size), mode="nearest-exact")[0, 0]
    classes = result.numpy().astype(np.uint8)
    mask = classes if codes is None else codes.written(classes)
    if classes.ndim == 3:
        np.save(f"{file}.npy", mask)
    else:
        Image.fromarray(mask).save(f"{file}.png")
