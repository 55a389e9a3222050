"""Weights that a command names: they are measured, on images as they were trained on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from redraw import redraw
from torch.nn.functional import cross_entropy

from attention_vision.__main__ import main
from attention_vision.backbones import ViT
from attention_vision.checkpoints import load_official
from attention_vision.checkpoints.preprocessing import Preprocessing, find_release
from attention_vision.cli.task import main as run_task
from attention_vision.errors import InputError
from attention_vision.runs.command import prepare

CLASSES = ("cat", "dog", "emu")
SIZE = 32


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ROOT/val/CLASS of smooth images, larger than the network's and of several shapes."""
    root, generator = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, size in enumerate(((120, 80), (70, 90), (48, 40), (64, 64))):
                pixels = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(
                    folder / f"{number}.png"
                )
    return root


def words(root: Path, run: Path, *more: str) -> list[str]:
    return [
        "--trainer.accelerator=cpu", "--data=ImageFolder", f"--data.root={root}",
        f"--data.image_size={SIZE}", "--data.num_workers=0", "--data.batch_size=4",
        "--model.network=ViT", f"--model.network.image_size={SIZE}", f"--run={run}",
        "--model.network.patch_size=8", "--model.network.width=16", "--model.network.depth=2",
        "--model.network.heads=2", "--trainer.max_epochs=1", *more,
    ]  # fmt: skip


def release(folder: Path, **stated: object) -> Path:
    """A model as timm lays it out on the hub."""
    safetensors = pytest.importorskip("safetensors.torch")
    timm = pytest.importorskip("timm")
    network = timm.models.VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=len(CLASSES)
    )
    redraw(network, 1)
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_file(network.state_dict(), folder / "model.safetensors")
    config = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.6], "interpolation": "bicubic"}
    config |= {"input_size": [3, SIZE, SIZE], "crop_pct": 0.9, "crop_mode": "center", **stated}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny", "pretrained_cfg": config})
    )
    return folder / "model.safetensors"


def as_timm_measures(file: Path, root: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the logits of each image, by timm's own transform and network."""
    import timm
    from safetensors.torch import load_file

    network = timm.models.VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=len(CLASSES)
    ).eval()
    network.load_state_dict(load_file(file))
    stated = json.loads(file.with_name("config.json").read_text())["pretrained_cfg"]
    options = timm.data.resolve_data_config(pretrained_cfg=stated)
    transform = timm.data.create_transform(**options)
    logits, labels = {}, []
    for path in sorted((root / "val").glob("*/*.png")):
        with torch.no_grad():
            logits[str(path)] = network(transform(Image.open(path).convert("RGB"))[None])[0]
        labels.append(CLASSES.index(path.parent.name))
    loss = cross_entropy(torch.stack(list(logits.values())), torch.tensor(labels))
    return loss.item(), logits


@pytest.mark.parametrize("stated", [{}, {"crop_mode": "squash", "crop_pct": 1.0}], ids=str)
def test_validate_measures_what_timm_measures(photographs, tmp_path, stated, capsys):
    file, run = release(tmp_path / "release", **stated), tmp_path / "run"
    loss, logits = as_timm_measures(file, photographs)
    assert run_task("classification", "validate", words(photographs, run, f"--weights={file}")) == 0
    measured = json.loads((run / "validate.json").read_text())
    assert measured["metrics"]["val/loss"] == pytest.approx(loss, abs=1e-5)
    assert measured["checkpoint"] == str(file)
    assert "mean 0.5 0.4 0.3, std 0.5 0.2 0.6, interpolation bicubic, crop" in (
        capsys.readouterr().out
    )
    work = prepare("classification", "validate", words(photographs, run, f"--weights={file}"))
    work.objects.data.setup("validate")
    images = torch.stack([image for image, _ in work.objects.data.val_images])
    ours = ViT(SIZE, 8, 16, 2, 2, num_classes=len(CLASSES)).eval()
    with torch.no_grad():
        found = load_official(ours, file)(images)
    torch.testing.assert_close(found, torch.stack(list(logits.values())), rtol=0, atol=1e-4)


def test_a_name_on_the_hub_brings_its_preprocessing(tmp_path, monkeypatch):
    """From the library's cache, as it is after a first download."""
    constants = pytest.importorskip("huggingface_hub.constants")
    model = tmp_path / "hub/models--owner--model"
    release(model / "snapshots/1")
    (model / "refs").mkdir()
    (model / "refs/main").write_text("1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = find_release("owner/model")
    assert found is not None
    assert found.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.5, 0.2, 0.6), "bicubic")
    assert found.architecture == "vit_tiny"
    assert round(SIZE / found.crops[SIZE]) == 35  # timm rounds 35.6 down
    assert find_release("owner/other") is None
    assert find_release(model / "snapshots/1") == found  # a folder that was downloaded by hand
    load_official(ViT(SIZE, 8, 16, 2, 2, num_classes=3), model / "snapshots/1")


