"""The schedule by its formula, across a resume; which parameters decay."""

import math
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finite_runs import MODULES
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from attention_vision.backbones import CCT, ResNet, ViT
from attention_vision.errors import InputError
from attention_vision.training.optim import (
    EpochWarmupCosine,
    StepOnPlateau,
    WarmupCosine,
    configure,
    fuse,
    horizon,
    layer_decay,
    parameter_groups,
)


def schedule(**options: float) -> WarmupCosine:
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    built = WarmupCosine(torch.optim.SGD(groups, lr=1.0), **options)
    built.horizon = lambda: (20, 5)
    return built


def step(built: WarmupCosine) -> list[float]:
    built.optimizer.step()
    built.step()
    return built.get_last_lr()


def test_warms_up_linearly_and_falls_as_a_cosine() -> None:
    built = schedule(warmup_epochs=0.8, min_lr=0.1)  # 4 of 20 steps
    rates = [built.get_last_lr(), *(step(built) for _ in range(20))]
    assert [rate[0] for rate in rates[:5]] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    for number in range(4, 21):
        fall = (1 + math.cos(math.pi * (number - 4) / 16)) / 2
        assert rates[number] == pytest.approx([0.1 + 0.9 * fall, 0.1 + 0.4 * fall])
    assert step(built) == pytest.approx([0.1, 0.1])  # stays there


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert schedule().get_last_lr() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("warmup", "rise"),
    [("harmonic", [1 / 3, 1 / 2, 1]), ("linear", [1 / 3, 2 / 3, 1])],
    ids=["compact transformers", "torch's LinearLR"],
)
def test_changes_with_the_epoch(warmup: Any, rise: list[float]) -> None:
    """Of 8 epochs 3 are warm-up."""
    weight = nn.Parameter(torch.zeros(1))
    built = EpochWarmupCosine(torch.optim.SGD([weight], lr=1.0), 3, 0.1, warmup)
    built.horizon = lambda: (32, 4)
    rates = [built.get_last_lr()[0], *(step(built)[0] for _ in range(31))]
    falls = [0.1 + 0.9 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
    assert rates == pytest.approx([rate for rate in (*rise, *falls) for _ in range(4)])


@pytest.mark.parametrize("wrong", [{"warmup_epochs": -1}, {"min_lr": -1}])
def test_negative_numbers(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="it has to be"):
        schedule(**wrong)


def test_state_continues_where_it_was_saved() -> None:
    whole, cut = schedule(warmup_epochs=1), schedule(warmup_epochs=1)
    for _ in range(7):
        step(whole), step(cut)
    state, optimizer = cut.state_dict(), cut.optimizer.state_dict()
    assert "horizon" not in state
    resumed = schedule(warmup_epochs=1)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.load_state_dict(state)
    assert [step(resumed) for _ in range(5)] == [step(whole) for _ in range(5)]


def trainer(**options: int) -> SimpleNamespace:
    defaults = {"max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 1}
    return SimpleNamespace(num_training_batches=10, **defaults | options)


def test_horizon_counts_optimiser_steps() -> None:
    assert horizon(trainer()) == (30, 10)
    assert horizon(trainer(accumulate_grad_batches=4)) == (9, 3)
    assert horizon(trainer(max_steps=7)) == (7, 10)
    with pytest.raises(InputError, match=r"trainer\.max_epochs"):
        horizon(trainer(max_epochs=-1))


def test_a_slower_group_ends_at_its_part_of_the_lowest_rate() -> None:
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": factor, "lr_factor": factor}
        for factor in (1.0, 0.5, 0.01)
    ]
    built = WarmupCosine(torch.optim.SGD(groups, lr=1.0), min_lr=0.1)
    built.horizon = lambda: (20, 5)
    for _ in range(20):
        full, half, least = step(built)
        assert (half, least) == pytest.approx((full / 2, full / 100))
    assert full == pytest.approx(0.1)


def test_rates_grow_with_depth() -> None:
    """Depth 11, with numbers of one digit and two: 0.75^12 for the patches, 1 for the head."""
    network = ViT(image_size=16, patch_size=8, width=16, depth=11, heads=2, num_classes=10)
    factors = layer_decay(network.layers(), 0.75)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, factors)
    found = {names[id(p)]: group["lr_factor"] for group in groups for p in group["params"]}
    assert found == pytest.approx(factors)
    assert found["position.table"] == found["patches.weight"] == pytest.approx(0.75**12)
    assert found["blocks.1.norm1.weight"] == pytest.approx(0.75**10)
    assert found["blocks.10.norm1.weight"] == pytest.approx(0.75)
    assert found["norm.bias"] == found["head.weight"] == 1
    assert len(groups) == 2 * 13  # in each layer what decays and what does not


