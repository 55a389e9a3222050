"""Weights for other classes, image sizes and names: resized, left out or refused, in one line."""

import re
from functools import partial

import pytest
import torch
import torchvision
from redraw import redraw

from attention_vision.attention import MultiHeadAttention
from attention_vision.backbones import CCT, ClassToken, DistilledToken, MeanPool, ResNet, Swin, ViT
from attention_vision.checkpoints import load_official, start_from
from attention_vision.checkpoints.hub import download, is_name
from attention_vision.errors import InputError

small = partial(ViT, patch_size=4, width=16, depth=2, heads=2)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("side", [3, 8])
def test_positions_are_resized_as_timm_resizes_them(prefix, side):
    timm = pytest.importorskip("timm")
    pool = (MeanPool, ClassToken, DistilledToken)[prefix]
    theirs, ours = small(20, pool=pool), small(4 * side, pool=pool)
    load_official(ours, redraw(theirs, 1).state_dict(), resize=True)
    expected = timm.layers.resample_abs_pos_embed(
        theirs.position.table, [side, side], num_prefix_tokens=prefix
    )
    torch.testing.assert_close(ours.position.table, expected)
    torch.testing.assert_close(ours.norm.weight, theirs.norm.weight)
    # as the smaller network itself takes larger images
    images = torch.randn(1, 3, 4 * side, 4 * side)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def test_convolutional_tokens_are_resized_too():
    theirs, ours = (CCT(size, 16, 2, 2, 3).eval() for size in (12, 16))
    load_official(ours, redraw(theirs, 1).state_dict(), resize=True)
    images = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


NAMES_BEFORE_5 = (
    (r"\.layers\.", ".encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


@pytest.mark.parametrize("before_5", [False, True])
@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_hugging_faces_weights_load(kind, before_5):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=16, patch_size=4, layer_norm_eps=1e-6, num_labels=5,
    )  # fmt: skip
    suffix = "WithTeacher" if kind == "DeiT" else ""
    peer = getattr(transformers, f"{kind}ForImageClassification{suffix}")(config)
    state = redraw(peer.eval(), 1).state_dict()
    if before_5:
        for pattern, replacement in NAMES_BEFORE_5:
            state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    pool = DistilledToken if kind == "DeiT" else ClassToken
    ours = load_official(small(16, num_classes=5, pool=pool).eval(), state)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours(images), peer(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda classes: small(16, num_classes=classes), "a head of 5 classes left out, the new"),
        (
            lambda classes: small(4 * classes, num_classes=classes, pool=DistilledToken),
            "a head of 5 .*; position.table resized from 27 to 11 places",
        ),
        (lambda classes: ResNet(10, width=8, num_classes=classes), "the new one of 3 starts at"),
        (
            lambda classes: Swin(32, 2, 8, (1, 1), (1, 2), window=classes, num_classes=classes),
            "stages.0.blocks.0.attention.position.table and 1 more resized from 81 to 25 places",
        ),
    ],
    ids=["ViT", "distilled", "ResNet", "Swin"],
)
def test_a_new_head_starts_at_zero_and_the_rest_is_loaded(make, line):
    theirs, ours = redraw(make(5), 1), make(3)
    said = start_from(ours, theirs.state_dict())
    assert re.search(line, said)
    assert "\n" not in said
    assert all(not parameter.any() for parameter in ours.head.parameters())
    for key, value in theirs.state_dict().items():
        if not key.startswith("head.") and value.shape == ours.state_dict()[key].shape:
            torch.testing.assert_close(ours.state_dict()[key], value)


def test_weights_of_the_same_classes_are_loaded_whole():
    theirs, ours = redraw(small(16, num_classes=3), 1), small(16, num_classes=3)
    assert start_from(ours, theirs.state_dict()).endswith("all loaded")
    assert torch.equal(ours.head.weight, theirs.head.weight)


