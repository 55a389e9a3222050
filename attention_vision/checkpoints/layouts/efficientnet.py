"""EfficientNet B0 to B4 of torchvision and timm."""

from attention_vision.checkpoints.layouts.layout import Layout

STAGES = range(7)

# Torchvision's blocks are rows without names, of three parts in the first stage, which does not
# expand, and of four in the others. Its stages stand at 1 to 7 between stem and last convolution.
TORCHVISION = Layout(
    "EfficientNet of torchvision",
    ("features.0.0.weight", "features.1.0.block.1.fc1.weight", "classifier.1.weight"),
    (
        (r"features\.0\.", "stem."),
        (r"features\.8\.", "last."),
        *((rf"features\.{stage + 1}\.", f"stages.{stage}.") for stage in STAGES),
        *(
            (rf"(stages\.{stages}\.\d+\.block)\.{part}\.", rf"\1.{name}.")
            for stages, names in (
                ("0", ("depthwise", "attention", "project")),
                ("[1-6]", ("expand", "depthwise", "attention", "project")),
            )
            for part, name in enumerate(names)
        ),
        (r"(stages\.\d\.\d+\.block\.attention)\.fc1\.", r"\1.squeeze."),
        (r"(stages\.\d\.\d+\.block\.attention)\.fc2\.", r"\1.excite."),
        (r"classifier\.1\.", "head."),
    ),
)

# timm counts the norms of a block, so that their numbers mean another part in its first stage,
# whose pointwise convolution, too, projects.
PARTS = (
    ("0", (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project"))),
    (
        "[1-6]",
        (
            ("conv_pw", "bn1", "expand"),
            ("conv_dw", "bn2", "depthwise"),
            ("conv_pwl", "bn3", "project"),
        ),
    ),
)
TIMM = Layout(
    "EfficientNet of timm",
    ("conv_stem.weight", "blocks.0.0.conv_dw.weight", "conv_head.weight"),
    (
        (r"conv_stem\.", "stem.0."),
        (r"bn1\.", "stem.1."),
        (r"conv_head\.", "last.0."),
        (r"bn2\.", "last.1."),
        *(
            (rf"blocks\.({stages}\.\d+)\.{theirs}\.", rf"stages.\1.block.{part}.{place}.")
            for stages, parts in PARTS
            for conv, norm, part in parts
            for place, theirs in enumerate((conv, norm))
        ),
        (r"blocks\.(\d\.\d+)\.se\.conv_reduce\.", r"stages.\1.block.attention.squeeze."),
        (r"blocks\.(\d\.\d+)\.se\.conv_expand\.", r"stages.\1.block.attention.excite."),
        (r"classifier\.", "head."),
    ),
)
