"""Deformable DETR, with its backbone."""

import re
from collections.abc import Mapping

from torch import Tensor

from attention_vision.checkpoints.layouts.layout import Layout
from attention_vision.checkpoints.layouts.resnet import HUGGING_FACE_RESNET, RESNET

LAYER = r"((?:en|de)coder\.\d+)"
HEAD = re.compile(r"(?:class|box)_head\.0\..*")
SAMPLING = (
    (LAYER + r"\.(self|cross)_attention\.sampling_offsets\.", r"\1.\2_attention.offsets."),
    (LAYER + r"\.(self|cross)_attention\.attention_weights\.", r"\1.\2_attention.weights."),
    (LAYER + r"\.(self|cross)_attention\.value_proj\.", r"\1.\2_attention.value."),
    (LAYER + r"\.(self|cross)_attention\.output_proj\.", r"\1.\2_attention.out."),
)
HEADS = (
    (r"class_embed\.", "class_head."),
    *(
        (rf"bbox_embed\.(\d+)\.layers\.{layer}\.", rf"box_head.\1.{2 * layer}.")
        for layer in range(3)
    ),
)
PROPOSALS = (
    (r"enc_output\.", "proposal.0."),
    (r"enc_output_norm\.", "proposal.1."),
    (r"pos_trans\.", "box_position.0."),
    (r"pos_trans_norm\.", "box_position.1."),
    (r"reference_points\.", "reference."),
)


class DeformableLayout(Layout):
    """A layout whose files may keep heads that all layers share but once."""

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = super().translate(state)
        numbers = {int(key.split(".")[1]) for key in weights if key.startswith("decoder.")}
        for key in [key for key in weights if HEAD.fullmatch(key)]:
            for number in numbers:
                weights.setdefault(key.replace(".0.", f".{number}.", 1), weights[key])
        return weights


RELEASE = DeformableLayout(
    "Deformable DETR of the official release",
    ("transformer.level_embed", "input_proj.0.0.weight"),
    (
        # The decoder of the release has the heads a second time.
        (r"transformer\.decoder\.(class|bbox)_embed\.", r"\1_embed."),
        (r"transformer\.", ""),
        (r"query_embed\.", "queries."),
        (r"level_embed", "levels.weight"),
        (r"input_proj\.", "projections."),
        *HEADS,
        *PROPOSALS,
        (r"(en|de)coder\.layers\.", r"\1coder."),
        (r"(encoder\.\d+)\.self_attn\.", r"\1.self_attention."),
        (r"(decoder\.\d+)\.cross_attn\.", r"\1.cross_attention."),
        (r"(decoder\.\d+)\.self_attn\.in_proj_", r"\1.self_attention.qkv."),
        (r"(decoder\.\d+)\.self_attn\.out_proj\.", r"\1.self_attention.out."),
        *SAMPLING,
        (LAYER + r"\.linear1\.", r"\1.feed_forward.expand."),
        (LAYER + r"\.linear2\.", r"\1.feed_forward.reduce."),
        # The norms of a decoder layer are numbered as its parts were written, not as they are run.
        (r"(encoder\.\d+)\.norm(\d)\.", r"\1.residual\2.norm."),
        (r"(decoder\.\d+)\.norm2\.", r"\1.residual1.norm."),
        (r"(decoder\.\d+)\.norm1\.", r"\1.residual2.norm."),
        (r"(decoder\.\d+)\.norm3\.", r"\1.residual3.norm."),
    ),
    backbone=r"backbone\.0\.body\.",
    backbone_renames=RESNET,
)

HUGGING_FACE = DeformableLayout(
    "Deformable DETR of Hugging Face",
    ("model.level_embed", "model.input_proj.0.0.weight"),
    (
        (r"model\.decoder\.(class|bbox)_embed\.", r"\1_embed."),
        (r"model\.", ""),
        (r"query_position_embeddings\.", "queries."),
        (r"level_embed", "levels.weight"),
        (r"input_proj\.", "projections."),
        *HEADS,
        *PROPOSALS,
        (r"(en|de)coder\.layers\.", r"\1coder."),
        (LAYER + r"\.self_attn\.", r"\1.self_attention."),
        (LAYER + r"\.encoder_attn\.", r"\1.cross_attention."),
        *SAMPLING,
        *(
            (rf"(decoder\.\d+)\.self_attention\.{theirs}_proj\.", rf"\1.self_attention.{ours}.")
            for theirs, ours in (("q", "qkv.0"), ("k", "qkv.1"), ("v", "qkv.2"))
        ),
        # out_proj, fc1 and fc2 before transformers 5, o_proj, mlp.fc1 and mlp.fc2 since.
        (r"(decoder\.\d+)\.self_attention\.o(?:ut)?_proj\.", r"\1.self_attention.out."),
        (LAYER + r"\.(?:mlp\.)?fc1\.", r"\1.feed_forward.expand."),
        (LAYER + r"\.(?:mlp\.)?fc2\.", r"\1.feed_forward.reduce."),
        (LAYER + r"\.self_attn_layer_norm\.", r"\1.residual1.norm."),
        (r"(encoder\.\d+)\.final_layer_norm\.", r"\1.residual2.norm."),
        (r"(decoder\.\d+)\.encoder_attn_layer_norm\.", r"\1.residual2.norm."),
        (r"(decoder\.\d+)\.final_layer_norm\.", r"\1.residual3.norm."),
    ),
    backbone=r"model\.backbone\.(?:conv_encoder\.)?model\.",
    backbone_renames=HUGGING_FACE_RESNET + RESNET,
)
