"""The classifier: targets, metrics, averages, precision, predictions."""

import csv
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_run import classifier, curves, digits, train
from torch.nn.functional import cross_entropy, one_hot
from torchvision.utils import save_image

from attention_vision.backbones import ResNet, ViT
from attention_vision.classification import Classifier, Digits
from attention_vision.classification.explanation import ClassifierExplainer
from attention_vision.classification.module import mixing
from attention_vision.data.digits import single_digits
from attention_vision.errors import InputError
from attention_vision.visualization.explainer import DrawOptions


def quiet(folder: Path, **options: object) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"accelerator": "cpu", "max_epochs": 1, **options},
    )


def test_mixing_gives_soft_targets() -> None:
    images, labels = torch.rand(8, 3, 6, 6), torch.arange(8) % 5
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        mixed, targets = mixing(mixup, cutmix, 5)(images, labels)
        assert mixed.shape == images.shape
        assert targets.shape == (8, 5)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        previous = one_hot(labels.roll(1), 5)
        assert (targets[one_hot(labels, 5) + previous == 0] == 0).all()
    unmixed, targets = mixing(0.0, 0.0, 5)(images, labels)
    assert unmixed is images
    assert targets is labels


def test_mixing_ends_with_its_last_epoch(tmp_path: Path) -> None:
    """In a run that is resumed in that epoch, too; from then on targets are labels."""
    mixed: list[tuple[int, bool]] = []

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Trainer, module: Classifier, *_: object) -> None:
            mixed.append((trainer.current_epoch, bool(calls)))
            calls.clear()  # the first picture of a batch mixes too

    calls: list[bool] = []
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    two = {"limit_train_batches": 2, "limit_val_batches": 0}
    for checkpoint in (None, tmp_path / "step=3.ckpt"):
        module = classifier()
        assert module.mix_epochs == 2
        module.mix.register_forward_pre_hook(lambda *_: calls.append(True))
        train(tmp_path, 0, checkpoint, [Watch(), saving], module, **two)
    whole = [(epoch, epoch < 2) for epoch in (0, 0, 1, 1, 2, 2)]
    assert mixed == whole + whole[3:]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixup": -1},
        {"cutmix": -1},
        {"label_smoothing": 1.5},
        {"ema_decay": 2},
        {"layer_decay": 0},
        {"mix_epochs": -1},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is .*: it has to be"):
        Classifier(ViT(16, 8, width=16, depth=1, heads=2, num_classes=10), **wrong)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_learns(tmp_path: Path, precision: str, channels_last: bool) -> None:
    network = ResNet(depth=18, width=8, num_classes=10, stem="cifar")
    module = Classifier(network, partial(torch.optim.AdamW, lr=1e-2), channels_last=channels_last)
    trainer = quiet(tmp_path, precision=precision, max_epochs=2)
    trainer.fit(module, Digits(image_size=8, batch_size=128))
    assert trainer.callback_metrics["val/top1"] > 0.5
    assert trainer.callback_metrics["val/top5"] > 0.9
    assert module.train_loss.update_count == 0  # reset at the end of the epoch


def test_logged_values_are_those_of_all_images(tmp_path: Path) -> None:
    module = train(tmp_path, 0, max_epochs=1)
    row = curves(tmp_path)[-1]
    data = digits()
    data.setup("validate")
    module.eval()
    pairs = (data.val_images[number] for number in range(len(data.val_images)))
    images, labels = zip(*pairs, strict=True)
    with torch.no_grad():  # the trained module holds the averaged weights, as validation did
        logits, labels = module(torch.stack(images)), torch.tensor(labels)
    hits = logits.topk(5).indices == labels[:, None]
    assert float(row["val/top1"]) == pytest.approx(hits[:, 0].double().mean().item())
    assert float(row["val/top5"]) == pytest.approx(hits.any(1).double().mean().item())
    assert float(row["val/loss"]) == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)


def test_train_loss_is_the_mean_of_the_steps(tmp_path: Path) -> None:
    train(tmp_path, 0, max_epochs=1)
    rows = curves(tmp_path)
    losses = [float(row["train/loss_step"]) for row in rows]
    assert float(rows[-1]["train/loss"]) == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert [row["train/loss"] for row in rows[:-1]] == [""] * (len(rows) - 1)


def test_accumulated_batches_are_one_row(tmp_path: Path) -> None:
    train(tmp_path, 0, max_epochs=1, accumulate_grad_batches=2)
    rows = curves(tmp_path)
    assert [row["step"] for row in rows] == ["0", "1", "2"]  # of five batches
    assert all(1.5 < float(row["train/loss_step"]) < 3.5 for row in rows)


