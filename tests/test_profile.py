"""What costs are counted and measured, and the command that prints them."""

import copy
import csv
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from attention_vision.__main__ import main
from attention_vision.attention import MultiHeadAttention, SelfAttention2d, attend
from attention_vision.backbones import DistilledToken, ResNet, ViT
from attention_vision.classification import Classifier
from attention_vision.detection import AttentionRCNN, RCNNDetector
from attention_vision.generation import AttentionUNet, ImageToImage
from attention_vision.generation.image_to_image.module import Restoration, Segmentation
from attention_vision.profiling.cost import Workload, cost, growth, macs, measure, peak_memory
from attention_vision.profiling.mechanisms import mechanism_workloads, mechanisms
from attention_vision.runs.tasks import TASKS

DEMO = Path(__file__).parents[1] / "experiments" / "demo"
MIB = 2**20


def test_multiply_adds_are_those_of_products():
    x = torch.zeros(3, 4, 6, 5)
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.BatchNorm2d(8))
    assert macs(Workload.of_network("", network, x)) == 8 * 2 * 9 * 30  # per image
    attention = MultiHeadAttention(8, 2)
    assert (
        macs(Workload.of_network("", attention, torch.zeros(2, 10, 8)))
        == 10 * 4 * 8 * 8 + 2 * 10 * 10 * 8
    )


def test_zeros_for_the_fused_kernel_are_no_multiply_adds():
    x = torch.zeros(1, 16, 8, 8)  # 64 queries and 16 keys of 2 channels, values of 8
    projections = 64 * 16 * (2 + 2 + 8 + 8)
    assert macs(Workload.of_network("", SelfAttention2d(16), x)) == projections + 64 * 16 * (2 + 8)


class Square(nn.Module):
    """Makes a map of N² numbers, keeps it for the backward pass, and gives a small one."""

    def forward(self, x):
        return (x[:, :, None] * x[:, None]).exp().sum((1, 2))


def test_memory_is_that_of_the_worst_moment():
    x = torch.randn(1, 1024, requires_grad=True)  # a map takes 4 MiB
    # Product, exponential; backward the product is gone, the exponential and its gradient stand
    # beside the gradients of both factors at most.
    assert 8 * MIB < peak_memory(Workload.of_network("", Square(), x)) < 17 * MIB
    assert peak_memory(Workload.of_network("", Square(), x.detach())) > 8 * MIB  # forward alone
    weights = nn.Linear(1024, 1024, bias=False)  # 4 MiB, and 4 of its gradient
    assert 8 * MIB < peak_memory(Workload.of_network("", weights, x.detach())) < 9 * MIB


def test_attention_takes_a_fifth_of_the_memory_of_stored_weights():
    inputs = [torch.randn(1, 1, 64 * 64, 16, requires_grad=True) for _ in range(3)]

    def stored(query, key, value):
        return (query @ key.mT / 4).softmax(-1) @ value

    fused, naive = (
        growth(partial(backward, function, inputs), torch.device("cpu"))
        for function in (attend, stored)
    )
    assert naive > 3 * 64 * MIB  # softmax, its gradient, that of the scores
    assert 5 * fused < naive


def backward(function, inputs):
    torch.autograd.grad(function(*inputs).square().sum(), inputs)


def test_measuring_changes_nothing():
    network = ResNet(8, width=4, num_classes=3)
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    network.head.eval()
    before = copy.deepcopy(network.state_dict())
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    found = cost(network, torch.randn(2, 3, 16, 16, generator=torch.Generator()), repeats=1)
    assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found.images_per_second == 2 / found.forward_seconds
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(
        torch.equal(parameter.grad, gradient)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True)
    )


def test_what_is_not_trained_has_no_step():
    found = cost(ResNet(8, width=4, num_classes=3).requires_grad_(False), torch.randn(2, 3, 8, 8))
    assert found.step_seconds is found.trained_images_per_second is None
    assert found.peak_memory > 0


def test_networks_take_turns():
    order = []

    class Named(nn.Linear):
        def forward(self, x):
            order.append((self.name, self.training))
            return super().forward(x)

    workloads = []
    for name in "ab":
        network = Named(2, 2)
        network.name = name
        workloads.append(Workload.of_network(name, network, torch.zeros(1, 2)))
    measure(workloads, repeats=2)
    timed = [name for name, training in order if not training][2:]  # the first two were counted
    assert "".join(timed) == "baab"


def test_every_mechanism_is_fed_on_a_map_that_is_not_square():
    workloads = list(mechanism_workloads([(8, 6, 4)], 2, torch.device("cpu")))
    assert sorted(one.name for one in workloads) == sorted(mechanisms())
    for one in workloads:
        assert macs(one) > 0, one.name
        one.step()


