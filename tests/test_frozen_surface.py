"""The surface that users' files lean on, as literal sets: flags, exports, keys, class paths.

Run folders, study folders and results files outlive the code that wrote them. A name that is to go
is first deprecated in CHANGELOG.md, and an old run loads for two minor versions; then its line here
goes. A new name gets a line here in the commit that adds it.
"""

import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from attention_vision.__main__ import main
from attention_vision.cli import explain, help, profile
from attention_vision.detection.predictions import Found, rows
from attention_vision.runs import arguments
from attention_vision.runs.arguments import make_parser
from attention_vision.runs.tasks import TASKS

# fmt: off
WORDS = {"TRUST": "--trust"}  # flags that a config cannot have
FLAGS: dict[str, set[str]] = {  # of `attention-vision TASK VERB`
    "classification": {
        "attention_backend", "checkpoint_every_n_steps", "ckpt_path", "claim", "claim.help",
        "compile", "config", "data", "data.help", "model", "model.channels_last",
        "model.class_weights", "model.cutmix", "model.distillation",
        "model.distillation.help", "model.ema_decay",
        "model.label_smoothing", "model.layer_decay", "model.mix_epochs", "model.mixup",
        "model.network", "model.network.help", "model.no_weight_decay", "model.optimizer",
        "model.optimizer.help",
        "model.penalty", "model.penalty.help", "model.progressive",
        "model.progressive.help", "model.schedule", "model.schedule.help",
        "model.test_time_flip", "model.weights",
        "on_nonfinite", "pictures", "run", "seed_everything", "task", "threads",
    },
    "detection": {
        "attention_backend", "checkpoint_every_n_steps", "ckpt_path", "claim", "claim.help",
        "compile", "config", "data", "data.help", "model", "model.help", "on_nonfinite", "pictures",
        "run", "seed_everything", "task", "threads",
    },
    "generation": {
        "attention_backend", "checkpoint_every_n_steps", "ckpt_path", "claim", "claim.help",
        "compile", "config", "data", "data.help", "model", "model.help", "on_nonfinite", "pictures",
        "run", "seed_everything", "task", "threads",
    },
}
EXPORTS: dict[str, set[str]] = {  # of the packages that users import from
    "attention": {
        "AttentionGate", "AttentionPool", "AxialAttention", "AxialAttention2d", "CBAM",
        "ChannelGate", "CrossAttention2d", "DeformableAttention", "DeformableSelfAttention2d",
        "EfficientChannelAttention", "FadeIn", "FeatureAttention",
        "LearnedPosition", "LocalGlobalAttention", "LocalGlobalAttention2d",
        "MultiHeadAttention", "RelativePositionBias", "SelfAttention2d", "SequencePool",
        "SinePosition2d", "SpatialGate", "SqueezeExcite", "TokenAttention",
        "WindowAttention", "attend", "attention_backend", "capture", "record_attention",
    },
    "backbones": {
        "Backbone", "CCT", "ClassToken", "CompactResNet", "ConvTokenizer", "DistilledToken",
        "EfficientNet", "MaxPool", "MeanPool", "PatchTokenizer", "ResNet", "Swin", "ViT",
    },
    "checkpoints": {
        "load_backbone", "load_official", "start_from",
    },
    "classification": {
        "AttentionMapDistillation", "AttentionPenalty", "AttentionTransfer", "Augmentation",
        "CIFAR10", "CIFAR100", "CIFARAugmentation", "ClassificationData", "Classifier", "Digits",
        "Distillation", "FashionMNIST", "GateTransfer", "HuggingFaceImages", "ImageCSV",
        "ImageFolder", "ImageNet", "ImageNetAugmentation", "Preprocessing",
    },
    "detection": {
        "AttentionBoxHead", "AttentionRCNN", "COCO", "COCOAveragePrecision", "COCOFolder",
        "DETR", "DETRAugmentation", "DETRDetector", "DeformableDETR", "DeformableDETRDetector",
        "Denoising", "DetectionData", "Detector", "DigitScenes", "FocalMatcher",
        "FocalSetCriterion", "HungarianMatcher", "InstanceMaskFolder", "PlainBoxHead",
        "RCNNDetector", "SetCriterion", "VOCFolder", "YOLOFolder",
    },
    "generation": {
        "AttentionUNet", "CIFAR10Images", "ClassifierEvaluator", "Degradation",
        "DegradedCIFAR10", "DegradedDigits", "DegradedFolder", "DiffAugment", "DigitImages",
        "DigitMasks", "Discriminator", "Evaluator", "FolderImages", "GatingSignal",
        "GenerationData", "GenerationModule", "Generator", "Holes", "ImageToImage",
        "InceptionEvaluator", "LowResolution", "MaskFolder", "MomentumFreeAdam",
        "MultiGate", "Noise", "ResidualBlock2d", "Restoration", "SAGAN", "Segmentation",
        "SkipAttention", "Unscored", "VolumeFolder", "add_spectral_norm",
        "frozen_spectral_norm", "spectral_norms",
    },
    "runs": {
        "load_data", "load_run",
    },
}
LOGGED_KEYS: dict[str, set[str]] = {  # columns of metrics.csv, by run
    "classifier": {
        "epoch", "step", "train/images_per_second", "train/loss", "train/loss_step",
        "train/lr", "val/loss", "val/top1", "val/top1_macro", "val/top1_of", "val/top5",
    },
    "detr": {
        "epoch", "step", "train/box", "train/box_0", "train/class", "train/class_0",
        "train/giou", "train/giou_0", "train/images_per_second", "train/loss",
        "train/loss_step", "train/lr", "val/ap", "val/ap50", "val/ap75", "val/ap_large",
        "val/ap_medium", "val/ap_of", "val/ap_small", "val/ar1", "val/ar10", "val/ar100",
        "val/ar_large", "val/ar_medium", "val/ar_small",
    },
    "deformable_detr": {
        "epoch", "step", "train/box", "train/box_0", "train/box_noised", "train/box_noised_0",
        "train/box_proposals", "train/class", "train/class_0", "train/class_noised",
        "train/class_noised_0", "train/class_proposals", "train/giou", "train/giou_0",
        "train/giou_noised", "train/giou_noised_0", "train/giou_proposals",
        "train/images_per_second", "train/loss", "train/loss_step", "train/lr", "val/ap",
        "val/ap50", "val/ap75", "val/ap_large", "val/ap_medium", "val/ap_of", "val/ap_small",
        "val/ar1", "val/ar10", "val/ar100", "val/ar_large", "val/ar_medium", "val/ar_small",
    },
    "sagan": {
        "epoch", "step", "train/gamma_discriminator", "train/gamma_generator",
        "train/images_per_second", "train/loss_discriminator", "train/loss_generator",
        "train/loss_step", "train/lr", "train/output_fake", "train/output_real",
        "train/spectral_norm_discriminator", "train/spectral_norm_generator",
    },
    "unet": {
        "epoch", "step", "train/images_per_second", "train/loss", "train/loss_step",
        "train/lr", "val/loss", "val/psnr", "val/psnr_input", "val/score", "val/ssim",
    },
}
CLASS_PATHS: dict[str, set[str]] = {  # in RUN/config.yaml, by run
    "classifier": {
        "attention_vision.backbones.MeanPool", "attention_vision.backbones.ResNet",
        "attention_vision.classification.CIFARAugmentation",
        "attention_vision.classification.Digits",
        "attention_vision.training.optim.WarmupCosine", "torch.nn.BatchNorm2d",
        "torch.nn.Identity", "torch.optim.AdamW",
    },
    "detr": {
        "attention_vision.backbones.MeanPool", "attention_vision.backbones.ResNet",
        "attention_vision.detection.DETR", "attention_vision.detection.DETRDetector",
        "attention_vision.detection.DigitScenes",
        "attention_vision.training.optim.WarmupCosine", "torch.nn.BatchNorm2d",
        "torch.nn.Identity", "torch.optim.AdamW",
    },
    "deformable_detr": {
        "attention_vision.backbones.MeanPool", "attention_vision.backbones.ResNet",
        "attention_vision.detection.DeformableDETR",
        "attention_vision.detection.DeformableDETRDetector",
        "attention_vision.detection.Denoising", "attention_vision.detection.DigitScenes",
        "attention_vision.training.optim.WarmupCosine", "torch.nn.BatchNorm2d",
        "torch.nn.Identity", "torch.optim.AdamW",
    },
    "sagan": {
        "attention_vision.attention.SelfAttention2d",
        "attention_vision.generation.DigitImages",
        "attention_vision.generation.Discriminator",
        "attention_vision.generation.Generator",
        "attention_vision.generation.MomentumFreeAdam", "attention_vision.generation.SAGAN",
        "attention_vision.generation.Unscored", "torch.optim.lr_scheduler.ConstantLR",
    },
    "unet": {
        "attention_vision.attention.AttentionGate",
        "attention_vision.generation.AttentionUNet",
        "attention_vision.generation.DegradedDigits",
        "attention_vision.generation.ImageToImage", "attention_vision.generation.Noise",
        "attention_vision.generation.Restoration",
        "attention_vision.training.optim.WarmupCosine", "torch.nn.Identity",
        "torch.nn.MSELoss", "torch.optim.AdamW",
    },
}
RESULT_KEYS: set[str] = {  # of cells/CELL/seedS/result.json
    "cell", "commit", "config_sha256", "cost", "cost.images_per_second", "cost.macs",
    "cost.parameters", "cost.peak_memory", "data", "finished", "hardware", "metrics", "seconds",
    "seed", "study", "versions",
}
SUMMARY_KEYS = {  # of data.json
    "data", "splits", "augmentation", "left_out", "broken", "repaired", "warnings", "steps",
    "fingerprint",
}  # fmt: skip
EVALUATION_KEYS = {  # of validate.json and test.json; predict.json has no data and metrics
    "checkpoint", "checkpoint_id", "code", "data", "images", "metrics", "step",
}  # fmt: skip
DETECTION_KEYS = {  # of a row of results.json
    "bbox", "category_id", "category_name", "file_name", "image_id", "score",
}  # fmt: skip
REPORT_FILES = {  # of a detector's validation, in the run folder; a test's end with _test
    "confusion.csv": "class,0,1,2,3,4,5,6,7,8,9,background",
    "errors.csv": "kind,ap50_lost,count,count_from_score",
    "f1.csv": "class,score,precision,recall,f1",
    "images.csv": "image_id,file_name,errors,objects,found,missed,classification,localization,both,"
    "duplicate,background",
    "per_class.csv": "class,objects,ap,ap50,precision,recall,f1,score",
    "precision_recall.csv": "class,recall,precision,score",
    "report.html": "<!doctype html>",
}
STUDY_KEYS: set[str] = {  # of study.json
    "axes", "baseline", "budget", "cells", "commit", "effect", "expect", "file", "hardware",
    "higher_is_better", "looks", "metric", "name", "planned_seeds", "profile", "question", "seeds",
    "task", "versions",
}
LEDGER_KEYS: dict[str, set[str]] = {  # of docs/ledger/ledger.json
    "": {"costs", "format", "papers", "statements", "studies", "tables"},
    "costs": {"counted", "experiment", "metric", "note", "printed", "source", "verdict"},
    "statements": {
        "commands", "experiment", "id", "kind", "literature", "numbers", "outcomes", "reason",
        "says", "source", "stated", "statement", "tested", "verdict",
    },
    "papers": {
        "command", "conditions", "costs", "data", "deviations", "hardware", "hours", "id", "metric",
        "reported", "results", "source", "tolerance", "values", "verdict",
    },
    "studies": {
        "baseline", "cells", "checklist", "command", "commands", "effect", "expect",
        "higher_is_better", "hours", "id", "looks", "measured", "metric", "notes", "outcomes",
        "planned_seeds", "question", "seeds", "task",
    },
    "cells": {"cell", "cost", "mean", "n", "std", "values"},
    "outcomes": {
        "difference", "expectation", "high", "id", "level", "low", "opposite", "ordering", "p",
        "p_sign_flip", "reason", "values", "verdict",
    },
    "numbers": {"id", "metric", "stated", "tolerance", "values", "verdict"},
}
VERBS: set[str] = {  # of every task
    "fit", "predict", "test", "validate",
}
TOOLS: set[str] = {  # commands beside the tasks
    "claims", "data", "explain", "profile", "study",
}
# fmt: on