@pytest.mark.parametrize(
    "network",
    [
        ViT(image_size=16, patch_size=8, width=16, depth=1, heads=2, num_classes=10),
        ResNet(depth=18, width=8, num_classes=10, stem="cifar"),
    ],
)
def test_only_weights_of_maps_decay(network: nn.Module) -> None:
    decay, spared = parameter_groups(network)
    assert spared["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decaying = {names[id(parameter)] for parameter in decay["params"]}
    linear = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert decaying == linear
    assert len(decay["params"]) + len(spared["params"]) == len(names)


def test_a_recipe_says_what_does_not_decay() -> None:
    """All parameters decay as one group; scales and biases of norms go together."""
    network = CCT(image_size=8, width=16, depth=1, heads=2, num_classes=10)
    every = {name for name, _ in network.named_parameters()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def spared(*kinds: Any) -> set[str]:
        groups = parameter_groups(network, no_weight_decay=kinds)
        assert sum(len(group["params"]) for group in groups) == len(every)
        return {names[id(p)] for g in groups if "weight_decay" in g for p in g["params"]}

    assert spared() == set()
    assert len(parameter_groups(network, no_weight_decay=())) == 1
    norms, biases, positions = spared("norms"), spared("biases"), spared("positions")
    assert positions == {"position.table"}
    assert {"norm.weight", "norm.bias", "blocks.0.norm1.bias"} <= norms
    assert {"head.bias", "blocks.0.mlp.expand.bias"} <= biases
    assert not norms & biases
    assert spared("norms", "biases", "positions") == norms | biases | positions
    assert all(
        parameter.ndim > 1
        for name, parameter in network.named_parameters()
        if name not in norms | biases | positions
    )


@pytest.mark.parametrize("name", ["classifier", "detr", "rcnn", "unet"])
def test_each_task_passes_it_on(name: str) -> None:
    module: Any = MODULES[name]()
    spared = [
        group.get("weight_decay") == 0
        for group in module.configure_optimizers()["optimizer"].param_groups
    ]
    assert any(spared)
    module.no_weight_decay = ()
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert all(group["weight_decay"] > 0 for group in groups)


def test_frozen_parameters_are_left_out() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(network)] == [1, 1]


class Rates(Callback):
    """Notes the learning rate of every step, and the scores of a module that are given."""

    def __init__(self, scores: list[float]):
        self.scores, self.rates = iter(scores), []

    def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        module.log(module.monitor, next(self.scores))


class Scored(LightningModule):
    """A module of any task, whose score is given."""

    monitor = "val/score"

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)

    def configure_callbacks(self) -> list[Callback]:
        return [StepOnPlateau()]

    def configure_optimizers(self) -> dict:
        plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0)
        return configure(self, self.network, partial(torch.optim.SGD, lr=1.0), plateau)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...


def plateau_rates(scores: list[float], folder: Path, **options: Any) -> list[float]:
    rates = Rates(scores)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=str(folder),
        callbacks=[rates], **options,
    )  # fmt: skip
    loader = DataLoader(torch.ones(2, 1))
    trainer.fit(Scored(), loader, loader)
    return rates.rates


def test_a_plateau_follows_the_score_upwards(tmp_path: Path) -> None:
    rates = plateau_rates([0.1, 0.2, 0.2, 0.1, 0.3], tmp_path, max_epochs=5)
    assert rates == [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_plateau_moves_when_there_is_a_validation(tmp_path: Path) -> None:
    rates = plateau_rates([0.2, 0.1], tmp_path, max_epochs=6, check_val_every_n_epoch=2)
    assert rates[:8] == [1] * 8
    rates = plateau_rates([0.2, 0.1, 0.0, 0.0], tmp_path, max_epochs=2, val_check_interval=0.5)
    assert rates == [1, 1, 0.5, 0.25]


def test_a_plateau_without_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="follows val/score, and this run has no validation"):
        plateau_rates([], tmp_path, max_epochs=1, limit_val_batches=0)


def trained(module: nn.Module, optimizer: Any, steps: int = 3, **given: Any) -> nn.Module:
    """A copy of a network after some steps, as `configure` builds its optimizer."""
    module = deepcopy(module)
    built: Any = configure(
        LightningModule(), module, partial(optimizer, lr=0.1, **given), partial(StepLR, step_size=1)
    )["optimizer"]
    for number in range(steps):
        torch.manual_seed(number)
        built.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        built.step()
    return module


def fused(optimizer: Any, **given: Any) -> set[bool | None]:
    built: Any = configure(
        LightningModule(), nn.Linear(2, 2), partial(optimizer, lr=0.1, **given),
        partial(StepLR, step_size=1),
    )["optimizer"]  # fmt: skip
    return {group.get("fused") for group in built.param_groups}


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        partial(torch.optim.AdamW, weight_decay=0.1),
        partial(torch.optim.Adam, betas=(0.0, 0.9)),
    ],
    ids=["sgd", "adamw", "adam"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_steps_are_those_of_the_formula(optimizer: Any, layout: Any) -> None:
    network = ResNet(8, num_classes=4, width=4, stem="cifar").to(memory_format=layout)
    one, other = trained(network, optimizer), trained(network, optimizer, foreach=False)
    for a, b, start in zip(one.parameters(), other.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert not torch.equal(a, start)


def test_the_users_choice_of_a_kernel_stays() -> None:
    assert fused(torch.optim.AdamW) == fused(torch.optim.SGD) == {True}
    assert fused(torch.optim.AdamW, fused=False) == {False}
    assert fused(torch.optim.SGD, foreach=True) == {None}
    assert fused(torch.optim.RMSprop) == {None}


def test_a_run_that_began_without_a_fused_step_goes_on_so() -> None:
    weight = nn.Linear(2, 2)
    before = torch.optim.AdamW(weight.parameters(), lr=0.1)
    now = torch.optim.AdamW(weight.parameters(), lr=0.1)
    fuse(now)
    now.load_state_dict(before.state_dict())
    assert [group["fused"] for group in now.param_groups] == [None]