@pytest.mark.parametrize(
    ("source", "stated", "expected", "crops"),
    [
        (
            "torchvision:ResNet50_Weights.IMAGENET1K_V2", None,
            Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear"),
            {224: 224 / 232},
        ),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": 224},
            Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic"), {224: "squash"},
        ),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5] * 3, "image_std": [0.2] * 3, "do_center_crop": True,
             "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            Preprocessing((0.5,) * 3, (0.2,) * 3, "bilinear"), {224: 0.875},
        ),
        (
            "efficientnet-lite0-57934424.pth", None,
            Preprocessing((0.5,) * 3, (0.5,) * 3, "bicubic"),
            {224: 0.875, 240: 240 / 272, 260: 260 / 292, 280: 280 / 312, 300: 300 / 332},
        ),
        ("efficientnet_lite0_ra-37913777.pth", None, None, None),  # timm's own, as ImageNet's
        ("config.json", {"hidden_size": 768}, None, None),
        ("torchvision:fasterrcnn_resnet50_fpn", None, None, None),
    ],
)  # fmt: skip
def test_what_releases_state(source, stated, expected, crops, tmp_path):
    if stated is not None:
        (tmp_path / source).write_text(json.dumps(stated))
        source = tmp_path / "pytorch_model.bin"
        source.touch()
    found = find_release(source)
    assert (found and found.preprocessing, found and found.crops) == (expected, crops)


