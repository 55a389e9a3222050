"""SAGAN's networks: sizes, slots, the released layout step by step, and what they refuse."""

import pytest
import torch
from naive_sagan import Naive, discriminator, generator
from redraw import redraw
from torch import Tensor, nn

from attention_vision.attention import (
    CBAM,
    AxialAttention2d,
    EfficientChannelAttention,
    LocalGlobalAttention2d,
    SelfAttention2d,
    SqueezeExcite,
    record_attention,
)
from attention_vision.errors import InputError
from attention_vision.generation import (
    Discriminator,
    Generator,
    ResidualBlock2d,
    add_spectral_norm,
    frozen_spectral_norm,
)
from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss

SIZES = {16: {"width": 16}, 32: {"width": 16}, 64: {"width": 64}, 128: {"width": 64}}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(images: int = 3, latent: int = 128, classes: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(images, latent), torch.randint(classes, (images,))


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|"""
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


# "Number of parameters" in StudioGAN's logs (4718b41, logs/CIFAR10, TINY_IMAGENET and IMAGENET).
@pytest.mark.parametrize(
    ("size", "classes", "attention", "side", "of_generator", "of_discriminator"),
    [
        (32, 10, SelfAttention2d, None, 4_386_308, 1_075_586),  # mimicry's too
        (32, 10, SelfAttention2d, 8, 4_386_308, 1_075_586),  # mimicry's place in D
        (32, 10, nn.Identity, None, 4_304_387, 1_055_105),
        (64, 200, SelfAttention2d, None, 13_387_396, 19_752_642),
        (128, 1000, SelfAttention2d, 64, 42_017_412, 39_448_258),
    ],
)
def test_as_many_parameters_as_released_networks(
    size, classes, attention, side, of_generator, of_discriminator
):
    slot = {"attention": attention, "attention_at": side and (side,), "init": "xavier"}
    g = Generator(size, classes, **slot)
    assert parameters(g) == of_generator
    del g
    d = Discriminator(size, classes, **slot)
    assert parameters(d) == of_discriminator


def test_the_release_at_128_pixels():
    """brain-research/self-attention-gan: generator_test and discriminator_test of gf_dim 64."""
    g = Generator(128, 1000, init="xavier")
    assert g.linear.weight.shape == (1024 * 4 * 4, 128)
    outputs = [block.conv2.out_channels for block in g.blocks]
    assert outputs == [1024, 512, 256, 128, 64]
    places = [type(block.attention) for block in g.blocks]
    assert places == [nn.Identity, nn.Identity, SelfAttention2d, nn.Identity, nn.Identity]
    d = Discriminator(128, 1000, init="xavier")
    assert [block.conv2.out_channels for block in d.blocks] == [64, 128, 256, 512, 1024, 1024]
    assert [block.halve for block in d.blocks] == [True] * 5 + [False]
    assert [type(block.attention) for block in d.blocks].index(SelfAttention2d) == 1
    assert isinstance(d.blocks[-1].shortcut, nn.Identity)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_classes", [0, 4])
def test_shapes_and_range(size, num_classes):
    g = Generator(size, num_classes, latent=20, **SIZES[size])
    d = Discriminator(size, num_classes, **SIZES[size])
    z, labels = noise(2, 20, 4)
    labels = labels if num_classes else None
    images = g(z, labels)
    assert images.shape == (2, 3, size, size)
    assert images.abs().max() <= 1
    assert d(images, labels).shape == (2,)


@pytest.mark.parametrize(
    "attention",
    [
        SelfAttention2d,
        CBAM,
        SqueezeExcite,
        EfficientChannelAttention,
        AxialAttention2d,
        LocalGlobalAttention2d,
        ResidualBlock2d,
        nn.Identity,
    ],
)
@pytest.mark.parametrize("side", [8, 16])
def test_every_mechanism_fits_every_slot(attention, side):
    g = Generator(32, width=16, attention=attention, attention_at=(side,))
    d = Discriminator(32, width=16, attention=attention, attention_at=(side,))
    for network in (g, d):
        assert sum(isinstance(block.attention, attention) for block in network.blocks) == (
            len(network.blocks) if attention is nn.Identity else 1
        )
        add_spectral_norm(network)
    z, labels = noise()
    d(g(z, labels), labels).sum().backward()
    assert all(p.grad is not None for p in [*g.parameters(), *d.parameters()])


def test_slots_at_several_sides():
    d = Discriminator(64, width=64, attention_at=(32, 4))
    found = [i for i, block in enumerate(d.blocks) if isinstance(block.attention, SelfAttention2d)]
    assert found == [0, 3]  # the last block keeps 4x4: only the first that makes the map has it


@pytest.mark.parametrize("channels", [16, 64, 128, 256])
def test_the_residual_block_costs_what_attention_costs(channels):
    cost = parameters(SelfAttention2d(channels))
    assert parameters(ResidualBlock2d(channels)) == pytest.approx(cost, rel=0.15)


def test_attention_is_the_identity_at_the_start():
    torch.manual_seed(1)
    g = Generator(width=16)
    plain = Generator(width=16, attention=nn.Identity)
    plain.load_state_dict(g.state_dict(), strict=False)
    assert g.blocks[1].attention.gamma == 0
    x = torch.randn(2, 16, 16, 16)
    assert torch.equal(g.blocks[1].attention(x), x)
    z, labels = noise()
    assert torch.equal(g(z, labels), plain(z, labels))


def test_softmax_over_keys_without_a_scale():
    g = redraw(Generator(width=32), 1)
    layer = g.blocks[1].attention
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(*inputs))
    with record_attention(g) as maps, torch.no_grad():
        g(*noise(2))
        query = layer.query(seen[0]).flatten(2)  # (B, 4, 256)
        key = torch.nn.functional.max_pool2d(layer.key(seen[0]), 2).flatten(2)  # (B, 4, 64)
    weights = maps["blocks.1.attention"][:, 0]
    assert weights.shape == (2, 256, 64)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 256))
    torch.testing.assert_close(weights, (query.mT @ key).softmax(-1))


@pytest.mark.parametrize(
    ("size", "doublings", "halvings", "blocks"), [(32, 3, 2, 4), (64, 4, 4, 5)]
)
def test_a_step_of_each_equals_the_released_layout(size, doublings, halvings, blocks):
    """Outputs, losses, and after Adam all weights, vectors and running statistics, in float64: in
    float32 Adam turns the gradients of biases before a batch norm, 0 but for rounding, to noise."""
    g = redraw(Generator(size, **SIZES[size]), 1).double()
    d = redraw(Discriminator(size, **SIZES[size]), 2).double()
    networks = {"g": g, "d": d}
    adam = {"betas": (0.0, 0.9)}
    for network in networks.values():
        add_spectral_norm(network)
    naive = {name: Naive(network) for name, network in networks.items()}
    ours, theirs = (
        {
            "g": torch.optim.Adam(g_parameters, 1e-4, **adam),
            "d": torch.optim.Adam(d_parameters, 4e-4, **adam),
        }
        for g_parameters, d_parameters in (
            (g.parameters(), d.parameters()),
            (naive["g"].parameters.values(), naive["d"].parameters.values()),
        )
    )

    real = torch.rand(4, 3, size, size).double() * 2 - 1
    labels = torch.randint(10, (4,))
    (z, fake_labels), (z2, fake_labels2) = ((z.double(), y) for z, y in (noise(4), noise(4)))

    fake = g(z, fake_labels).detach()
    with frozen_spectral_norm(d):
        of_fake = d(fake, fake_labels)
    loss_d = discriminator_loss(d(real, labels), of_fake)
    loss_d.backward()
    ours["d"].step()
    with frozen_spectral_norm(d):
        loss_g = generator_loss(d(g(z2, fake_labels2), fake_labels2))
    loss_g.backward()
    ours["g"].step()

    def judge(x: Tensor, labels: Tensor, move: bool) -> Tensor:
        return discriminator(naive["d"], x, labels, blocks, halvings, move)

    naive_fake = generator(naive["g"], z, fake_labels, doublings).detach()
    naive_of_fake = judge(naive_fake, fake_labels, False)
    naive_d = torch.relu(1 - judge(real, labels, True)).mean()
    naive_d = naive_d + torch.relu(1 + naive_of_fake).mean()
    naive_d.backward()
    theirs["d"].step()
    naive_g = -judge(generator(naive["g"], z2, fake_labels2, doublings), fake_labels2, False).mean()
    naive_g.backward()
    theirs["g"].step()

    torch.testing.assert_close(fake, naive_fake)
    torch.testing.assert_close(of_fake, naive_of_fake)
    torch.testing.assert_close(loss_d, naive_d)
    torch.testing.assert_close(loss_g, naive_g)
    for name, network in networks.items():
        after, expected = Naive(network), naive[name]
        for kind in ("parameters", "u", "running"):
            pairs = vars(expected)[kind]
            assert vars(after)[kind].keys() == pairs.keys()
            for key, tensor in pairs.items():
                assert distance(vars(after)[kind][key], tensor) < 1e-6, (name, kind, key)


def test_single_precision_equals_the_released_layout():
    g, d = redraw(Generator(width=64), 1), redraw(Discriminator(width=64), 2)
    add_spectral_norm(g)
    add_spectral_norm(d)
    z, labels = noise(4)
    naive_g, naive_d = Naive(g), Naive(d)
    with torch.no_grad():
        images = g(z, labels)
        torch.testing.assert_close(images, generator(naive_g, z, labels, 3), atol=1e-4, rtol=0)
        logits = d(images, labels)
        expected = discriminator(naive_d, images, labels, 4, 2, True)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_maps_keep_channels_last_in_training_on_a_cpu(build):
    network, found = build(32, width=16), []
    add_spectral_norm(network)  # whose weights look contiguous: maps of two formats are copied
    for block in network.blocks:
        for part in (block, block.conv1, block.conv2, block.shortcut):
            part.register_forward_hook(lambda part, given, out: found.append(out))
    given = noise() if build is Generator else (torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2]))
    network(*given)
    assert len(found) == 4 * len(network.blocks)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in found)


def test_peers_upsample_and_cut_the_shortcut_otherwise():
    """What mimicry (both) and StudioGAN (the second) do differently changes the result."""
    z, labels = noise()
    g, smooth = Generator(width=16), Generator(width=16, upsampling="bilinear")
    smooth.load_state_dict(g.state_dict())
    assert not torch.allclose(g(z, labels), smooth(z, labels), atol=1e-2)

    d, cut = Discriminator(width=16), Discriminator(width=16, rectified_shortcut=True)
    cut.load_state_dict(d.state_dict())
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert not torch.allclose(d(images, labels), cut(images, labels), atol=1e-2)
    # The first block's shortcut starts at the images, which no ReLU may cut.
    assert torch.equal(d.blocks[0](images), cut.blocks[0](images))
    x = torch.randn(3, 16, 16, 16)
    y = d.blocks[1](x) - d.blocks[1].shortcut(d.blocks[1]._shrink(x))
    y = y + d.blocks[1].shortcut(d.blocks[1]._shrink(x.relu()))
    torch.testing.assert_close(cut.blocks[1](x), y)


@pytest.mark.parametrize("init", ["orthogonal", "xavier"])
def test_starts(init):
    d = Discriminator(width=32, init=init)
    layers = [layer for layer in d.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert all(not layer.bias.any() for layer in layers if layer.bias is not None)
    gram = d.blocks[1].conv1.weight.flatten(1)
    gram = gram @ gram.T
    if init == "orthogonal":
        torch.testing.assert_close(gram, torch.eye(32), atol=1e-5, rtol=0)
    else:
        query = d.blocks[0].attention.query.weight
        assert 0.9 < query.abs().max().item() / (6 / (32 + 4)) ** 0.5 <= 1
        rows = gram.diagonal().mean().item()  # 9 · 32 entries of variance 2 / (9 · 32 + 9 · 32)
        assert rows == pytest.approx(1, rel=0.1)


class FromZero(nn.Conv2d):
    """Starts as the identity through a weight of zeros."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_weight_of_zeros_stays_and_can_be_trained():
    d = Discriminator(width=16, attention=FromZero)
    add_spectral_norm(d)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    optimizer = torch.optim.Adam(d.parameters(), 1e-3)
    assert not d.blocks[0].attention.weight.any()
    for _ in range(2):
        d(images, labels).sum().backward()
        optimizer.step()
    weight = d.blocks[0].attention.weight
    assert weight.isfinite().all()
    assert weight.any()


def test_unconditional_networks_do_not_look_at_labels():
    g, d = Generator(width=16, num_classes=0), Discriminator(width=16, num_classes=0)
    z, labels = noise()
    assert torch.equal(g(z, labels + 50), g(z))
    assert torch.equal(d(g(z), labels + 50), d(g(z)))


def test_classes_and_images_of_a_batch_matter_and_are_independent():
    g, d = redraw(Generator(width=16), 1).eval(), redraw(Discriminator(width=16), 2).eval()
    z, _ = noise(2)
    first, second = torch.tensor([3, 1]), torch.tensor([3, 2])
    a, b = g(z, first), g(z, second)
    torch.testing.assert_close(a[0], b[0])
    assert not torch.allclose(a[1], b[1], atol=1e-3)
    a, b = d(a, first), d(a, second)
    torch.testing.assert_close(a[0], b[0])
    assert not torch.allclose(a[1], b[1], atol=1e-3)


def test_state_dict_round_trip():
    z, labels = noise()
    for build, inputs in ((Generator, z), (Discriminator, torch.rand(3, 3, 32, 32))):
        first, second = redraw(build(width=16), 1), build(width=16)
        for network in (first, second):
            add_spectral_norm(network)
        first(inputs, labels)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.eval()(inputs, labels), second.eval()(inputs, labels))


