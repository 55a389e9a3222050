"""Official weights either load whole or are refused in one line."""

import pytest
import torch
import torchvision

from attention_vision.backbones import ResNet, ViT
from attention_vision.checkpoints import load_official
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


def test_own_state_dict_and_safetensors_load(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    ours = ViT(32, 8, 32, 2, 2, num_classes=10)
    safetensors.save_file(ours.state_dict(), tmp_path / "vit.safetensors")
    other = load_official(ViT(32, 8, 32, 2, 2, num_classes=10), tmp_path / "vit.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(other.eval()(images), ours.eval()(images))


def mistakes(tmp_path):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no weights")
    yield tmp_path / "absent.pth", "no such file"
    yield broken, "not readable"
    yield {"encoder.weight": torch.zeros(1)}, "no known layout"
    yield torchvision.models.resnet34().state_dict(), "is not in the model"
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
