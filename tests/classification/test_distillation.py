"""Distillation: losses as loops, maps of other shapes, an untouched teacher, mistakes, a run."""

import copy
import csv
import json
import math
import multiprocessing
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from redraw import redraw
from tiny_run import Kill, digits
from torch import nn

from attention_vision.__main__ import main
from attention_vision.attention import (
    CBAM,
    AttentionPool,
    SqueezeExcite,
    WindowAttention,
    record_attention,
)
from attention_vision.backbones import ResNet, ViT
from attention_vision.backbones.backbone import Backbone, MeanPool
from attention_vision.backbones.vit import DistilledToken
from attention_vision.checkpoints.run_network import trained_classifier
from attention_vision.classification import (
    AttentionMapDistillation,
    AttentionTransfer,
    Classifier,
    Distillation,
    GateTransfer,
)
from attention_vision.classification.attention_transfer import (
    grid_of,
    normalized_difference,
    resize_rows,
    without_tokens,
)
from attention_vision.classification.distillation import hard_loss, soft_loss
from attention_vision.errors import InputError
from attention_vision.training.run_folder import best_or_last

SIZE = (16, 16)


def vit(**options: object) -> ViT:
    sizes = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    return redraw(ViT(**{**sizes, "num_classes": 10, **options}), len(options))


def resnet(**options: object) -> ResNet:
    sizes = {"depth": 8, "width": 8, "stem": "cifar", "num_classes": 10}
    return redraw(ResNet(**{**sizes, **options}), len(options))


def taught(student: Backbone, teacher: Backbone, folder: Path, **options: object) -> Distillation:
    """The distillation of a student, ready to be called."""
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    distillation = Distillation(network=teacher, weights=str(folder / "teacher.pt"), **options)
    distillation.prepare(student, None)
    return distillation


