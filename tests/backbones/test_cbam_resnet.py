"""ResNet(50, CBAM) is the network that CBAM's authors released, and loads its weights.

The release is written here once more as a function of a state dict, after its layout
(Jongchan/attention-module, MODELS/cbam.py and model_resnet.py): the 3x3 carries the stride, maps of
7x7 are averaged, a block's CBAM stands after its last norm, before the shortcut is added.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_vision.attention import CBAM
from attention_vision.backbones import ResNet
from attention_vision.checkpoints import load_official
from attention_vision.errors import InputError

BLOCKS = (3, 4, 6, 3)
NORMS = ("weight", "bias", "running_mean", "running_var")


def released_state(seed: int, classes: int = 1000) -> dict[str, Tensor]:
    """The released keys with their shapes, drawn anew; no counters, which torch 0.4 had not."""
    shapes = {}

    def conv(name, outputs, inputs, kernel):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)

    def norm(name, channels):
        shapes.update({f"{name}.{part}": (channels,) for part in NORMS})

    def linear(name, outputs, inputs):
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs = 64
    for stage, count in enumerate(BLOCKS):
        width = 64 * 2**stage
        outputs = 4 * width
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            sizes = ((width, inputs, 1), (width, width, 3), (outputs, width, 1))
            for number, size in enumerate(sizes, start=1):
                conv(f"{name}.conv{number}", *size)
                norm(f"{name}.bn{number}", size[0])
            if block == 0:
                conv(f"{name}.downsample.0", outputs, inputs, 1)
                norm(f"{name}.downsample.1", outputs)
            linear(f"{name}.cbam.ChannelGate.mlp.1", outputs // 16, outputs)
            linear(f"{name}.cbam.ChannelGate.mlp.3", outputs, outputs // 16)
            conv(f"{name}.cbam.SpatialGate.spatial.conv", 1, 2, 7)
            norm(f"{name}.cbam.SpatialGate.spatial.bn", 1)
            inputs = outputs
    linear("fc", classes, inputs)

    torch.manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            state[key] = torch.randn(shape) * torch.Size(shape[1:]).numel() ** -0.5
        elif key.endswith((".weight", "running_var")):  # of norms
            state[key] = torch.rand(shape) + 0.5
        else:
            state[key] = torch.randn(shape) * 0.1
    return state


def released_forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding)

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def cbam(x, name):
        mlp = f"{name}.ChannelGate.mlp"
        pooled = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        scores = [linear(linear(p.flatten(1), f"{mlp}.1").relu(), f"{mlp}.3") for p in pooled]
        x = x * torch.sigmoid(scores[0] + scores[1])[:, :, None, None]
        seen = torch.cat((x.max(1, keepdim=True).values, x.mean(1, keepdim=True)), 1)
        gate = norm(conv(seen, f"{name}.SpatialGate.spatial.conv", padding=3),
                    f"{name}.SpatialGate.spatial.bn")  # fmt: skip
        return x * torch.sigmoid(gate)

    x = F.max_pool2d(norm(conv(images, "conv1", 2, 3), "bn1").relu(), 3, 2, 1)
    for stage, count in enumerate(BLOCKS):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = norm(conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2").relu()
            y = cbam(norm(conv(y, f"{name}.conv3"), f"{name}.bn3"), f"{name}.cbam")
            if not block:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return linear(F.avg_pool2d(x, 7).flatten(1), "fc")


@pytest.mark.parametrize("seed", [1, 2])
def test_it_is_the_released_network(seed, tmp_path):
    state = released_state(seed)
    checkpoint = {
        "epoch": 100,
        "arch": "resnet",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "best_prec1": torch.tensor(77.622),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
    }
    path = tmp_path / "RESNET50_CBAM.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=False)  # torch 0.4 knew no zip
    ours = load_official(ResNet(50, CBAM).eval(), path)

    images = torch.randn(1, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    label = torch.tensor([700])
    weights = {key: v.requires_grad_("running" not in key) for key, v in state.items()}
    logits = {"release": released_forward(weights, images), "ours": ours(images)}
    assert logits["release"].std() > 0.1
    largest = logits["release"].abs().max().item()
    torch.testing.assert_close(logits["ours"], logits["release"], rtol=0, atol=1e-4 * largest)

    for each in logits.values():
        F.cross_entropy(each, label).backward()
    gradients = {key: v.detach() if v.grad is None else v.grad for key, v in weights.items()}
    expected = load_official(ResNet(50, CBAM), gradients).state_dict()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - expected[key]).norm() / expected[key].norm()
        assert error < 1e-3, (key, error)


def test_it_starts_as_the_released_network():
    """Spatial gates at 1/2, their norms slow, the MLPs' biases 0 (model_resnet.py, __init__)."""
    block = ResNet(18, CBAM).stages[1][0]
    gate = block.attention.spatial
    assert gate.norm.weight == 0
    assert gate.norm.momentum == 0.01
    assert gate.norm.eps == 1e-5
    assert gate.conv.bias is None
    assert gate.conv.weight.std().item() == pytest.approx(
        (2 / 49) ** 0.5, rel=0.3
    )  # by its fan-out
    assert all(not block.attention.channel.mlp[number].bias.any() for number in (0, 2))


@pytest.mark.parametrize(
    ("model", "change", "line"),
    [
        (
            lambda: ResNet(50),
            lambda state: state,
            "CBAM-ResNet of its authors.* is not in the model",
        ),
        (
            lambda: ResNet(50, CBAM),
            lambda state: {k: v for k, v in state.items() if "layer4" not in k},
            "stages.3.0.*is missing",
        ),
    ],
)
def test_other_networks_and_half_a_state_dict_are_one_line(model, change, line):
    with pytest.raises(InputError, match=line) as error:
        load_official(model(), change(released_state(1)))
    assert "\n" not in str(error.value)
