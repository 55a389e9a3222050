"""EfficientNet B0 to B4 and Lite0 to Lite4 of torchvision, timm and efficientnet_pytorch."""

import re
from collections.abc import Mapping

from torch import Tensor

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


class Numbered(Layout):
    """A layout whose blocks are numbered through all stages.

    A stage begins with the block whose output has other channels than its input.
    """

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        places: dict[str, str] = {}
        stage, index = -1, 0
        for number in map(str, range(len(state))):
            start = f"_blocks.{number}."
            if f"{start}_project_conv.weight" not in state:
                break
            expand = state.get(f"{start}_expand_conv.weight")
            depthwise = state[f"{start}_depthwise_conv.weight"]  # the first stage does not expand
            inputs = len(depthwise) if expand is None else expand.shape[1]
            if inputs != len(state[f"{start}_project_conv.weight"]):
                stage, index = stage + 1, 0
            places[number] = f"{stage}.{index}"
            index += 1
        return super().translate(
            {
                re.sub(r"^_blocks\.(\d+)", lambda found: f"_blocks.{places[found[1]]}", key): value
                for key, value in state.items()
            }
        )


# lukemelas/EfficientNet-PyTorch, and efficientnet_lite_pytorch, which derives from it.
EFFICIENTNET_PYTORCH = Numbered(
    "EfficientNet of efficientnet_pytorch",
    ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_conv_head.weight"),
    (
        (r"_conv_stem\.", "stem.0."),
        (r"_bn0\.", "stem.1."),
        (r"_conv_head\.", "last.0."),
        (r"_bn1\.", "last.1."),
        *(
            (rf"_blocks\.(\d+\.\d+)\.{theirs}\.", rf"stages.\1.block.{ours}.")
            for theirs, ours in (
                ("_expand_conv", "expand.0"),
                ("_bn0", "expand.1"),
                ("_depthwise_conv", "depthwise.0"),
                ("_bn1", "depthwise.1"),
                ("_se_reduce", "attention.squeeze"),
                ("_se_expand", "attention.excite"),
                ("_project_conv", "project.0"),
                ("_bn2", "project.1"),
            )
        ),
        (r"_fc\.", "head."),
    ),
)
