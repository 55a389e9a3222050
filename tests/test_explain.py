"""`attention-vision explain`: tiny runs of every task, and one line for what cannot be shown."""

import re
import shutil
import subprocess
import sys
from functools import partial
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from redraw import redraw
from torch.nn.functional import interpolate
from torchvision.ops import clip_boxes_to_image

from attention_vision.__main__ import main
from attention_vision.attention import record_attention
from attention_vision.backbones import ResNet
from attention_vision.config.build import build_nodes
from attention_vision.data.image_files import image_files, path_below
from attention_vision.detection import AttentionRCNN, PlainBoxHead
from attention_vision.detection.attention_figures import (
    DOT,
    class_attention,
    detection_grad_cam,
    detection_proposals,
    objectness,
    points_of_queries,
    proposal_sheet,
)
from attention_vision.runs.tasks import TASKS
from attention_vision.visualization.drawing import bars
from attention_vision.visualization.maps import rollout


def node(name: str, **arguments: object) -> dict:
    return {"class_path": name, "init_args": arguments}


def classifier(name: str, **arguments: object) -> tuple[str, dict, dict]:
    data = node("Digits", image_size=16)
    return "classification", data, {"network": node(name, num_classes=10, **arguments)}


def detector(name: str, network: dict) -> tuple[str, dict, dict]:
    data = node("DigitScenes", scenes=1, val_scenes=2)
    return "detection", data, node(name, network=network)