def test_the_stem_learns_most_slowly(tmp_path: Path) -> None:
    network = ViT(16, 8, width=16, depth=2, heads=2, num_classes=10)
    module = Classifier(network, partial(torch.optim.SGD, lr=1.0), layer_decay=0.1)
    quiet(tmp_path, max_steps=1).fit(module, digits())
    rates = {
        id(parameter): group["initial_lr"]
        for group in module.trainer.optimizers[0].param_groups
        for parameter in group["params"]
    }
    parts = (network.patches, network.blocks[0].norm1, network.blocks[1].norm2, network.head)
    assert [rates[id(part.weight)] for part in parts] == pytest.approx([1e-3, 1e-2, 1e-1, 1])


def test_few_classes_have_no_top5(tmp_path: Path) -> None:
    network = ResNet(depth=18, width=8, num_classes=4, stem="cifar")
    assert list(Classifier(network).accuracies["val"]) == ["val/top1"]


def test_the_average_of_the_weights_is_what_is_saved(tmp_path: Path) -> None:
    module = train(tmp_path, 0, None, [ModelCheckpoint(tmp_path, "last")], max_epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    averaged, current = saved["state_dict"], saved["current_model_state"]
    name = "network.head.weight"
    assert not torch.equal(averaged[name], current[name])
    assert torch.equal(averaged[name], module.state_dict()[name])  # ends as the average, too


def test_wrong_class_count_is_one_line(tmp_path: Path) -> None:
    network = ViT(image_size=16, patch_size=8, width=16, depth=1, heads=2, num_classes=7)
    with pytest.raises(InputError, match=r"has 7 classes, Digits 10: set num_classes"):
        quiet(tmp_path).fit(Classifier(network), digits())


def test_official_weights_are_loaded_unless_a_checkpoint_is(tmp_path: Path) -> None:
    def network() -> ViT:
        return ViT(image_size=16, patch_size=8, width=16, depth=1, heads=2, num_classes=10)

    source, fresh = network(), network()
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    module = Classifier(fresh, weights=str(tmp_path / "weights.pt"))
    quiet(tmp_path).validate(module, digits(), verbose=False)
    for name, value in source.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value), name
    learned = {key: value + 1 for key, value in module.state_dict().items()}
    module.load_state_dict(learned)
    quiet(tmp_path).validate(module, digits(), verbose=False)
    for name in source.state_dict():
        assert torch.equal(module.network.state_dict()[name], learned[f"network.{name}"]), name


def test_predictions(tmp_path: Path) -> None:
    images, _ = single_digits("val", 16)
    (tmp_path / "images").mkdir()
    for number in range(3):
        save_image(images[number], tmp_path / "images" / f"{number}.png")
    data = digits()
    data.images = str(tmp_path / "images")
    quiet(tmp_path).predict(classifier(), data)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbers = range(1, 6)
    columns = ["file", *(f"class_{n}" for n in numbers), *(f"probability_{n}" for n in numbers)]
    assert list(rows[0]) == columns
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    for row in rows:
        probabilities = [float(row[f"probability_{n}"]) for n in numbers]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5
        assert {row[f"class_{n}"] for n in numbers} <= set("0123456789")
    alone = quiet(tmp_path / "alone").predict(classifier(), data.predict_dataloader())
    assert [path for paths, *_ in alone for path in paths] == [row["file"] for row in rows]
    assert not (tmp_path / "alone" / "predictions.csv").exists()  # names of classes are not known


def test_mirror_images_are_averaged_in_evaluation() -> None:
    module = classifier()
    module.test_time_flip = True
    images = torch.randn(2, 3, 16, 16)
    logits = module.eval().measured(images)
    torch.testing.assert_close(logits, module.measured(images.flip(-1)))
    torch.testing.assert_close(logits, (module(images) + module(images.flip(-1))) / 2)
    assert not torch.allclose(logits, module(images))
    shown, _ = ClassifierExplainer(module, [], DrawOptions()).predict(images, [])
    torch.testing.assert_close(shown, logits.softmax(1))


def test_a_prediction_that_is_stopped_keeps_its_rows(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_predict_batch_start(self, trainer, module, batch, batch_idx, *_) -> None:
            if batch_idx == 2:
                raise RuntimeError("stopped")

    images, _ = single_digits("val", 16)
    (tmp_path / "images").mkdir()
    for number in range(5):
        save_image(images[number], tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    whole = ["0.png", "2.png", "3.png", "4.png"]
    for callbacks, rows in (([Stop()], whole[:2]), ([], whole)):
        data = digits()
        data.images, data.batch_size = str(tmp_path / "images"), 1
        with pytest.raises(RuntimeError, match="stopped") if callbacks else nullcontext():
            quiet(tmp_path, callbacks=callbacks).predict(classifier(), data)
        with (tmp_path / "predictions.csv").open() as file:
            assert [Path(row["file"]).name for row in csv.DictReader(file)] == rows
        assert list(data.findings["predict"].broken) == [str(tmp_path / "images" / "1.png")]
