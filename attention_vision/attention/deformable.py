"""Deformable attention: each query chooses the few points of each map that it reads."""

from collections.abc import Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention.linear import Linear
from attention_vision.attention.recording import capture, recording
from attention_vision.ranges import Size, checked

Shapes = Sequence[tuple[int, int]]


@checked
class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv 2010.04159, eq. 3).

    Shape: query (B, Q, C), reference (B, Q, L, 2 or 4), source (B, N, C) -> (B, Q, C), where N is
    the number of pixels of all L maps, one map after the other, each row by row.

    A query computes, by linear layers, P offsets for each head and level, and one softmax over the
    L P points of a head; there are no keys. Offsets are in pixels of the level around a reference
    point, or, around a reference box, in shares 1 / (2 P) of its width and height. A point reads
    the map by bilinear interpolation, zeros outside. As released: at the start offsets do not
    depend on the query; head i looks in direction 2 pi i / h, its p-th point p pixels away.

    `record_attention` yields (B, h, Q, L, P, 3): x and y of each point in 0..1 of its map, padding
    included, and its weight.

    Args:
        width: C, a multiple of `heads`.
        heads: h.
        levels: L, the number of maps.
        points: P, of each head in each map.

    Raises:
        ValueError: `width` is not a multiple of `heads`, or `source` is not what `shapes` say.
    """

    def __init__(self, width: Size, heads: Size, levels: Size, points: Size = 4):
        super().__init__()
        if width % heads:
            raise ValueError(
                f"DeformableAttention: width {width} is not a multiple of heads {heads}"
            )
        self.heads, self.levels, self.points = heads, levels, points
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrices anew, and let the heads look in different directions."""
        angle = torch.arange(self.heads) * (2 * pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)  # (h, 2)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1.0, self.points + 1)[:, None]
        start = (direction[:, None, None] * distance).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())
        nn.init.zeros_(self.offsets.weight)
        for layer in (self.weights, self.value, self.out):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.weights.weight)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        source: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            reference: x, y of a point, or cx, cy, w, h of a box, in 0..1 of each padded map.
            shapes: (H, W) of the L maps.
            padding_mask: (B, N) bool, True where a pixel is padding, which reads as zeros.
        """
        if sum(height * width for height, width in shapes) != source.shape[1]:
            raise ValueError(
                f"DeformableAttention: {source.shape[1]} source tokens are not maps of {[*shapes]}"
            )
        value = self.value(source)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        # A point in bf16 is off by a pixel in a map of 256: its arithmetic is in single precision.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(self.offsets.weight.dtype)
            places = self.places(query, reference.to(query.dtype), shapes)  # (B, Q, h, L, P, 2)
            weights = self.weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
            weights = weights.view(places.shape[:-1])
            if recording("points"):
                points = torch.cat((places, weights[..., None]), -1)
                capture(points.transpose(1, 2), "points")
            heads = value.to(query.dtype).unflatten(-1, (self.heads, -1))  # (B, N, h, d)
            y = sample(heads, shapes, places, weights)
        return self.out(y.to(value.dtype))

    def places(self, query: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        """Where each point reads: x, y in 0..1 of its map, (B, Q, h, L, P, 2)."""
        offsets = self.offsets(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        reference = reference[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 4:
            return reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5
        return reference + offsets / sizes_of(shapes, query)[:, None]


@checked
class DeformableSelfAttention2d(nn.Module):
    """Deformable self-attention of a map around each pixel, residual: x + gamma · y.

    Shape: (B, C, H, W) -> (B, C, H, W)

    gamma is 0 at the start, so that it can be put into a trained network without a jump. Every
    pixel reads h P points that it chooses, at a cost in O(HW), where global attention has O((HW)²).

    Args:
        channels: C.
        heads: h, a divisor of C.
        points: P, of each head.
    """

    def __init__(self, channels: Size, heads: Size = 1, points: Size = 4):
        super().__init__()
        self.attention = DeformableAttention(channels, heads, 1, points)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).mT
        reference = pixel_centers([grid], x).expand(x.shape[0], -1, -1)[:, :, None]
        y = self.attention(tokens, reference, tokens, [grid])
        return x + self.gamma * y.mT.unflatten(2, grid)


def pixel_centers(shapes: Shapes, like: Tensor) -> Tensor:
    """x, y of the pixels of all maps in 0..1 of each, (1, N, 2), in single precision at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=dtype, device=like.device) + 0.5) / height
        x = (torch.arange(width, dtype=dtype, device=like.device) + 0.5) / width
        centers.append(torch.stack((x.repeat(height), y.repeat_interleave(width)), -1))
    return torch.cat(centers)[None]


