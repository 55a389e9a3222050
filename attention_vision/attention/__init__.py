"""Attention mechanisms, one per file, on one kernel.

Letters in every shape of this package: B batch, C channels or width, H W rows and columns of a map,
N tokens, Q queries, K keys, h heads, d width of a head, M side of a window.

Three contracts say where a mechanism fits:

* FeatureAttention, a factory `channels -> module` whose module maps (B, C, H, W) -> (B, C, H, W):
  SqueezeExcite, EfficientChannelAttention, ChannelGate, SpatialGate, CBAM, SelfAttention2d,
  AxialAttention2d, LocalGlobalAttention2d, DeformableSelfAttention2d, and torch.nn.Identity for
  none. Those of the softmax kind are residual and start as the identity, so that any of them can be
  put anywhere; FadeIn gives the others such a start.
* TokenAttention, a factory `width, heads -> module` whose module maps (B, N, C) -> (B, N, C):
  MultiHeadAttention; on a map row by row, without class token, WindowAttention, AxialAttention,
  LocalGlobalAttention, whose forward also takes the `grid` (H, W) of a map that is not square.
* Cross, by name, where queries look at another source: MultiHeadAttention, CrossAttention2d,
  AttentionPool, SequencePool, AttentionGate, DeformableAttention.
"""

from collections.abc import Callable

from torch import nn

from attention_vision.attention.axial import AxialAttention, AxialAttention2d
from attention_vision.attention.cbam import CBAM, ChannelGate, SpatialGate
from attention_vision.attention.cross_attention2d import CrossAttention2d
from attention_vision.attention.deformable import DeformableAttention, DeformableSelfAttention2d
from attention_vision.attention.efficient_channel import EfficientChannelAttention
from attention_vision.attention.fade_in import FadeIn
from attention_vision.attention.gate import AttentionGate
from attention_vision.attention.kernel import attend, attention_backend
from attention_vision.attention.local_global import LocalGlobalAttention, LocalGlobalAttention2d
from attention_vision.attention.multi_head import MultiHeadAttention
from attention_vision.attention.pool import AttentionPool, SequencePool
from attention_vision.attention.positions import (
    LearnedPosition,
    RelativePositionBias,
    SinePosition2d,
)
from attention_vision.attention.recording import capture, record_attention
from attention_vision.attention.self_attention2d import SelfAttention2d
from attention_vision.attention.squeeze_excite import SqueezeExcite
from attention_vision.attention.window import WindowAttention

FeatureAttention = Callable[[int], nn.Module]
TokenAttention = Callable[[int, int], nn.Module]

__all__ = [
    "CBAM",
    "AttentionGate",
    "AttentionPool",
    "AxialAttention",
    "AxialAttention2d",
    "ChannelGate",
    "CrossAttention2d",
    "DeformableAttention",
    "DeformableSelfAttention2d",
    "EfficientChannelAttention",
    "FadeIn",
    "FeatureAttention",
    "LearnedPosition",
    "LocalGlobalAttention",
    "LocalGlobalAttention2d",
    "MultiHeadAttention",
    "RelativePositionBias",
    "SelfAttention2d",
    "SequencePool",
    "SinePosition2d",
    "SpatialGate",
    "SqueezeExcite",
    "TokenAttention",
    "WindowAttention",
    "attend",
    "attention_backend",
    "capture",
    "record_attention",
]
