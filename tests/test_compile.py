"""`--compile`: the networks of every task, traced, train as they do as written."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch import nn
from torch._dynamo.utils import counters

from attention_vision.attention import record_attention
from attention_vision.runs import load_run
from attention_vision.runs.command import fit as fit_work
from attention_vision.runs.command import prepare

TRAINER = {
    "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0,
    "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1,
}  # fmt: skip
EXPERIMENTS = {
    "classification": """
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 16}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2}
  schedule: {class_path: torch.optim.lr_scheduler.ConstantLR}
  progressive: {epochs_per_stage: 0.5, ramp: 0.5}
""",
    "detection": """
data: {class_path: DigitScenes, init_args: {scenes: 8, val_scenes: 4, batch_size: 4}}
model:
  class_path: DETRDetector
  init_args:
    network:
      class_path: DETR
      init_args:
        num_queries: 4
        width: 16
        heads: 2
        encoder_layers: 1
        decoder_layers: 1
        hidden: 16
        dropout: 0.0
        backbone: {class_path: ResNet, init_args: {depth: 8, width: 8}}
""",
    "detection of proposals": """
data: {class_path: DigitScenes, init_args: {scenes: 8, val_scenes: 4, batch_size: 4}}
model:
  class_path: RCNNDetector
  init_args:
    network:
      class_path: AttentionRCNN
      init_args:
        pyramid_channels: 8
        backbone: {class_path: ResNet, init_args: {depth: 8, width: 8, dilation: true}}
""",
    "detection of points": """
data: {class_path: DigitScenes, init_args: {scenes: 8, val_scenes: 4, batch_size: 4}}
model:
  class_path: DeformableDETRDetector
  init_args:
    network:
      class_path: DeformableDETR
      init_args:
        num_queries: 4
        width: 16
        heads: 2
        levels: 2
        encoder_layers: 1
        decoder_layers: 1
        hidden: 16
        dropout: 0.0
        backbone: {class_path: ResNet, init_args: {depth: 8, width: 8}}
""",
    "generation": """
data: {class_path: DigitImages, init_args: {size: 16, batch_size: 8, count: 8}}
model:
  class_path: SAGAN
  init_args:
    generator:
      class_path: Generator
      init_args: {size: 16, latent: 8, width: 8, attention_at: [8]}
    discriminator: {class_path: Discriminator, init_args: {size: 16, width: 8, attention_at: [8]}}
    generator_optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
    discriminator_optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
""",
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["attention-vision"])


def fit(name: str, run: str, *arguments: str, **trainer: int) -> LightningModule:
    task = name.split()[0]
    config = {"task": task, "trainer": TRAINER | trainer} | yaml.safe_load(EXPERIMENTS[name])
    Path("experiment.yaml").write_text(yaml.safe_dump(config))
    work = prepare(task, "fit", ["-c", "experiment.yaml", "--run", run, *arguments])
    fit_work(work)
    return work.objects.module


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_trains_as_written(name: str) -> None:
    # The gradients are traced too where that does not take long.
    backend = "aot_eager" if name in ("classification", "detection") else "eager"
    checks = {"limit_val_batches": 0, "enable_checkpointing": False}
    written = fit(name, "written", **checks).state_dict()
    counters.clear()
    traced = fit(name, "traced", "--compile", backend, **checks).state_dict()
    assert counters["stats"]["unique_graphs"] > 0
    assert traced.keys() == written.keys()
    for key, value in written.items():
        torch.testing.assert_close(traced[key], value, rtol=1e-4, atol=1e-4, msg=key)


def test_a_compiled_run_is_resumed_recorded_and_loaded() -> None:
    whole = fit("classification", "whole", "--compile", "aot_eager", max_epochs=2)
    fit("classification", "cut", "--compile", "aot_eager", max_epochs=1)
    cut = ["--compile", "aot_eager", "--ckpt_path", "last"]
    resumed = fit("classification", "cut", *cut, max_epochs=2)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name

    network, images = resumed.network.eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad(), record_attention(network, ["blocks.1"]) as maps:
        recorded = network(images)
    assert maps["blocks.1.attention"].shape == (2, 2, 17, 17)
    loaded = load_run("cut", "last").network
    with torch.no_grad():
        torch.testing.assert_close(network(images), recorded)
        torch.testing.assert_close(loaded(images), recorded)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_mode_keeps_outputs_until_the_next_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, str]] = []
    marks: list[None] = []
    monkeypatch.setattr("torch.compile", lambda network, **given: asked.append(given) or network)
    monkeypatch.setattr(nn.Module, "compile", lambda _, **given: asked.append(given))
    monkeypatch.setattr("torch.compiler.cudagraph_mark_step_begin", lambda: marks.append(None))
    fit(name, "graphs", "--compile", "reduce-overhead", limit_val_batches=0)
    parts = {"generation": 2, "detection of points": 4}.get(name, 1)
    assert asked == [{"mode": "reduce-overhead"}] * parts
    assert len(marks) == TRAINER["limit_train_batches"]