TRAINER = {
    "max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu",
    "devices": 1, "log_every_n_steps": 1,
}  # fmt: skip
DIGITS = {"class_path": "Digits", "init_args": {"image_size": 16, "batch_size": 8}}
RESNET = {"class_path": "ResNet", "init_args": {"depth": 8, "width": 4}}
RUNS: dict[str, dict[str, Any]] = {
    "classifier": {"task": "classification", "data": DIGITS, "model": {"network": RESNET}},
    "detr": {
        "task": "detection",
        "data": {
            "class_path": "DigitScenes",
            "init_args": {"scenes": 4, "val_scenes": 3, "batch_size": 2},
        },
        "model": {
            "class_path": "DETRDetector",
            "init_args": {
                "size_limits": [16, 24],  # objects of each size: an AP of none is not logged
                "network": {
                    "class_path": "DETR",
                    "init_args": {
                        "num_queries": 6,
                        "width": 8,
                        "heads": 2,
                        "encoder_layers": 1,
                        "decoder_layers": 2,
                        "hidden": 8,
                        "backbone": RESNET,
                    },
                },
            },
        },
    },
    "deformable_detr": {
        "task": "detection",
        "data": {
            "class_path": "DigitScenes",
            "init_args": {"scenes": 4, "val_scenes": 3, "batch_size": 2},
        },
        "model": {
            "class_path": "DeformableDETRDetector",
            "init_args": {
                "size_limits": [16, 24],
                "network": {
                    "class_path": "DeformableDETR",
                    "init_args": {
                        "num_queries": 6,
                        "refine": True,
                        "two_stage": True,
                        "denoising": {"class_path": "Denoising", "init_args": {"queries": 8}},
                        "width": 8,
                        "heads": 2,
                        "encoder_layers": 1,
                        "decoder_layers": 2,
                        "hidden": 8,
                        "backbone": RESNET,
                    },
                },
            },
        },
    },
    "sagan": {
        "task": "generation",
        "data": {"class_path": "DigitImages", "init_args": {"size": 16, "batch_size": 4}},
        "model": {
            "class_path": "SAGAN",
            "init_args": {
                "generator": {
                    "class_path": "Generator",
                    "init_args": {"size": 16, "width": 4, "attention_at": [8]},
                },
                "discriminator": {
                    "class_path": "Discriminator",
                    "init_args": {"size": 16, "width": 4},
                },
                "scorer": {"class_path": "Unscored"},
            },
        },
    },
    "unet": {
        "task": "generation",
        "data": {
            "class_path": "DegradedDigits",
            "init_args": {"size": 16, "batch_size": 4, "degradation": {"class_path": "Noise"}},
        },
        "model": {
            "class_path": "ImageToImage",
            "init_args": {
                "network": {
                    "class_path": "AttentionUNet",
                    "init_args": {"width": 2, "depth": 2, "gated_levels": [1]},
                },
                "objective": {"class_path": "Restoration"},
            },
        },
    },
}
STUDY = {
    "study": {"question": "?", "metric": "val/top1", "baseline": "classifier", "seeds": [0]},
    "base": "classifier.yaml",
}


