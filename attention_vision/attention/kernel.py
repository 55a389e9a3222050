"""The one attention kernel: softmax(q kᵀ · scale + bias) v, fused, eager or in emulated fp8."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_vision.attention.recording import capture, recording

Backend = Literal["fused", "eager", "fp8"]

_backend: Backend = "fused"  # a plain global, so that torch.compile can guard on it

FP8_MAX = 448.0  # largest finite float8_e4m3fn


@contextmanager
def attention_backend(name: Backend) -> Iterator[None]:
    """Choose how every `attend` inside the block is computed.

    * `"fused"` (the default): `scaled_dot_product_attention`, which never stores the weights
      (except, on a CPU, where a bias itself is trained: PyTorch has no kernel for its gradient).
    * `"eager"`: the product written out; the weights exist and can be looked at.
    * `"fp8"`: eager, with the weights rounded to float8_e4m3 row by row (see `quantize_rows`).
      It emulates the arithmetic to study its error; it saves neither memory nor time.

    Raises:
        ValueError: another name.
    """
    global _backend
    if name not in get_args(Backend):
        raise ValueError(
            f"attention_backend: {name!r} is not one of {', '.join(get_args(Backend))}"
        )
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq. 1).

    Shape: query (..., Q, d), key (..., K, d), value (..., K, e) -> (..., Q, e)

    Args:
        bias: float, broadcasts to (..., Q, K), added to the scaled scores.
        mask: bool, broadcasts to (..., Q, K), True where the query may attend (the convention of
            `scaled_dot_product_attention`). A query that may attend to nothing gets zeros.
        scale: factor of the scores; 1 / sqrt(d) when not given, 1.0 for SAGAN.
        dropout: probability of dropping a weight; the caller passes 0 outside training.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if _backend == "fused" and not recording("weights", "logits"):
        if bias is not None and bias.requires_grad and bias.device.type == "cpu":
            return _with_trained_bias(query, key, value, bias, mask, factor, dropout)
        return _fused(query, key, value, bias, mask, factor, dropout)

    scores = (query * factor) @ key.mT
    if bias is not None:
        scores = scores + bias
    if recording("logits"):
        capture(scores if mask is None else scores.masked_fill(~mask, 0), "logits")
    weights = masked_softmax(scores, mask)
    if _backend == "fp8":
        weights = quantize_rows(weights)
    capture(weights, "weights")
    return F.dropout(weights, dropout).to(value.dtype) @ value


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    if bias is not None:
        bias = adjacent(bias.to(query.dtype))  # before the mask may make it larger
        if mask is not None:
            bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
    # The fused kernels want adjacent channels, which the pixels of a convolution's map do not have,
    # and one width for all: zeros in q and k add nothing to a score, and the columns that zeros in
    # v give are cut off again. What is added to the scores must have as many axes as they, and
    # adjacent keys. Otherwise PyTorch falls back, in silence, to storing the weights.
    query, key, value = (adjacent(x) for x in (query, key, value))
    width, value_width = query.shape[-1], value.shape[-1]
    if width < value_width:
        query, key = (F.pad(x, (0, value_width - width)) for x in (query, key))
    elif value_width < width:
        value = F.pad(value, (0, width - value_width))
    added = mask if bias is None else bias
    if added is not None:
        added = adjacent(added[(None,) * (query.ndim - added.ndim)])
    output = F.scaled_dot_product_attention(query, key, value, added, dropout, scale=scale)
    if bias is not None and mask is not None:
        output = output * mask.any(-1, keepdim=True)
    return output[..., :value_width]


def _with_trained_bias(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention on a CPU, where the fused kernel has no gradient of the bias.

    `scaled_dot_product_attention` falls back to this product as well, and searches each row for
    keys that may be attended to: a sixth to two fifths more time for windows of 49 tokens. The
    scores are changed in place: nothing but the weights is kept for the gradient.
    """
    scores = ((query * scale) @ key.mT).add_(bias.to(query.dtype))
    if mask is not None:
        scores = scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    output = F.dropout(weights, dropout).to(value.dtype) @ value
    return output if mask is None else output * mask.any(-1, keepdim=True)


def adjacent(x: Tensor) -> Tensor:
    """`x`, copied where neighbours along the last axis are no neighbours in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis in at least single precision; False in `mask` gives weight 0."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if mask is None:
        return scores.softmax(-1, dtype=dtype)
    # The lowest number, not -inf: a row that may attend to nothing must not turn into NaN ...
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=dtype).masked_fill(~mask, 0)  # ... it turns into zeros


def quantize_rows(weights: Tensor) -> Tensor:
    """Round rows of attention weights as an fp8 kernel would store them.

    Shape: (..., Q, K) -> (..., Q, K)

    Each row is scaled so that its maximum becomes 448, rounded to float8_e4m3, and divided by the
    sum of the rounded row. Without a scale of its own a uniform row over 1,024 keys would round to
    zeros. Rounding moves a weight by at most 2^-4 of itself, or, below 2^-6 / 448 of the row's
    maximum where numbers are subnormal, by at most 2^-10 / 448 of that maximum. Dividing by the sum
    leaves uniform rows exact; in other rows it adds what the rounding errors have in common, at
    most as much again (1/8 in all).

    The gradient passes straight through the rounding.
    """
    scale = FP8_MAX / weights.amax(-1, keepdim=True).detach().clamp_min(1e-30)
    scaled = weights * scale
    rounded = scaled.detach().to(torch.float8_e4m3fn).to(weights.dtype)
    rounded = scaled + (rounded - scaled.detach())
    return rounded / rounded.sum(-1, keepdim=True).clamp_min(1e-30)
