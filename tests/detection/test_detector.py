"""The detectors behind one module: they train, measure, resume and start from a classifier."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torchvision.ops import box_convert

from attention_vision.attention import DeformableAttention
from attention_vision.backbones import ResNet
from attention_vision.checkpoints import load_backbone, load_official
from attention_vision.classification import Classifier
from attention_vision.detection import (
    DETR,
    AttentionRCNN,
    DeformableDETR,
    DeformableDETRDetector,
    Denoising,
    DETRDetector,
    DigitScenes,
    PlainBoxHead,
    RCNNDetector,
)
from attention_vision.detection.data import DrawnScenes, Objects
from attention_vision.detection.module import in_pixels
from attention_vision.errors import InputError
from attention_vision.training.metrics_csv import MetricsCSV
from attention_vision.training.progress import ProgressLines


def backbone() -> ResNet:
    return ResNet(8, num_classes=10, width=8, dilation=True)


def detr(**options) -> DETRDetector:
    network = DETR(
        10, 6, backbone(), width=16, heads=2, encoder_layers=1, decoder_layers=2, hidden=16
    )
    return DETRDetector(network, optimizer=partial(torch.optim.AdamW, lr=1e-3), **options)


def deformable(**options) -> DeformableDETRDetector:
    """With all that DINO adds."""
    network = DeformableDETR(
        10, 6, ResNet(8, num_classes=10, width=8), refine=True, two_stage=True, mixed_queries=True,
        look_forward_twice=True, denoising=Denoising(12), width=16, heads=2, encoder_layers=1,
        decoder_layers=2, hidden=16,
    )  # fmt: skip
    return DeformableDETRDetector(network, optimizer=partial(torch.optim.AdamW, lr=1e-3), **options)


def rcnn(**options) -> RCNNDetector:
    network = AttentionRCNN(
        10, backbone(), head=partial(PlainBoxHead, hidden=16), pyramid_channels=8
    )
    return RCNNDetector(network, optimizer=partial(torch.optim.AdamW, lr=1e-3), **options)


def scenes() -> DigitScenes:
    return DigitScenes(scenes=12, val_scenes=5, batch_size=4)


def trainer(folder: Path, **options) -> Trainer:
    seed_everything(0, verbose=False)
    plain = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(default_root_dir=str(folder), **{**plain, **quiet, **options})


@pytest.mark.parametrize("make", [detr, deformable, rcnn])
def test_fits_measures_and_predicts(make, tmp_path):
    detector, run = make(), trainer(tmp_path)
    run.fit(detector, datamodule=scenes())
    assert run.callback_metrics["val/ap"] >= 0
    assert "val/ap_large" not in run.callback_metrics  # a scene of 64 pixels has no large object
    assert run.callback_metrics["train/loss"].isfinite()
    (numbers,) = trainer(tmp_path).validate(detector, datamodule=scenes(), verbose=False)
    assert numbers["val/ap"] == pytest.approx(run.callback_metrics["val/ap"].item())

    data = scenes()
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    with torch.inference_mode():
        found = detector.eval().predict_step(batch, 0)
    assert len(found) == 4
    for one in found:
        assert one["boxes"].shape[1] == 4
        assert one["boxes"].min() >= 0
        assert one["boxes"].max() <= 64
        assert ((one["labels"] >= 0) & (one["labels"] < 10)).all()


@pytest.mark.parametrize("make", [detr, deformable, rcnn])
def test_resumed_run_equals_the_whole(make, tmp_path):
    def train(checkpoint=None, **options):
        detector = make()
        trainer(tmp_path, **options).fit(
            detector, datamodule=scenes(), ckpt_path=checkpoint, weights_only=True
        )
        return detector.network.state_dict()

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    whole = train(callbacks=[keep], enable_checkpointing=True)
    resumed = train(tmp_path / "epoch=0-step=2.ckpt")
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.parametrize("make", [detr, deformable])
def test_bf16_trains(make, tmp_path):
    detector = make()
    trainer(tmp_path, precision="bf16-mixed", max_epochs=1).fit(detector, datamodule=scenes())
    assert all(parameter.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (detr, "a DETR from random weights on 12 images in 6 steps will hardly learn: "),
        (deformable, "a Deformable DETR from random weights on 12 images in 6 steps may learn li"),
    ],
)
def test_a_start_from_nothing_is_warned_of(make, words, tmp_path, recwarn):
    def lines() -> list[str]:
        found = [str(w.message) for w in recwarn if "from random weights" in str(w.message)]
        recwarn.clear()
        return found

    trainer(tmp_path, max_epochs=2).fit(make(), datamodule=scenes())
    (line,) = lines()
    assert line.startswith(words)
    torch.save(make().network.backbone.state_dict(), tmp_path / "backbone.pt")
    warm = make(backbone_weights=str(tmp_path / "backbone.pt"))
    trainer(tmp_path, max_steps=1).fit(warm, datamodule=scenes())
    trainer(tmp_path, max_steps=1).fit(rcnn(), datamodule=scenes())
    assert lines() == []


def test_the_backbone_learns_slower(tmp_path):
    detector = detr(backbone_lr_factor=0.1)
    run = trainer(tmp_path, max_steps=1)
    run.fit(detector, datamodule=scenes())
    rates = {group["lr_factor"] for group in run.optimizers[0].param_groups}
    assert rates == {0.1, 1.0}
    slow = [g for g in run.optimizers[0].param_groups if g["lr_factor"] == 0.1]
    assert sum(p.numel() for g in slow for p in g["params"]) == sum(
        p.numel() for p in detector.network.backbone.parameters()
    )


def test_what_finds_the_points_learns_slower(tmp_path):
    detector = deformable(offset_lr_factor=0.3, backbone_lr_factor=0.2)
    run = trainer(tmp_path, max_steps=1)
    run.fit(detector, datamodule=scenes())
    slow = [g for g in run.optimizers[0].param_groups if g["lr_factor"] == 0.3]
    offsets = [m.offsets for m in detector.network.modules() if isinstance(m, DeformableAttention)]
    assert sum(p.numel() for g in slow for p in g["params"]) == sum(
        p.numel() for layer in offsets for p in layer.parameters()
    )


def test_starts_from_a_classifiers_run(tmp_path):
    classifier = Classifier(backbone())
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "checkpoints" / "best.ckpt")
    detector = detr(backbone_weights=str(tmp_path))
    trainer(tmp_path).validate(detector, datamodule=scenes(), verbose=False)
    trained = classifier.network.state_dict()
    for key, value in detector.network.backbone.state_dict().items():
        assert torch.equal(value, trained[key]), key
    torch.save(detector.network.state_dict(), tmp_path / "whole.pth")
    whole = detr(weights=str(tmp_path / "whole.pth"), backbone_weights="nowhere")
    trainer(tmp_path).validate(whole, datamodule=scenes(), verbose=False)
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, detector.network.state_dict()[key]), key
    with pytest.raises(
        InputError, match="a ResNet of depth 8 and width 8, the model's has depth 10"
    ):
        load_backbone(ResNet(10, num_classes=0), tmp_path)
    with pytest.raises(
        InputError, match=r"of a backbone alone: give it as model\.backbone_weights"
    ):
        load_official(whole.network, tmp_path)


def test_what_was_learned_is_validated_not_what_it_began_from(tmp_path):
    torch.save(backbone().state_dict(), tmp_path / "backbone.pth")
    options = {"backbone_weights": str(tmp_path / "backbone.pth"), "backbone_lr_factor": 1.0}
    detector, run = detr(**options), trainer(tmp_path, max_epochs=1)
    run.fit(detector, scenes())
    learned = {key: value.clone() for key, value in detector.state_dict().items()}
    began = torch.load(tmp_path / "backbone.pth")
    assert any(
        not torch.equal(learned[f"network.backbone.{key}"], began[key])
        for key, _ in detector.network.backbone.named_parameters()
    )
    again = detr(**options)
    again.load_state_dict(learned)
    for module, one in ((detector, run), (detector, trainer(tmp_path)), (again, trainer(tmp_path))):
        one.validate(module, datamodule=scenes(), verbose=False)
        for key, value in module.network.state_dict().items():
            assert torch.equal(value, learned[f"network.{key}"]), key


def test_detections_name_their_query():
    detector, images = deformable().eval(), torch.rand(1, 3, 64, 64)
    (found,) = detector(images)
    boxes = detector.network(images, torch.zeros(1, 64, 64, dtype=torch.bool))[-1]["boxes"][0]
    assert torch.equal(found["boxes"], box_convert(boxes, "cxcywh", "xyxy")[found["queries"]])


@pytest.mark.parametrize("make", [detr, rcnn])
def test_sizes_are_parted_where_asked(make, tmp_path):
    data = DigitScenes(scenes=1, val_scenes=20)
    (numbers,) = trainer(tmp_path).validate(make(size_limits=(12, 20)), data, verbose=False)
    assert min(numbers[f"val/ar_{size}"] for size in ("small", "medium", "large")) >= 0


def test_logs_the_ap_of_each_class(tmp_path, capsys, monkeypatch):
    def find(batch, batch_idx):
        """Every object, but those above 4 are taken for a 4."""
        found = []
        for target in batch[2]:
            labels = target["labels"].clamp(max=4)
            boxes = box_convert(target["boxes"], "cxcywh", "xyxy")
            one = {"boxes": boxes, "scores": torch.ones(len(labels)), "labels": labels}
            found.append(in_pixels(one, target))
        return found

    detector = detr()
    monkeypatch.setattr(detector, "predict_step", find)
    logger, lines = MetricsCSV(str(tmp_path)), ProgressLines()
    run = trainer(tmp_path, logger=logger, callbacks=[lines], max_epochs=1)
    run.fit(detector, DigitScenes(scenes=4, val_scenes=20, batch_size=4))
    (row,) = csv.DictReader((tmp_path / "metrics.csv").open())
    per_class = [float(row[f"val/ap_of/{digit}"]) for digit in range(10)]
    assert per_class[:4] + per_class[5:] == pytest.approx([1] * 4 + [0] * 5)
    assert 0 < per_class[4] < 1
    assert float(row["val/ap"]) == pytest.approx(sum(per_class) / 10)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert "val/ap " in line
    assert "val/ap_of/" not in line


def test_does_not_log_the_ap_of_very_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("attention_vision.detection.module.MOST_CLASSES", 9)
    data = DigitScenes(scenes=1, val_scenes=20)
    (numbers,) = trainer(tmp_path).validate(detr(), data, verbose=False)
    assert "val/ap" in numbers
    assert not any(key.startswith("val/ap_of/") for key in numbers)


@pytest.mark.parametrize("change", [False, True])
def test_weights_of_classes_in_another_order_are_warned_of(change, tmp_path, recwarn):
    module, names = rcnn(), list(DigitScenes.class_names)
    names = [*names[::-1]] if change else names
    checkpoint = {"state_dict": module.state_dict(), "DigitScenes": {"class_names": names}}
    torch.save(checkpoint, tmp_path / "own.ckpt")
    for options in ({}, {"fine_tune": True}):
        module = rcnn(weights=str(tmp_path / "own.ckpt"), **options)
        trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, datamodule=scenes())
    lines = [str(one.message) for one in recwarn if "was trained with label" in str(one.message)]
    assert len(lines) == change
    assert not change or f"label 0 as {names[0]}, here it is {names[-1]}: its heads" in lines[0]


def test_fine_tuning_needs_weights(tmp_path):
    with pytest.raises(InputError, match=r"fine_tune is true, and nothing .* with model.weights"):
        trainer(tmp_path).fit(rcnn(fine_tune=True), datamodule=scenes())


def test_images_without_objects_have_no_ap_and_a_warning(tmp_path, monkeypatch):
    empty = Objects(torch.zeros(0, 4), *torch.zeros(3, 0).long())
    monkeypatch.setattr(
        DrawnScenes, "__getitem__", lambda _, i: (Image.new("RGB", (64, 64)), i, empty)
    )
    with pytest.warns(
        UserWarning, match="images of val have no objects to find: there is no val/ap"
    ):
        (numbers,) = trainer(tmp_path).validate(deformable(), datamodule=scenes(), verbose=False)
    assert not numbers


def test_other_classes_than_the_data_are_refused(tmp_path):
    network = DETR(7, 6, backbone(), width=16, heads=2, encoder_layers=1, decoder_layers=1)
    with pytest.raises(InputError, match="7 classes, DigitScenes 10"):
        trainer(tmp_path).fit(DETRDetector(network), datamodule=scenes())


def test_denoising_and_other_classes_start_from_weights_without_them(tmp_path, capsys):
    tuned = deformable(fine_tune=True, weights=str(tmp_path / "released.pth"))
    network, parts = tuned.network, {"two_stage": True, "refine": True, "mixed_queries": True}
    released = DeformableDETR(
        7, 6, ResNet(8, num_classes=10, width=8), width=16, heads=2, encoder_layers=1,
        decoder_layers=2, hidden=16, **parts,
    ).state_dict()  # fmt: skip
    torch.save(released, tmp_path / "released.pth")
    new = {key for key in network.state_dict() if key not in released}
    assert new == {"label_embedding.weight"}
    tuned.load_start("fit")
    said = capsys.readouterr().out
    assert said.endswith(
        "released.pth loaded, new for these classes: class_head., label_embedding.\n"
    )
    for key, value in network.state_dict().items():
        if not key.startswith(("class_head.", "label_embedding.")):
            assert torch.equal(value, released[key]), key


def test_a_loaded_detector_takes_images_alone():
    module, images = detr().eval(), torch.rand(2, 3, 64, 64)
    padding_mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        found, masked = module(images), module.detect(images, padding_mask)
    assert len(found) == 2
    for one, other in zip(found, masked, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))