def flags(task: str) -> set[str]:
    """Of a task; the trainer's are Lightning's own."""
    parser = make_parser(task, "fit", TASKS[task])
    names = {action.dest for action in parser._actions if action.option_strings}
    return {name for name in names if not name.startswith(("trainer", "==", "help", "print"))}


def exports(room: str) -> set[str]:
    return set(importlib.import_module(f"attention_vision.{room}").__all__)


def class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if isinstance(path := config.get("class_path"), str):
            yield path
        for value in config.values():
            yield from class_paths(value)
    elif isinstance(config, list):
        for value in config:
            yield from class_paths(value)


def keys(content: dict[str, Any], above: str = "") -> Iterator[str]:
    """Dotted keys; those of metrics, versions, cells and data are names of their own."""
    for key, value in content.items():
        yield f"{above}{key}"
        if isinstance(value, dict) and key not in ("metrics", "versions", "cells", "axes", "data"):
            yield from keys(value, f"{above}{key}.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of each kind and a study of one run, trained for two steps."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("surface")
        patch.chdir(path)
        patch.setattr(sys, "argv", ["attention-vision"])
        for name, config in RUNS.items():
            text = yaml.safe_dump({"threads": 1, "trainer": TRAINER, **config})
            Path(f"{name}.yaml").write_text(text)
            assert main([config["task"], "fit", "-c", f"{name}.yaml", "--run", name]) == 0
        Path("study.yaml").write_text(yaml.safe_dump(STUDY))
        assert main(["study", "run", "study.yaml"]) == 0
        yield path


def logged_keys(run: Path) -> set[str]:
    """The columns of a run's metrics.csv; a layer's own are cut behind the name of the quantity."""
    with (run / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    return {"/".join(column.split("/")[:2]) for column in columns}


def saved_paths(run: Path) -> set[str]:
    return set(class_paths(yaml.safe_load((run / "config.yaml").read_text())))


def result_keys(study: Path) -> set[str]:
    (file,) = study.glob("cells/*/seed0/result.json")
    return set(keys(json.loads(file.read_text())))


def study_keys(study: Path) -> set[str]:
    return set(keys(json.loads((study / "study.json").read_text())))


@pytest.mark.parametrize("task", FLAGS)
def test_flags(task):
    assert flags(task) == FLAGS[task]


@pytest.mark.parametrize("room", EXPORTS)
def test_exports(room):
    assert exports(room) == EXPORTS[room]


@pytest.mark.parametrize("run", LOGGED_KEYS)
def test_logged_keys(run, folder):
    assert logged_keys(folder / run) == LOGGED_KEYS[run]


@pytest.mark.parametrize("run", CLASS_PATHS)
def test_class_paths_in_saved_configs(run, folder):
    assert saved_paths(folder / run) == CLASS_PATHS[run]


def test_keys_of_a_study(folder):
    assert result_keys(folder / "runs/studies/study") == RESULT_KEYS
    assert study_keys(folder / "runs/studies/study") == STUDY_KEYS


def test_keys_of_a_summary_of_data(folder):
    keys = set(json.loads((folder / "classifier" / "data.json").read_text()))
    assert keys - {"seconds_per_step"} == SUMMARY_KEYS  # which needs more steps


def test_keys_of_an_evaluation(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["classification", "validate", "-c", "classifier/config.yaml"]) == 0
    assert set(json.loads(Path("classifier/validate.json").read_text())) == EVALUATION_KEYS


def test_keys_of_detections():
    image = Found(1, "a.png", np.zeros((1, 4)), np.zeros(1), np.zeros(1, int))
    assert [set(row) for row in rows([image], [7], ["cat"])] == [DETECTION_KEYS]


def test_files_of_a_report(folder):
    heads = {name: (folder / "detr" / name).open().readline().strip() for name in REPORT_FILES}
    assert heads == REPORT_FILES
    written = {file.name for file in (folder / "detr").glob("*.csv")}
    assert written == {name for name in REPORT_FILES if name.endswith(".csv")} | {"metrics.csv"}


def test_keys_of_the_ledger():
    file = Path(__file__).parents[1] / "docs/ledger/ledger.json"
    content = json.loads(file.read_text())
    found = {"": set(content)}
    content["statements"] += content["tables"]  # alike
    for part in ("statements", "papers", "costs", "studies"):
        found[part] = {key for entry in content[part] for key in entry}
    for part in ("cells", "outcomes", "numbers"):
        lists = [one.get(part, []) for kind in ("statements", "studies") for one in content[kind]]
        entries = [entry for one in lists for entry in one if isinstance(entry, dict)]
        found[part] = {key for entry in entries for key in entry}
    assert found == LEDGER_KEYS


def test_words():
    assert {name: getattr(arguments, name) for name in WORDS} == WORDS
    for tool in (explain, profile):
        assert "--trust" in {flag for one in tool.parser()._actions for flag in one.option_strings}


def test_commands_and_verbs():
    assert set(help.VERBS) == VERBS
    assert set(help.TOOLS) == TOOLS
    assert set(TASKS) == set(FLAGS)
