"""Object detection: DETRs and Attention R-CNN behind one LightningModule, data and metric."""

import warnings

from attention_vision.detection.attention_rcnn import (
    AttentionBoxHead,
    AttentionRCNN,
    PlainBoxHead,
)
from attention_vision.detection.average_precision import COCOAveragePrecision
from attention_vision.detection.coco import COCO, COCOFolder
from attention_vision.detection.criterion import FocalSetCriterion, SetCriterion
from attention_vision.detection.data import DetectionData, DigitScenes
from attention_vision.detection.deformable_detr import DeformableDETR
from attention_vision.detection.denoising import Denoising
from attention_vision.detection.detr import DETR
from attention_vision.detection.instance_masks import InstanceMaskFolder
from attention_vision.detection.matcher import FocalMatcher, HungarianMatcher
from attention_vision.detection.module import (
    DeformableDETRDetector,
    Detector,
    DETRDetector,
    RCNNDetector,
)
from attention_vision.detection.transforms import DETRAugmentation
from attention_vision.detection.voc import VOCFolder
from attention_vision.detection.yolo import YOLOFolder

__all__ = [
    "COCO",
    "DETR",
    "AttentionBoxHead",
    "AttentionRCNN",
    "COCOAveragePrecision",
    "COCOFolder",
    "DETRAugmentation",
    "DETRDetector",
    "DeformableDETR",
    "DeformableDETRDetector",
    "Denoising",
    "DetectionData",
    "Detector",
    "DigitScenes",
    "FocalMatcher",
    "FocalSetCriterion",
    "HungarianMatcher",
    "InstanceMaskFolder",
    "PlainBoxHead",
    "RCNNDetector",
    "SetCriterion",
    "VOCFolder",
    "YOLOFolder",
]

RENAMED = {  # name of 0.1 -> name of today
    "Scales": "DETRAugmentation",
}


def __getattr__(name: str) -> type:
    """Find a class by its name in version 0.1, with a warning."""
    if name not in RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is {RENAMED[name]} since 0.2", DeprecationWarning, stacklevel=2)
    return globals()[RENAMED[name]]