def sizes_of(shapes: Shapes, like: Tensor) -> Tensor:
    """Width and height of the maps, (L, 2)."""
    return torch.tensor([[w, h] for h, w in shapes], dtype=like.dtype, device=like.device)


def sample(value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of what the points read.

    Shape: value (B, N, h, d), places (B, Q, h, L, P, 2), weights (B, Q, h, L, P) -> (B, Q, h d)

    By `grid_sample`, whose gradient on a GPU adds in no fixed order: there, under
    `torch.use_deterministic_algorithms(True)`, by rows that are gathered.
    """
    if value.device.type != "cpu" and torch.are_deterministic_algorithms_enabled():
        return sample_by_rows(value, shapes, places, weights)
    return sample_by_grid(value, shapes, places, weights)


def sample_by_rows(value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """`sample`, as one `embedding_bag`: each query and head sums 4 L P weighted rows of `value`.

    The gradient of the rows sorts their indices and adds up each row's by itself, in order, on
    every device. What the points read is never stored.
    """
    batch, tokens, heads, _ = value.shape
    device = value.device
    sizes = sizes_of(shapes, places)  # (L, 2)
    counts = torch.tensor([height * width for height, width in shapes], device=device)
    first = (counts.cumsum(0) - counts)[:, None, None]  # token of each map's first pixel
    image = torch.arange(batch, device=device)[:, None, None, None, None, None] * tokens
    head = torch.arange(heads, device=device)[:, None, None, None]

    position = places * sizes[:, None] - 0.5  # in pixels, whole at their centers
    corner = position.floor()
    step = torch.tensor(
        [[0, 0], [1, 0], [0, 1], [1, 1]], device=device
    )  # to the four pixels around
    share = (position - corner)[..., None, :]
    share = share.where(step == 1, 1 - share)  # (B, Q, h, L, P, 4, 2)
    # Clamped, since what is far outside may be beyond the largest integer.
    pixel = corner.nan_to_num().clamp(-2, max(map(max, shapes)) + 1).long()[..., None, :] + step
    size = sizes.long()[:, None, None]
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    row = ((image + first + pixel[..., 1] * size[..., 0] + pixel[..., 0]) * heads + head) * inside
    share = (share[..., 0] * share[..., 1] * weights[..., None]).where(inside, 0)

    bags = (batch * places.shape[1] * heads, -1)
    rows, shares = row.reshape(bags), share.reshape(bags)
    y = F.embedding_bag(rows, value.flatten(0, 2), per_sample_weights=shares, mode="sum")
    return y.view(batch, -1, heads * value.shape[-1])


def sample_by_grid(value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
    """`sample`, map by map."""
    batch = value.shape[0]
    y = torch.zeros((), dtype=value.dtype, device=value.device)
    parts = value.split([height * width for height, width in shapes], 1)
    for level, (part, grid) in enumerate(zip(parts, shapes, strict=True)):
        maps = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, grid)  # (B h, d, H, W)
        points = 2 * places[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1  # (B h, Q, P, 2)
        read = F.grid_sample(maps, points, align_corners=False)  # (B h, d, Q, P)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # (B h, 1, Q, P)
        y = y + (read * weight).sum(-1)
    return y.unflatten(0, (batch, -1)).flatten(1, 2).mT
