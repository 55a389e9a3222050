"""Official weights either load whole or are refused in one line."""

import argparse
import copy
from functools import partial

import pytest
import torch
import torchvision

from attention_vision.attention import CBAM, FadeIn, SelfAttention2d
from attention_vision.backbones import ResNet, ViT
from attention_vision.checkpoints import load_backbone, load_official, start_from
from attention_vision.errors import InputError


def test_a_file_with_wrappers_loads(tmp_path):
    peer = torchvision.models.resnet18()
    path = tmp_path / "resnet18.pth"
    torch.save(
        {"model": {f"module.{k}": v for k, v in peer.state_dict().items()}, "epoch": 3}, path
    )
    ours = load_official(ResNet(18).eval(), path)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), peer.eval()(images), rtol=1e-4, atol=1e-4)


SMALL = ResNet(10, width=8, num_classes=3)


def renamed(state, rename):
    return {rename(key): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("module.", "prefix module. cut off"),
        ("_orig_mod.", "_orig_mod cut out"),
        ("module._orig_mod.", "_orig_mod cut out of the names; prefix module. cut off"),
        ("_orig_mod.module.", "prefix module. cut off"),
        ("model.", "prefix model. cut off"),
        ("model.module.", "prefix model.module. cut off"),
        ("lit.classifier.net.", "prefix lit.classifier.net. cut off"),
        ("network.", None),  # a run of this package
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["torchvision", "own"])
def test_prefixes_are_cut_off_and_said(prefix, said, own, capsys):
    theirs = SMALL if own else torchvision.models.resnet18(num_classes=3)
    ours = ResNet(10, width=8, num_classes=3) if own else ResNet(18, num_classes=3)
    load_official(ours, {"state_dict": renamed(theirs.state_dict(), lambda key: prefix + key)})
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)
    printed = capsys.readouterr().out
    assert (said in printed and printed.count("\n") == 1) if said else not printed


def test_names_that_compilers_and_fsdp_insert_are_cut_out():
    state = renamed(SMALL.state_dict(), lambda key: key.replace(".0.", "._orig_mod.0.", 1))
    state = renamed(state, lambda key: f"_fsdp_wrapped_module.{key}")
    ours = load_official(ResNet(10, width=8, num_classes=3), state)
    assert torch.equal(ours.stem[0].weight, SMALL.stem[0].weight)


def averages():
    """Training states with an average of ones beside weights of zeros, as others save them."""
    zeros, ones = (
        {key: torch.full_like(value, number) for key, value in SMALL.state_dict().items()}
        for number in (0, 1)
    )
    args = argparse.Namespace(lr=0.1)
    of_torch = renamed(ones, lambda key: f"module.{key}") | {"n_averaged": torch.tensor(7)}
    yield "timm", {"state_dict": zeros, "state_dict_ema": ones, "args": args}
    yield "torchvision", {"model": zeros, "model_ema": of_torch, "args": args, "epoch": 3}
    yield "nested", {"ema": {"state_dict": ones}, "model": zeros, "optimizer": {"state": {}}}
    yield "lightning", {"state_dict": ones, "averaging_state": {"n_averaged": torch.tensor(7)}}
    flat = renamed(zeros, lambda key: f"model.{key}") | renamed(ones, lambda key: f"ema.{key}")
    yield "flat", {"state_dict": flat}


@pytest.mark.parametrize(("saved", "checkpoint"), list(averages()))
def test_of_an_average_and_the_weights_the_average_is_taken(saved, checkpoint, tmp_path, capsys):
    torch.save(checkpoint, tmp_path / "last.pth")
    ours = load_official(ResNet(10, width=8, num_classes=3), tmp_path / "last.pth")
    assert all((weight == 1).all() for weight in ours.parameters())
    printed = capsys.readouterr().out
    assert "the average of weights" in printed
    assert printed.count("\n") == 1


def test_a_network_among_others_is_found_or_refused(capsys):
    state = SMALL.state_dict()
    ours = ResNet(10, width=8, num_classes=3)
    load_official(ours, {"generator": state, "optimizer": {"param_groups": [], "state": {}}})
    assert "its entry `generator`" in capsys.readouterr().out
    flat = renamed(state, lambda key: f"student.{key}")
    others = renamed(state, lambda key: f"teacher.{key}")
    for several in ({"student": state, "teacher": state}, flat | others):
        with pytest.raises(InputError, match=r"has several networks .*save the state dict of one"):
            load_official(ours, several)
    line = start_from(ours, flat | {"loss.weight": torch.ones(3)})
    assert "prefix student. cut off, and loss.weight left out" in line


