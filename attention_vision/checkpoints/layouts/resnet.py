"""ResNets: torchvision, timm (with SE), CBAM's authors, those inside Hugging Face's detectors."""

from attention_vision.checkpoints.layouts.layout import Layout

RESNET = (
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    # Stages count from 1 there and from 0 here.
    *((rf"layer{stage + 1}\.", f"stages.{stage}.") for stage in range(4)),
    (r"(stages\.\d+\.\d+)\.bn(\d)\.", r"\1.norm\2."),
    (r"(stages\.\d+\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"(stages\.\d+\.\d+)\.se\.fc1\.", r"\1.attention.squeeze."),
    (r"(stages\.\d+\.\d+)\.se\.fc2\.", r"\1.attention.excite."),
    # Its MLP opens with a module that flattens.
    (r"(stages\.\d+\.\d+)\.cbam\.ChannelGate\.mlp\.1\.", r"\1.attention.channel.mlp.0."),
    (r"(stages\.\d+\.\d+)\.cbam\.ChannelGate\.mlp\.3\.", r"\1.attention.channel.mlp.2."),
    (r"(stages\.\d+\.\d+)\.cbam\.SpatialGate\.spatial\.conv\.", r"\1.attention.spatial.conv."),
    (r"(stages\.\d+\.\d+)\.cbam\.SpatialGate\.spatial\.bn\.", r"\1.attention.spatial.norm."),
    (r"fc\.", "head."),
)

# The ResNet of Hugging Face, which counts stages, layers and convolutions from 0.
HUGGING_FACE_RESNET = (
    (r"embedder\.embedder\.convolution\.", "stem.conv."),
    (r"embedder\.embedder\.normalization\.", "stem.norm."),
    (r"encoder\.stages\.(\d)\.layers\.(\d+)\.", r"stages.\1.\2."),
    (r"(stages\.\d\.\d+)\.shortcut\.convolution\.", r"\1.shortcut.0."),
    (r"(stages\.\d\.\d+)\.shortcut\.normalization\.", r"\1.shortcut.1."),
    *(
        (rf"(stages\.\d\.\d+)\.layer\.{number}\.{theirs}\.", rf"\1.{ours}{number + 1}.")
        for number in range(3)
        for theirs, ours in (("convolution", "conv"), ("normalization", "norm"))
    ),
)

# Jongchan/attention-module, the code of CBAM. `TORCHVISION_OR_TIMM` knows its keys as well: this
# one comes first for its name in messages.
CBAM = Layout(
    "CBAM-ResNet of its authors",
    ("conv1.weight", "layer1.0.cbam.ChannelGate.mlp.1.weight"),
    RESNET,
)
TORCHVISION_OR_TIMM = Layout(
    "ResNet of torchvision or timm", ("conv1.weight", "layer1.0.conv1.weight"), RESNET
)
