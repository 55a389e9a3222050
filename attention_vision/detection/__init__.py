"""Object detection: DETR and Attention R-CNN behind one LightningModule, data and metric."""

from attention_vision.detection.attention_rcnn import (
    AttentionBoxHead,
    AttentionRCNN,
    PlainBoxHead,
)
from attention_vision.detection.average_precision import COCOAveragePrecision
from attention_vision.detection.coco import COCO, COCOFolder
from attention_vision.detection.criterion import SetCriterion
from attention_vision.detection.data import DetectionData, DigitScenes
from attention_vision.detection.detr import DETR
from attention_vision.detection.matcher import HungarianMatcher
from attention_vision.detection.module import Detector, DETRDetector, RCNNDetector
from attention_vision.detection.transforms import DETRAugmentation

__all__ = [
    "COCO",
    "DETR",
    "AttentionBoxHead",
    "AttentionRCNN",
    "COCOAveragePrecision",
    "COCOFolder",
    "DETRAugmentation",
    "DETRDetector",
    "DetectionData",
    "Detector",
    "DigitScenes",
    "HungarianMatcher",
    "PlainBoxHead",
    "RCNNDetector",
    "SetCriterion",
]
