"""ViT and DeiT."""

from attention_vision.checkpoints.layouts.layout import Layout

OF_TIMM = (
    (r"cls_token$", "pool.token"),
    (r"pos_embed$", "position.table"),
    (r"patch_embed\.proj\.", "patches."),
    (r"(blocks\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"(blocks\.\d+)\.attn\.proj\.", r"\1.attention.out."),
    (r"(blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.expand."),
    (r"(blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.reduce."),
)

DISTILLED = Layout(
    "distilled DeiT of timm or the official release",
    ("dist_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    (
        *OF_TIMM,
        (r"dist_token$", "pool.distillation.token"),
        (r"head\.", "head.classes."),
        (r"head_dist\.", "head.distillation."),
    ),
)

TIMM = Layout(
    "ViT or DeiT of timm",
    ("cls_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    OF_TIMM,
)

TORCHVISION = Layout(
    "ViT of torchvision",
    ("class_token", "conv_proj.weight", "encoder.pos_embedding"),
    (
        (r"class_token$", "pool.token"),
        (r"encoder\.pos_embedding$", "position.table"),
        (r"conv_proj\.", "patches."),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"encoder\.ln\.", "norm."),
        (r"(blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
        (r"(blocks\.\d+)\.self_attention\.in_proj_", r"\1.attention.qkv."),
        (r"(blocks\.\d+)\.self_attention\.out_proj\.", r"\1.attention.out."),
        # linear_1 and linear_2 before torchvision 0.13, places in a Sequential since.
        (r"(blocks\.\d+)\.mlp\.(0|linear_1)\.", r"\1.mlp.expand."),
        (r"(blocks\.\d+)\.mlp\.(3|linear_2)\.", r"\1.mlp.reduce."),
        (r"heads\.head\.", "head."),
    ),
)

# Files on the hub have the names from before transformers 5.
LAYER = r"(?:vit|deit)\.(?:encoder\.layer|layers)\.(\d+)"
OF_HUGGING_FACE = (
    (r"(?:vit|deit)\.embeddings\.cls_token$", "pool.token"),
    (r"(?:vit|deit)\.embeddings\.position_embeddings$", "position.table"),
    (r"(?:vit|deit)\.embeddings\.patch_embeddings\.projection\.", "patches."),
    *(
        (LAYER + rf"\.attention\.(?:attention\.{theirs}|{theirs[0]}_proj)\.", ours)
        for theirs, ours in (
            ("query", r"blocks.\1.attention.qkv.0."),
            ("key", r"blocks.\1.attention.qkv.1."),
            ("value", r"blocks.\1.attention.qkv.2."),
        )
    ),
    (LAYER + r"\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attention.out."),
    (LAYER + r"\.layernorm_before\.", r"blocks.\1.norm1."),
    (LAYER + r"\.layernorm_after\.", r"blocks.\1.norm2."),
    (LAYER + r"\.(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.expand."),
    (LAYER + r"\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.reduce."),
    (r"(?:vit|deit)\.layernorm\.", "norm."),
)

HUGGING_FACE_DISTILLED = Layout(
    "distilled DeiT of Hugging Face",
    ("deit.embeddings.distillation_token", "cls_classifier.weight"),
    (
        *OF_HUGGING_FACE,
        (r"deit\.embeddings\.distillation_token$", "pool.distillation.token"),
        (r"cls_classifier\.", "head.classes."),
        (r"distillation_classifier\.", "head.distillation."),
    ),
)

HUGGING_FACE = Layout(
    "ViT of Hugging Face",
    ("vit.embeddings.cls_token", "classifier.weight"),
    (*OF_HUGGING_FACE, (r"classifier\.", "head.")),
)
