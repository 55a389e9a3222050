"""Deformable DETR, with the parts by which DINO converges in 12 epochs."""

from math import gcd, log, pi
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from attention_vision.attention import DeformableAttention, MultiHeadAttention, SinePosition2d
from attention_vision.attention.deformable import Shapes, pixel_centers
from attention_vision.backbones import ResNet
from attention_vision.backbones.backbone import Backbone
from attention_vision.detection.denoising import Denoising
from attention_vision.detection.detr import BoxHead
from attention_vision.detection.transformer import FeedForward, Residual
from attention_vision.errors import InputError
from attention_vision.ranges import Count, Fraction, Layers, Range, Size, checked

BACKBONE_MAPS = 3  # of strides 8, 16 and 32 in a ResNet; further levels are convolved from the last
PRIOR = 0.01  # probability of each class at the start (focal loss, arXiv 1708.02002, section 3.3)
LARGEST_GROUPS = 32  # of the group norms in the release


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention over all maps, then the feed-forward network.

    Shape: x and position (B, N, C), reference (B, N, L, 2), padding (B, N) -> (B, N, C)
    """

    def __init__(
        self, width: int, heads: int, levels: int, points: int, hidden: int, dropout: float
    ):
        super().__init__()
        self.self_attention = DeformableAttention(width, heads, levels, points)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.residual1 = Residual(width, dropout, norm_first=False)
        self.residual2 = Residual(width, dropout, norm_first=False)

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, shapes: Shapes, padding: Tensor
    ) -> Tensor:
        x = self.residual1(x, self.self_attention(x + position, reference, x, shapes, padding))
        return self.residual2(x, self.feed_forward(x))


class DeformableDecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to all maps, the feed-forward network.

    Shape: x and position (B, Q, C), reference (B, Q, L, 2 or 4), memory (B, N, C), padding (B, N)
    -> (B, Q, C)
    """

    def __init__(
        self, width: int, heads: int, levels: int, points: int, hidden: int, dropout: float
    ):
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = DeformableAttention(width, heads, levels, points)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.residual1 = Residual(width, dropout, norm_first=False)
        self.residual2 = Residual(width, dropout, norm_first=False)
        self.residual3 = Residual(width, dropout, norm_first=False)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Shapes,
        padding: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        query = key = x + position
        x = self.residual1(x, self.self_attention(query, key, x, mask=mask))
        attended = self.cross_attention(x + position, reference, memory, shapes, padding)
        x = self.residual2(x, attended)
        return self.residual3(x, self.feed_forward(x))


class Pyramid(NamedTuple):
    """All maps of a batch, one after the other, N pixels in all.

    Attributes:
        source, position: (B, N, C).
        padding: (B, N) bool, True where padded.
        shapes: (H, W) of the L maps.
        valid: (B, L, 2), width and height of the image over those of the padded map.
    """

    source: Tensor
    position: Tensor
    padding: Tensor
    shapes: Shapes
    valid: Tensor


class Queries(NamedTuple):
    """Content and position (B, Q, C), and the point (B, Q, 2) or box (B, Q, 4) to look around."""

    content: Tensor
    position: Tensor
    reference: Tensor