def test_compiled_and_exported_code_does_not_look_at_the_numbers_of_labels(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    network = Generator(16, num_classes=3, latent=4, width=4).eval()
    with pytest.raises(IndexError):  # of the indexing itself
        network(torch.randn(2, 4), torch.tensor([0, 3]))


def test_bf16_autocast():
    g, d = Generator(width=16), Discriminator(width=16)
    add_spectral_norm(g)
    add_spectral_norm(d)
    z, labels = noise(8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = d(g(z, labels), labels)
        loss = generator_loss(logits)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in [*g.parameters(), *d.parameters()])
    torch.testing.assert_close(logits.float(), d(g(z, labels), labels), atol=0.3, rtol=0.1)


@pytest.mark.parametrize("build", [Generator, Discriminator])
@pytest.mark.parametrize("size", [8, 24, 30, 48, 100])
def test_a_size_that_is_no_power_of_two_times_four(build, size):
    with pytest.raises(InputError, match=rf"^{build.__name__}: size {size} is not .* 128 \.\.\.$"):
        build(size)


@pytest.mark.parametrize("build", [Generator, Discriminator])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width is 0: it has to be"),
        ({"size": 64, "width": 40}, "width 40 is not a multiple of 16; at 64 pixels"),
        ({"width": 16, "attention_at": (12,)}, "attention_at 12, but at size 32 .* sides .*16"),
        ({"width": 16, "attention": nn.Flatten}, "attention Flatten does not map .* to itself"),
        ({"width": 16, "init": "he"}, "init 'he' is neither orthogonal nor xavier"),
    ],
)
def test_what_does_not_fit_is_one_line(build, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        build(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are missing; it has 4 classes"),
        ([0, 4], "label 4 is outside its classes, 0 to 3"),
        ([-1, 2], "label -1 is outside its classes, 0 to 3"),
    ],
)
@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_labels_outside_the_classes(build, labels, message):
    network = build(16, num_classes=4, width=16)
    inputs = torch.randn(2, 128) if build is Generator else torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match=f"^{build.__name__}: {message}"):
        network(inputs, None if labels is None else torch.tensor(labels))