def test_the_backbone_of_a_detector_starts_another(capsys):
    state = {f"network.backbone.{key}": value for key, value in SMALL.state_dict().items()}
    state["network.class_head.weight"] = torch.ones(4, 8)
    ours = load_backbone(ResNet(10, width=8, num_classes=0), {"state_dict": state})
    assert torch.equal(ours.stem[0].weight, SMALL.stem[0].weight)
    assert "prefix network.backbone. cut off, and network.class_head.weight left out" in (
        capsys.readouterr().out
    )


def fading(gamma=0.0):
    return partial(FadeIn, attention=CBAM, gamma=gamma)


@pytest.mark.parametrize("attention", [fading(), SelfAttention2d])
def test_attention_is_added_to_a_trained_network(attention, capsys):
    with_it = ResNet(10, attention, attention_at="stages", width=8, num_classes=3)
    ours = load_official(with_it, SMALL.state_dict()).eval()
    assert "new attention: stages.0.attention and 3 more" in capsys.readouterr().out
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), copy.deepcopy(SMALL).eval()(images))
    line = start_from(with_it, SMALL.state_dict())
    assert line.endswith("all loaded; new attention: stages.0.attention and 3 more")


def test_attention_as_it_is_may_be_new_when_said(capsys):
    load_official(ResNet(10, fading(1.0), width=8, num_classes=3), SMALL.state_dict())
    assert "new attention: stages.0.0.attention and 3 more" in capsys.readouterr().out


def test_attention_that_has_learned_is_no_addition():
    with_it = ResNet(10, SelfAttention2d, attention_at="stages", width=8, num_classes=3)
    with torch.no_grad():
        with_it.stages[0].attention.gamma.fill_(0.5)
    with pytest.raises(InputError, match=r"no weights of stages\.0\.attention"):
        load_official(with_it, SMALL.state_dict())


def test_whole_weights_have_no_new_attention(capsys):
    with_it = ResNet(10, SelfAttention2d, attention_at="stages", width=8, num_classes=3)
    load_official(with_it, copy.deepcopy(with_it).state_dict())
    load_official(SelfAttention2d(8), SelfAttention2d(8).state_dict())
    assert capsys.readouterr().out == ""


def test_weights_without_the_attention_are_refused():
    with pytest.raises(InputError, match=r"no weights of stages\.0\.0\.attention: .*FadeIn"):
        load_official(ResNet(10, CBAM, width=8, num_classes=3), SMALL.state_dict())


def test_half_of_an_attention_is_refused():
    state = ResNet(10, fading(), width=8, num_classes=3).state_dict()
    del state["stages.0.0.attention.gamma"]
    with pytest.raises(InputError, match=r"stages\.0\.0\.attention\.gamma is missing"):
        load_official(ResNet(10, fading(), width=8, num_classes=3), state)


def test_a_transformer_of_another_size_is_named():
    size = "it is a ViT of depth 2 and width 64, the model's has depth 3 and width 32"
    with pytest.raises(InputError, match=size):
        load_official(ViT(32, 8, 32, 3, 2), ViT(32, 8, 64, 2, 2).state_dict())


def test_own_state_dict_and_safetensors_load(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    ours = ViT(32, 8, 32, 2, 2, num_classes=10)
    safetensors.save_file(ours.state_dict(), tmp_path / "vit.safetensors")
    other = load_official(ViT(32, 8, 32, 2, 2, num_classes=10), tmp_path / "vit.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(images), ours.eval()(images))


@pytest.mark.parametrize(
    ("heads", "said"), [(2, ""), (4, "has 4 heads, releases of width 128 have 2")]
)
def test_other_heads_than_of_releases_are_said(heads, said, capsys):
    """The shapes are the same, and so the weights load; the function is another."""
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(32, 8, embed_dim=128, depth=1, num_heads=2)
    load_official(ViT(32, 8, 128, 1, heads), theirs.state_dict())
    output = capsys.readouterr().out
    assert said in output
    assert ("WARNING" in output) == bool(said)


def mistakes(tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    yield tmp_path / "absent.pth", "no such file"
    yield broken, "not readable"
    yield {"encoder.weight": torch.zeros(1)}, "no known layout"
    size = "is a ResNet of depth 34 and width 64, the model's has depth 18 and width 64"
    yield torchvision.models.resnet34().state_dict(), size
    yield torchvision.models.resnet18(num_classes=7).state_dict(), "has 7 classes, the model 1000"


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    model = ResNet(18)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for source, words in mistakes(tmp_path):
        with pytest.raises(InputError) as caught:
            load_official(model, source)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