def test_experiments_of_all_tasks_become_rows(tmp_path, capsys):
    names = ("se_resnet_digits", "detr_digits", "sagan_digits")
    files = [str(DEMO / f"{name}.yaml") for name in names]
    table, picture = tmp_path / "cost.csv", tmp_path / "cost.png"
    arguments = ["--repeats", "1", "--csv", str(table), "--plot", str(picture)]
    assert main(["profile", *files, *arguments]) == 0
    rows = list(csv.DictReader(table.open()))
    expected = ["se_resnet_digits", "detr_digits", "sagan_digits, generator"]
    assert [row["name"] for row in rows] == [*expected, "sagan_digits, discriminator"]
    assert [row["input"] for row in rows] == ["3x32x32", "3x64x64", "64", "3x16x16"]
    assert [int(row["parameters"]) for row in rows[:3]] == [82_790, 314_283, 77_156]  # README
    assert all(float(row["step_seconds"]) > 0 < float(row["forward_seconds"]) for row in rows)
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in expected)
    assert "82,790" in printed


MODELS = {
    "two heads": (
        "classification",
        lambda: Classifier(ViT(16, 4, 8, 1, 2, 3, pool=DistilledToken)),
    ),
    "R-CNN": (
        "detection",
        lambda: RCNNDetector(
            AttentionRCNN(3, ResNet(8, width=4, num_classes=0), pyramid_channels=8)
        ),
    ),
    "segmentation": (
        "generation",
        lambda: ImageToImage(
            AttentionUNet(1, 3, width=2, depth=1, gated_levels=(1,)), Segmentation()
        ),
    ),
    "restoration": (
        "generation",
        lambda: ImageToImage(AttentionUNet(width=2, depth=1, gated_levels=(1,)), Restoration()),
    ),
}


@pytest.mark.parametrize(("task", "make"), MODELS.values(), ids=MODELS)
def test_networks_with_losses_of_their_own_take_a_step(task, make):
    module = make()
    (one,) = TASKS[task].tools().workloads("name", module, (32, 32), 2)
    one.evaluate()
    parameters = dict(module.network.named_parameters())
    one.network.train()
    one.loss().backward()
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    one.step()
    assert all(parameter.grad is None for parameter in parameters.values())


def test_data_need_not_be_there(tmp_path, capsys):
    file = tmp_path / "folder.yaml"
    network = "{class_path: ResNet, init_args: {depth: 8, width: 4}}"
    data = "{class_path: ImageFolder, init_args: {root: nowhere, image_size: 32}}"
    file.write_text(f"task: classification\ndata: {data}\nmodel: {{network: {network}}}\n")
    assert main(["profile", str(file), "--repeats", "1"]) == 0
    assert "folder: its data is not here" in capsys.readouterr().out


WRONG = [
    ([], "give files of experiments, or --mechanisms"),
    (["--mechanisms", "a.yaml"], "give files of experiments, or --mechanisms"),
    (["nowhere.yaml"], "nowhere.yaml: there is no such file"),
    (["text.yaml"], "text.yaml: expected keys and values"),
    (["other.yaml"], "other.yaml is not an experiment"),
    (["typo.yaml"], "typo.yaml: .*did you mean"),
    (["refused.yaml"], "refused.yaml: model.network.depth is 0: it has to be in"),
    (["a.yaml", "--size", "1", "2", "3"], "--size is for --mechanisms"),
    (["--mechanisms", "--image_size", "8"], "--image_size is for experiments"),
    (["--mechanisms", "--size", "8", "4"], "--size: expected 3 arguments"),
    (["--mechanisms", "--repeats", "0"], "--repeats: invalid positive value: '0'"),
    (["--mechanisms", "--device", "tpu"], "--device tpu: not on this machine"),
    (["--mechanisms", "--csv", "nowhere/a.csv"], "nowhere/a.csv: there is no folder nowhere"),
    (["--mechanisms", "--plot", "a.jpg"], "--plot a.jpg: give a file NAME.png"),
    (["--mechanism"], "unrecognized arguments: --mechanism"),
    ([str(DEMO / "sagan_digits.yaml"), "--image_size", "32"], "built for images of 16 pixels"),
]


@pytest.mark.parametrize(("arguments", "line"), WRONG, ids=[" ".join(w[0][-3:]) for w in WRONG])
def test_mistakes_are_one_line(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DEMO / "vit_digits.yaml").read_text()
    files = {
        "text": "- a list",
        "other": "study: {}",
        "typo": text.replace("patch_size", "patchsize"),
        "refused": re.sub(r"depth: \d+", "depth: 0", text),
    }
    for name, content in files.items():
        Path(f"{name}.yaml").write_text(content)
    assert main(["profile", *arguments]) in (1, 2)
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(line, said), said


def test_help_imports_nothing_heavy():
    code = """
import sys
from attention_vision.__main__ import main
try:
    main(["profile", "--help"])
except SystemExit as end:
    assert not end.code
assert not {"torch", "lightning", "matplotlib", "numpy"} & set(sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "--mechanisms" in answer.stdout