def loss_of(
    student: Backbone, distillation: Distillation, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with distillation.record(student) as maps:
        output = student(images)
    return output, distillation(images, output, maps)


# Answers


def test_answers_are_weighed_as_loops_say():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    p, q = ((x / 2.5).softmax(1).tolist() for x in (teacher, student))
    divergence = sum(p[i][c] * math.log(p[i][c] / q[i][c]) for i in range(3) for c in range(4))
    assert soft_loss(student, teacher, 2.5).item() == pytest.approx(divergence * 2.5**2 / 12)
    log_q = student.log_softmax(1)
    expected = -sum(log_q[i, teacher[i].argmax()] for i in range(3)) / 3
    torch.testing.assert_close(hard_loss(student, teacher), expected)


@pytest.mark.parametrize("logits", ["soft", "hard"])
def test_a_step_adds_both_losses(tmp_path, logits):
    student, teacher = vit(), resnet().eval()
    distillation = taught(student, teacher, tmp_path, logits=logits, alpha=0.3, temperature=2.0)
    module = Classifier(student, label_smoothing=0.1, distillation=distillation)
    images, labels = torch.randn(6, 3, *SIZE), torch.arange(6)
    answer, output = teacher(images), student(images)
    loss = {"soft": partial(soft_loss, temperature=2.0), "hard": hard_loss}[logits](output, answer)
    ce = F.cross_entropy(output, labels, label_smoothing=0.1)
    torch.testing.assert_close(module.training_step((images, labels), 0), 0.7 * ce + 0.3 * loss)
    parts = {name: mean.compute() for name, mean in module.train_parts.items()}
    torch.testing.assert_close(parts, {"loss_ce": 0.7 * ce.data, "distillation": 0.3 * loss.data})


def test_a_distillation_token_learns_from_the_teacher_alone(tmp_path):
    student = vit(pool=DistilledToken)
    distillation = taught(student, resnet(), tmp_path, logits="hard", alpha=0.5)
    module = Classifier(student, distillation=distillation)
    images, labels = torch.randn(6, 3, *SIZE), torch.arange(6)
    module.training_step((images, labels), 0).backward()
    with torch.no_grad():
        classes, distilled = student(images)
        wanted = F.one_hot(distillation.teach(images)[0].argmax(1), 10)
    for part, logits, targets in (
        (student.head.classes, classes, F.one_hot(labels, 10)),
        (student.head.distillation, distilled, wanted),
    ):
        gradient = 0.5 * (logits.softmax(1) - targets).mean(0)
        torch.testing.assert_close(part.bias.grad, gradient)


def test_without_a_teachers_answers_both_tokens_learn_from_the_labels():
    student = vit(pool=DistilledToken)
    images, labels = torch.randn(4, 3, *SIZE), torch.arange(4)
    loss = Classifier(student).training_step((images, labels), 0)
    torch.testing.assert_close(loss, F.cross_entropy(student.eval()(images), labels))


# Attention maps


def naive_rows(rows, shape, prefix):
    """Every row as an image of keys, then every key as an image of queries."""
    side = [round((n - prefix) ** 0.5) for n in (rows.shape[2], *shape)]

    def resize(image, length):
        image = image.reshape(1, 1, side[0], side[0])
        return F.interpolate(image, (length, length), mode="bilinear", antialias=True).flatten()

    result = rows.new_zeros(*rows.shape[:2], *shape)
    for b in range(rows.shape[0]):
        for h in range(rows.shape[1]):
            keys = rows.new_zeros(rows.shape[2], shape[1])
            for number, row in enumerate(rows[b, h]):
                spread = resize(row[prefix:], side[2])
                keys[number, :prefix] = row[:prefix]
                keys[number, prefix:] = spread / spread.sum() * row[prefix:].sum()
            result[b, h, :prefix] = keys[:prefix]
            for number, column in enumerate(keys.T):
                result[b, h, prefix:, number] = resize(column[prefix:], side[1])
    return result


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("sides", [(4, 2), (3, 6), (4, 4)])
def test_maps_are_resized_over_queries_and_keys(prefix, sides):
    old, new = (prefix + side**2 for side in sides)
    rows = torch.randn(2, 3, old, old).mul(2).softmax(-1)
    resized = resize_rows(rows, (new, new), prefix, SIZE)
    torch.testing.assert_close(resized, naive_rows(rows, (new, new), prefix))
    torch.testing.assert_close(resized.sum(-1), torch.ones(2, 3, new))
    torch.testing.assert_close(
        resized[:, :, :prefix, :prefix], rows[:, :, :prefix, :prefix], rtol=0, atol=0
    )


def test_a_place_of_the_map_stays_at_its_place():
    rows = torch.full((1, 1, 64, 64), 0.0)
    rows[..., 2 * 8 + 6] = 1.0  # all look at row 2, column 6 of 8 x 8 places
    resized = resize_rows(rows, (16, 16), 0, SIZE)
    assert (resized.argmax(-1) == 1 * 4 + 3).all()
    assert grid_of(24, (48, 32)) == (6, 4)
    with pytest.raises(ValueError, match="17 tokens are not a map in the proportions of 16 x 16"):
        grid_of(17, SIZE)


def test_tokens_that_one_lacks_are_left_out():
    rows = torch.rand(1, 1, 6, 6).softmax(-1)
    left = without_tokens(rows, 1, 2)  # of a class and a distillation token, the class token stays
    keep = [0, 2, 3, 4, 5]
    expected = rows[0, 0][keep][:, keep]
    torch.testing.assert_close(left[0, 0], expected / expected.sum(1, keepdim=True))
    assert without_tokens(rows, 1, 1) is rows


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize(
    "teacher",
    [
        {"in_channels": 3},  # as the student
        {"depth": 5, "heads": 4},
        {"depth": 1, "patch_size": 8},
        {"patch_size": 2, "heads": 1, "pool": MeanPool},
        {"pool": DistilledToken},
    ],
    ids=lambda teacher: "-".join(map(str, teacher)),
)
def test_maps_of_any_teacher(tmp_path, teacher, loss):
    student, teacher = vit(), vit(**teacher)
    maps = AttentionMapDistillation(weight=3.0, loss=loss)
    distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
    images = torch.randn(2, 3, *SIZE)
    _, measured = loss_of(student, distillation, images)

    with torch.no_grad(), record_attention(student) as mine, record_attention(teacher) as theirs:
        student(images), teacher(images)
    mine, theirs = list(mine.values()), list(theirs.values())
    prefix = min(1, teacher.num_prefix_tokens)
    total = 0.0
    for number, s in enumerate(mine):
        t = theirs[math.ceil((number + 1) * len(theirs) / len(mine)) - 1]
        if s.shape[1] != t.shape[1]:
            s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
        s, t = (
            # the class token where both have one, then the map
            x[:, :, index][:, :, :, index]
            for x, own in ((s, 1), (t, teacher.num_prefix_tokens))
            for index in [[*range(prefix), *range(own, x.shape[2])]]
        )
        s, t = s / s.sum(-1, keepdim=True), t / t.sum(-1, keepdim=True)
        t = naive_rows(t, s.shape[2:], prefix)
        total += ((s - t) ** 2).mean() if loss == "mse" else (t * (t / s).log()).sum(-1).mean()
    assert measured.item() == pytest.approx(3.0 * total.item() / len(mine), rel=1e-4)
    assert measured > 0


def test_pools_are_paired_by_name_alone(tmp_path):
    student, teacher = vit(pool=AttentionPool), vit(pool=AttentionPool, depth=4)
    images = torch.randn(2, 3, *SIZE)
    maps = AttentionMapDistillation()
    distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
    with distillation.record(student) as seen:
        student(images)
    assert maps.pairs(seen, distillation.teach(images)[1]) == [
        ("blocks.0.attention", "blocks.1.attention"),
        ("blocks.1.attention", "blocks.3.attention"),
    ]
    for other, line in (("pool", None), ("blocks.1", "nothing in common")):
        maps = AttentionMapDistillation({"pool": other})
        distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
        with nullcontext() if line is None else pytest.raises(InputError, match=line):
            assert loss_of(student, distillation, images)[1] >= 0


def test_maps_alone_teach_queries_and_keys_alone(tmp_path):
    student, teacher = vit(), vit(depth=3, heads=4)
    maps = AttentionMapDistillation({"blocks.1": "blocks.2.attention"})
    distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
    _, loss = loss_of(student, distillation, torch.randn(2, 3, *SIZE))
    loss.backward()
    query, key, value = student.blocks[1].attention.qkv.weight.grad.chunk(3)
    assert query.abs().sum() > 0
    assert key.abs().sum() > 0
    assert (value == 0).all()
    last = [*student.blocks[1].mlp.parameters(), *student.head.parameters()]
    assert all(parameter.grad is None for parameter in last)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_answers_alone_leave_attention_fused(tmp_path):
    student = vit()
    distillation = taught(student, vit(), tmp_path)
    images = torch.randn(2, 3, *SIZE)
    expected = student(images)
    with distillation.record(student) as maps:
        assert torch.equal(student(images), expected)
    assert maps == {}


# Activations and gates


def test_activations_are_compared_as_attention_transfer_does(tmp_path):
    student, teacher = vit(), resnet().eval()
    images = torch.randn(3, 3, *SIZE)
    maps = AttentionTransfer({"blocks.0": "stages.1", "blocks.1": "stages.2"}, weight=2.0)
    distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
    _, measured = loss_of(student, distillation, images)

    tokens, distances = {}, []
    for number in range(2):
        student.blocks[number].register_forward_hook(
            lambda _, __, y, number=number: tokens.update({number: y})
        )
    student(images)
    for number, feature in enumerate(teacher.features(images)[1:]):
        for image in range(3):
            q_s = tokens[number][image, 1:].pow(2).sum(1)  # 4 x 4 places
            q_t = F.interpolate(
                feature[image].pow(2).sum(0)[None, None], (4, 4), mode="bilinear", antialias=True
            ).flatten()
            distances.append((q_s / q_s.norm() - q_t / q_t.norm()).pow(2).mean())
    torch.testing.assert_close(measured, 2.0 * torch.stack(distances).mean())


@pytest.mark.parametrize("network", [vit, resnet, partial(vit, pool=DistilledToken)])
def test_the_last_map_is_that_of_features(network):
    network, images = network().eval(), torch.randn(2, 3, *SIZE)
    transfer = AttentionTransfer()
    with transfer.record(network, None) as maps:
        network(images)
    expected = network.features(images)[-1].flatten(2).mT
    torch.testing.assert_close(maps["pool"][:, network.num_prefix_tokens :], expected)


def test_gates_of_every_size(tmp_path):
    images = torch.randn(2, 3, *SIZE)
    for attention, layers in (
        (SqueezeExcite, None),
        (CBAM, {"stages.1.0.attention.spatial": "stages.0.0.attention.spatial"}),
    ):
        student, teacher = resnet(attention=attention), resnet(attention=attention)
        redraw(teacher, 5)  # other weights
        maps = GateTransfer(layers)
        distillation = taught(student, teacher, tmp_path, logits="none", maps=maps)
        _, loss = loss_of(student, distillation, images)
        loss.backward()
        assert loss > 0
        gate = student.stages[1][0].attention
        assert all((parameter.grad != 0).any() for parameter in list(gate.parameters())[-2:])
    gate, twice = torch.rand(2, 1, 4, 4), 2 * torch.ones(2, 1, 4, 4)
    assert normalized_difference(gate, gate * twice) == pytest.approx(0, abs=1e-12)


# The teacher


def test_the_teacher_stays_as_it_is_and_out_of_what_is_saved(tmp_path):
    teacher = resnet()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(network=teacher, weights=str(tmp_path / "teacher.pt"))
    module = Classifier(vit(), mixup=0.4, ema_decay=0.9, distillation=distillation)
    assert copy.deepcopy(module).distillation is distillation
    seen = {}
    module.network.register_forward_pre_hook(lambda _, x: seen.update(student=x[0]))
    teacher.register_forward_pre_hook(lambda _, x: seen.update(teacher=x[0]))

    class Same(ModelCheckpoint):
        def on_train_batch_end(self, *arguments: object) -> None:
            super().on_train_batch_end(*arguments)
            assert torch.equal(seen["student"], seen["teacher"])  # mixed alike

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        logger=False,
        callbacks=[Same(tmp_path, "last")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, digits())
    assert not teacher.training
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = saved["state_dict"].keys() | saved["current_model_state"].keys()
    assert not [name for name in names if name.startswith("distillation")]
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in module.network.parameters()}


