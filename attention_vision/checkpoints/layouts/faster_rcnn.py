"""Faster R-CNN R50-FPN."""

from attention_vision.checkpoints.layouts.layout import Layout
from attention_vision.checkpoints.layouts.resnet import RESNET

TORCHVISION = Layout(
    "Faster R-CNN of torchvision",
    ("backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.weight"),
    (
        (r"backbone\.fpn\.", "pyramid."),
        # Blocks are Sequentials since torchvision 0.13; the released file is older.
        (r"(pyramid\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
        (r"roi_heads\.box_head\.", "roi_heads.box_head.layers."),
        (r"roi_heads\.box_predictor\.", "roi_heads.box_head.predictor."),
    ),
    backbone=r"backbone\.body\.",
    backbone_renames=RESNET,
)
