"""Spectral normalisation from outside: every weight is at norm 1, and when its vectors move."""

import copy

import pytest
import torch
from redraw import redraw
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from attention_vision.attention import CBAM
from attention_vision.generation import (
    Discriminator,
    Generator,
    add_spectral_norm,
    frozen_spectral_norm,
    spectral_norms,
)
from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss
from attention_vision.generation.gan.spectral_norm import shared_spectral_norm


def vectors(network: nn.Module) -> dict[str, Tensor]:
    return {name: u.clone() for name, u in network.named_buffers() if name.endswith(".u")}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def exact_norms(network: nn.Module) -> dict[str, float]:
    """Largest singular value of every weight as the layers see it."""
    return {
        name: torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item()
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding)
    }


@pytest.fixture
def discriminator() -> nn.Module:
    network = redraw(Discriminator(16, width=16), 1)
    add_spectral_norm(network)
    return network


IMAGES, LABELS = torch.rand(4, 3, 16, 16) * 2 - 1, torch.tensor([0, 3, 9, 1])


@pytest.mark.parametrize("build", [Generator, Discriminator])
@pytest.mark.parametrize("start", ["orthogonal", "xavier", "redrawn"])
def test_norms_of_all_weights_are_one_after_20_passes(build, start):
    network = build(width=64, init="xavier" if start == "redrawn" else start)
    if start == "redrawn":
        redraw(network, 1)
    add_spectral_norm(network)
    inputs = torch.randn(2, 128) if build is Generator else torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for _ in range(20):
            network(inputs, LABELS[:2])
        norms = exact_norms(network.eval())
    assert len(norms) == len(vectors(network))
    for name, norm in norms.items():
        assert norm == pytest.approx(1, abs=0.05), name


def test_norms_are_near_one_after_20_steps_of_training():
    # One power step a pass lags behind Adam's first moves: other starts leave a norm beyond 1.1.
    torch.manual_seed(0)
    g, d = Generator(16, width=32, init="xavier"), Discriminator(16, width=32, init="xavier")
    add_spectral_norm(g)
    add_spectral_norm(d)
    of_g = torch.optim.Adam(g.parameters(), 1e-4, (0.0, 0.9))
    of_d = torch.optim.Adam(d.parameters(), 4e-4, (0.0, 0.9))
    for _ in range(20):
        fake = g(torch.randn(4, 128), LABELS)
        with frozen_spectral_norm(d):
            of_fake = d(fake.detach(), LABELS)
        of_d.zero_grad()
        discriminator_loss(d(IMAGES, LABELS), of_fake).backward()
        of_d.step()
        with frozen_spectral_norm(d):
            of_g.zero_grad()
            generator_loss(d(fake, LABELS)).backward()
            of_g.step()
    with torch.no_grad():
        for network in (g.eval(), d.eval()):
            for name, norm in exact_norms(network).items():
                assert norm == pytest.approx(1, abs=0.1), name


def test_every_weight_is_covered_and_class_norms_are_not():
    g = Generator(16, width=16, attention=CBAM)
    before = {name: p.clone() for name, p in g.named_parameters()}
    add_spectral_norm(g)
    add_spectral_norm(g)  # once more changes nothing
    after = dict(g.named_parameters())
    assert len(after) == len(before)
    for name, parameter in before.items():
        layer = g.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Linear | nn.Conv2d) and name.endswith(".weight"):
            name = name.replace("weight", "parametrizations.weight.original")
        assert torch.equal(after[name], parameter)
    assert "blocks.0.attention.channel.mlp.0" in spectral_norms(g)
    assert not any("norm" in name for name in spectral_norms(g))


def test_training_moves_the_vectors_and_evaluation_does_not(discriminator):
    before = vectors(discriminator)
    discriminator.eval()(IMAGES, LABELS)
    assert same(before, vectors(discriminator))
    discriminator.train()(IMAGES, LABELS)
    after = vectors(discriminator)
    assert not any(
        torch.equal(before[name], after[name]) for name in before if "linear" not in name
    )


