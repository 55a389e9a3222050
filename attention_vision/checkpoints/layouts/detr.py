"""DETR, with its backbone."""

from attention_vision.checkpoints.layouts.layout import Layout
from attention_vision.checkpoints.layouts.resnet import HUGGING_FACE_RESNET, RESNET

DETR_LAYER = r"(transformer\.(?:en|de)coder\.\d+)"

RELEASE = Layout(
    "DETR of the official release",
    ("query_embed.weight", "input_proj.weight", "class_embed.weight"),
    (
        (r"query_embed\.", "queries."),
        (r"input_proj\.", "projection."),
        (r"class_embed\.", "class_head."),
        *((rf"bbox_embed\.layers\.{layer}\.", f"box_head.{2 * layer}.") for layer in range(3)),
        (r"transformer\.(en|de)coder\.norm\.", r"transformer.\1coder_norm."),
        (r"transformer\.(en|de)coder\.layers\.", r"transformer.\1coder."),
        (DETR_LAYER + r"\.self_attn\.in_proj_", r"\1.self_attention.qkv."),
        (DETR_LAYER + r"\.self_attn\.out_proj\.", r"\1.self_attention.out."),
        (DETR_LAYER + r"\.multihead_attn\.in_proj_", r"\1.cross_attention.qkv."),
        (DETR_LAYER + r"\.multihead_attn\.out_proj\.", r"\1.cross_attention.out."),
        (DETR_LAYER + r"\.linear1\.", r"\1.feed_forward.expand."),
        (DETR_LAYER + r"\.linear2\.", r"\1.feed_forward.reduce."),
        (DETR_LAYER + r"\.norm(\d)\.", r"\1.residual\2.norm."),
    ),
    backbone=r"backbone\.0\.body\.",
    backbone_renames=RESNET,
)

HUGGING_FACE = Layout(
    "DETR of Hugging Face",
    ("model.query_position_embeddings.weight", "class_labels_classifier.weight"),
    (
        (r"model\.query_position_embeddings\.", "queries."),
        (r"model\.input_projection\.", "projection."),
        (r"class_labels_classifier\.", "class_head."),
        *((rf"bbox_predictor\.layers\.{layer}\.", f"box_head.{2 * layer}.") for layer in range(3)),
        (r"model\.decoder\.layernorm\.", "transformer.decoder_norm."),
        (r"model\.(en|de)coder\.layers\.", r"transformer.\1coder."),
        (DETR_LAYER + r"\.self_attn\.", r"\1.self_attention."),
        (DETR_LAYER + r"\.encoder_attn\.", r"\1.cross_attention."),
        *(
            (
                DETR_LAYER + rf"\.(self|cross)_attention\.{theirs}_proj\.",
                rf"\1.\2_attention.{ours}.",
            )
            for theirs, ours in (("q", "qkv.0"), ("k", "qkv.1"), ("v", "qkv.2"))
        ),
        # out_proj, fc1 and fc2 before transformers 5, o_proj, mlp.fc1 and mlp.fc2 since.
        (DETR_LAYER + r"\.(self|cross)_attention\.o(?:ut)?_proj\.", r"\1.\2_attention.out."),
        (DETR_LAYER + r"\.(?:mlp\.)?fc1\.", r"\1.feed_forward.expand."),
        (DETR_LAYER + r"\.(?:mlp\.)?fc2\.", r"\1.feed_forward.reduce."),
        (DETR_LAYER + r"\.self_attn_layer_norm\.", r"\1.residual1.norm."),
        (DETR_LAYER + r"\.encoder_attn_layer_norm\.", r"\1.residual2.norm."),
        (r"(transformer\.encoder\.\d+)\.final_layer_norm\.", r"\1.residual2.norm."),
        (r"(transformer\.decoder\.\d+)\.final_layer_norm\.", r"\1.residual3.norm."),
    ),
    # conv_encoder only before transformers 5; the ResNet is timm's or Hugging Face's own.
    backbone=r"model\.backbone\.(?:conv_encoder\.)?model\.",
    backbone_renames=HUGGING_FACE_RESNET + RESNET,
)
