"""CCT, CVT and ViT-Lite against the released code written once more, and by their sizes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from attention_vision.attention import (
    AttentionPool,
    AxialAttention,
    LocalGlobalAttention,
    SequencePool,
    WindowAttention,
    attention_backend,
)
from attention_vision.backbones import CCT, ClassToken, ConvTokenizer, PatchTokenizer
from attention_vision.checkpoints import load_official
from attention_vision.errors import InputError

ViTLite = partial(CCT, tokenizer=PatchTokenizer, pool=ClassToken)
CVT = partial(CCT, tokenizer=PatchTokenizer)
CCT_3x2 = partial(CCT, tokenizer=partial(ConvTokenizer, layers=2))
KINDS = {"CCT-3x1": CCT, "CCT-3x2": CCT_3x2, "CVT-4": CVT, "ViT-Lite-4": ViTLite}

C, DEPTH, HEADS, CLASSES, SIDE = 32, 2, 4, 5, 16


def released_weights(kind: str, seed: int) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of SHI-Labs/Compact-Transformers."""
    patches, pooled = kind.endswith("-4"), not kind.startswith("ViT")
    shapes = {"classifier.norm.weight": (C,), "classifier.norm.bias": (C,)}
    if patches:
        shapes |= {"conv_layers.0.0.weight": (C, 3, 4, 4), "conv_layers.0.0.bias": (C,)}
    elif kind == "CCT-3x1":
        shapes |= {"conv_layers.0.0.weight": (C, 3, 3, 3)}
    else:
        shapes |= {"conv_layers.0.0.weight": (64, 3, 3, 3)}
        shapes |= {"conv_layers.1.0.weight": (C, 64, 3, 3)}
    if pooled:
        shapes |= {"attention_pool.weight": (1, C), "attention_pool.bias": (1,)}
    else:
        shapes |= {"class_emb": (1, 1, C)}
    tokens = (SIDE // 2) ** 2 if kind == "CCT-3x1" else (SIDE // 4) ** 2
    shapes |= {"positional_emb": (1, tokens + (not pooled), C)}
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.{norm}.{part}": (C,) for norm in ("pre_norm", "norm1")
                   for part in ("weight", "bias")}  # fmt: skip
        shapes |= {f"blocks.{i}.self_attn.qkv.weight": (3 * C, C)}
        for name, out, into in (
            ("self_attn.proj", C, C),
            ("linear1", 2 * C, C),
            ("linear2", C, 2 * C),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
    shapes |= {"fc.weight": (CLASSES, C), "fc.bias": (CLASSES,)}

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        owner = "tokenizer" if name.startswith("conv") else "classifier"
        key = name if name.startswith("classifier.") else f"{owner}.{name}"
        fan_in = max(1, torch.Size(shape[1:]).numel()) if len(shape) > 1 else 100
        state[key] = torch.randn(shape, generator=generator, dtype=torch.float64) * fan_in**-0.5
        if "norm" in name and name.endswith("weight"):
            state[key] += 1
    return {key: value.requires_grad_() for key, value in state.items()}


def released(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The release's forward pass in evaluation, from src/utils/tokenizer.py and transformers.py."""

    def layer(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[
            f"{name}.bias"
        ]

    x = images
    for i in (0, 1):
        key = f"tokenizer.conv_layers.{i}.0"
        if f"{key}.bias" in state:
            x = F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], stride=4)
        elif f"{key}.weight" in state:
            x = F.max_pool2d(F.conv2d(x, state[f"{key}.weight"], padding=1).relu(), 3, 2, 1)
    x = x.flatten(2).transpose(1, 2)
    if "classifier.class_emb" in state:
        x = torch.cat((state["classifier.class_emb"].expand(len(x), -1, -1), x), 1)
    x = x + state["classifier.positional_emb"]
    for i in range(DEPTH):
        block = f"classifier.blocks.{i}"
        qkv = layer(norm(x, f"{block}.pre_norm"), f"{block}.self_attn.qkv")
        heads = []
        for h in range(HEADS):
            q, k, v = (
                qkv[..., part * C + h * C // HEADS : part * C + (h + 1) * C // HEADS]
                for part in range(3)
            )
            heads.append((q @ k.transpose(1, 2) * (C // HEADS) ** -0.5).softmax(-1) @ v)
        x = norm(x + layer(torch.cat(heads, -1), f"{block}.self_attn.proj"), f"{block}.norm1")
        x = x + layer(F.gelu(layer(x, f"{block}.linear1")), f"{block}.linear2")
    x = norm(x, "classifier.norm")
    if "classifier.class_emb" in state:
        x = x[:, 0]
    else:
        x = (layer(x, "classifier.attention_pool").softmax(1).transpose(1, 2) @ x)[:, 0]
    return layer(x, "classifier.fc")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_the_released_code(kind, seed):
    state = released_weights(kind, seed)
    make = partial(KINDS[kind], SIDE, C, DEPTH, HEADS, CLASSES)
    ours = load_official(make().double(), state).eval()
    images = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    labels = torch.tensor([0, 4, 2])
    expected, logits = released(state, images), ours(images)
    assert expected.std() > 0.1
    assert (logits - expected).abs().max() <= 1e-9 * expected.abs().max()

    for y in (expected, logits):
        F.cross_entropy(y, labels).backward()
    gradients = {key: weight.grad for key, weight in state.items()}
    gradients = load_official(make().double(), gradients).state_dict()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[key]).norm() / gradients[key].norm()
        assert error < 1e-9, (key, error)


@pytest.mark.parametrize(
    ("make", "parameters", "macs"),
    [
        (CCT, 3.76, 1.19),
        (CCT_3x2, 3.85, 0.29),
        (CVT, 3.72, 0.25),
        (ViTLite, 3.72, 0.26),
    ],
)
def test_sizes_are_the_published_ones(make, parameters, macs):
    """Millions of parameters, billions of multiply-adds (2104.05704, table of CIFAR results).

    The authors' counter saw norms and pooling too, which are 0.7 % of CCT-7/3x1.
    """
    network = make().eval()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(parameters, rel=5e-3)
    with torch.no_grad(), attention_backend("eager"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=0.01)


small = partial(CCT, 16, 16, 2, 2, 3)


@pytest.mark.parametrize("position", ["learned", "sine", "none"])
@pytest.mark.parametrize("pool", [SequencePool, ClassToken, AttentionPool])
def test_other_image_sizes_and_maps(position, pool):
    network = small(position=position, pool=pool).eval()
    images = torch.randn(2, 3, 16, 24)
    assert network(images).shape == (2, 3)
    assert network.features(images)[0].shape == (2, 16, 8, 12)
    assert network.strides == (2,)
    assert network.tokens(images).shape == (2, 96 + (pool is ClassToken), 16)


def test_sine_positions_are_fixed_and_saved():
    network = small(position="sine")
    table = network.state_dict()["position.table"][0]
    assert not network.position.table.requires_grad
    torch.testing.assert_close(table[3, 4], torch.tensor(3 / 10_000 ** (4 / 16)).sin())
    torch.testing.assert_close(table[3, 5], torch.tensor(3 / 10_000 ** (4 / 16)).cos())


@pytest.mark.parametrize("kind", [WindowAttention, AxialAttention, LocalGlobalAttention])
def test_other_attention_fits(kind):
    network = small(attention=kind)
    network(torch.randn(2, 3, 16, 24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"heads": 3}, "width 16 is not a multiple of heads 3"),
        ({"depth": 0}, "depth is 0: it has to be"),
        ({"position": "relative"}, "position 'relative'"),
        ({"attention": WindowAttention, "pool": ClassToken}, "MeanPool leaves out"),
        ({"tokenizer": lambda channels, width: torch.nn.Flatten()}, "no map"),
    ],
)
def test_mistakes_are_one_line(mistake, words):
    sizes = {"image_size": 16, "width": 16, "depth": 2, "heads": 2}
    with pytest.raises(InputError, match=words) as error:
        CCT(**sizes | mistake)
    assert "\n" not in str(error.value)