def test_frozen_passes_leave_the_vectors_and_normalise_alike(discriminator):
    before = vectors(discriminator)
    with frozen_spectral_norm(discriminator), frozen_spectral_norm(discriminator):
        frozen = discriminator(IMAGES, LABELS)
    assert same(before, vectors(discriminator))
    # From the same vectors the next pass in training divides by the same sigmas ...
    assert torch.equal(discriminator(IMAGES, LABELS), frozen)
    assert not same(before, vectors(discriminator))  # ... and moves them again.


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_passes_that_share_the_weights_are_one_to_the_vectors(discriminator, layout):
    """As one frozen pass before one that moves them."""
    twin = copy.deepcopy(discriminator)
    discriminator.to(memory_format=layout)
    with shared_spectral_norm(discriminator), shared_spectral_norm(discriminator):
        shared = discriminator(IMAGES, LABELS).cos().sum() - discriminator(-IMAGES, LABELS).sum()
        weight = discriminator.blocks[1].conv1.weight
        assert weight is discriminator.blocks[1].conv1.weight
        assert weight.is_contiguous(memory_format=layout)
    with frozen_spectral_norm(twin):
        of_second = twin(-IMAGES, LABELS).sum()
    apart = twin(IMAGES, LABELS).cos().sum() - of_second
    torch.testing.assert_close(shared, apart)
    shared.backward()
    apart.backward()
    for one, other in zip(discriminator.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors(discriminator), vectors(twin))
    assert discriminator.blocks[1].conv1.weight is not weight


def test_an_error_inside_thaws_all_the_same(discriminator):
    before = vectors(discriminator)
    with pytest.raises(RuntimeError), frozen_spectral_norm(discriminator):
        raise RuntimeError
    discriminator(IMAGES, LABELS)
    assert not same(before, vectors(discriminator))


def test_two_passes_before_one_backward(discriminator):
    """The vectors of the first pass are gone when its gradient is taken; it needs none."""
    loss = discriminator(IMAGES, LABELS).sum() - discriminator(-IMAGES, LABELS).sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in discriminator.parameters())


def test_converged_it_equals_torch():
    torch.manual_seed(3)
    layer = nn.Conv2d(8, 12, 3)
    theirs = parametrizations.spectral_norm(copy.deepcopy(layer))
    add_spectral_norm(layer)
    for _ in range(200):
        theirs.weight, layer.weight  # noqa: B018
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer(x), theirs(x))
    for each in (layer, theirs):
        each(x).square().sum().backward()
    torch.testing.assert_close(
        layer.parametrizations.weight.original.grad, theirs.parametrizations.weight.original.grad
    )


def test_outputs_of_a_transposed_convolution_are_its_second_axis():
    layer = nn.ConvTranspose2d(4, 6, 3)
    add_spectral_norm(layer)
    assert layer.parametrizations.weight[0].u.shape == (6,)
    for _ in range(50):
        layer.weight  # noqa: B018
    norm = torch.linalg.matrix_norm(layer.weight.movedim(1, 0).flatten(1), 2)
    assert norm.item() == pytest.approx(1, abs=0.02)


def test_sigmas_for_the_log(discriminator):
    before = vectors(discriminator)
    sigmas = spectral_norms(discriminator)
    assert same(before, vectors(discriminator))
    assert len(sigmas) == len(before)
    layer = discriminator.blocks[1].conv1
    exact = torch.linalg.matrix_norm(layer.parametrizations.weight.original.flatten(1), 2)
    assert sigmas["blocks.1.conv1"] == pytest.approx(exact.item(), rel=0.05)
    assert spectral_norms(nn.Linear(2, 2)) == {}


def test_the_mode_of_the_network_holds():
    network = Discriminator(16, width=16).eval()
    add_spectral_norm(network)
    before = vectors(network)
    network(IMAGES, LABELS)
    assert same(before, vectors(network))


def test_autocast_leaves_the_step_in_single_precision(discriminator):
    expected = spectral_norms(discriminator)
    with torch.autocast("cpu", torch.bfloat16):
        assert spectral_norms(discriminator) == expected
        assert discriminator.blocks[0].conv1.weight.dtype == torch.float32


def test_a_copy_is_independent(discriminator):
    """An average of weights starts as a deep copy."""
    twin = copy.deepcopy(discriminator)
    before = vectors(twin)
    discriminator(IMAGES, LABELS)
    assert same(before, vectors(twin))
    assert parametrize.is_parametrized(twin.linear, "weight")