@checked
class DeformableDETR(nn.Module):
    """Deformable DETR (Zhu et al., arXiv 2010.04159), and its refinements up to DINO.

    Shape: images (B, 3, H, W), padding_mask (B, H, W) bool, True where padded -> for every decoder
    layer, the last one last, `{"logits": (B, Q, num_classes), "boxes": (B, Q, 4)}`

    Each class is a sigmoid of its own; there is no no-object. Boxes are cxcywh in 0..1 of each
    image without its padding. The defaults are the release's network; `refine` and `two_stage` are
    its variants of 46.2 and 46.9 AP on COCO. `mixed_queries`, `look_forward_twice` and `denoising`
    are those of DINO (Zhang et al., arXiv 2203.03605, section 3), each by itself.

    As released, the padding is not kept at zero in the backbone, and counts in the group norms:
    boxes depend a little on the batch that an image is in.

    Args:
        num_classes: of objects. COCO's ids as they are need 91.
        num_queries: Q, the most objects that an image can have.
        backbone: computes the maps, see `levels`; it stays as it is. By default the ResNet-50 of
            the paper: frozen norms, the stem and the first stage not trained.
        refine: every decoder layer corrects the box of the layer before it, with heads of its own.
        two_stage: queries start from the boxes that score best among those that the encoder
            predicts for each pixel. Needs `refine`.
        mixed_queries: of these boxes queries have the position alone; what they look for is
            learned. Pixels are ranked, and trained, by their best class, not by being an object.
            Needs `two_stage`.
        look_forward_twice: the loss of a layer's boxes also trains the layer before it, from whose
            boxes they start. Needs `refine`.
        denoising: noised objects as further queries while training; see `Denoising`. Needs
            `two_stage`, whose queries start from boxes as well.
        width: C of the transformer, a multiple of 4 and of `heads`.
        levels: L, the number of maps, each half the size of the one before it. The first are the
            last L - 1 of the backbone's, three at most; those behind are convolved from its last.
            With one level there is that map alone.
        points: that a head reads in each map.
        heads, encoder_layers, decoder_layers, hidden, dropout: see `Transformer`.

    Raises:
        InputError: an option without the one that it needs, or a width that does not fit.
    """

    def __init__(
        self,
        num_classes: Count = 91,
        num_queries: Size = 300,
        backbone: Backbone | None = None,
        refine: bool = False,
        two_stage: bool = False,
        mixed_queries: bool = False,
        look_forward_twice: bool = False,
        denoising: Denoising | None = None,
        width: Size = 256,
        heads: Size = 8,
        encoder_layers: Annotated[int, Range(0, 1_000)] = 6,
        decoder_layers: Layers = 6,
        hidden: Size = 1024,
        dropout: Fraction = 0.1,
        levels: Annotated[int, Range(1, 8)] = 4,
        points: Size = 4,
    ):
        super().__init__()
        needs = {
            "two_stage": (two_stage, "refine", refine),
            "look_forward_twice": (look_forward_twice, "refine", refine),
            "mixed_queries": (mixed_queries, "two_stage", two_stage),
            "denoising": (denoising is not None, "two_stage", two_stage),
        }
        for option, (chosen, other, given) in needs.items():
            if chosen and not given:
                raise InputError(f"DeformableDETR: {option} needs {other}: set {other} to true")
        if width % 4 or width % heads:
            raise InputError(
                f"DeformableDETR: width {width} is not a multiple of 4 and of heads {heads}"
            )
        if backbone is None:
            backbone = ResNet(50, num_classes=0, norm=FrozenBatchNorm2d, trainable_stages=3)
        self.num_classes, self.num_queries, self.width = num_classes, num_queries, width
        self.refine, self.two_stage, self.mixed_queries = refine, two_stage, mixed_queries
        self.look_forward_twice, self.denoising = look_forward_twice, denoising

        self.backbone = backbone.without_head()
        self.given = min(BACKBONE_MAPS, max(1, levels - 1), len(backbone.channels))
        self.projections = projections(backbone.channels[-self.given :], levels, width)
        self.position = SinePosition2d(width, centered=True)
        self.levels = nn.Embedding(levels, width)
        layer = (width, heads, levels, points, hidden, dropout)
        self.encoder = nn.ModuleList(DeformableEncoderLayer(*layer) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DeformableDecoderLayer(*layer) for _ in range(decoder_layers))
        if two_stage:
            self.proposal = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
            self.box_position = nn.Sequential(
                nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)
            )
        else:
            self.reference = nn.Linear(width, 2)
        if mixed_queries or not two_stage:
            self.queries = nn.Embedding(num_queries, width if mixed_queries else 2 * width)
        if denoising is not None:
            self.label_embedding = nn.Embedding(num_classes, width)
        self.initialize()
        self.class_head, self.box_head = self.heads()

    def initialize(self) -> None:
        """Xavier-uniform matrices in the transformer, as released."""
        for part in (self.encoder, self.decoder):
            for parameter in part.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        for layer in (self.proposal[0], self.box_position[0]) if self.two_stage else ():
            nn.init.xavier_uniform_(layer.weight)  # pyright: ignore[reportArgumentType] linear
        if not self.two_stage:
            nn.init.xavier_uniform_(self.reference.weight)
            nn.init.zeros_(self.reference.bias)

    def heads(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """One pair of heads for each decoder layer, and for the proposals; without `refine` shared.

        Boxes start as their reference, of a width and height that the release chose.
        """
        count = len(self.decoder) + self.two_stage
        classes, boxes = [], []
        for _ in range(count if self.refine else 1):
            class_head, box_head = nn.Linear(self.width, self.num_classes), BoxHead(self.width)
            nn.init.constant_(class_head.bias, -log((1 - PRIOR) / PRIOR))
            nn.init.zeros_(box_head[-1].weight)  # pyright: ignore[reportArgumentType] linear
            nn.init.zeros_(box_head[-1].bias)  # pyright: ignore[reportArgumentType]
            classes.append(class_head)
            boxes.append(box_head)
        if not self.two_stage:
            with torch.no_grad():
                boxes[0][-1].bias[2:] = -2.0
        if not self.refine:
            classes, boxes = classes * count, boxes * count
        return nn.ModuleList(classes), nn.ModuleList(boxes)

    def compile(self, **options: Any) -> None:
        """Compiles the parts of `forward`, but the noised objects: their number varies."""
        for name in ("pyramid", "encode", "start", "decode"):
            setattr(self, name, torch.compile(getattr(self, name), **options))

    def forward(
        self,
        images: Tensor,
        padding_mask: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
    ) -> list[dict[str, Tensor]]:
        """Detect.

        Args:
            targets: `labels` and `boxes`, for `denoising` while training.

        Returns:
            as above. With `two_stage`, the last layer also has the encoder's `proposal_logits`
            (B, N, num_classes) and `proposal_boxes` (B, N, 4). With denoising, each layer has
            `noised_logits`, `noised_boxes` and `noised_objects` of the D noised queries, see
            `Denoising`.
        """
        pyramid = self.pyramid(images, padding_mask)
        memory = self.encode(pyramid)
        with torch.autocast(images.device.type, enabled=False):
            queries, proposals = self.start(memory.to(self.levels.weight.dtype), pyramid)
        count, mask, objects = queries.content.shape[1], None, None
        if self.denoising is not None and self.training and targets is not None:
            noised = self.denoising.draw(targets, self.num_classes, queries.reference)
            queries = self.with_noised(queries, noised.labels, noised.boxes)
            mask, objects = noised.mask(count), noised.objects
        outputs = []
        for logits, boxes in self.decode(queries, memory, pyramid, mask):
            output = {"logits": logits[:, :count], "boxes": boxes[:, :count]}
            if objects is not None:
                output |= {"noised_logits": logits[:, count:], "noised_boxes": boxes[:, count:]}
                output["noised_objects"] = objects
            outputs.append(output)
        outputs[-1] |= proposals
        return outputs

    def pyramid(self, images: Tensor, padding_mask: Tensor) -> Pyramid:
        """The backbone's last maps and those convolved from them, projected to the width."""
        features = self.backbone.features(images)[-self.given :]
        maps: list[Tensor] = []
        for level, projection in enumerate(self.projections):
            below = features[min(level, self.given - 1)] if level <= self.given else maps[-1]
            maps.append(projection(below))
        tokens, positions, paddings, valid = [], [], [], []
        for level, one in enumerate(maps):
            padding = F.interpolate(padding_mask[None].float(), one.shape[-2:])[0].bool()
            position = (
                self.position(padding).to(one.dtype) + self.levels.weight[level, :, None, None]
            )
            tokens.append(one.flatten(2).mT)
            positions.append(position.flatten(2).mT)
            paddings.append(padding.flatten(1))
            inside = ~padding
            valid.append(
                torch.stack((inside[:, 0].float().mean(1), inside[:, :, 0].float().mean(1)), 1)
            )
        shapes = [(one.shape[2], one.shape[3]) for one in maps]
        return Pyramid(
            torch.cat(tokens, 1), torch.cat(positions, 1), torch.cat(paddings, 1), shapes,
            torch.stack(valid, 1),
        )  # fmt: skip

    def centers(self, pyramid: Pyramid) -> Tensor:
        """x, y of every pixel in 0..1 of the image without padding, (B, N, 2)."""
        counts = [height * width for height, width in pyramid.shapes]
        valid = [
            one.expand(-1, n, -1) for one, n in zip(pyramid.valid.split(1, 1), counts, strict=True)
        ]
        return pixel_centers(pyramid.shapes, pyramid.valid) / torch.cat(valid, 1)

    def encode(self, pyramid: Pyramid) -> Tensor:
        """The memory, (B, N, C)."""
        reference = self.centers(pyramid)[:, :, None] * pyramid.valid[:, None]  # (B, N, L, 2)
        memory = pyramid.source
        for layer in self.encoder:
            memory = layer(memory, pyramid.position, reference, pyramid.shapes, pyramid.padding)
        return memory

    def start(self, memory: Tensor, pyramid: Pyramid) -> tuple[Queries, dict[str, Tensor]]:
        """The queries of the first decoder layer, and the encoder's proposals if there are any."""
        if not self.two_stage:
            position, content = self.queries.weight.expand(len(memory), -1, -1).chunk(2, -1)
            return Queries(content, position, self.reference(position).sigmoid()), {}
        logits, unscaled = self.proposals(memory, pyramid)
        score = logits.amax(-1) if self.mixed_queries else logits[..., 0]
        best = score.topk(min(self.num_queries, score.shape[1]), 1).indices
        reference = unscaled.detach().gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
        position, content = self.positions(reference)
        if self.mixed_queries:
            content = self.queries.weight[: best.shape[1]].expand_as(position)
        proposals = {"proposal_logits": logits, "proposal_boxes": unscaled.sigmoid()}
        return Queries(content, position, reference), proposals

    def proposals(self, memory: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Logits of every pixel, and its box before the sigmoid; boxes near the border are none.

        They start at the pixel, in the finest map with a twentieth of the image's sides.
        """
        levels = [
            torch.full((height * width, 2), 0.05 * 2.0**level)
            for level, (height, width) in enumerate(pyramid.shapes)
        ]
        centers = self.centers(pyramid)
        sides = torch.cat(levels).to(centers).expand_as(centers)
        boxes = torch.cat((centers, sides), -1)
        none = ~((boxes > 0.01) & (boxes < 0.99)).all(-1) | pyramid.padding
        start = boxes.logit().masked_fill(none[..., None], torch.inf)
        memory = self.proposal(memory.masked_fill(none[..., None], 0))
        return self.class_head[-1](memory), self.box_head[-1](memory) + start.to(memory.dtype)

    def positions(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Position and content (B, Q, C) of queries that start from boxes."""
        half = self.width // 2
        pair = torch.arange(half, device=boxes.device) // 2
        angle = 2 * pi * boxes[..., None] / 10_000 ** (2 * pair / half)  # (B, Q, 4, C / 2)
        waves = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(2)
        position, content = self.box_position(waves).chunk(2, -1)
        return position, content

    def with_noised(self, queries: Queries, labels: Tensor, boxes: Tensor) -> Queries:
        """The queries, and behind them those of noised objects."""
        with torch.autocast(boxes.device.type, enabled=False):
            noised = Queries(self.label_embedding(labels), self.positions(boxes)[0], boxes)
        return Queries(*(torch.cat(pair, 1) for pair in zip(queries, noised, strict=True)))

    def decode(
        self, queries: Queries, memory: Tensor, pyramid: Pyramid, mask: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits and boxes after each decoder layer."""
        x, position, reference = queries
        start = reference  # of the boxes of a layer, with its gradient where it has one
        outputs = []
        for layer, class_head, box_head in zip(
            self.decoder, self.class_head, self.box_head, strict=False
        ):
            valid = pyramid.valid.repeat(1, 1, reference.shape[-1] // 2)[:, None]
            around = reference[:, :, None] * valid  # (B, Q, L, 2 or 4), in the padded maps
            x = layer(x, position, around, memory, pyramid.shapes, pyramid.padding, mask)
            # The heads cost nothing, and a box in bf16 is off by several pixels.
            with torch.autocast(x.device.type, enabled=False):
                state = x.to(self.levels.weight.dtype)
                logits, change = class_head(state), box_head(state)
                outputs.append((logits, moved(start, change)))
                if self.refine:
                    corrected = moved(reference, change)
                    reference = corrected.detach()
                    start = corrected if self.look_forward_twice else reference
        return outputs


def projections(channels: tuple[int, ...], levels: int, width: int) -> nn.ModuleList:
    """1x1 convolutions of given maps, and 3x3 of stride 2 for levels beyond, each group-normed."""
    built = []
    for level in range(levels):
        if level < len(channels):
            convolution = nn.Conv2d(channels[level], width, 1)
        else:
            below = channels[-1] if level == len(channels) else width
            convolution = nn.Conv2d(below, width, 3, stride=2, padding=1)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType] biased
        built.append(nn.Sequential(convolution, nn.GroupNorm(gcd(LARGEST_GROUPS, width), width)))
    return nn.ModuleList(built)


def moved(reference: Tensor, change: Tensor) -> Tensor:
    """Boxes around points (..., 2) or boxes (..., 4) in 0..1, changed before the sigmoid."""
    start = reference.logit(eps=1e-5)
    return (change + F.pad(start, (0, 4 - start.shape[-1]))).sigmoid()