def mistakes():
    network = small(16, num_classes=3)
    state = network.state_dict()
    half = dict(list(state.items())[: len(state) // 2])
    distilled = small(16, num_classes=3, pool=DistilledToken).state_dict()
    yield small(24, num_classes=3).state_dict(), "6 x 6 patches, .* 4 x 4: .*image_size=24, or"
    yield small(16, num_classes=5).state_dict(), "has 5 classes, the model 3: .*leave out"
    yield small(24, num_classes=5).state_dict(), "has 5 classes.*; has position.table"
    shallow = small(24, num_classes=5, depth=1).state_dict()
    yield shallow, "does not fit the model: it is a ViT of depth 1"
    yield half, "is missing"
    yield distilled, "is not in the model"
    yield ResNet(10, width=8).state_dict(), "does not fit the model|no known layout"
    yield torchvision.models.resnet18().state_dict(), "ResNet of torchvision or timm. does not fit"


def test_a_resnet_of_another_size_is_named():
    state, size = torchvision.models.resnet50().state_dict(), "depth 50 and width 64"
    with pytest.raises(InputError, match=f"is a ResNet of {size}, the model's has depth 10"):
        load_official(ResNet(10, width=8), state)


def test_what_does_not_fit_is_refused_in_one_line():
    network = small(16, num_classes=3)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for state, words in mistakes():
        with pytest.raises(InputError, match=words) as caught:
            load_official(network, state)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_the_file_is_named_when_fine_tuning_fails(tmp_path):
    torch.save(ResNet(10, width=8).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"resnet\.pth .*(no known layout|does not fit)"):
        start_from(small(16, num_classes=3), tmp_path / "resnet.pth")


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(InputError, match=r"^ViT: width 16 is not a multiple of heads 3$"):
        small(16, heads=3, attention=MultiHeadAttention)


def test_a_run_folder_is_a_source(tmp_path):
    theirs, ours = redraw(small(16, num_classes=3), 1), small(16, num_classes=3)
    state = {f"network.{key}": value for key, value in theirs.state_dict().items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"state_dict": state | {"metric": torch.ones(1)}}, tmp_path / "checkpoints/last.ckpt"
    )
    load_official(ours, tmp_path)
    assert torch.equal(ours.head.weight, theirs.head.weight)
    with pytest.raises(InputError, match=r"best\.ckpt: no such file"):
        load_official(ours, tmp_path / "checkpoints")


def test_what_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    assert is_name("timm/vit_base_patch16_224.augreg_in1k")
    assert is_name("torchvision:vit_b_16")
    assert not is_name("weights/vit_base")  # a folder that is here: a path that was mistyped
    assert not any(is_name(f"absent/vit{end}") for end in (".pth", ".pt", ".ckpt", ".safetensors"))
    assert not is_name("runs/classification/absent")


def test_torchvisions_weights_come_by_name(monkeypatch):
    peer = torchvision.models.resnet18()
    asked = []

    def load(url, **options):
        asked.append(url)
        return peer.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", load)
    ours = load_official(ResNet(18), "torchvision:resnet18")
    assert torch.equal(ours.head.weight, peer.fc.weight)
    download("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url] * 2

    def offline(url, **options):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    for name, words in (
        ("torchvision:resnet18", "not reached .no network.: download"),
        ("torchvision:resnet19", "no such weights; nearest: resnet1"),
        ("torchvision:ResNet18_Weights.V9", "no such weights"),
        ("torchvision:Absent_Weights.V1", "no such weights"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_official(ResNet(18), name)
        assert "\n" not in str(caught.value)


def test_the_hubs_weights_come_by_name(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")
    theirs, ours = redraw(small(16, num_classes=3), 1), small(16, num_classes=3)
    file = tmp_path / "pytorch_model.bin"
    torch.save(theirs.state_dict(), file)

    def only_bin(name, filename):
        if filename != file.name:
            raise errors.EntryNotFoundError("absent")
        return str(file)

    monkeypatch.setattr(hub, "hf_hub_download", only_bin)
    load_official(ours, "owner/model")
    assert torch.equal(ours.head.weight, theirs.head.weight)

    def fails(error):
        def hf_hub_download(name, filename):
            raise error

        return hf_hub_download

    for error, words in (
        (errors.LocalEntryNotFoundError("offline\nsecond line"), "hub does not answer"),
        (ConnectionError("offline"), "hub does not answer"),
        (errors.EntryNotFoundError("absent"), "has none of model.safetensors"),
        (missing_model(errors), "no public model of this name"),
    ):
        monkeypatch.setattr(hub, "hf_hub_download", fails(error))
        with pytest.raises(InputError, match=words) as caught:
            load_official(ours, "owner/absent")
        assert "\n" not in str(caught.value)


def missing_model(errors):
    """RepositoryNotFoundError wants the answer of a server."""
    return errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)


def test_the_command_fine_tunes_and_says_so(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from attention_vision.__main__ import main
    from attention_vision.cli.task import main as run_task

    file = tmp_path / "vit.pth"
    torch.save(small(24, num_classes=3).state_dict(), file)
    network = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    arguments = [
        "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--data=Digits",
        "--data.image_size=16", "--data.batch_size=8", "--model.network=ViT",
        *(f"--model.network.{key}={value}" for key, value in network.items()),
        f"--run={tmp_path / 'run'}",
    ]  # fmt: skip
    assert run_task("classification", "fit", [*arguments, "--weights", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("weights: ") == 1
    assert "a head of 3 classes left out, the new one of 10 starts at zero; position" in printed
    assert main(["classification", "validate", *arguments, f"--weights={file}"]) == 1
    assert "has 3 classes, the model 10" in capsys.readouterr().err


def test_a_fine_tuned_run_goes_on_without_the_weights_it_began_from(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from attention_vision.cli.task import main as run_task

    file, run = tmp_path / "vit.pth", tmp_path / "run"
    torch.save(small(24, num_classes=3).state_dict(), file)
    network = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    arguments = [
        "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1", "--data=Digits", "--data.image_size=16",
        "--data.batch_size=8", "--model.network=ViT", f"--run={run}", f"--weights={file}",
        *(f"--model.network.{key}={value}" for key, value in network.items()),
    ]  # fmt: skip
    assert run_task("classification", "fit", arguments) == 0
    file.unlink()
    config = ["-c", str(run / "config.yaml")]
    assert run_task("classification", "validate", config) == 0
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert run_task("classification", "fit", [*config, *more]) == 0
    assert capsys.readouterr().out.count("weights: ") == 1
