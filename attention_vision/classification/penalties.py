"""Penalties on attention: on its rows' entropy, its gates, or its scores before the softmax."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from attention_vision.attention import record_attention
from attention_vision.attention.recording import Kind, layers_under, missing_layer
from attention_vision.backbones import Backbone
from attention_vision.classification.data import ClassificationData
from attention_vision.classification.loss_terms import Maps, Output, blank_image, trial
from attention_vision.errors import InputError
from attention_vision.ranges import Finite, checked

SMALLEST = 1e-30  # where a weight is 0, p log p is 0 and its gradient stays finite
RECORDED: dict[str, Kind] = {"row_entropy": "weights", "logit_l1": "logits", "gate_l1": "gates"}
CONSTANT = (
    "rows of a softmax are positive and sum to one, so that their L1 norm is constant and its"
    " gradient zero; take row_entropy or logit_l1, or gate_l1 where there are gates"
)


@checked
class AttentionPenalty:
    """Adds weight x (mean over the layers of a measure of their attention) to the loss.

    * `"row_entropy"`: -Σ_k p_k log p_k of softmax rows, mean over all rows, from 0 (all weight on
      one key) to log K (uniform). A positive weight sharpens attention; a negative one rewards
      entropy, which keeps attention from fixing on few keys.
    * `"logit_l1"`: mean |score| of the scores before the softmax, bias included; it keeps the
      softmax from saturating.
    * `"gate_l1"`: mean |gate| of SE, ECA, CBAM and spatial gates; it closes those of no use.

    `"row_l1"`, an L1 norm of softmax rows, is refused: it is the number of rows, whatever the
    weights are.

    Args:
        kind: the measure.
        weight: its factor in the loss.
        layers: names as in `record_attention`, e.g. `blocks.3`; all layers where none are given.
            Layers that are not named keep the fused path.

    Raises:
        InputError: an unknown kind, or `row_l1`.
    """

    def __init__(
        self,
        kind: Literal["row_entropy", "logit_l1", "gate_l1", "row_l1"],
        weight: Finite,
        layers: Sequence[str] | None = None,
    ):
        if kind == "row_l1":
            raise InputError(f"model.penalty.kind row_l1: {CONSTANT}")
        if kind not in RECORDED:
            raise InputError(f"model.penalty.kind {kind} is none of {', '.join(RECORDED)}")
        self.kind, self.weight, self.layers = kind, weight, layers

    def prepare(self, network: Backbone, data: ClassificationData | None) -> None:
        """Raises InputError when a named layer is missing, or has nothing of the kind."""
        if missing := missing_layer(network, self.layers):
            raise InputError(f"model.penalty.layers: the network {missing}")
        if data is None:
            return
        with (
            trial(network),
            record_attention(network, self.layers, kinds=["weights"]) as rows,
            record_attention(network, self.layers, kinds=["gates"]) as gates,
        ):
            network(blank_image(network, data))
        for layer in self.layers or [""]:
            where = f"layer {layer}" if layer else "the network"
            has_rows, has_gates = (bool(layers_under(layer, maps)) for maps in (rows, gates))
            if self.kind == "gate_l1" and has_rows and not has_gates:
                raise InputError(
                    f"model.penalty: {where} has no gates but softmax rows; {CONSTANT}"
                )
            if not (has_gates if self.kind == "gate_l1" else has_rows):
                wanted = "gates" if self.kind == "gate_l1" else "softmax attention"
                raise InputError(f"model.penalty: {where} has no {wanted} for {self.kind}")

    def record(self, network: Backbone) -> AbstractContextManager[Maps]:
        return record_attention(network, self.layers, gradients=True, kinds=[RECORDED[self.kind]])

    def __call__(self, images: Tensor, output: Output, maps: Maps) -> Tensor:
        measure = row_entropy if self.kind == "row_entropy" else mean_size
        return self.weight * torch.stack([measure(one) for one in maps.values()]).mean()


def row_entropy(rows: Tensor) -> Tensor:
    """Mean entropy of rows in nats. Shape: (..., Q, K) -> ()"""
    return -(rows * rows.clamp_min(SMALLEST).log()).sum(-1).mean()


def mean_size(values: Tensor) -> Tensor:
    """The L1 norm over the number of values. Shape: any -> ()"""
    return values.abs().mean()
