"""Attention of a teacher as the target of the attention of a student.

A student's layer is compared with a teacher's. Heads, depths and resolutions may differ: maps are
brought to the student's shape, so that its gradient is exact.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_vision.attention import record_attention
from attention_vision.attention.recording import layers_under, missing_layer
from attention_vision.attention.token_grid import grid_of
from attention_vision.backbones import Backbone
from attention_vision.classification.loss_terms import Maps
from attention_vision.errors import InputError
from attention_vision.ranges import NonNegative, checked

SMALLEST = 1e-30  # of a weight or a sum that is divided by or goes into a logarithm


@checked
class MapTransfer:
    """Base: pairs layers, and adds weight x (mean of the pairs' distances) to the loss.

    Args:
        layers: names of the student's layers with those of the teacher's that each learns from, as
            in `record_attention`. Where none are given, every recorded layer of the student learns
            from the teacher's at the same relative depth, the last from the last.
        weight: factor in the loss.
    """

    seen = "softmax attention"  # what is compared, for messages

    def __init__(self, layers: dict[str, str] | None = None, weight: NonNegative = 1.0):
        self.layers, self.weight = layers, weight

    def check(self, student: Backbone, teacher: Backbone) -> None:
        """Raises InputError when a named layer is missing."""
        for who, network, names in (
            ("student", student, self.student_layers),
            ("teacher", teacher, self.teacher_layers),
        ):
            if missing := missing_layer(network, names):
                raise InputError(f"model.distillation.maps.layers: the {who} {missing}")

    @property
    def student_layers(self) -> list[str] | None:
        return None if self.layers is None else list(self.layers)

    @property
    def teacher_layers(self) -> list[str] | None:
        return None if self.layers is None else list(self.layers.values())

    def record(
        self, network: Backbone, layers: Sequence[str] | None
    ) -> AbstractContextManager[Maps]:
        """Records the named layers of a forward pass, with their gradients."""
        return record_attention(network, layers, gradients=True, kinds=["weights"])

    def __call__(
        self, student: Maps, teacher: Maps, prefixes: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """The weighted distance.

        Args:
            student, teacher: what `record` saw of each.
            prefixes: of the two networks: tokens before those of the map.
            size: H and W of the images.
        """
        pairs = self.pairs(student, teacher)
        distances = []
        for student_layer, teacher_layer in pairs:
            maps = student[student_layer].float(), teacher[teacher_layer].float()
            try:
                distances.append(self.distance(*maps, prefixes, size))
            except ValueError as error:
                shapes = " and ".join(str(tuple(one.shape)) for one in maps)
                raise InputError(
                    f"model.distillation.maps: the student's {student_layer} cannot learn from the"
                    f" teacher's {teacher_layer}, {shapes}: {error}"
                ) from error
        return self.weight * torch.stack(distances).mean()

    def pairs(self, student: Maps, teacher: Maps) -> list[tuple[str, str]]:
        """(student's layer, teacher's layer), every name that of one recorded map."""
        if self.layers is not None:
            return [
                (
                    self.one(student, student_layer, "student"),
                    self.one(teacher, teacher_layer, "teacher"),
                )
                for student_layer, teacher_layer in self.layers.items()
            ]
        for who, maps in (("student", student), ("teacher", teacher)):
            if not maps:
                raise InputError(f"model.distillation.maps: the {who} has no {self.seen}")
        names, count = list(teacher), len(student)
        return [
            (student_layer, names[-(-(index + 1) * len(names) // count) - 1])
            for index, student_layer in enumerate(student)
        ]

    def one(self, maps: Maps, layer: str, who: str) -> str:
        found = layers_under(layer, maps)
        if len(found) != 1:
            what = f"{len(found)} layers of {self.seen}: name one of {', '.join(found)}"
            what = what if found else f"no {self.seen}"
            raise InputError(f"model.distillation.maps.layers: the {who}'s {layer} has {what}")
        return found[0]

    def distance(
        self, student: Tensor, teacher: Tensor, prefixes: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        """Distance of one pair of maps, a scalar. Raises ValueError for maps of no common form."""
        raise NotImplementedError


@checked
class AttentionMapDistillation(MapTransfer):
    """Softmax rows of the student learn from the teacher's, (B, h, Q, K) of each.

    Heads are compared one by one where both have as many, else their means are. Tokens in front of
    the map (class, distillation) that only one of the two has are left out, and rows divided by
    what is left. The teacher's map is resized over keys and over queries; a row keeps its weights
    on the tokens in front, and sums to 1.

    Args:
        loss: `"kl"`, Σ_k T log(T / S) of a row, mean over rows, as MiniLM (Wang et al., arXiv
            2002.10957, section 3.1) does with the last layer; `"mse"`, the mean of (S - T)².
    """

    def __init__(
        self,
        layers: dict[str, str] | None = None,
        weight: NonNegative = 1.0,
        loss: Literal["kl", "mse"] = "kl",
    ):
        super().__init__(layers, weight)
        if loss not in ("kl", "mse"):
            raise InputError(f"model.distillation.maps.loss {loss!r} is neither kl nor mse")
        self.loss = loss

    def pairs(self, student: Maps, teacher: Maps) -> list[tuple[str, str]]:
        if self.layers is None:  # a pool, which has one query, is not a layer among others
            student, teacher = (
                {name: rows for name, rows in maps.items() if rows.shape[2] > 1}
                for maps in (student, teacher)
            )
        return super().pairs(student, teacher)

    def distance(
        self, student: Tensor, teacher: Tensor, prefixes: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        if (student.shape[2] == 1) != (teacher.shape[2] == 1):
            raise ValueError("a pool's one query and a map's queries have nothing in common")
        if student.shape[1] != teacher.shape[1]:
            student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
        prefix = min(prefixes)
        student, teacher = (
            without_tokens(rows, prefix, own)
            for rows, own in zip((student, teacher), prefixes, strict=True)
        )
        if len(student) != len(teacher):
            raise ValueError("attention inside windows or lines is not resized")
        teacher = resize_rows(teacher, (student.shape[2], student.shape[3]), prefix, size)
        if self.loss == "mse":
            return F.mse_loss(student, teacher)
        return F.kl_div(student.clamp_min(SMALLEST).log(), teacher, reduction="none").sum(-1).mean()


@checked
class GateTransfer(MapTransfer):
    """Gates of the student learn from the teacher's, as maps of attention transfer do.

    Spatial gates (B, 1, H, W) of any two sizes; channel gates (B, C, 1, 1) of as many channels.
    Each is divided by its Euclidean norm; the distance is the mean squared difference.

    Args:
        weight: 1,000 is the release's for activations.
    """

    seen = "gates"

    def __init__(self, layers: dict[str, str] | None = None, weight: NonNegative = 1000.0):
        super().__init__(layers, weight)

    def record(
        self, network: Backbone, layers: Sequence[str] | None
    ) -> AbstractContextManager[Maps]:
        return record_attention(network, layers, gradients=True, kinds=["gates"])

    def distance(
        self, student: Tensor, teacher: Tensor, prefixes: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        if student.shape[1] != teacher.shape[1]:
            raise ValueError("gates of as many channels are needed")
        if (student[0, 0].numel() == 1) != (teacher[0, 0].numel() == 1):
            raise ValueError("a channel gate and a spatial gate have nothing in common")
        return normalized_difference(student, teacher)


@checked
class AttentionTransfer(MapTransfer):
    """Attention transfer (Zagoruyko & Komodakis, arXiv 1612.03928, eq. 1-2) between any backbones.

    Q = Σ_c |A_c|² of a map (B, C, H, W), or of tokens (B, N, C) without those in front of the map;
    the distance is that of Q_S / ||Q_S|| and Q_T / ||Q_T||, the teacher's resized to the student's
    grid. As in the release (szagoruyko/attention-transfer) it is the mean squared difference over
    pixels and images, where the paper has the norm of the difference; the release adds layers up,
    here they are averaged.

    Args:
        layers: modules whose outputs are compared, such as `stages.1` of a ResNet, which is
            `features()[1]`, and `blocks.3` of a ViT. Where none are given, the last map of both,
            the one that is pooled.
        weight: 1,000 in the release.
    """

    seen = "activations"

    def __init__(self, layers: dict[str, str] | None = None, weight: NonNegative = 1000.0):
        super().__init__(layers, weight)

    @contextmanager
    def record(self, network: Backbone, layers: Sequence[str] | None) -> Iterator[Maps]:
        maps: Maps = {}

        def keep(name: str, output: Any) -> None:
            maps[name] = output

        def keep_pooled(pool: nn.Module, inputs: tuple[Tensor]) -> None:
            keep("pool", inputs[0])

        modules = dict(network.named_modules())
        hooks = [
            modules[name].register_forward_hook(lambda _, __, y, name=name: keep(name, y))
            for name in layers or ()
        ]
        if layers is None:
            hooks = [network.pool.register_forward_pre_hook(keep_pooled)]
        try:
            with torch.compiler.set_stance("force_eager"):  # compiled code has no hooks
                yield maps
        finally:
            for hook in hooks:
                hook.remove()

    def distance(
        self, student: Tensor, teacher: Tensor, prefixes: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        student, teacher = (
            energy(activations, prefix, size)
            for activations, prefix in zip((student, teacher), prefixes, strict=True)
        )
        return normalized_difference(student, teacher)


def energy(activations: Tensor, prefix: int, size: tuple[int, int]) -> Tensor:
    """Σ_c |A_c|² (eq. 1, p = 2). Shape: (B, C, H, W) or (B, prefix + N, C) -> (B, 1, H, W)"""
    if activations.ndim == 4:
        return activations.square().sum(1, keepdim=True)
    if activations.ndim != 3:
        raise ValueError("activations are (B, C, H, W) or (B, N, C)")
    sums = activations[:, prefix:].square().sum(2)
    return sums.unflatten(1, grid_of(sums.shape[1], size))[:, None]


def normalized_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps over their norms.

    Shape: (B, C, H, W), (B, C, H', W') -> ()
    """
    if student.shape[2:] != teacher.shape[2:]:
        teacher = F.interpolate(teacher, student.shape[2:], mode="bilinear", antialias=True)
    student, teacher = (F.normalize(x.flatten(1)) for x in (student, teacher))
    return F.mse_loss(student, teacher)


def without_tokens(rows: Tensor, kept: int, prefix: int) -> Tensor:
    """(B, h, Q, K) without the tokens kept..prefix - 1, rows divided by what is left.

    They are keys; in self-attention, where Q = K, they are queries as well.
    """
    if kept == prefix:
        return rows
    if rows.shape[2] == rows.shape[3]:
        rows = torch.cat((rows[:, :, :kept], rows[:, :, prefix:]), 2)
    rows = torch.cat((rows[..., :kept], rows[..., prefix:]), 3)
    return rows / rows.sum(-1, keepdim=True).clamp_min(SMALLEST)


def resize_rows(rows: Tensor, shape: tuple[int, int], prefix: int, size: tuple[int, int]) -> Tensor:
    """Resize a map of attention over its queries and its keys.

    Shape: (B, h, Q, K) -> (B, h, *shape)

    A row's weight on the grid of keys is spread over the new grid, its sum kept; a row between
    two queries is their mean. The first `prefix` tokens stay as they are.
    """
    first = prefix if rows.shape[2] == rows.shape[3] else 0  # of queries
    if rows.shape[3] != shape[1]:
        before, grid = rows[..., :prefix], rows[..., prefix:]
        spread = resize_grid(grid, shape[1] - prefix, size)
        total = grid.sum(-1, keepdim=True)
        spread = spread * (total / spread.sum(-1, keepdim=True).clamp_min(SMALLEST))
        rows = torch.cat((before, spread), 3)
    if rows.shape[2] != shape[0]:
        before, grid = rows[:, :, :first], rows[:, :, first:]
        grid = resize_grid(grid.mT, shape[0] - first, size).mT
        rows = torch.cat((before, grid), 2)
    return rows


def resize_grid(grid: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Resize maps that lie row by row in an image's proportions. Shape: (..., N) -> (..., count)"""
    old, new = grid_of(grid.shape[-1], size), grid_of(count, size)
    images = grid.reshape(-1, 1, *old)
    images = F.interpolate(images, new, mode="bilinear", antialias=True)
    return images.reshape(*grid.shape[:-1], count)
