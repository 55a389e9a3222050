"""Attention that joins in training stage by stage: when, how, and after a resume."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from redraw import redraw
from torch import Tensor, nn

from attention_vision.attention import CBAM, SqueezeExcite
from attention_vision.backbones import CCT, Backbone, EfficientNet, ResNet, Swin, ViT
from attention_vision.classification import Classifier, Digits
from attention_vision.classification.progressive import (
    GateSchedule,
    ProgressiveActivation,
    attention_slots,
)
from attention_vision.errors import InputError

NETWORKS: dict[str, tuple[int, Callable[[], Backbone]]] = {  # number of stages with attention
    "ResNet": (4, lambda: ResNet(18, partial(CBAM, reduction=2), 5, width=8, stem="cifar")),
    "stages of ResNet": (
        2,
        lambda: ResNet(18, SqueezeExcite, 5, "stages", (2, 4), width=16, stem="cifar"),
    ),
    "EfficientNet": (7, lambda: EfficientNet(num_classes=5)),
    "ViT": (3, lambda: ViT(16, 8, width=16, depth=3, heads=2, num_classes=5)),
    "CCT": (2, lambda: CCT(16, width=16, depth=2, heads=2, num_classes=5)),
    "Swin": (2, lambda: Swin(16, 2, 8, (1, 2), (1, 2), window=4, num_classes=5)),
}


class Nothing(nn.Module):
    """An empty branch."""

    def forward(self, tokens: Tensor, **_: object) -> Tensor:
        return torch.zeros_like(tokens)


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_identity_before_its_turn_and_itself_after(name: str) -> None:
    stages, build = NETWORKS[name]
    network = redraw(build(), 0)
    images, state = torch.randn(2, 3, 16, 16), dict(network.state_dict())
    plain = logits(network, images)
    activation = ProgressiveActivation(network, GateSchedule(start_epoch=1))
    assert len(activation.stages) == stages
    assert network.state_dict().keys() == state.keys()
    assert torch.equal(logits(network, images), plain)  # without a training all is active

    activation.go_to(1.0)
    without = build()
    empty = Nothing() if name in ("ViT", "CCT", "Swin") else nn.Identity()
    for slot in attention_slots(without):
        without.set_submodule(slot, empty)
    without.load_state_dict(state, strict=False)
    assert torch.equal(logits(network, images), logits(without, images))
    assert not torch.equal(logits(network, images), plain)

    activation.go_to(1.0 + stages)
    assert torch.equal(logits(network, images), plain)


def test_a_closed_stage_learns_nothing_and_an_open_one_does() -> None:
    network = redraw(NETWORKS["ResNet"][1](), 0)
    activation = ProgressiveActivation(network, GateSchedule())
    activation.go_to(2.5)  # two stages are open, the third by half
    assert activation.gates.tolist() == [1, 1, 0.5, 0]
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for name, attention in attention_slots(network).items():
        learns = any(parameter.grad.abs().max() > 0 for parameter in attention.parameters())
        assert learns == (name.split(".")[1] != "3"), name


def test_the_schedule() -> None:
    steps = GateSchedule(start_epoch=2, epochs_per_stage=3, ramp=0)
    assert [steps.gates(2, epoch) for epoch in (1.99, 2, 4.99, 5)] == [
        [0, 0],
        [1, 0],
        [1, 0],
        [1, 1],
    ]
    ramps = GateSchedule(epochs_per_stage=1, ramp=4, first="high")
    assert ramps.gates(3, 3.0) == [0.25, 0.5, 0.75]
    assert ramps.gates(3, 0.0) == [0, 0, 0]
    assert ramps.gates(3, 60.0) == [1, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"start_epoch": -1}, "GateSchedule: start_epoch is -1: it has to be at least 0"),
        ({"epochs_per_stage": -1}, "GateSchedule: epochs_per_stage is -1: it has to be at least 0"),
        ({"ramp": -0.5}, "GateSchedule: ramp is -0.5: it has to be at least 0"),
        ({"first": "middle"}, "model.progressive.first"),
    ],
)
def test_numbers_out_of_range(wrong: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        GateSchedule(**wrong)


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.progressive: the network has no attention"):
        Classifier(ResNet(18, width=8, num_classes=5), progressive=GateSchedule())


class Gates(Callback):
    """The gates of every step, and those that a validation after so many steps sees."""

    def __init__(self) -> None:
        self.steps: dict[int, list[float]] = {}
        self.validations: dict[int, list[float]] = {}

    def on_before_zero_grad(self, trainer: Trainer, module: Classifier, *_: object) -> None:
        self.steps[trainer.global_step] = module.progressive.gates.tolist()

    def on_validation_start(self, trainer: Trainer, module: Classifier) -> None:
        self.validations[trainer.global_step] = module.progressive.gates.tolist()


def train(folder: Path, checkpoint: Path | None = None) -> tuple[Classifier, Gates]:
    """Two epochs of four steps, with an average of weights."""
    torch.manual_seed(3)
    network = ResNet(8, SqueezeExcite, 10, width=16, stem="cifar")
    module = Classifier(
        network,
        partial(torch.optim.AdamW, lr=1e-2),
        ema_decay=0.7,
        progressive=GateSchedule(start_epoch=0.5, epochs_per_stage=0.5, ramp=1),
    )
    gates = Gates()
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, limit_train_batches=4, limit_val_batches=1, logger=False,
        callbacks=[gates, saving], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = Digits(image_size=8, batch_size=32)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module, gates


def test_gates_follow_the_step_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole, gates = train(tmp_path)
    activation = whole.progressive
    expected = {s: activation.progression.gates(len(activation.stages), s / 4) for s in range(8)}
    assert gates.steps == expected
    # Before training, and after each epoch's last step: the average of weights averages no gates.
    assert gates.validations == {0: expected[0], 4: expected[3], 8: expected[7]}
    assert 0 < expected[7][1] < 1

    saved = tmp_path / "step=6.ckpt"
    resumed, again = train(tmp_path, saved)
    assert again.steps == {step: expected[step] for step in (6, 7)}
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    state = torch.load(saved, weights_only=True)["state_dict"]
    measured = Classifier(whole.network, progressive=GateSchedule())
    measured.load_state_dict(state)
    assert measured.progressive.gates.tolist() == expected[5]
