"""How fast a step of SAGAN is, against the network as articles write it.

    python experiments/benchmarks/gan.py --threads 2               # CPU, 10 minutes
    python experiments/benchmarks/gan.py --clock cpu --only "16"   # where the machine is busy

A step is one of D and one of G, with Adam, at StudioGAN's sizes for 32 pixels; ours moves the
average of G as well. The peer has as many parameters and the same losses. It is written the way
that repositories beside the articles have it: blocks double before and halve behind each
convolution, attention is two `bmm` and a softmax, `torch.nn.utils.spectral_norm` (the legacy one)
on every layer, a pass of D for real and one for generated images, and gradients of D in G's step.
See `frame` for the options and for what is measured.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from frame import Row, Side, Step, main
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from attention_vision.generation import SAGAN, Discriminator, Generator
from attention_vision.generation.gan.module import MomentumFreeAdam
from attention_vision.generation.gan.scores import Unscored

Widths = tuple[int, int]  # channels of G and of D


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


class Attention(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.theta, self.phi = (conv(channels, channels // 8, 1, bias=False) for _ in range(2))
        self.g = conv(channels, channels // 2, 1, bias=False)
        self.o = conv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x).flatten(2)
        phi, g = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))
        weights = torch.bmm(theta.mT, phi).softmax(-1)
        y = torch.bmm(g, weights.mT).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(y)


class ClassNorm(nn.Module):
    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = self.scale(labels), self.shift(labels)
        return self.norm(x) * scale[..., None, None] + shift[..., None, None]


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, classes: int):
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(inputs, classes), ClassNorm(outputs, classes)
        self.conv1, self.conv2 = conv(inputs, outputs, 3), conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        y = F.interpolate(F.relu(self.norm1(x, labels)), scale_factor=2)
        y = self.conv2(F.relu(self.norm2(self.conv1(y), labels)))
        return y + self.shortcut(F.interpolate(x, scale_factor=2))


class PlainGenerator(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = spectral_norm(nn.Linear(128, width * 16))
        self.blocks = nn.ModuleList(UpBlock(width, width, classes) for _ in range(3))
        self.attention = Attention(width)
        self.norm = nn.BatchNorm2d(width)
        self.conv = conv(width, 3, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.linear(z).unflatten(1, (-1, 4, 4))
        for block in self.blocks[:2]:
            x = block(x, labels)
        x = self.blocks[2](self.attention(x), labels)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, first: bool, halve: bool):
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1, self.conv2 = conv(inputs, outputs, 3), conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        x = self.shortcut(x)
        return F.avg_pool2d(x, 2) + F.avg_pool2d(y, 2) if self.halve else x + y


class PlainDiscriminator(nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            DownBlock(width if i else 3, width, i == 0, i < 2) for i in range(4)
        )
        self.attention = Attention(width)
        self.linear = spectral_norm(nn.Linear(width, 1))
        self.embedding = spectral_norm(nn.Embedding(classes, width))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.attention(self.blocks[0](x))
        for block in self.blocks[1:]:
            x = block(x)
        x = F.relu(x).sum((2, 3))
        return self.linear(x)[:, 0] + (self.embedding(labels) * x).sum(1)


def ours(images: Tensor, labels: Tensor, widths: Widths, layout: torch.memory_format) -> Step:
    """As `SAGAN.training_step` without its loop and logs."""
    of_g, of_d = widths
    networks = Generator(32, width=of_g), Discriminator(32, width=of_d)
    module = SAGAN(*networks, scorer=Unscored())
    module = module.to(images.device).to(memory_format=layout).train()
    module.manual_backward = lambda loss: loss.backward()
    of_g = MomentumFreeAdam(module.generator.parameters(), lr=1e-4, fused=True)
    of_d = MomentumFreeAdam(module.discriminator.parameters(), lr=4e-4, fused=True)
    images = images.to(memory_format=layout)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            module.generator.requires_grad_(False)
            module._discriminator_losses([(images, labels)])
            of_d.step()
            of_d.zero_grad()
            module.generator.requires_grad_(True)
            module.discriminator.requires_grad_(False)
            module._generator_losses(len(images))
            of_g.step()
            of_g.zero_grad()
            module.discriminator.requires_grad_(True)
            module._average_generator(0.999)

    return step


def theirs(images: Tensor, labels: Tensor, widths: Widths, layout: torch.memory_format) -> Step:
    device = images.device
    of_g, of_d = widths
    g, d = (
        network.to(device).to(memory_format=layout).train()
        for network in (PlainGenerator(of_g, 10), PlainDiscriminator(of_d, 10))
    )
    mine = Generator(32, width=of_g), Discriminator(32, width=of_d)
    assert [sum(p.numel() for p in one.parameters()) for one in (g, d)] == [
        sum(p.numel() for p in one.parameters()) for one in mine
    ]
    of_g, of_d = (
        torch.optim.Adam(network.parameters(), lr, (0.0, 0.9), fused=True)
        for network, lr in ((g, 1e-4), (d, 4e-4))
    )
    images = images.to(memory_format=layout)

    def generate() -> tuple[Tensor, Tensor]:
        wanted = torch.randint(10, (len(images),), device=device)
        return g(torch.randn(len(images), 128, device=device), wanted), wanted

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda):
            fake, wanted = generate()
            loss = F.relu(1 - d(images, labels)).mean()
            loss = loss + F.relu(1 + d(fake.detach(), wanted)).mean()
            of_d.zero_grad()
            loss.backward()
            of_d.step()
            fake, wanted = generate()
            loss = -d(fake, wanted).mean()
            of_g.zero_grad()
            loss.backward()
            of_g.step()

    return step


def rows(device: str, smoke: bool) -> Iterator[Row]:
    widths = (16, 16) if smoke else (256, 128)
    for batch in (2,) if smoke else (64, 16):
        images = torch.rand(batch, 3, 32, 32, device=device) * 2 - 1
        labels = torch.randint(10, (batch,), device=device)
        sides = [
            Side(who, partial(build, images, labels, widths, layout), variant)
            for who, build in (("ours", ours), ("articles' code", theirs))
            for layout, variant in (
                (torch.contiguous_format, "contiguous"),
                (torch.channels_last, "channels_last"),
            )
        ]
        yield Row(
            f"SAGAN-32, D and G, batch {batch}", sides, images=batch,
            targets={"articles' code": 1.6}, turns=5,
        )  # fmt: skip


if __name__ == "__main__":
    main(rows)