# Mistakes


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "give either teacher, a run folder, or network and weights"),
        ({"teacher": "run", "network": nn.Identity()}, "give either teacher"),
        ({"network": nn.Identity()}, "give either teacher"),
        ({"teacher": "run", "alpha": 1.5}, r"alpha is 1\.5: it has to be"),
        ({"teacher": "run", "temperature": 0}, "temperature is 0: it has to be"),
        ({"teacher": "run", "logits": "warm"}, "none of hard, soft, none"),
        ({"teacher": "run", "logits": "none"}, "there are no maps to learn"),
    ],
)
def test_wrong_numbers(options, line):
    with pytest.raises(InputError, match=f"[dD]istillation.*{line}"):
        Distillation(**options)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "line"),
    [
        (vit, partial(resnet, num_classes=7), {}, "has 7 classes, the student 10: take one of"),
        (vit, partial(vit, patch_size=3, image_size=15), {}, "takes no images of 16 x 16 pixels"),
        (
            vit,
            vit,
            {"maps": AttentionMapDistillation({"block.1": "blocks.1"})},
            "the student has no layer 'blo",
        ),
        (
            vit,
            vit,
            {"maps": AttentionMapDistillation({"blocks.1": "blocks.8"})},
            "the teacher has no layer 'bl",
        ),
        (vit, resnet, {"maps": AttentionMapDistillation()}, "the teacher has no softmax attention"),
        (
            vit,
            vit,
            {"maps": AttentionMapDistillation({"blocks": "blocks.1"})},
            "blocks has 2 layers of softmax",
        ),
        (
            vit,
            vit,
            {"maps": AttentionMapDistillation({"head": "blocks.1"})},
            "head has no softmax attention",
        ),
        (
            vit,
            partial(vit, pool=MeanPool, attention=partial(WindowAttention, window=2)),
            {"maps": AttentionMapDistillation({"blocks.0": "blocks.0"})},
            "attention inside windows or lines is not resized",
        ),
        (
            partial(resnet, attention=SqueezeExcite, width=16),
            partial(resnet, attention=SqueezeExcite),
            {"maps": GateTransfer()},
            "gates of as many channels are needed",
        ),
        (vit, resnet, {"maps": AttentionTransfer({"blocks.0": "pool"})}, r"activations are \(B"),
    ],
)
def test_what_does_not_fit_is_one_line_before_training(tmp_path, student, teacher, options, line):
    student, teacher = student(), teacher()
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    distillation = Distillation(network=teacher, weights=str(tmp_path / "teacher.pt"), **options)
    with pytest.raises(InputError, match=f"^model.distillation.*{line}"):
        distillation.prepare(student, digits())
    assert all(module.training for module in student.modules())


