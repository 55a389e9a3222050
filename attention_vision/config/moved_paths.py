"""Class paths that moved, so that the configs of old runs still name classes that exist."""

from collections.abc import Mapping
from typing import Any

# Old path -> new path: of a module with all of its classes, or of one class. A row stays for two
# minor versions at least, see CHANGELOG.md.
MOVED_PATHS = {  # below attention_vision; moved in 0.2
    "callbacks.StepLog": "training.logging.StepLogger",
    "callbacks.StepSeed": "training.steps.SeedEveryStep",
    "classification.map_transfer": "classification.attention_transfer",
    "detection.figures": "detection.panel",
    "generation.data.CIFAR10Images": "generation.gan.data.CIFAR10Images",
    "generation.data.DigitImages": "generation.gan.data.DigitImages",
    "generation.data.FolderImages": "generation.gan.data.FolderImages",
    "generation.data.LabelledImages": "generation.gan.data.LabelledImages",
    "generation.degradations": "generation.image_to_image.degradations",
    "generation.degraded": "generation.image_to_image.restoration_data",
    "generation.diff_augment": "generation.gan.diff_augment",
    "generation.figures": "generation.gan.figures",
    "generation.image_to_image": "generation.image_to_image.module",
    "generation.masks": "generation.image_to_image.segmentation_data",
    "generation.module.MomentumFreeAdam": "generation.gan.module.MomentumFreeAdam",
    "generation.module.SAGAN": "generation.gan.module.SAGAN",
    "generation.pair_figures": "generation.image_to_image.figures",
    "generation.pair_folders": "generation.image_to_image.mask_folders",
    "generation.pair_predictions": "generation.image_to_image.predictions",
    "generation.sagan": "generation.gan.sagan",
    "generation.scores": "generation.gan.scores",
    "generation.unet": "generation.image_to_image.unet",
    "generation.volumes": "generation.image_to_image.volumes",
    "metrics_csv": "training.metrics_csv",
    "optim": "training.optim",
    "progress": "training.progress",
    "progressive": "classification.progressive",
    "wandb_logger": "training.wandb_logger",
    "training.logging.StepLog": "training.logging.StepLogger",
    "training.steps.StepSeed": "training.steps.SeedEveryStep",
    "backbones.resnet.PlainBottleneck": "attention.controls.PlainBottleneck",
    "generation.gan.sagan.ResidualBlock2d": "attention.controls.ResidualBlock2d",
    "generation.image_to_image.data.PairData": "generation.image_to_image.data.ImageToImageData",
    "generation.image_to_image.figures.PairPanel": (
        "generation.image_to_image.figures.ImageToImagePanel"
    ),
    "generation.image_to_image.predictions.PairResults": (
        "generation.image_to_image.predictions.ImageToImageResults"
    ),
    "classification.ActivationTransfer": "classification.AttentionTransfer",
    "classification.Photographs": "classification.ImageNetAugmentation",
    "classification.RowTransfer": "classification.AttentionMapDistillation",
    "classification.SmallImages": "classification.CIFARAugmentation",
    "classification.attention_transfer.ActivationTransfer": "classification.AttentionTransfer",
    "classification.attention_transfer.RowTransfer": "classification.AttentionMapDistillation",
    "classification.progressive.Progression": "classification.progressive.GateSchedule",
    "classification.transforms.Photographs": "classification.ImageNetAugmentation",
    "classification.transforms.SmallImages": "classification.CIFARAugmentation",
    "detection.Scales": "detection.DETRAugmentation",
    "detection.transforms.Scales": "detection.DETRAugmentation",
    "callbacks.StepCheckpoint": "training.resume.StepCheckpoint",
    "callbacks.BestCheckpoint": "training.resume.BestCheckpoint",
    "callbacks.WholeFiles": "training.checkpoint_io.AtomicCheckpointIO",
    "callbacks.Requeue": "training.slurm.SlurmRequeue",
    "callbacks.EpochMean": "training.logging.ResumableMean",
    "backbones.vit.TwoHeads": "backbones.vit.DistilledHead",
    "claim": "claims.claim",
    "classification.data.Published": "classification.data.TorchvisionData",
    "config.parser.SaveConfig": "runs.run_config.RunConfig",
    "config_parser": "config.parser",
    "generation.extractors": "generation.gan.extractors",
    "generation.pairs.PairData": "generation.image_to_image.data.ImageToImageData",
    "generation.image_to_image.mask_folders.PairFolders": (
        "generation.image_to_image.mask_folders.SegmentationFolders"
    ),
    "generation.predictions": "generation.gan.predictions",
    "generation.spectral_norm": "generation.gan.spectral_norm",
    "reproduction.Reproduction": "claims.check.ClaimCheck",
    "classification.progressive.Activate": "classification.progressive.GateScheduler",
    "detection.coco.InstanceFiles": "detection.annotated_files.InstanceFiles",
}

# Old name -> new name of classes that a config may name without their path.
RENAMED_CLASSES = {  # renamed in 0.2
    "ActivationTransfer": "AttentionTransfer",
    "Photographs": "ImageNetAugmentation",
    "Progression": "GateSchedule",
    "RowTransfer": "AttentionMapDistillation",
    "Scales": "DETRAugmentation",
    "SmallImages": "CIFARAugmentation",
}


def current_path(path: str) -> str:
    """Return the current form of a class path; a path that did not move is unchanged."""
    package, _, inside = path.partition(".")
    if package != "attention_vision":
        return path
    module, _, name = inside.rpartition(".")
    if module in MOVED_PATHS:
        inside = f"{MOVED_PATHS[module]}.{name}"
    return f"{package}.{MOVED_PATHS.get(inside, inside)}"


def with_current_paths(config: Any) -> Any:
    """Copy a config with all class paths in their current form.

    A value of a key `class_path` may also be a bare class name.
    """
    if isinstance(config, str):
        return current_path(config)
    if isinstance(config, Mapping):
        current = {key: with_current_paths(value) for key, value in config.items()}
        name = current.get("class_path")
        if isinstance(name, str):
            current["class_path"] = RENAMED_CLASSES.get(name, name)
        return current
    if isinstance(config, list):
        return [with_current_paths(value) for value in config]
    return config
