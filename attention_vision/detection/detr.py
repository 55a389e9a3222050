"""DETR: a detector without anchors and without non-maximum suppression."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.attention import LearnedPosition, SinePosition2d
from attention_vision.backbones import ResNet
from attention_vision.backbones.backbone import Backbone
from attention_vision.detection.transformer import Transformer
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Fraction, Layers, Range, Size, checked


class LearnedPosition2d(LearnedPosition):
    """One learned vector per cell of the grid, counted from the top left corner.

    Shape: padding_mask (B, H, W) -> (1, C, H, W)

    A map within the grid gets a corner of the table, so that the vector of a cell does not depend
    on how far the batch is padded; for a larger map the table is resized first. The release learns
    rows and columns apart, 50 each, and refuses larger maps.
    """

    def __init__(self, width: int, grid: tuple[int, int] = (50, 50)):
        super().__init__(width, grid)

    def forward(self, padding_mask: Tensor) -> Tensor:
        height, width = padding_mask.shape[1:]
        grid = max(height, self.grid[0]), max(width, self.grid[1])
        return super().forward(grid).mT.unflatten(2, grid)[:, :, :height, :width]


class BoxHead(nn.Sequential):
    """Three linear layers with ReLU between. Shape: (..., C) -> (..., 4), before the sigmoid."""

    def __init__(self, width: int):
        super().__init__(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 4),
        )


@checked
class DETR(nn.Module):
    """DETR (Carion et al., arXiv 2005.12872).

    Shape: images (B, 3, H, W), padding_mask (B, H, W) bool, True where padded -> for every decoder
    layer, the last one last, `{"logits": (B, Q, num_classes + 1), "boxes": (B, Q, 4)}`

    The last logit is no-object; boxes are cxcywh in 0..1 of each image without its padding. The
    defaults are the release's DETR-R50: 41,524,768 parameters, 41,302,368 of them trained. DC5 is
    `ResNet(..., dilation=True)`.

    Args:
        num_classes: without no-object. COCO's ids as they are need 91.
        num_queries: Q, the most objects that an image can have.
        backbone: computes the map that the transformer attends to, its last. Its parameters are
            shared, but for a classifier; it stays as it is. By default the ResNet-50 of the paper:
            frozen norms, the stem and the first stage not trained.
        position: sines of the position in the unpadded image, or a learned table, added to queries
            and keys of every layer.
        width: C of the transformer, a multiple of 4 and of `heads`.
        heads, encoder_layers, decoder_layers, hidden, dropout, norm_first: see `Transformer`.
        mask_padding: keep padded pixels at zero throughout the ResNet, and derive the padding of
            the last map from that network's strides. Boxes of an image then do not depend on
            the batch it is in. Off is the release: there, padding is no longer zero after the first
            norm and leaks into the image, and the mask is resized to the nearest pixel, which moves
            boxes by about 1e-3. An attention inside the ResNet that pools over the whole map
            (squeeze and excite, CBAM's channel gate, efficient channel attention, any softmax over
            pixels) counts the zeros of the padding, and its boxes depend on the batch all the same.

    Raises:
        InputError: `mask_padding` with a backbone other than `ResNet`, or numbers that do not fit.
    """

    def __init__(
        self,
        num_classes: Count = 91,
        num_queries: Size = 100,
        backbone: Backbone | None = None,
        position: Literal["sine", "learned"] = "sine",
        width: Size = 256,
        heads: Size = 8,
        encoder_layers: Annotated[int, Range(0, 1_000)] = 6,
        decoder_layers: Layers = 6,
        hidden: Size = 2048,
        dropout: Fraction = 0.1,
        norm_first: bool = False,
        mask_padding: bool = False,
    ):
        super().__init__()
        if backbone is None:
            backbone = ResNet(50, num_classes=0, norm=FrozenBatchNorm2d, trainable_stages=3)
        if mask_padding and not isinstance(backbone, ResNet):
            raise InputError(f"DETR: mask_padding needs a ResNet, not {type(backbone).__name__}")
        if width % 4 or width % heads:
            raise InputError(f"DETR: width {width} is not a multiple of 4 and of heads {heads}")
        self.num_classes = num_classes
        self.mask_padding = mask_padding

        self.backbone = backbone.without_head()
        self.projection = nn.Conv2d(backbone.channels[-1], width, 1)
        self.position = SinePosition2d(width) if position == "sine" else LearnedPosition2d(width)
        self.queries = nn.Embedding(num_queries, width)
        self.transformer = Transformer(
            width, heads, encoder_layers, decoder_layers, hidden, dropout, norm_first
        )
        self.class_head = nn.Linear(width, num_classes + 1)
        self.box_head = BoxHead(width)

    def forward(self, images: Tensor, padding_mask: Tensor) -> list[dict[str, Tensor]]:
        features, padding = self.features(images, padding_mask)
        position = self.position(padding).to(features.dtype)
        states = self.transformer(
            features.flatten(2).mT,
            position.flatten(2).mT,
            padding.flatten(1),
            self.queries.weight,
        )
        # The heads cost nothing, and a box in bf16 is off by several pixels.
        with torch.autocast(images.device.type, enabled=False):
            states = states.to(self.class_head.weight.dtype)
            logits, boxes = self.class_head(states), self.box_head(states).sigmoid()
        return [{"logits": one, "boxes": box} for one, box in zip(logits, boxes, strict=True)]

    def features(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's last map, projected, (B, C, h, w), and its padding (B, h, w) bool."""
        if isinstance(self.backbone, ResNet) and self.mask_padding:
            stride = self.backbone.strides[-1]
            features = self.backbone.features(images, padding_mask)[-1]
            return self.projection(features), padding_mask[:, ::stride, ::stride]
        features = self.backbone.features(images)[-1]
        padding = F.interpolate(padding_mask[None].float(), features.shape[-2:])[0].bool()
        return self.projection(features), padding
