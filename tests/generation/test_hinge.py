import pytest
import torch

from attention_vision.generation.gan.hinge import discriminator_loss, generator_loss


def test_the_discriminator_wants_margins_of_one():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    expected = (0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3
    assert discriminator_loss(real, fake).item() == pytest.approx(expected)


def test_beyond_the_margin_nothing_pulls():
    real, fake = (torch.tensor(x, requires_grad=True) for x in ([1.5, 0.0], [-1.5, 0.0]))
    discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0.0, -0.5]
    assert fake.grad.tolist() == [0.0, 0.5]


def test_the_generator_wants_high_logits_without_end():
    fake = torch.tensor([-3.0, 0.5, 5.5], requires_grad=True)
    loss = generator_loss(fake)
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    assert fake.grad.tolist() == pytest.approx([-1 / 3] * 3)
