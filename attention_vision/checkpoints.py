"""Official weights: read the state dicts of the peers' libraries into this package's networks."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn

from attention_vision.errors import InputError
from attention_vision.layouts import LAYOUTS
from attention_vision.layouts.swin import resize_biases

Model = TypeVar("Model", bound=nn.Module)

# What of a detector belongs to its classes: the start of the keys, the bias of the logits, of which
# there is one more than classes, and how many classes the released weights have.
CLASS_HEADS = (
    ("class_head.", "bias", "COCO ids as they are need 91"),
    ("roi_heads.box_head.predictor.", "cls_score.bias", "COCO ids from 1 need 90"),
)


def load_official(
    model: Model, source: str | Path | Mapping[str, Tensor], leave_out: tuple[str, ...] = ()
) -> Model:
    """Load the weights that another library or a paper's authors released.

    Recognised by their keys: ResNet of torchvision and timm, SE-ResNet of timm, CBAM-ResNet of the
    official release, EfficientNet of torchvision and timm, ViT of torchvision, ViT and DeiT of
    timm, Swin of the official release, torchvision and timm, DETR of the official release and of
    Hugging Face, before transformers 5 and since, Faster R-CNN R50-FPN of torchvision. The model's
    own state dict is taken as it is. Relative position biases are resized to the windows of the
    model.

    A state dict says nothing about the `eps` of norms. Torchvision's released Faster R-CNN
    (COCO_V1) was trained with 0: `norm=partial(FrozenBatchNorm2d, eps=0.0)`. Nor does it show how
    convolutions pad: timm's `tf_efficientnet_*` load into EfficientNet and answer wrongly.

    Args:
        model: a network of this package with the shapes of the weights.
        source: a state dict, or a file that `torch.load(weights_only=True)` or safetensors reads;
            a dict that holds one under "state_dict" or "model" is opened, and the prefix "module."
            of a parallel wrapper is cut off.
        leave_out: starts of this package's keys that are not loaded: `("class_head.",)` fine-tunes
            DETR on other classes, `("roi_heads.box_head.predictor.",)` Faster R-CNN, and
            `("head.",)` gives a backbone the weights of a classifier.

    Returns:
        the same model, all of its weights loaded but those left out.

    Raises:
        InputError: the file cannot be read, the keys belong to no known layout, or something does
            not fit. The model is then unchanged.
    """
    state = read(source) if isinstance(source, str | Path) else source
    where = str(source) if isinstance(source, str | Path) else "state dict"
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    state = {key.removeprefix("module."): value for key, value in state.items()}

    own = model.state_dict()
    layout = next((one for one in LAYOUTS if state.keys() >= set(one.signature)), None)
    if layout is not None:
        state = layout.translate(state)
    elif not state.keys() & own.keys():
        raise InputError(
            f"{where}: the keys ({', '.join(list(state)[:3])}, ...) belong to no known layout; "
            f"known are {'; '.join(one.name for one in LAYOUTS)}"
        )
    state = resize_biases(state, own)

    # Frozen batch norms do not count batches, nor did any before torch 0.4.1.
    counters = {key for key in state.keys() ^ own.keys() if key.endswith(".num_batches_tracked")}
    left_out = {key for key in own.keys() | state.keys() if key.startswith(leave_out)} | counters
    state = {key: value for key, value in state.items() if key not in left_out}
    own = {key: value for key, value in own.items() if key not in left_out}

    name = layout.name if layout else "this package's own"
    for start, bias, released in CLASS_HEADS:
        theirs, ours = (len(one.get(start + bias, ())) - 1 for one in (state, own))
        if min(theirs, ours) > 0 and theirs != ours:
            raise InputError(
                f"{where} ({name}) detects {theirs} classes, the model {ours}: set num_classes to "
                f'{theirs} ({released}), or leave out "{start}" to fine-tune'
            )
    problems = [f"{key} is missing" for key in own.keys() - state.keys()]
    problems += [f"{key} has no place" for key in state.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError(f"{where} ({name}) does not fit the model: {shown}{more}")
    model.load_state_dict(state, strict=False)  # all but what is left out, as checked above
    return model


def load_backbone(backbone: Model, source: str | Path) -> Model:
    """Give a backbone the weights of a classifier, without its pool and head.

    Args:
        backbone: a network of this package.
        source: a run folder of classification, of which the best checkpoint is taken (else the
            last), or a file as `load_official` reads it.

    Raises:
        InputError: there is no checkpoint, or the weights do not fit.
    """
    path = Path(source)
    if path.is_dir():
        kept = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        path = next((file for file in kept if file.is_file()), kept[0])
    state = read(path)
    state = state.get("state_dict", state)
    start = "network."  # a checkpoint of training holds the network beside its metrics
    inside = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
    return load_official(backbone, inside or state, leave_out=("pool.", "head."))


def read(path: str | Path) -> Mapping[str, Tensor]:
    """A state dict from a file of torch (tensors only) or safetensors."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a downloaded state dict")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own text advises to load it unsafely
        raise InputError(
            f"{path}: not readable as a state dict: a broken file, another format, or objects that"
            " are no tensors, which could run code and are refused"
        ) from error
    except Exception as error:
        raise InputError(f"{path}: not readable as a state dict ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