def test_a_config_beside_downloaded_weights_says_nothing_about_them(tmp_path):
    config = {"data": {"class_path": "attention_vision.classification.Digits"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert find_release(tmp_path / "checkpoints/best.ckpt").preprocessing.mean == (0.305,) * 3
    assert find_release(tmp_path / "pretrained/net.pth") is None


def test_a_fine_tuned_run_keeps_the_preprocessing_of_its_weights(photographs, tmp_path, capsys):
    """Its folder needs neither the release nor the flag, nor does another file of the same run."""
    file, run = release(tmp_path / "release"), tmp_path / "run"
    flags = words(photographs, run)
    assert run_task("classification", "fit", [*flags, f"--weights={file}"]) == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert saved["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert saved["preprocessing"]["interpolation"] == "bicubic"
    file.with_name("config.json").unlink()
    file.unlink()
    losses = []
    for given in (["-c", str(run / "config.yaml")], flags):
        assert run_task("classification", "validate", given) == 0
        losses.append(json.loads((run / "validate.json").read_text())["metrics"]["val/loss"])
    with (run / "metrics.csv").open() as rows:
        logged = [float(row["val/loss"]) for row in csv.DictReader(rows) if row["val/loss"]]
    assert losses[0] == losses[1]
    assert logged[-1] == pytest.approx(losses[0], rel=1e-6)
    # and weights of this run bring it to another one
    other = prepare("classification", "fit", words(photographs, tmp_path / "b", f"--weights={run}"))
    assert other.objects.data.mean == (0.5, 0.4, 0.3)


def test_what_the_user_sets_stays_and_the_difference_is_said(photographs, tmp_path):
    file = release(tmp_path / "release")
    flags = ["--data.preprocessing.mean=[0.1,0.1,0.1]", f"--weights={file}"]
    work = prepare("classification", "validate", words(photographs, tmp_path / "run", *flags))
    assert work.objects.data.mean == (0.1, 0.1, 0.1)
    assert work.objects.data.std == (0.5, 0.2, 0.6)
    first, second = work.parsed.notices
    assert "trained on images of mean 0.5 0.4 0.3; these have mean 0.1 0.1 0.1: leave" in first
    assert second.startswith("data.preprocessing: as")
    flags[0] = "--data.recipe.centre=1.0"  # neither is a crop replaced that is not the default
    work = prepare("classification", "validate", words(photographs, tmp_path / "run", *flags))
    assert work.objects.data.preprocessing.crop is None
    assert work.objects.data.preprocessing.interpolation == "bicubic"


def test_unknown_weights_name_what_to_set(photographs, tmp_path):
    file = tmp_path / "vit.pth"
    torch.save(ViT(SIZE, 8, 16, 2, 2, num_classes=3).state_dict(), file)
    work = prepare(
        "classification", "validate", words(photographs, tmp_path / "run", f"--weights={file}")
    )
    (line,) = work.parsed.notices
    assert "does not say what images it was trained on" in line
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225: set it" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "of images in 0..1, divide by 255"),
        ({"std": (0.5, 0.0, 0.5)}, r"std\[1\] is 0"),
        ({"crop": 1.5}, "crop is 1.5: it has to be"),
    ],
)
def test_preprocessing_out_of_range(values, line):
    with pytest.raises(InputError, match=line):
        Preprocessing(**values)


@pytest.fixture(scope="module")
def runs(photographs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of other seeds, one of them fine-tuned from a file that is gone."""
    folder = tmp_path_factory.mktemp("runs")
    file = folder / "start.pth"
    torch.save(ViT(SIZE, 8, 16, 2, 2, num_classes=3).state_dict(), file)
    for name, flags in (("a", [f"--weights={file}"]), ("b", ["--seed_everything=7"])):
        assert run_task("classification", "fit", words(photographs, folder / name, *flags)) == 0
    file.unlink()
    return folder / "a", folder / "b"


def test_weights_of_a_flag_are_measured_on_the_data_of_a_run(runs, tmp_path, capsys):
    a, b = runs

    def loss(run: Path, *flags: str) -> tuple[float, str]:
        command = ["-c", str(run / "config.yaml"), *flags]
        assert run_task("classification", "validate", command) == 0
        report = json.loads((run / "validate.json").read_text())
        return report["metrics"]["val/loss"], report["checkpoint"]

    of_a, of_b = loss(a), loss(b)
    assert of_a[0] != of_b[0]
    assert of_a[1] == str(a / "checkpoints/best.ckpt")  # not the weights in its config
    file = b / "checkpoints/best.ckpt"
    for other in (b, file):
        capsys.readouterr()
        assert loss(a, "--weights", str(other)) == (of_b[0], str(other))
        assert f"weights: {other}, not {a}/checkpoints/best.ckpt" in capsys.readouterr().out
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"model": {"weights": str(b)}}))
    assert loss(a, "-c", str(more)) == (of_b[0], str(b))
    claim = {"source": "a paper", "metric": "val/top1", "reported": 0.5, "tolerance": 0.1}
    more.write_text(yaml.safe_dump({"claim": claim}))
    loss(a, "-c", str(more), f"--weights={b}")
    assert not (a / "claim.json").exists()  # it would be about another network
    loss(a, "-c", str(more))
    assert (a / "claim.json").exists()
    both = ["-c", str(a / "config.yaml"), f"--weights={b}", "--ckpt_path=best"]
    assert main(["classification", "validate", *both]) == 1
    assert "--ckpt_path or --weights: leave one of them out" in capsys.readouterr().err


def test_weights_of_another_function_are_said(runs, photographs, tmp_path):
    """The shapes of another number of heads are the same."""
    a, _ = runs
    other = words(
        photographs, tmp_path / "c", f"--model.weights={a}", "--model.network.dropout=0.1"
    )
    assert prepare("classification", "fit", other).parsed.notices == []
    line = f"WARNING: {a} was trained in another network than this: model.network.heads 2 -> 4"
    for verb in ("fit", "validate"):
        given = [*other, "--model.network.heads=4"]
        assert line in prepare("classification", verb, given).parsed.notices


def test_weights_that_a_resumed_run_would_not_read_are_refused(runs):
    a, b = runs
    command = ["-c", str(a / "config.yaml"), "--ckpt_path=last"]
    assert prepare("classification", "fit", command).parsed.notices == []
    with pytest.raises(InputError, match="the checkpoint has all weights; leave it out"):
        prepare("classification", "fit", [*command, f"--weights={b}"])


def test_labels_of_measured_weights_come_with_them(runs, tmp_path):
    a, b = runs
    checkpoint = torch.load(b / "checkpoints/best.ckpt", weights_only=True)
    labels = next(
        one for one in checkpoint.values() if isinstance(one, dict) and "class_names" in one
    )
    labels["class_names"] = ["emu", "cat", "dog"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    command = ["-c", str(a / "config.yaml"), f"--weights={tmp_path / 'other.ckpt'}"]
    data = prepare("classification", "validate", command).objects.data
    data.setup("validate")
    assert [data.val_images[index][1] for index in (0, 4, 8)] == [1, 2, 0]  # cat, dog and emu


@pytest.mark.parametrize("flag", ["--weights", "--model.weights", "--model.init_args.weights"])
def test_weights_of_a_detector_take_the_place_of_its_checkpoint(flag, tmp_path):
    model = ["--model=DETRDetector", "--model.network=DETR", "--model.network.backbone=ResNet"]
    checkpoints = tmp_path / "detr/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt").touch()
    labels = {"class_names": ["nine", "eight"], "category_ids": [9, 8]}
    torch.save({"state_dict": {}, "DigitScenes": labels}, tmp_path / "other.ckpt")
    command = [*model, "--data=DigitScenes", f"--run={tmp_path / 'detr'}"]
    command += [f"{flag}={tmp_path / 'other.ckpt'}", "--trainer.accelerator=cpu"]
    work = prepare("detection", "validate", command)
    assert work.run.checkpoint is None
    assert work.objects.module.weights == str(tmp_path / "other.ckpt")
    assert work.objects.data.category_ids == (9, 8)
    assert work.objects.module.network.num_classes == 2


def test_detection_says_where_a_backbone_was_trained_on_other_images(runs, tmp_path):
    run, _ = runs
    flags = [
        "--model=DETRDetector", "--model.network=DETR", "--data=DigitScenes",
        "--model.network.backbone=ResNet", f"--model.backbone_weights={run}",
        f"--run={tmp_path / 'detr'}", "--trainer.accelerator=cpu", "--trainer.fast_dev_run=1",
    ]  # fmt: skip
    (line,) = prepare("detection", "fit", flags).parsed.notices
    assert "trained on images of mean 0.485 0.456 0.406" in line
    assert "DigitScenes has it fixed" in line
