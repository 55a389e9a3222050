"""Penalties on attention: values as loops, gradients, which layers pay, mistakes."""

import math
from functools import partial

import pytest
import torch
from redraw import redraw
from tiny_run import digits

from attention_vision.attention import CBAM, SqueezeExcite, WindowAttention
from attention_vision.backbones import Backbone, ResNet, ViT
from attention_vision.backbones.backbone import MeanPool
from attention_vision.classification import AttentionPenalty, Classifier
from attention_vision.classification.penalties import row_entropy
from attention_vision.errors import InputError


def vit(**options: object) -> ViT:
    return redraw(ViT(16, 8, 16, 2, 2, num_classes=10, **options), 0)


def resnet(attention: type = SqueezeExcite) -> ResNet:
    return redraw(ResNet(8, attention, width=8, stem="cifar", num_classes=10), 0)


def penalised(network: Backbone, *arguments: object) -> torch.Tensor:
    """The penalty of two random images."""
    penalty = AttentionPenalty(*arguments)
    penalty.prepare(network, digits())
    images = torch.randn(2, 3, 16, 16)
    with penalty.record(network) as maps:
        output = network(images)
    return penalty(images, output, maps)


def test_entropy_as_a_loop():
    rows = torch.randn(2, 3, 4, 5).softmax(-1)
    entropies = [-sum(p * math.log(p) for p in row) for row in rows.reshape(-1, 5).tolist()]
    assert row_entropy(rows).item() == pytest.approx(sum(entropies) / len(entropies))
    assert row_entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(math.log(8))


def test_rows_with_zeros_have_finite_gradients():
    scores = torch.tensor([[0.0, -1e4, 3.0]], requires_grad=True)
    row_entropy(scores.softmax(-1)).backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 0] != 0


def test_scores_of_a_layer_are_its_queries_times_its_keys():
    network, tokens = vit(), {}
    layer = network.blocks[1].attention
    layer.register_forward_hook(lambda _, x, __: tokens.update(x=x[0]))
    penalty = penalised(network, "logit_l1", 0.5, ["blocks.1"])
    query, key, _ = (x.unflatten(-1, (2, 8)) for x in layer.qkv(tokens["x"]).chunk(3, -1))
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5
    torch.testing.assert_close(penalty, 0.5 * scores.abs().mean())


def test_gates_of_named_layers_are_averaged():
    network, gates = resnet(), {}
    for stage in (0, 2):
        network.stages[stage][0].attention.excite.register_forward_hook(
            lambda _, __, y, stage=stage: gates.update({stage: y.sigmoid()})
        )
    penalty = penalised(network, "gate_l1", 2.0, ["stages.0", "stages.2"])
    means = [gates[stage].mean() for stage in (0, 2)]
    torch.testing.assert_close(penalty, 2.0 * sum(means) / 2)


@pytest.mark.parametrize(
    ("network", "kind"),
    [(vit, "row_entropy"), (vit, "logit_l1"), (resnet, "gate_l1")],
)
@pytest.mark.parametrize("weight", [0.5, -0.5])
def test_a_step_along_the_gradient_moves_the_measure(network, kind, weight):
    network = network().eval()
    images = torch.randn(4, 3, 16, 16)
    penalty = AttentionPenalty(kind, weight)

    def measure() -> torch.Tensor:
        with penalty.record(network) as maps:
            output = network(images)
        return penalty(images, output, maps)

    before = measure()
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
    after = measure()
    assert after < before
    assert abs(after) < abs(before) if weight > 0 else abs(after) > abs(before)


def test_entropy_teaches_queries_and_keys_alone():
    network = vit()
    penalised(network, "row_entropy", -1.0, ["blocks.1"]).backward()
    query, key, value = network.blocks[1].attention.qkv.weight.grad.chunk(3)
    assert query.abs().sum() > 0
    assert key.abs().sum() > 0
    assert (value == 0).all()


def test_layers_that_are_not_named_stay_fused():
    network, images = vit(), torch.randn(2, 3, 16, 16)
    inputs = {}
    for number, block in enumerate(network.blocks):
        block.attention.register_forward_hook(
            lambda _, x, y, number=number: inputs.update({number: (x[0], y)})
        )
    penalty = AttentionPenalty("row_entropy", 1.0, ["blocks.1"])
    with penalty.record(network) as maps:
        network(images)
    assert list(maps) == ["blocks.1.attention"]
    x, y = inputs[0]
    assert torch.equal(network.blocks[0].attention(x), y)  # bit by bit as without a penalty


def test_the_penalty_is_added_to_the_loss():
    network, batch = vit(), (torch.randn(4, 3, 16, 16), torch.arange(4))
    plain = Classifier(network).training_step(batch, 0)
    penalty = AttentionPenalty("row_entropy", -0.1)
    module = Classifier(network, penalty=penalty)
    with penalty.record(network) as maps:
        output = network(batch[0])
    added = penalty(batch[0], output, maps)
    assert added < 0
    torch.testing.assert_close(module.training_step(batch, 0), plain + added)
    assert module.train_parts["penalty"].compute() == pytest.approx(added.item())
    assert not Classifier(network).train_parts


@pytest.mark.parametrize(
    ("network", "arguments", "line"),
    [
        (vit, ("row_l1", 1.0), "sum to one, so that their L1 norm is constant and its gradient ze"),
        (vit, ("rows", 1.0), "kind rows is none of row_entropy, logit_l1, gate_l1"),
        (
            vit,
            ("gate_l1", 1.0, ["blocks.1"]),
            "layer blocks.1 has no gates but softmax rows; rows ",
        ),
        (vit, ("gate_l1", 1.0), "the network has no gates but softmax rows"),
        (vit, ("row_entropy", 1.0, ["blocks.2"]), r"no layer 'blocks.2'; nearest: blocks\.\d"),
        (vit, ("row_entropy", 1.0, ["blocks.1", "norm"]), "layer norm has no softmax attention"),
        (resnet, ("row_entropy", 1.0), "the network has no softmax attention for row_entropy"),
        (resnet, ("gate_l1", 1.0, ["stem"]), "layer stem has no gates for gate_l1"),
    ],
)
def test_mistakes_are_one_line(network, arguments, line):
    with pytest.raises(InputError, match=f"^model.penalty.*{line}"):
        penalised(network(), *arguments)


def test_other_mechanisms():
    windows = vit(pool=MeanPool, attention=partial(WindowAttention, window=2))
    assert 0 < penalised(windows, "row_entropy", 1.0) < math.log(4)
    assert penalised(windows, "logit_l1", 1.0) > 0
    assert 0 < penalised(resnet(CBAM), "gate_l1", 1.0) < 1