SMALL = {"image_size": 16, "width": 8, "num_classes": 10}
RESNET = {"depth": 8, "width": 4}
GAN = {"size": 16, "num_classes": 10, "width": 4, "attention_at": [8]}
UNET = {"width": 4, "depth": 2, "gated_levels": [1, 2]}
RUNS = {
    "vit": classifier("ViT", image_size=16, patch_size=4, width=8, depth=2, heads=2),
    "cct": classifier("CCT", image_size=16, width=8, depth=2, heads=2),
    "swin": classifier(
        "Swin", image_size=16, patch_size=2, width=8, depths=[2], heads=[2], window=4
    ),
    "cbam": classifier("ResNet", **RESNET, attention=node("CBAM", reduction=2)),
    "pixels": classifier("ResNet", **RESNET, attention=node("SelfAttention2d")),
    "axial": classifier(
        "ViT", image_size=16, patch_size=4, width=8, depth=2, heads=2, pool=node("MeanPool"),
        attention=node("AxialAttention"), alternate=node("LocalGlobalAttention", window=2),
    ),
    "plain": classifier("ResNet", **RESNET),
    "detr": detector(
        "DETRDetector",
        node(
            "DETR", num_classes=10, num_queries=5, width=8, heads=2, encoder_layers=1,
            decoder_layers=2, hidden=8, backbone=node("ResNet", num_classes=0, **RESNET),
        ),
    ),
    "deformable": detector(
        "DeformableDETRDetector",
        node(
            "DeformableDETR", num_classes=10, num_queries=5, width=8, heads=2, encoder_layers=1,
            decoder_layers=2, hidden=8, backbone=node("ResNet", num_classes=0, **RESNET),
        ),
    ),
    "rcnn": detector(
        "RCNNDetector",
        node(
            "AttentionRCNN", num_classes=10, pyramid_channels=4, score_threshold=0.0,
            eval_proposals=20, backbone=node("ResNet", num_classes=0, dilation=True, **RESNET),
        ),
    ),
    "faster": detector(
        "RCNNDetector",
        node(
            "AttentionRCNN", num_classes=10, pyramid_channels=4, score_threshold=0.0,
            eval_proposals=20, head=node("PlainBoxHead", hidden=8),
            backbone=node("ResNet", num_classes=0, **RESNET),
        ),
    ),
    "gan": (
        "generation",
        node("DigitImages", size=16),
        node(
            "SAGAN", generator=node("Generator", latent=4, **GAN),
            discriminator=node("Discriminator", **GAN),
            scorer=node("ClassifierEvaluator", run="nowhere"),
        ),
    ),
    "unet": (
        "generation",
        node(
            "DegradedFolder", train_images="photographs", val_images="photographs",
            degradation=node("Noise"),
        ),
        node("ImageToImage", network=node("AttentionUNet", **UNET), objective=node("Restoration")),
    ),
}  # fmt: skip
SHOWN = {  # layer -> the shape of its map, of an image; the U-Net pads 30 pixels to 32
    "vit": {"blocks.1.attention": (2, 4, 4), "rollout": (1, 4, 4)},
    "cct": {"pool": (1, 8, 8), "blocks.1.attention": (2, 8, 8), "rollout": (1, 8, 8)},
    "swin": {"stages.0.blocks.1.attention.attention": (2, 8, 8)},
    "cbam": {"stages.2.0.attention.channel": None, "stages.2.0.attention.spatial": (1, 1, 1)},
    "pixels": {"stages.2.0.attention": (1, 1, 1)},
    "axial": {"blocks.0.attention.row": (2, 4, 4), "blocks.0.attention.column": (2, 4, 4)},
    "detr": {"transformer.decoder.1.cross_attention": (5, 4, 4)},
    "deformable": {"decoder.1.cross_attention": (5, 8, 8)},
    "rcnn": {"rpn": (1, 16, 16), "roi_heads.box_head.pool": (3, 3)},
    "faster": {"rpn": (1, 16, 16), "grad_cam": (4, 16, 16)},
    "gan": {"blocks.0.attention": (1, 4, 4)},
    "unet": {"gates.0": (1, 20, 32), "gates.1": (1, 10, 16)},
}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photographs/more").mkdir(parents=True)
    for name in ("a.png", "more/b.png", "more/b.jpg"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(Path("photographs", name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Name -> a run folder with weights drawn at random, of its own, in the folder of the test."""
    built: dict[str, Path] = {}

    def copied(name: str) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp("runs") / name
            build_run(built[name], *RUNS[name])
        return Path(shutil.copytree(built[name], name))

    return copied


def build_run(run: Path, task: str, data: dict, model: dict) -> None:
    (run / "checkpoints").mkdir(parents=True)
    config = {"task": task, "data": data, "model": model}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    module = build_nodes({"model": model}, {"model": TASKS[task].nodes["model"]})["model"]
    redraw(module, 0)
    torch.save({"state_dict": module.state_dict()}, run / "checkpoints" / "best.ckpt")


def explained(run: Path, *options: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The last picture, and its arrays."""
    assert main(["explain", str(run), "--count", "1", "--out", "out", *options]) == 0
    *_, file = sorted(Path("out").glob("*.png"))
    return np.array(Image.open(file)), dict(np.load(file.with_suffix(".npz")))


@pytest.mark.parametrize("name", SHOWN)
def test_every_task_is_explained(name, trained, capsys):
    picture, arrays = explained(trained(name))
    assert picture.std() > 10
    said = capsys.readouterr().out
    for layer, shape in SHOWN[name].items():
        assert layer in said.splitlines()[0]
        assert layer in arrays or layer in ("rollout", "grad_cam")
        if shape is not None:
            assert arrays[f"{layer}/map"].shape[1:] == shape
    assert len(list(Path("out").glob("*.png"))) == 1


def test_what_is_drawn_follows_from_the_weights(trained):
    run = trained("vit")
    _, arrays = explained(run, "--layers", "blocks", "rollout")
    layers = [torch.from_numpy(arrays[f"blocks.{place}.attention"]) for place in range(2)]
    assert torch.allclose(layers[0].sum(-1), torch.ones(1, 2, 17))
    drawn = torch.from_numpy(arrays["blocks.1.attention/map"])
    assert torch.equal(drawn.flatten(2), layers[1][:, :, 0, 1:])
    through = rollout(layers)[:, 0, 1:].reshape(1, 1, 4, 4)
    assert torch.allclose(torch.from_numpy(arrays["rollout/map"]), through)
    assert arrays["probabilities"].sum() == pytest.approx(1)


def test_rollout_ends_in_the_pool(trained):
    _, arrays = explained(trained("cct"), "--layers", "blocks", "pool", "rollout")
    layers = [torch.from_numpy(arrays[f"blocks.{place}.attention"]) for place in range(2)]
    pool = torch.from_numpy(arrays["pool"])[0, 0]  # (1, 64)
    through = (pool @ rollout(layers)[0]).reshape(1, 1, 8, 8)
    assert torch.allclose(torch.from_numpy(arrays["rollout/map"]), through)
    assert arrays["rollout/map"].sum() == pytest.approx(1)


def test_a_point_and_heads(trained):
    run = trained("vit")
    plain, _ = explained(run, "--layers", "blocks.0")
    picture, arrays = explained(run, "--layers", "blocks.0", "--point", "0.9", "0.3", "--heads")
    weights, drawn = arrays["blocks.0.attention"], arrays["blocks.0.attention/map"]
    assert np.array_equal(drawn.reshape(1, 2, 16), weights[:, :, 1 + 4 + 3, 1:])
    assert picture.shape[0] > 1.5 * plain.shape[0]  # a row of heads


def test_layers_are_listed(trained, capsys):
    run = trained("axial")
    assert main(["explain", str(run), "--layers", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "blocks.0.attention.row", "blocks.0.attention.column", "blocks.1.attention.attention",
        "grad_cam",
    ]  # fmt: skip
    assert "no map" in lines[2]
    assert not (run / "explained").exists()


def test_photographs_of_a_folder_or_one(trained):
    run = trained("cbam")
    explained(run, "--images", "photographs", "--count", "9", "--layers", "grad_cam")
    names = {"a.png", "more/b.jpg.png", "more/b.png.png"}  # two differ in the ending alone
    assert {str(file.relative_to("out")) for file in Path("out").rglob("*.png")} == names
    assert main(["explain", str(run), "--images", "photographs/a.png"]) == 0
    assert [file.name for file in run.glob("explained/*.png")] == ["a.png"]
    (file,) = image_files("photographs/a.png")
    assert path_below(file, "photographs/a.png") == Path("a.png")
    assert path_below("photographs/more/b.png", "photographs") == Path("more/b.png")


@pytest.mark.parametrize(
    ("run", "options", "line"),
    [
        ("nowhere", [], "nowhere does not contain a run: there is no config.yaml"),
        ("vit", ["--layers", "blokcs.1"], "no attention layer 'blokcs.1'; nearest: blocks.1"),
        ("vit", ["--layers", "head"], "no attention layer 'head'"),
        ("vit", ["--images", "missing"], "--images missing: there is no such folder or file"),
        ("vit", ["--images", "empty"], "no images in empty"),
        ("vit", ["--images", "vit/config.yaml"], "cannot read the image .*config.yaml"),
        ("vit", ["--count", "0"], "--count: invalid count value: '0'; see .* --help"),
        ("plain", [], "no attention that can be shown; --layers grad_cam"),
        ("gan", ["--images", "photographs"], "a GAN generates its images from noise"),
    ],
)
def test_what_cannot_be_shown_is_one_line(run, options, line, trained, capsys):
    Path("empty").mkdir()
    if run in RUNS:
        trained(run)
    assert main(["explain", run, *options]) in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(line, said), said


def test_data_that_is_not_here(trained, capsys):
    run = trained("unet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["val_images"] = "gone"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["explain", str(run)]) == 1
    assert re.search("gone.*--images FOLDER", capsys.readouterr().err)


def test_help_imports_nothing_heavy():
    code = """
import sys
from attention_vision.__main__ import main
try:
    main(["explain", "--help"])
except SystemExit as end:
    assert not end.code
assert main(["explain", "nowhere"]) == 1
assert not {"torch", "lightning", "matplotlib", "numpy"} & set(sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--layers" in answer.stdout


def test_points_are_those_of_the_query_of_each_detection(trained):
    layer = "decoder.1.cross_attention"
    plain, arrays = explained(trained("deformable"))
    assert arrays["queries"].shape == arrays["labels"].shape  # which row of the map is whose
    assert set(arrays["queries"]) <= set(range(5))
    recorded, cells = arrays[layer], arrays[f"{layer}/map"]  # (1, h, Q, L, P, 3), (1, Q, h, w)
    of_query = recorded[0, :, 3].reshape(-1, 3)
    counted = np.zeros((8, 8))
    for x, y, weight in of_query:
        if 0 <= x < 1 and 0 <= y < 1:
            counted[int(y * 8), int(x * 8)] += weight / 2  # of two heads
    assert cells[0, 3] == pytest.approx(counted, abs=1e-6)

    weights, queries = torch.from_numpy(recorded), torch.tensor([3, 0])
    rows = points_of_queries(weights, queries, (64, 32), ["head 0", "head 1"])
    expected = weights[0, 1, 3].flatten(0, 1) * torch.tensor([32, 64, 1])
    torch.testing.assert_close(rows["head 1"][0], expected)
    (row,) = points_of_queries(weights, queries, (64, 32), ["all"]).values()
    torch.testing.assert_close(row[0], torch.cat((rows["head 0"][0], rows["head 1"][0])))
    with_heads, _ = explained(Path("deformable"), "--heads")
    assert with_heads.shape[0] > plain.shape[0]


def test_a_point_is_drawn_where_it_reads():
    found = {"labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    found["boxes"] = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    pictures = [
        proposal_sheet(torch.zeros(3, 100, 100), found, {}, [], points={"row": points})
        for points in (torch.tensor([[[x, 50.0, 1.0]]]) for x in (30.0, 60.0))
    ]
    where = (pictures[0] != pictures[1]).any(-1).nonzero()
    # A sheet shows pictures of 320 pixels at 240.
    assert np.ptp(where[1]) == pytest.approx(240 * 0.3 + 2 * DOT * 0.75, abs=3)
    assert np.ptp(where[0]) == pytest.approx(2 * DOT * 0.75, abs=3)


def test_proposals_are_those_that_detections_were_read_from():
    network = AttentionRCNN(
        3, ResNet(8, width=4, num_classes=0, dilation=True), pyramid_channels=4,
        score_threshold=0.0, eval_proposals=20,
    )  # fmt: skip
    redraw(network, 0).eval()
    image, heads = torch.randn(3, 48, 64), network.roi_heads
    padding_mask = torch.zeros(48, 64, dtype=torch.bool)
    with record_attention(network, ["roi_heads.box_head.pool"]) as recorded:
        found, proposals, source = detection_proposals(network, image, padding_mask)
    (weights,) = recorded.values()
    maps = class_attention(weights, source, found["labels"])
    assert len(found["boxes"]) == len(proposals) == len(maps) > 2
    with torch.no_grad(), record_attention(heads, ["box_head.pool"]) as weights:
        pooled = heads.box_roi_pool(network.pyramid_levels(image[None]), [proposals], [(48, 64)])
        _, deltas = heads.box_head(pooled)
    each, classes = torch.arange(len(maps)), found["labels"] + 1
    boxes = heads.box_coder.decode(deltas, [proposals])[each, classes]
    boxes = clip_boxes_to_image(boxes, (48, 64)) / torch.tensor([64, 48, 64, 48])
    assert torch.allclose(boxes, found["boxes"], atol=1e-4)
    read = weights["box_head.pool"][each, 0, classes]
    assert torch.allclose(read, maps.flatten(1), atol=1e-4)
    assert torch.allclose(read.sum(1), torch.ones(len(maps)))


def test_grad_cam_of_a_detection_is_what_its_proposal_moved():
    """Against finite differences: a step of a channel in the proposal's level moves the logit."""
    network = AttentionRCNN(
        3, ResNet(8, width=4, num_classes=0), head=partial(PlainBoxHead, hidden=8),
        pyramid_channels=4, score_threshold=0.0, eval_proposals=20,
    )  # fmt: skip
    redraw(network, 0).eval()
    image, heads = torch.randn(3, 50, 60), network.roi_heads
    padding_mask = torch.zeros(50, 60, dtype=torch.bool)
    found, proposals, _ = detection_proposals(network, image, padding_mask)
    labels, proposals = found["labels"][:2], proposals[:2]
    with torch.inference_mode():
        maps = detection_grad_cam(network, image, padding_mask, labels, proposals)
    batch, levels = network.encode(image[None], torch.tensor([[50, 60]]))
    levels = {name: level.detach().double() for name, level in levels.items()}
    heads.box_head.double()

    def logits() -> torch.Tensor:
        pooled = heads.box_roi_pool(levels, [proposals.double()], batch.image_sizes)
        return heads.box_head(pooled)[0].detach()[[0, 1], labels + 1]

    assert maps.shape == (2, 13, 15)  # of stride 4
    expected = torch.zeros(2, 16, 16, dtype=torch.float64)
    for level in [levels[str(number)] for number in range(3)]:
        cam = 0.0
        for channel in range(4):
            level[:, channel] += 1e-6
            above = logits()
            level[:, channel] -= 2e-6
            slope = (above - logits()) / 2e-6 / level[0, 0].numel()
            level[:, channel] += 1e-6
            cam = cam + slope[:, None, None] * level[:, channel]
        expected += interpolate(cam.relu()[:, None], (16, 16), mode="bilinear")[:, 0]
    for cam, whole, (left, top, right, low) in zip(maps, expected, proposals / 4, strict=True):
        inside = torch.zeros(13, 15, dtype=torch.bool)
        inside[int(top) : ceil(low), int(left) : ceil(right)] = True
        assert not cam[~inside].any()
        torch.testing.assert_close(
            cam[inside].double(), whole[:13, :15][inside], rtol=1e-3, atol=1e-5
        )
    assert maps.any()


def test_objectness_is_that_of_the_proposals():
    network = AttentionRCNN(3, ResNet(8, width=4, num_classes=0), pyramid_channels=4)
    redraw(network, 0).eval()
    image, padding_mask = torch.randn(3, 50, 60), torch.zeros(50, 60, dtype=torch.bool)
    maps = objectness(network, image, padding_mask)
    _, levels = network.encode(image[None], torch.tensor([[50, 60]]))
    scores, _ = network.rpn.head(list(levels.values()))
    assert maps.shape == (len(levels), 13, 15)
    assert torch.equal(maps[0], scores[0].sigmoid().amax(1)[0, :13, :15])
    coarse = scores[1].sigmoid().amax(1)[0]
    assert maps[1, 12, 14] == coarse[6, 7]


def test_bars_are_as_high_as_their_values():
    picture = bars(torch.tensor([0.25, 1.0]), (100, 60))
    filled = (picture[..., 0] > 0.8) & (picture[..., 1] < 0.5)
    assert filled[:, 5].sum() == 25
    assert filled[:, 50].sum() == 100
    assert not filled[:75, 5].any()
    many = bars(torch.ones(500), (10, 60))
    assert many.shape == (10, 60, 3)
