"""CCT, CVT and ViT-Lite of the authors' release (SHI-Labs/Compact-Transformers)."""

from attention_vision.checkpoints.layouts.layout import Layout

BLOCK = r"classifier\.(blocks\.\d+)"
CLASSIFIER = (
    (r"classifier\.class_emb$", "pool.token"),
    (r"classifier\.attention_pool\.weight$", "pool.query"),
    (r"classifier\.positional_emb$", "position.table"),
    (BLOCK + r"\.norm1\.", r"\1.norm2."),
    (BLOCK + r"\.pre_norm\.", r"\1.norm1."),
    (BLOCK + r"\.self_attn\.qkv\.", r"\1.attention.qkv."),
    (BLOCK + r"\.self_attn\.proj\.", r"\1.attention.out."),
    (BLOCK + r"\.linear1\.", r"\1.mlp.expand."),
    (BLOCK + r"\.linear2\.", r"\1.mlp.reduce."),
    (r"classifier\.norm\.", "norm."),
    (r"classifier\.fc\.", "head."),
)
POOL_BIAS = r"classifier\.attention_pool\.bias"  # it cancels in the softmax

RELEASE = Layout(
    "CCT of the official release",
    ("tokenizer.conv_layers.0.0.weight", "classifier.blocks.0.self_attn.qkv.weight"),
    ((r"tokenizer\.conv_layers\.(\d)\.0\.", r"tokenizer.\1.0."), *CLASSIFIER),
    buffers=POOL_BIAS,
)

# Patches are projected with a bias, convolutions have none.
PATCHES = Layout(
    "CVT or ViT-Lite of the official release",
    ("tokenizer.conv_layers.0.0.bias", "classifier.blocks.0.self_attn.qkv.weight"),
    ((r"tokenizer\.conv_layers\.0\.0\.", "tokenizer."), *CLASSIFIER),
    buffers=POOL_BIAS,
)
