"""That network and data of a run agree on the classes, for all tasks."""

from lightning.pytorch import LightningDataModule
from torch import nn

from attention_vision.errors import InputError


def check_classes(network: nn.Module, data: LightningDataModule | None) -> None:
    """Raises InputError when their `num_classes` differ; loaders alone, without data, pass."""
    if data is not None and data.num_classes != network.num_classes:
        raise InputError(
            f"the network has {network.num_classes} classes, {type(data).__name__}"
            f" {data.num_classes}: set num_classes of model.network to {data.num_classes}"
        )