# Through the command

TEACHER = """
trainer: {max_epochs: 1, accelerator: cpu, devices: 1}
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 260}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 8, width: 16, depth: 3, heads: 4}
"""
STUDENT = """
trainer: {max_epochs: 2, accelerator: cpu, devices: 1, log_every_n_steps: 1}
checkpoint_every_n_steps: 2
data: {class_path: Digits, init_args: {image_size: 16, batch_size: 260}}
model:
  network:
    class_path: ViT
    init_args: {image_size: 16, patch_size: 4, width: 16, depth: 2, heads: 2}
  mixup: 0.4
  ema_decay: 0.9
  distillation:
    teacher: teacher
    logits: soft
    temperature: 2.0
    maps:
      class_path: AttentionMapDistillation
      init_args: {layers: {blocks.1: blocks.2}, weight: 0.5}
  penalty: {kind: row_entropy, weight: -0.01, layers: [blocks.1]}
"""


def fit(file: str, run: str, *arguments: str) -> int:
    return main(["classification", "fit", "-c", file, "--run", run, *arguments])


def rows(run: str) -> list[dict[str, str]]:
    with Path(run, "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.endswith("_per_second")}
            for row in csv.DictReader(file)
        ]


def test_a_run_with_a_teacher_resumes_bit_by_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("teacher.yaml").write_text(TEACHER)
    Path("student.yaml").write_text(STUDENT)
    assert fit("student.yaml", "early") == 1
    assert "teacher does not contain a run: train the classifier first" in capsys.readouterr().err
    assert fit("teacher.yaml", "teacher") == 0

    assert fit("student.yaml", "whole") == 0
    (*_, last) = rows("whole")
    parts = [float(last[f"train/{part}"]) for part in ("loss_ce", "distillation", "penalty")]
    assert float(last["train/loss"]) == pytest.approx(sum(parts), rel=1e-5)
    assert parts[1] > 0 > parts[2]

    kill = json.dumps([{"class_path": f"{Kill.__module__}.Kill", "init_args": {"step": 7}}])
    arguments = ("student.yaml", "cut", f"--trainer.callbacks={kill}")
    process = multiprocessing.get_context("fork").Process(target=fit, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL  # in the second epoch, a step behind its checkpoint
    # Flags of a run hold on; the callback that kills it does so too, if it is not taken back.
    assert fit("student.yaml", "cut", "--ckpt_path", "last", "--trainer.callbacks=null") == 0
    whole, cut = (
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("whole", "cut")
    )
    assert all(torch.equal(cut[name], value) for name, value in whole.items())
    assert rows("cut") == rows("whole")

    # Classes are compared by name: another order is put right, another class is refused.
    path = best_or_last(Path("teacher"))
    checkpoint = torch.load(path, weights_only=True)
    data, student, images = digits(), vit(), torch.randn(3, 3, 16, 16)
    teacher, _ = trained_classifier(Path("teacher"))
    for names, order in (("0123456789", None), ("9876543210", range(9, -1, -1))):
        checkpoint["Digits"]["class_names"] = list(names)
        torch.save(checkpoint, path)
        by_run = Distillation(teacher="teacher")
        by_file = Distillation(network=copy.deepcopy(teacher), weights=str(path))
        for distillation in (by_run, by_file):
            distillation.prepare(student, data)
            plain = distillation.network(images)
            expected = plain if order is None else plain[:, list(order)]
            assert torch.equal(distillation.teach(images)[0], expected)
    checkpoint["Digits"]["class_names"] = list("012345678x")
    torch.save(checkpoint, path)
    with pytest.raises(InputError, match=r"teacher: the data: 9 is not among the 10 classes"):
        Distillation(teacher="teacher").prepare(student, data)
    checkpoint["Digits"]["class_names"] = list("0123456789")
    torch.save(checkpoint, path)

    file = Path("teacher/config.yaml")
    config = yaml.safe_load(file.read_text())
    config["data"]["init_args"]["preprocessing"] = {"mean": [0.5, 0.5, 0.5]}
    file.write_text(yaml.safe_dump(config))
    assert fit("student.yaml", "other") == 1
    assert "was trained on images of mean 0.5 0.5 0.5" in capsys.readouterr().err
    assert fit("student.yaml", "same", "--data.preprocessing.mean=[0.5,0.5,0.5]") == 0
