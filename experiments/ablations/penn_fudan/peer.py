"""Torchvision's own Faster R-CNN in the place of ours."""

from functools import reduce
from operator import add

from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from attention_vision.backbones import ResNet
from attention_vision.detection import AttentionRCNN
from attention_vision.detection.attention_rcnn import from_torchvision, unpadded_sizes


class TorchvisionRCNN(AttentionRCNN):
    """`FasterRCNN` of torchvision on its ResNet-18, behind the calls of `AttentionRCNN`.

    Only targets and detections are converted; anchors, sampling, losses, padding and
    non-maximum suppression are torchvision's.
    """

    def __init__(
        self,
        num_classes: int = 91,
        anchor_sizes: tuple[int, ...] = (24, 48, 96, 192),
        side: int = 160,
        pyramid_channels: int = 64,
        train_proposals: int = 500,
        eval_proposals: int = 300,
        sampled_proposals: int = 128,
    ):
        nn.Module.__init__(self)
        self.num_classes = num_classes
        self.backbone = ResNet(10, width=8, num_classes=0).requires_grad_(False)  # is not used
        pyramid = BackboneWithFPN(
            resnet18(weights=None),
            {"layer2": "0", "layer3": "1", "layer4": "2"},
            [128, 256, 512],
            pyramid_channels,
        )
        anchors = AnchorGenerator(
            tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(anchor_sizes)
        )
        self.peer = FasterRCNN(
            pyramid,
            num_classes + 1,
            min_size=side,  # as images have it already, normalized
            max_size=10 * side,
            image_mean=[0.0, 0.0, 0.0],
            image_std=[1.0, 1.0, 1.0],
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=train_proposals,
            rpn_post_nms_top_n_train=train_proposals,
            rpn_pre_nms_top_n_test=eval_proposals,
            rpn_post_nms_top_n_test=eval_proposals,
            box_batch_size_per_image=sampled_proposals,
        )

    def forward(
        self, images: Tensor, padding_mask: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        sizes = unpadded_sizes(padding_mask)
        each = [
            image[:, :height, :width]
            for image, (height, width) in zip(images, sizes.tolist(), strict=True)
        ]
        if not self.training or targets is None:
            return [
                from_torchvision(one, size)
                for one, size in zip(self.peer(each), sizes, strict=True)
            ]
        losses = self.peer(each, self.to_torchvision(targets, sizes))
        return {
            "total": reduce(add, losses.values()),
            "rpn_class": losses["loss_objectness"],
            "rpn_box": losses["loss_rpn_box_reg"],
            "class": losses["loss_classifier"],
            "box": losses["loss_box_reg"],
        }
